"""Reads GPU arrays of any library: whether a value is one, its address and shape, and its library's CUDA stream."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np

from jointbert.cuda.detect import DLPACK_CUDA, DLPACK_MANAGED, is_on_gpu
from jointbert.cuda.device_array import (
    LEGACY_STREAM,
    NUMPY_TYPES,
    TYPES,
    DeviceArray,
    Library,
    bits_of,
)
from jointbert.cuda.libraries import CuPyLibrary, OtherLibrary, TorchLibrary
from jointbert.cuda.module import call, load_module

__all__ = ["NUMPY_TYPES", "DeviceArray", "Library", "is_on_gpu", "read"]

_DTYPE_OF_TYPESTR = {kind: name for name, (kind, _, _) in TYPES.items()}
_DTYPE_OF_DLPACK = {kind: name for name, (_, kind, _) in TYPES.items()}
_MAX_VALUES = 1 << 48


def read(value: Any, name: str, cuda_stream: int | None = None) -> tuple[DeviceArray, Library]:
    """Describes a GPU array in C order (torch and CuPy copy it first if it is not), and gives the adapter to its library.

    Args:
        value: the array. name: the argument's name in messages.
        cuda_stream: the CUDA stream that will read the array, which a DLPack producer makes wait; None: the legacy stream.

    Raises:
        TypeError: no plain array, a tensor that requires grad, swapped bytes. ValueError: not contiguous, in a library other
            than torch and CuPy; a pointer that is null, not aligned or not a GPU's.
    """
    try:
        return _read(value, name, cuda_stream)
    except Exception as error:  # other libraries raise errors of any type
        if isinstance(error, (TypeError, ValueError)) and str(error).startswith(f"{name}: "):
            raise
        reason = " ".join(str(error).split())
        raise TypeError(f"{name}: the {type(value).__name__} can't be read as an array on a GPU ({reason})") from error


def _read(value: Any, name: str, cuda_stream: int | None) -> tuple[DeviceArray, Library]:
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        if value.requires_grad:
            raise TypeError(
                f"{name}: the tensor requires grad, and refinement is not differentiable here; pass {name}.detach()"
            )
        if value.layout != torch.strided:
            raise TypeError(f"{name}: got a sparse tensor; expected a dense one")
        torch_library = TorchLibrary(torch, value.device)
        return torch_library.read(value), torch_library
    if type(value).__module__.split(".")[0] == "cupy":
        cupy_library = CuPyLibrary(sys.modules["cupy"], value.device.id)
        return cupy_library.read(value), cupy_library
    array = _read_interface(value, name) if _prefers_interface(value) else _read_dlpack(value, name, cuda_stream)
    _check_memory(array, name)
    return array, OtherLibrary(value, array)


def _prefers_interface(value: Any) -> bool:
    """Whether to read an array by ``__cuda_array_interface__`` and not by DLPack.

    Before version 3 the interface names no CUDA stream, so that it can't tell when the values are complete; DLPack can.
    """
    interface = getattr(value, "__cuda_array_interface__", None)
    return interface is not None and (interface.get("version", 0) >= 3 or not hasattr(value, "__dlpack__"))


def _read_interface(value: Any, name: str) -> DeviceArray:
    interface = value.__cuda_array_interface__
    shape, kind, strides = tuple(interface["shape"]), interface["typestr"], interface.get("strides")
    cuda_stream = interface.get("stream")
    if not all(isinstance(side, (int, np.integer)) and side >= 0 for side in shape) or math.prod(shape) > _MAX_VALUES:
        raise TypeError(f"{name}: got the shape {shape}; expected sides of at least 0 and at most {_MAX_VALUES} values")
    if cuda_stream is not None and (
        isinstance(cuda_stream, bool) or not isinstance(cuda_stream, int) or not 0 < cuda_stream < 1 << 64
    ):
        raise TypeError(f"{name}: got the stream {cuda_stream!r}; expected a cudaStream_t, 1, 2 or None")
    if kind[0] == ">":
        raise TypeError(f"{name}: got bytes in the order of {kind!r}; expected native byte order")
    if interface.get("mask") is not None:
        raise TypeError(f"{name}: got a masked array; pass NaN, or the mask as visible=")
    if strides is not None:
        item = int(kind[2:])
        if len(strides) != len(shape):
            raise TypeError(f"{name}: got strides {tuple(strides)} for the shape {shape}")
        _check_contiguous(shape, tuple(s // item if s % item == 0 else -1 for s in strides), name)
    address = int(interface["data"][0])
    if hasattr(value, "__dlpack_device__") and int(value.__dlpack_device__()[0]) not in (DLPACK_CUDA, DLPACK_MANAGED):
        raise TypeError(f"{name}: got memory of DLPack's device type {int(value.__dlpack_device__()[0])}; expected CUDA's")
    # Version 3 names the CUDA stream that writes the values; None: they are complete.
    dtype = _DTYPE_OF_TYPESTR.get(kind[1:], kind)
    return DeviceArray(address, tuple(int(side) for side in shape), dtype, _device_number(value, address), value, cuda_stream)


def _read_dlpack(value: Any, name: str, cuda_stream: int | None) -> DeviceArray:
    cuda_stream = cuda_stream or LEGACY_STREAM
    capsule = value.__dlpack__(stream=cuda_stream)  # makes this CUDA stream wait for the producer's
    address, shape, strides, kind, device_type, device, owner = load_module().read_dlpack(capsule)
    if device_type not in (DLPACK_CUDA, DLPACK_MANAGED):
        raise TypeError(f"{name}: got memory of DLPack's device type {device_type}; expected CUDA's")
    if strides is not None:
        _check_contiguous(shape, strides, name)
    return DeviceArray(address, shape, _DTYPE_OF_DLPACK.get(kind, kind), device, owner, cuda_stream)


def _device_number(value: Any, address: int) -> int:
    """The GPU's number, which the array interface does not state: from DLPack, or from CUDA by the address."""
    if hasattr(value, "__dlpack_device__"):
        return int(value.__dlpack_device__()[1])
    return max(0, int(load_module().device_of(address)))


def _check_memory(array: DeviceArray, name: str) -> None:
    """Checks the address, because a kernel that reads an invalid one makes the GPU unusable for the rest of the process."""
    if array.dtype not in TYPES or not array.nbytes:
        return
    if not array.address:
        raise ValueError(f"{name}: got a null pointer for an array of the shape {array.shape}")
    if array.address % (bits_of(array.dtype) // 8):
        raise ValueError(f"{name}: the memory is not aligned for {array.dtype}; copy the array first")
    if call(load_module().device_of, array.address) < 0:
        raise ValueError(f"{name}: the pointer is not a GPU's; pass NumPy arrays as they are")


def _check_contiguous(shape: tuple[int, ...], strides: tuple[int, ...], name: str) -> None:
    step = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size > 1 and stride != step:
            raise ValueError(f"{name}: the array is not contiguous; copy it first")
        step *= size
