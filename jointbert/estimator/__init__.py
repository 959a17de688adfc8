"""The thesis's complete estimator: NumPy images in, 14 joints out, with torch or ONNX Runtime."""

from jointbert.estimator.estimator import DEVICES, PRECISIONS, Estimator
from jointbert.estimator.result import Estimated

__all__ = ["DEVICES", "PRECISIONS", "Estimated", "Estimator"]
