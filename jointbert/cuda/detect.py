"""Whether a value is an array on a GPU: asked in every call of refine(), so this file imports nothing else of the package."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

DLPACK_CUDA, DLPACK_MANAGED = 2, 13
"""DLPack's device types of a GPU's memory."""


def is_on_gpu(value: Any) -> bool:
    """Whether a value is an array on a GPU. The check is cheap for values that are not."""
    if isinstance(value, (np.ndarray, list, tuple, int, float, str)) or value is None:
        return False
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return bool(value.is_cuda)
    if isinstance(value, type):
        return False
    try:
        if hasattr(value, "__cuda_array_interface__"):
            return True
        return hasattr(value, "__dlpack_device__") and int(value.__dlpack_device__()[0]) in (DLPACK_CUDA, DLPACK_MANAGED)
    except Exception:  # a broken protocol: reading the array reports it
        return False
