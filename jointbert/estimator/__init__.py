"""The thesis's whole estimator for users: images in, 14 joints out, by torch or by ONNX Runtime, NumPy on both sides."""

from jointbert.estimator.estimator import DEVICES, PRECISIONS, Estimator
from jointbert.estimator.result import Estimated

__all__ = ["DEVICES", "PRECISIONS", "Estimated", "Estimator"]
