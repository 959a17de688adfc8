"""Loads the native module ``jointbert._cuda`` and explains CUDA errors: what this build or this machine lacks."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

_NOT_BUILT_FOR = (98, 200, 209, 218, 222)
"""CUDA error codes of a build without code for the GPU: invalid function or image, no image, PTX that can't be compiled."""


@lru_cache(maxsize=1)
def load_module() -> Any:
    """Imports ``jointbert._cuda``.

    Raises:
        ImportError: this installation was built without it, or it can't be loaded.
    """
    try:
        from jointbert import _cuda
    except ImportError as error:
        built = any(path.suffix in (".so", ".pyd") for path in Path(__file__).parents[1].glob("_cuda*"))
        reason = f" that load ({error})" if built else ""
        raise ImportError(
            f"jointbert: this installation has no GPU kernels{reason}; install it where nvcc and a GPU are found, or, "
            "with nvcc alone, with -C cmake.define.JOINTBERT_CUDA_ARCHS=all"
        ) from None
    return _cuda


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function of the native module.

    Raises:
        RuntimeError: a CUDA error; the message adds what this build or this machine lacks.
    """
    try:
        return function(*arguments)
    except RuntimeError as error:
        module = load_module()
        _, missing = module.devices()
        if not missing and any(f"(CUDA error {code})" in str(error) for code in _NOT_BUILT_FOR):
            missing = f"the kernels are built for {module.ARCHITECTURES}"
        raise RuntimeError(f"{error}; {missing}" if missing else str(error)) from None
