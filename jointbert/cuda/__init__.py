"""GPU code: the CUDA module's loader, arrays of other libraries, ``GraphSession``, keypoints from heatmaps.

Importing this package loads neither the CUDA module nor the files below it: ``import jointbert`` needs one of them alone.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jointbert.cuda.arrays import DeviceArray
    from jointbert.cuda.detect import is_on_gpu
    from jointbert.cuda.graph_session import GraphSession
    from jointbert.cuda.heatmaps import soft_argmax, soft_argmax_depth
    from jointbert.cuda.module import load_module

__all__ = ["DeviceArray", "GraphSession", "is_on_gpu", "load_module", "soft_argmax", "soft_argmax_depth"]

_FILES = {
    "DeviceArray": "arrays",
    "GraphSession": "graph_session",
    "is_on_gpu": "detect",
    "load_module": "module",
    "soft_argmax": "heatmaps",
    "soft_argmax_depth": "heatmaps",
}


def __getattr__(name: str) -> Any:
    if name not in _FILES:
        raise AttributeError(f"module 'jointbert.cuda' has no attribute {name!r}")
    return getattr(importlib.import_module(f"jointbert.cuda.{_FILES[name]}"), name)
