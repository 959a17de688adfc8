"""The kernels for NVIDIA GPUs (``csrc/cuda``): loading them, and saying what is missing."""

from __future__ import annotations

from collections.abc import Callable
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
            f"jointbert: this installation has no GPU kernels ({error}); install it where nvcc and a GPU are found, or, "
            "with nvcc alone, with -C cmake.define.JOINTBERT_CUDA_ARCHS=all"
        ) from None
    return _cuda


def call(function: Callable[..., None], *arguments: Any) -> None:
    """Calls a function of the module.

    Raises:
        RuntimeError: what CUDA says, and what this build and this machine have to do with it.
    """
    try:
        function(*arguments)
    except RuntimeError as error:
        module = load_module()
        _, missing = module.devices()
        raise RuntimeError(f"{error}; {missing or f'the kernels are built for {module.ARCHITECTURES}'}") from None
