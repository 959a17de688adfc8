"""Arrays on a GPU, of any library: whether an array is one, where it lies, and on which stream its library works."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np

from jointbert.cuda.device_array import (
    DLPACK_CUDA,
    DLPACK_MANAGED,
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

_INTERFACE = {kind: name for name, (kind, _, _) in TYPES.items()}
_DLPACK = {kind: name for name, (_, kind, _) in TYPES.items()}
_MOST_VALUES = 1 << 48


def is_on_gpu(value: Any) -> bool:
    """Whether an array lies on a GPU. Cheap for everything that does not."""
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
    except Exception:  # a broken protocol: whoever reads the array says so
        return False


def read(value: Any, name: str, stream: int | None = None) -> tuple[DeviceArray, Library]:
    """Where an array on a GPU lies, C order (copied by its library if need be), and its library.

    ``stream``: where it will be read, if that is known: who is asked by DLPack lets it wait. None: the legacy stream.

    Raises:
        TypeError: what is no plain array, a tensor that requires grad, bytes in the other order. ValueError: not C order, in a
            library that can't be asked to copy; memory that is none, not aligned, or not a GPU's.
    """
    try:
        return _read(value, name, stream)
    except Exception as error:  # whatever another library raises when it is asked where its numbers are
        if isinstance(error, (TypeError, ValueError)) and str(error).startswith(f"{name}: "):
            raise
        reason = " ".join(str(error).split())
        raise TypeError(f"{name}: the {type(value).__name__} can't be read as an array on a GPU ({reason})") from error


def _read(value: Any, name: str, stream: int | None) -> tuple[DeviceArray, Library]:
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        if value.requires_grad:
            raise TypeError(f"{name}: the tensor requires grad, which nothing here propagates; pass {name}.detach()")
        if value.layout != torch.strided:
            raise TypeError(f"{name}: got a sparse tensor; expected a dense one")
        torchs = TorchLibrary(torch, value.device)
        return torchs.read(value), torchs
    if type(value).__module__.split(".")[0] == "cupy":
        cupys = CuPyLibrary(sys.modules["cupy"], value.device.id)
        return cupys.read(value), cupys
    array = _read_interface(value, name) if _says_when(value) else _read_dlpack(value, name, stream)
    _check_memory(array, name)
    return array, OtherLibrary(value, array)


def _says_when(value: Any) -> bool:
    """Whether an array's interface is the protocol to take: before version 3 it does not tell when its numbers are there, as
    DLPack does."""
    interface = getattr(value, "__cuda_array_interface__", None)
    return interface is not None and (interface.get("version", 0) >= 3 or not hasattr(value, "__dlpack__"))


def _read_interface(value: Any, name: str) -> DeviceArray:
    interface = value.__cuda_array_interface__
    shape, kind, strides = tuple(interface["shape"]), interface["typestr"], interface.get("strides")
    stream = interface.get("stream")
    if not all(isinstance(side, (int, np.integer)) and side >= 0 for side in shape) or math.prod(shape) > _MOST_VALUES:
        raise TypeError(f"{name}: got the shape {shape}; expected sides of at least 0, and no more than there can be")
    if stream is not None and (isinstance(stream, bool) or not isinstance(stream, int) or not 0 < stream < 1 << 64):
        raise TypeError(f"{name}: got the stream {stream!r}; expected a cudaStream_t, 1, 2 or None")
    if kind[0] == ">":
        raise TypeError(f"{name}: got bytes in the order of {kind!r}; expected the machine's own")
    if interface.get("mask") is not None:
        raise TypeError(f"{name}: got a masked array; pass NaN, or the mask as visible=")
    if strides is not None:
        item = int(kind[2:])
        if len(strides) != len(shape):
            raise TypeError(f"{name}: got strides {tuple(strides)} for the shape {shape}")
        _check_order(shape, tuple(s // item if s % item == 0 else -1 for s in strides), name)
    address = int(interface["data"][0])
    if hasattr(value, "__dlpack_device__") and int(value.__dlpack_device__()[0]) not in (DLPACK_CUDA, DLPACK_MANAGED):
        raise TypeError(f"{name}: got memory of DLPack's device type {int(value.__dlpack_device__()[0])}; expected CUDA's")
    # Version 3 names the stream that its producer works on; None: what is there is finished.
    dtype = _INTERFACE.get(kind[1:], kind)
    return DeviceArray(address, tuple(int(side) for side in shape), dtype, _device_of(value, address), value, stream)


def _read_dlpack(value: Any, name: str, stream: int | None) -> DeviceArray:
    stream = stream or LEGACY_STREAM
    capsule = value.__dlpack__(stream=stream)  # which lets this stream wait for the producer's
    address, shape, strides, kind, place, device, owner = load_module().read_dlpack(capsule)
    if place not in (DLPACK_CUDA, DLPACK_MANAGED):
        raise TypeError(f"{name}: got memory of DLPack's device type {place}; expected CUDA's")
    if strides is not None:
        _check_order(shape, strides, name)
    return DeviceArray(address, shape, _DLPACK.get(kind, kind), device, owner, stream)


def _device_of(value: Any, address: int) -> int:
    """The interface does not tell; DLPack does, and so does CUDA."""
    if hasattr(value, "__dlpack_device__"):
        return int(value.__dlpack_device__()[1])
    return max(0, int(load_module().device_of(address)))


def _check_memory(array: DeviceArray, name: str) -> None:
    """What a kernel would read beyond all doubt: an error there ends the process's work on the GPU."""
    if array.dtype not in TYPES or not array.nbytes:
        return
    if not array.address:
        raise ValueError(f"{name}: got a null pointer for an array of the shape {array.shape}")
    if array.address % (bits_of(array.dtype) // 8):
        raise ValueError(f"{name}: the memory is not aligned for {array.dtype}; copy the array first")
    if call(load_module().device_of, array.address) < 0:
        raise ValueError(f"{name}: the pointer is not a GPU's; pass NumPy arrays as they are")


def _check_order(shape: tuple[int, ...], strides: tuple[int, ...], name: str) -> None:
    step = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size > 1 and stride != step:
            raise ValueError(f"{name}: the array is not contiguous; copy it first")
        step *= size
