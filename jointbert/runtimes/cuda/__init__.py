"""The refiner on NVIDIA GPUs, behind arrays of any library and behind NumPy."""

from jointbert.runtimes.cuda.backend import CudaBackend
from jointbert.runtimes.cuda.poses import DeviceBatch, DeviceResult

__all__ = ["CudaBackend", "DeviceBatch", "DeviceResult"]
