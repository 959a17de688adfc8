"""The kernels for NVIDIA GPUs (``csrc/cuda``): loading them, and saying what is missing."""

from __future__ import annotations

from functools import lru_cache
from typing import Any


@lru_cache(maxsize=1)
def load_module() -> Any:
    """``jointbert._cuda``.

    Raises:
        ImportError: this installation was built without it.
    """
    try:
        from jointbert import _cuda
    except ImportError as error:
        raise ImportError(
            f"jointbert: this installation has no GPU kernels ({error}); install it where nvcc and a GPU are found, or with "
            "-C cmake.define.JOINTBERT_CUDA_ARCHS=all"
        ) from None
    return _cuda
