"""Converts arrays of any library (NumPy, torch, DLPack, ``__array__``, lists) to NumPy, and results back to that library."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

_CPU_DEVICES = (1, 3)  # DLPack's kDLCPU and kDLCUDAHost
_GPU_ADVICE = "where it can't be used here; pass an array in the host's memory"

Restore = Callable[[np.ndarray], Any]


def to_numpy(value: Any, name: str) -> tuple[np.ndarray, Restore]:
    """A NumPy view or copy of ``value``, and a function that converts NumPy results to the library of ``value``.

    The function keeps the result's dtype. bfloat16 input is converted to float32, and its float32 results to bfloat16.

    For subclasses (a torch Parameter, a NumPy subclass) results are plain arrays of the library. For objects that only have
    DLPack or ``__array__``, they are NumPy arrays.

    Raises:
        TypeError: not an array, or not a plain one (sparse, masked, with a gradient). ValueError: an array on a GPU, a ragged
            list.
    """
    try:
        return _to_numpy(value, name)
    except Exception as error:  # other libraries raise errors of any type
        if isinstance(error, (TypeError, ValueError)) and str(error).startswith(f"{name}: "):
            raise
        reason = " ".join(str(error).split())
        raise TypeError(f"{name}: the {type(value).__name__} can't be read as an array ({reason})") from error


def _to_numpy(value: Any, name: str) -> tuple[np.ndarray, Restore]:
    if isinstance(value, np.ndarray):
        return _from_bfloat16(_check_unmasked(value, name))
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
        array = _check_unmasked(np.asanyarray(value), name)
    elif hasattr(value, "__dlpack__"):
        array = np.from_dlpack(value)
    else:
        raise TypeError(
            f"{name}: got {type(value).__name__}; expected an array (NumPy, torch, DLPack, __array__) or a nested list"
        )
    array, to_bfloat16 = _from_bfloat16(array)
    if hasattr(value, "__array_namespace__"):
        library = value.__array_namespace__()
        return array, lambda result: library.asarray(to_bfloat16(result))
    return array, to_bfloat16


def _check_unmasked(array: np.ndarray, name: str) -> np.ndarray:
    """A plain array; raises for a masked array, whose mask NumPy would drop silently."""
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{name}: got a masked array; pass values.filled(numpy.nan), or the mask as visible=")
    return np.asarray(array)


def _from_list(value: Any, name: str) -> np.ndarray:
    """The array of a nested list; floating-point numbers become float64."""

    def check(item: Any) -> None:
        if isinstance(item, (list, tuple)):
            for element in item:
                check(element)
        elif not isinstance(item, (int, float)):
            to_numpy(item, name)  # raises for unsuitable items: a mask, a gradient, a GPU array, a string

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
