"""Arrays on a GPU, of any library: where they lie, on which stream their library works, and new ones of the same library."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

_KINDS = {"f2": "float16", "f4": "float32", "f8": "float64", "b1": "bool", "u1": "uint8", "i4": "int32", "i8": "int64"}
_DLPACK_KINDS = {"f16": "float16", "f32": "float32", "f64": "float64", "bf16": "bfloat16", "b8": "bool", "u8": "uint8"}
_DLPACK_CODES = {
    "float16": (2, 16),
    "float32": (2, 32),
    "float64": (2, 64),
    "bfloat16": (4, 16),
    "uint8": (1, 8),
    "bool": (6, 8),
}
_ITEM_BYTES = {"float16": 2, "float32": 4, "float64": 8, "bfloat16": 2, "bool": 1, "uint8": 1}
_TYPESTRINGS = {"float16": "<f2", "float32": "<f4", "float64": "<f8", "uint8": "|u1", "bool": "|b1"}
_DLPACK_CUDA = 2
_LEGACY_STREAM = 1


@dataclass(frozen=True)
class DeviceArray:
    """Memory on a GPU, C order: what results are where the library of the input has no arrays to offer.

    It speaks ``__cuda_array_interface__`` and DLPack. ``owner`` keeps the memory.
    """

    address: int
    shape: tuple[int, ...]
    dtype: str
    device: int
    owner: Any
    stream: int | None = None

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * _ITEM_BYTES[self.dtype]

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        if self.dtype not in _TYPESTRINGS:
            raise AttributeError(f"__cuda_array_interface__ has no {self.dtype}; take DLPack")
        return {
            "shape": self.shape,
            "typestr": _TYPESTRINGS[self.dtype],
            "data": (self.address, False),
            "stream": self.stream or _LEGACY_STREAM,
            "version": 3,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return _DLPACK_CUDA, self.device

    def __dlpack__(self, *, stream: Any = None, **_: Any) -> Any:
        # The consumer's stream begins behind ours: what was enqueued here has to be there for it.
        from jointbert.backends.cuda import load_module

        module = load_module()
        if stream not in (None, -1, self.stream or _LEGACY_STREAM):
            module.synchronize(self.stream or _LEGACY_STREAM, self.device)
        code, bits = _DLPACK_CODES[self.dtype]
        return module.write_dlpack(self.address, list(self.shape), code, bits, self.device, self.owner)


class Library(Protocol):
    """The library of an input: its stream, and arrays of its own."""

    stream: int

    def empty(self, shape: tuple[int, ...], dtype: str) -> DeviceArray:
        """New memory; ``owner`` is the library's own array."""

    def converted(self, value: Any, shape: tuple[int, ...], dtype: str, name: str) -> DeviceArray:
        """``value`` broadcast to ``shape`` in ``dtype``.

        Raises:
            ValueError, TypeError: it does not fit.
        """

    def result(self, array: DeviceArray) -> Any:
        """An array of :meth:`empty` as the user gets it."""


def is_on_gpu(value: Any) -> bool:
    """Whether an array lies on a GPU. Cheap for everything that does not."""
    if isinstance(value, (np.ndarray, list, tuple, int, float, str)) or value is None:
        return False
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return bool(value.is_cuda)
    if hasattr(value, "__cuda_array_interface__"):
        return True
    return hasattr(value, "__dlpack_device__") and int(value.__dlpack_device__()[0]) == _DLPACK_CUDA


def read(value: Any, name: str) -> tuple[DeviceArray, Library]:
    """Where an array on a GPU lies, C order (copied by its library if need be), and its library.

    Raises:
        TypeError: a dtype without a name here, a tensor that requires grad. ValueError: not C order, in a library that
            can't be asked to copy.
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        if value.requires_grad:
            raise TypeError(
                f"{name}: the tensor requires grad, and refinement is not differentiable here; pass {name}.detach()"
            )
        if value.layout != torch.strided:
            raise TypeError(f"{name}: got a sparse tensor; expected a dense one")
        torchs = _Torch(torch, value.device)
        return torchs.read(value), torchs
    if type(value).__module__.split(".")[0] == "cupy":
        cupys = _CuPy(sys.modules["cupy"], value.device.id)
        return cupys.read(value), cupys
    array = _read_interface(value, name) if hasattr(value, "__cuda_array_interface__") else _read_dlpack(value, name)
    return array, _Other(value, array)


class _Torch:
    def __init__(self, torch: Any, device: Any) -> None:
        self.torch, self.device = torch, device
        self.stream = int(torch.cuda.current_stream(device).cuda_stream)

    def read(self, tensor: Any) -> DeviceArray:
        tensor = tensor.detach().resolve_conj().resolve_neg().contiguous()
        dtype = str(tensor.dtype).removeprefix("torch.")
        return DeviceArray(tensor.data_ptr(), tuple(tensor.shape), dtype, self.device.index, tensor, self.stream)

    def empty(self, shape: tuple[int, ...], dtype: str) -> DeviceArray:
        return self.read(self.torch.empty(shape, dtype=getattr(self.torch, dtype), device=self.device))

    def converted(self, value: Any, shape: tuple[int, ...], dtype: str, name: str) -> DeviceArray:
        tensor = self.torch.as_tensor(value, device=self.device)
        return self.read(tensor.to(getattr(self.torch, dtype)).expand(shape))

    def result(self, array: DeviceArray) -> Any:
        return array.owner


class _CuPy:
    def __init__(self, cupy: Any, device: int) -> None:
        self.cupy, self.device = cupy, device
        with cupy.cuda.Device(device):
            self.stream = int(cupy.cuda.get_current_stream().ptr)

    def read(self, array: Any) -> DeviceArray:
        with self.cupy.cuda.Device(self.device):
            array = self.cupy.ascontiguousarray(array)
        return DeviceArray(int(array.data.ptr), tuple(array.shape), array.dtype.name, self.device, array, self.stream)

    def empty(self, shape: tuple[int, ...], dtype: str) -> DeviceArray:
        with self.cupy.cuda.Device(self.device):
            return self.read(self.cupy.empty(shape, dtype=dtype))

    def converted(self, value: Any, shape: tuple[int, ...], dtype: str, name: str) -> DeviceArray:
        with self.cupy.cuda.Device(self.device):
            return self.read(self.cupy.broadcast_to(self.cupy.asarray(value, dtype=dtype), shape))

    def result(self, array: DeviceArray) -> Any:
        return array.owner


class _Other:
    """A library of which nothing is known but its arrays."""

    def __init__(self, value: Any, array: DeviceArray) -> None:
        self.value, self.device = value, array.device
        self.stream = array.stream or _LEGACY_STREAM

    def empty(self, shape: tuple[int, ...], dtype: str) -> DeviceArray:
        from jointbert.backends.cuda import load_module

        memory = load_module().Memory(math.prod(shape) * _ITEM_BYTES[dtype], self.device)
        return DeviceArray(memory.address, shape, dtype, self.device, memory, self.stream)

    def converted(self, value: Any, shape: tuple[int, ...], dtype: str, name: str) -> DeviceArray:
        if isinstance(value, np.ndarray):
            return self._sent(np.ascontiguousarray(np.broadcast_to(value, shape), dtype=dtype))
        array, _ = read(value, name)
        if array.device != self.device:
            raise ValueError(f"{name}: the array is on GPU {array.device}, the joints on GPU {self.device}")
        if array.shape != shape or array.dtype != dtype:
            raise ValueError(f"{name}: got {array.dtype} of the shape {array.shape}; expected {dtype} of the shape {shape}")
        return array

    def _sent(self, value: np.ndarray) -> DeviceArray:
        from jointbert.backends.cuda import call, load_module

        array = self.empty(value.shape, value.dtype.name)
        call(load_module().copy, array.address, value.ctypes.data, value.nbytes, self.device, self.stream)
        return array

    def result(self, array: DeviceArray) -> Any:
        if hasattr(self.value, "__array_namespace__"):
            return self.value.__array_namespace__().from_dlpack(array)
        return array


def _read_interface(value: Any, name: str) -> DeviceArray:
    interface = value.__cuda_array_interface__
    shape, dtype = tuple(interface["shape"]), _KINDS.get(interface["typestr"][1:], interface["typestr"])
    strides = interface.get("strides")
    if strides is not None:
        item = int(interface["typestr"][2:])
        _check_order(shape, tuple(s // item for s in strides), name)
    # Version 3 names the stream that its producer works on; None: what is there is finished.
    address = interface["data"][0]
    return DeviceArray(address, shape, dtype, _device_of(value, address), value, interface.get("stream"))


def _read_dlpack(value: Any, name: str) -> DeviceArray:
    from jointbert.backends.cuda import load_module

    capsule = value.__dlpack__(stream=_LEGACY_STREAM)
    address, shape, strides, kind, _, device, owner = load_module().read_dlpack(capsule)
    if strides is not None:
        _check_order(shape, strides, name)
    return DeviceArray(address, shape, _DLPACK_KINDS.get(kind, kind), device, owner, _LEGACY_STREAM)


def _device_of(value: Any, address: int) -> int:
    """The interface does not tell; DLPack does, and so does CUDA."""
    if hasattr(value, "__dlpack_device__"):
        return int(value.__dlpack_device__()[1])
    from jointbert.backends.cuda import load_module

    return max(0, int(load_module().device_of(address)))


def _check_order(shape: tuple[int, ...], strides: tuple[int, ...], name: str) -> None:
    step = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size > 1 and stride != step:
            raise ValueError(f"{name}: the array is not contiguous; copy it first")
        step *= size
