"""Arrays on a GPU, of any library: where they lie, on which stream their library works, and new ones of the same library."""

from __future__ import annotations

import math
import sys
from collections import deque
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

# By name: the array interface's type, DLPack's kind, its code.
_TYPES = {
    "float16": ("f2", "f16", 2),
    "float32": ("f4", "f32", 2),
    "float64": ("f8", "f64", 2),
    "bfloat16": (None, "bf16", 4),
    "bool": ("b1", "b8", 6),
    "uint8": ("u1", "u8", 1),
    "int8": ("i1", "i8", 0),
    "int32": ("i4", "i32", 0),
    "int64": ("i8", "i64", 0),
}
_INTERFACE = {kind: name for name, (kind, _, _) in _TYPES.items()}
_DLPACK = {kind: name for name, (_, kind, _) in _TYPES.items()}
NUMPY_TYPES = tuple(name for name in _TYPES if name != "bfloat16")
"""Types of arrays that NumPy and a GPU's libraries have in common."""
_DLPACK_CUDA, _DLPACK_MANAGED = 2, 13
_LEGACY_STREAM = 1
_MOST_VALUES = 1 << 48


def _bits(dtype: str) -> int:
    return 8 if dtype == "bool" else int(dtype.lstrip("abcdefghijklmnopqrstuvwxyz"))


@dataclass(frozen=True)
class DeviceArray:
    """Memory on a GPU, C order: what results are where the library of the input has no arrays to offer.

    It speaks ``__cuda_array_interface__`` and DLPack.

    Attributes:
        address: of the first value on the device.
        shape: in values; C order.
        dtype: NumPy's name, or ``bfloat16``; another word where it is a type of which nothing is known here.
        device: the GPU's number.
        owner: keeps the memory.
        stream: the ``cudaStream_t`` that writes the values; None: the legacy stream, or they are there.
    """

    address: int
    shape: tuple[int, ...]
    dtype: str
    device: int
    owner: Any
    stream: int | None = None

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * _bits(self.dtype) // 8

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        kind = _TYPES[self.dtype][0]
        if kind is None:
            raise AttributeError(f"__cuda_array_interface__ has no {self.dtype}; take DLPack")
        return {
            "shape": self.shape,
            "typestr": ("|" if _bits(self.dtype) == 8 else "<") + kind,
            "data": (self.address, False),
            "stream": self.stream or _LEGACY_STREAM,
            "version": 3,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return _DLPACK_CUDA, self.device

    def __dlpack__(
        self, *, stream: int | None = None, max_version: Any = None, dl_device: Any = None, copy: bool | None = None
    ) -> Any:
        from jointbert.backends.cuda import call, load_module

        if copy:
            raise BufferError("__dlpack__: copies are the consumer's; expected copy=None")
        if dl_device not in (None, self.__dlpack_device__()):
            raise BufferError(f"__dlpack__: got the device {dl_device}; the array is on {self.__dlpack_device__()}")
        module, own = load_module(), self.stream or _LEGACY_STREAM
        consumer = _LEGACY_STREAM if stream is None else int(stream)  # -1: it takes care itself
        if consumer not in (-1, own):
            call(module.order, own, consumer, self.device)
        return module.write_dlpack(
            self.address, list(self.shape), _TYPES[self.dtype][2], _bits(self.dtype), self.device, self.owner
        )

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise TypeError("the array is on a GPU; take it to the host by a library that reads DLPack or __cuda_array_interface__")


class Library(Protocol):
    """The library of an input: its stream, and arrays of its own."""

    stream: int

    def empty(self, shape: tuple[int, ...], dtype: str) -> DeviceArray:
        """New memory; ``owner`` is the library's own array."""

    def converted(self, given: DeviceArray | np.ndarray, shape: tuple[int, ...], dtype: str, name: str) -> DeviceArray:
        """What :func:`read` gave, or an array of the host, broadcast to ``shape`` in ``dtype``, on this library's stream.

        Raises:
            ValueError, TypeError: it does not fit.
        """

    def enqueued(self) -> None:
        """Called behind a launch, whatever became of it: what it reads has to stay as it is until it is through."""

    def result(self, array: DeviceArray) -> Any:
        """An array of :meth:`empty` as the user gets it."""


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
        return hasattr(value, "__dlpack_device__") and int(value.__dlpack_device__()[0]) in (_DLPACK_CUDA, _DLPACK_MANAGED)
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
        torchs = _Torch(torch, value.device)
        return torchs.read(value), torchs
    if type(value).__module__.split(".")[0] == "cupy":
        cupys = _CuPy(sys.modules["cupy"], value.device.id)
        return cupys.read(value), cupys
    array = _read_interface(value, name) if _says_when(value) else _read_dlpack(value, name, stream)
    _check_memory(array, name)
    return array, _Other(value, array)


def _says_when(value: Any) -> bool:
    """Whether an array's interface is the protocol to take: before version 3 it does not tell when its numbers are there, as
    DLPack does."""
    interface = getattr(value, "__cuda_array_interface__", None)
    return interface is not None and (interface.get("version", 0) >= 3 or not hasattr(value, "__dlpack__"))


_under_way: deque[tuple[Any, list[Any]]] = deque()
"""Behind each launch, an event, and what the launch reads and writes, until a later call finds it through. A library that takes
its memory back as soon as nobody has an array any more, on a stream that does not wait for this one, would write over what has
yet to be read; and giving our own memory back would wait for the launch."""
_recorded: list[list[Any]] = []
"""The same of launches that became part of a graph, which may be replayed as long as there is a process."""


def _keep(used: list[Any], stream: int, device: int) -> None:
    from jointbert.backends.cuda import load_module

    module = load_module()
    try:
        event = None if module.is_capturing(stream, device) else module.Event(stream, device)
    except RuntimeError:  # the next call says so; what was used is not forgotten
        event = None
    if event is None:
        _recorded.append(used)
    else:
        _under_way.append((event, used))


def _forget_what_is_through() -> None:
    for _ in range(len(_under_way)):
        try:
            one = _under_way.popleft()
        except IndexError:  # another thread's
            return
        if not one[0].passed:
            _under_way.append(one)


class _Torch:
    def __init__(self, torch: Any, device: Any) -> None:
        self.torch, self.device = torch, device
        self.stream = int(torch.cuda.current_stream(device).cuda_stream)
        self.foreign: list[Any] = []

    def read(self, tensor: Any) -> DeviceArray:
        tensor = tensor.detach().resolve_conj().resolve_neg().contiguous()
        dtype = str(tensor.dtype).removeprefix("torch.")
        return DeviceArray(tensor.data_ptr(), tuple(tensor.shape), dtype, self.device.index, tensor, self.stream)

    def empty(self, shape: tuple[int, ...], dtype: str) -> DeviceArray:
        return self.read(self.torch.empty(shape, dtype=getattr(self.torch, dtype), device=self.device))

    def converted(self, given: DeviceArray | np.ndarray, shape: tuple[int, ...], dtype: str, name: str) -> DeviceArray:
        kind = getattr(self.torch, dtype)
        if isinstance(given, np.ndarray):  # from pinned memory, which torch keeps until the copy is done: nothing waits
            tensor = self.torch.tensor(given, dtype=kind, device="cpu", pin_memory=True)
        elif isinstance(given.owner, self.torch.Tensor):
            tensor = given.owner
        else:
            self.foreign.append(given.owner)
            if given.dtype == "bfloat16":
                tensor = self.torch.from_dlpack(given)
            else:
                _order(given, self.stream)
                tensor = self.torch.as_tensor(given, device=self.torch.device("cuda", given.device))
        return self.read(tensor.to(self.device, kind, non_blocking=True).expand(shape))

    def enqueued(self) -> None:
        if self.foreign:  # of its own, its allocator knows the stream
            _keep(self.foreign, self.stream, self.device.index)

    def result(self, array: DeviceArray) -> Any:
        return array.owner


class _CuPy:
    def __init__(self, cupy: Any, device: int) -> None:
        self.cupy, self.device = cupy, device
        self.foreign: list[Any] = []
        with cupy.cuda.Device(device):
            self.stream = int(cupy.cuda.get_current_stream().ptr)

    def read(self, array: Any) -> DeviceArray:
        with self.cupy.cuda.Device(self.device):
            array = self.cupy.ascontiguousarray(array)
        return DeviceArray(int(array.data.ptr), tuple(array.shape), array.dtype.name, self.device, array, self.stream)

    def empty(self, shape: tuple[int, ...], dtype: str) -> DeviceArray:
        with self.cupy.cuda.Device(self.device):
            return self.read(self.cupy.empty(shape, dtype=dtype))

    def converted(self, given: DeviceArray | np.ndarray, shape: tuple[int, ...], dtype: str, name: str) -> DeviceArray:
        value: Any = given
        with self.cupy.cuda.Device(self.device):
            if isinstance(given, DeviceArray):
                if given.dtype == "bfloat16":
                    raise TypeError(f"{name}: got bfloat16, which CuPy does not have; expected another type")
                # By DLPack, which orders streams: for the array interface CuPy would wait.
                if type(given.owner).__module__.split(".")[0] == "cupy":
                    value = given.owner
                else:
                    value = self.cupy.from_dlpack(given)
                    self.foreign.append(given.owner)
            return self.read(self.cupy.broadcast_to(self.cupy.asarray(value, dtype=dtype), shape))

    def enqueued(self) -> None:
        if self.foreign:  # of its own, its allocator knows the stream
            _keep(self.foreign, self.stream, self.device)

    def result(self, array: DeviceArray) -> Any:
        return array.owner


class _Other:
    """A library of which nothing is known but its arrays."""

    def __init__(self, value: Any, array: DeviceArray) -> None:
        self.value, self.device = value, array.device
        self.stream = array.stream or _LEGACY_STREAM
        self.used: list[Any] = [value, array.owner]
        _forget_what_is_through()

    def empty(self, shape: tuple[int, ...], dtype: str) -> DeviceArray:
        from jointbert.backends.cuda import call, load_module

        memory = call(load_module().Memory, math.prod(shape) * _bits(dtype) // 8, self.device)
        self.used.append(memory)
        return DeviceArray(memory.address, shape, dtype, self.device, memory, self.stream)

    def converted(self, given: DeviceArray | np.ndarray, shape: tuple[int, ...], dtype: str, name: str) -> DeviceArray:
        if isinstance(given, np.ndarray):
            return self._sent(np.array(np.broadcast_to(given, shape), dtype=dtype))
        if given.device != self.device:
            raise ValueError(f"{name}: the array is on GPU {given.device}, the joints on GPU {self.device}")
        if given.shape != shape or given.dtype != dtype:
            raise ValueError(f"{name}: got {given.dtype} of the shape {given.shape}; expected {dtype} of the shape {shape}")
        _order(given, self.stream)
        self.used.append(given.owner)
        return given

    def _sent(self, value: np.ndarray) -> DeviceArray:
        from jointbert.backends.cuda import call, load_module

        array = self.empty(value.shape, value.dtype.name)
        call(load_module().copy, array.address, value.ctypes.data, value.nbytes, self.device, self.stream)
        self.used.append(value)
        return array

    def enqueued(self) -> None:
        _keep(self.used, self.stream, self.device)

    def result(self, array: DeviceArray) -> Any:
        if hasattr(self.value, "__array_namespace__"):
            return self.value.__array_namespace__().from_dlpack(array)
        return array


def _order(given: DeviceArray, stream: int) -> None:
    """Lets a stream wait for whoever writes an array."""
    if given.stream not in (None, stream):
        from jointbert.backends.cuda import call, load_module

        call(load_module().order, given.stream, stream, given.device)


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
    if hasattr(value, "__dlpack_device__") and int(value.__dlpack_device__()[0]) not in (_DLPACK_CUDA, _DLPACK_MANAGED):
        raise TypeError(f"{name}: got memory of DLPack's device type {int(value.__dlpack_device__()[0])}; expected CUDA's")
    # Version 3 names the stream that its producer works on; None: what is there is finished.
    dtype = _INTERFACE.get(kind[1:], kind)
    return DeviceArray(address, tuple(int(side) for side in shape), dtype, _device_of(value, address), value, stream)


def _read_dlpack(value: Any, name: str, stream: int | None) -> DeviceArray:
    from jointbert.backends.cuda import load_module

    stream = stream or _LEGACY_STREAM
    capsule = value.__dlpack__(stream=stream)  # which lets this stream wait for the producer's
    address, shape, strides, kind, place, device, owner = load_module().read_dlpack(capsule)
    if place not in (_DLPACK_CUDA, _DLPACK_MANAGED):
        raise TypeError(f"{name}: got memory of DLPack's device type {place}; expected CUDA's")
    if strides is not None:
        _check_order(shape, strides, name)
    return DeviceArray(address, shape, _DLPACK.get(kind, kind), device, owner, stream)


def _device_of(value: Any, address: int) -> int:
    """The interface does not tell; DLPack does, and so does CUDA."""
    if hasattr(value, "__dlpack_device__"):
        return int(value.__dlpack_device__()[1])
    from jointbert.backends.cuda import load_module

    return max(0, int(load_module().device_of(address)))


def _check_memory(array: DeviceArray, name: str) -> None:
    """What a kernel would read beyond all doubt: an error there ends the process's work on the GPU."""
    if array.dtype not in _TYPES or not array.nbytes:
        return
    from jointbert.backends.cuda import call, load_module

    if not array.address:
        raise ValueError(f"{name}: got a null pointer for an array of the shape {array.shape}")
    if array.address % (_bits(array.dtype) // 8):
        raise ValueError(f"{name}: the memory is not aligned for {array.dtype}; copy the array first")
    if call(load_module().device_of, array.address) < 0:
        raise ValueError(f"{name}: the pointer is not a GPU's; pass NumPy arrays as they are")


def _check_order(shape: tuple[int, ...], strides: tuple[int, ...], name: str) -> None:
    step = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size > 1 and stride != step:
            raise ValueError(f"{name}: the array is not contiguous; copy it first")
        step *= size
