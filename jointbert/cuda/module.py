"""The native module ``jointbert._cuda``: loading it, saying what is missing, and what CUDA says."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

_NOT_BUILT_FOR = (98, 200, 209, 218, 222)
"""What CUDA says where there is no code for a GPU: invalid function or image, no image, PTX that can't be translated."""


@lru_cache(maxsize=1)
def load_module() -> Any:
    """``jointbert._cuda``.

    Raises:
        ImportError: this installation was built without it.
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
    """Calls a function of the module.

    Raises:
        RuntimeError: what CUDA says, and what this build and this machine have to do with it.
    """
    try:
        return function(*arguments)
    except RuntimeError as error:
        module = load_module()
        _, missing = module.devices()
        if not missing and any(f"(CUDA error {code})" in str(error) for code in _NOT_BUILT_FOR):
            missing = f"the kernels are built for {module.ARCHITECTURES}"
        raise RuntimeError(f"{error}; {missing}" if missing else str(error)) from None
