"""Arrays of any library in, the same library's out: NumPy, torch, whatever speaks DLPack or ``__array__``, lists."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

_CPU_DEVICES = (1, 3)  # DLPack's kDLCPU and kDLCUDAHost
_GPU_ADVICE = "where it can't be used here; pass an array in the host's memory"

Restore = Callable[[np.ndarray], Any]


def to_numpy(value: Any, name: str) -> tuple[np.ndarray, Restore]:
    """A NumPy view or copy of ``value``, and what turns a NumPy result into the library of ``value``.

    The result of ``restore`` has the dtype of the array that it is given. bfloat16 arrays are given as float32; their
    ``restore`` turns float32 results into bfloat16 again.

    Subclasses (a torch Parameter, a NumPy subclass) come back as their library's plain array; what speaks DLPack or
    ``__array__`` alone comes back as NumPy.

    Raises:
        TypeError: not an array, an array that is no plain one (sparse, masked, with a gradient). ValueError: on a GPU, ragged.
    """
    try:
        return _to_numpy(value, name)
    except Exception as error:  # whatever another library raises when it is asked for its numbers
        if isinstance(error, (TypeError, ValueError)) and str(error).startswith(f"{name}: "):
            raise
        reason = " ".join(str(error).split())
        raise TypeError(f"{name}: the {type(value).__name__} can't be read as an array ({reason})") from error


def _to_numpy(value: Any, name: str) -> tuple[np.ndarray, Restore]:
    if isinstance(value, np.ndarray):
        return _from_bfloat16(_unmasked(value, name))
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return _from_torch(torch, value, name)
    if isinstance(value, (list, tuple)):
        return _from_list(value, name), _identity
    if isinstance(value, (int, float, np.generic)):
        return np.asarray(value), _identity
    if isinstance(value, (str, bytes, dict, set)) or value is None:
        raise TypeError(f"{name}: got {type(value).__name__}; expected an array")
    if hasattr(value, "__dlpack_device__"):
        device = value.__dlpack_device__()
        if int(device[0]) not in _CPU_DEVICES:
            raise ValueError(f"{name}: the {type(value).__name__} is on a device, {_GPU_ADVICE}")
    if hasattr(value, "__array__"):
        array = _unmasked(np.asanyarray(value), name)
    elif hasattr(value, "__dlpack__"):
        array = np.from_dlpack(value)
    else:
        raise TypeError(
            f"{name}: got {type(value).__name__}; expected an array (NumPy, torch, DLPack, __array__) or a nested list"
        )
    array, down = _from_bfloat16(array)
    if hasattr(value, "__array_namespace__"):
        library = value.__array_namespace__()
        return array, lambda result: library.asarray(down(result))
    return array, down


def _unmasked(array: np.ndarray, name: str) -> np.ndarray:
    """The plain array; a mask that NumPy would drop without a word is an error."""
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{name}: got a masked array; pass values.filled(numpy.nan), or the mask as visible=")
    return np.asarray(array)


def _from_list(value: Any, name: str) -> np.ndarray:
    """Numbers of a nested list; floating-point ones as float64."""

    def check(item: Any) -> None:
        if isinstance(item, (list, tuple)):
            for element in item:
                check(element)
        elif not isinstance(item, (int, float)):
            to_numpy(item, name)  # a mask, a gradient, a GPU, a string

    check(value)
    try:
        array = np.asarray(value)
    except ValueError:
        raise ValueError(f"{name}: got a nested list of uneven lengths; expected a rectangular array") from None
    return array.astype(np.float64) if array.dtype.kind == "f" else array


def _identity(result: np.ndarray) -> np.ndarray:
    return result


def _from_bfloat16(array: np.ndarray) -> tuple[np.ndarray, Restore]:
    dtype = array.dtype
    if dtype.name != "bfloat16":  # the dtype that the package ml_dtypes registers
        return array, _identity
    return array.astype(np.float32), lambda result: result.astype(dtype) if result.dtype == np.float32 else result


def _from_torch(torch: Any, tensor: Any, name: str) -> tuple[np.ndarray, Restore]:
    if tensor.requires_grad:
        raise TypeError(f"{name}: the tensor requires grad, and refinement is not differentiable here; pass {name}.detach()")
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise TypeError(f"{name}: got a sparse or quantized tensor; expected a dense one")
    if tensor.device.type != "cpu":
        raise ValueError(f"{name}: the tensor is on {tensor.device}, {_GPU_ADVICE}")
    dtype = tensor.dtype
    if dtype != torch.bfloat16:
        return tensor.resolve_conj().resolve_neg().numpy(), torch.from_numpy

    def restore(result: np.ndarray) -> Any:
        out = torch.from_numpy(result)
        return out.to(dtype) if result.dtype == np.float32 else out

    return tensor.float().numpy(), restore
