"""The refiner on NVIDIA GPUs, for GPU arrays of any library and for NumPy arrays."""

from jointbert.runtimes.cuda.backend import CudaBackend
from jointbert.runtimes.cuda.poses import DeviceBatch, DeviceResult

__all__ = ["CudaBackend", "DeviceBatch", "DeviceResult"]
