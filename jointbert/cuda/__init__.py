"""The GPU module and what it works on: loading it, arrays of other libraries, recorded work, keypoints from heatmaps.

Importing this package loads neither the module nor CUDA; the first use does, and says what is missing.
"""

from jointbert.cuda.arrays import DeviceArray, is_on_gpu
from jointbert.cuda.graph_session import GraphSession
from jointbert.cuda.heatmaps import soft_argmax, soft_argmax_depth
from jointbert.cuda.module import load_module

__all__ = ["DeviceArray", "GraphSession", "is_on_gpu", "load_module", "soft_argmax", "soft_argmax_depth"]
