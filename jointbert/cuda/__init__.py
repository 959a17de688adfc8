"""GPU support shared by the refiner and the heatmap kernels: the native module, arrays of other libraries, CUDA graphs.

Importing this package loads neither the native module nor CUDA. The first use does, and raises an error that says what is
missing.
"""

from jointbert.cuda.arrays import DeviceArray, is_on_gpu
from jointbert.cuda.graph_session import GraphSession
from jointbert.cuda.heatmaps import soft_argmax, soft_argmax_depth
from jointbert.cuda.module import load_module

__all__ = ["DeviceArray", "GraphSession", "is_on_gpu", "load_module", "soft_argmax", "soft_argmax_depth"]
