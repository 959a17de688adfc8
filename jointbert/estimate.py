"""Former name of :mod:`jointbert.estimator`, kept for existing imports."""

from jointbert.estimator import Estimated, Estimator

__all__ = ["Estimated", "Estimator"]
