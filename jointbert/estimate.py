"""The estimator by the former name of :mod:`jointbert.estimator`."""

from jointbert.estimator import Estimated, Estimator

__all__ = ["Estimated", "Estimator"]
