"""Libraries of arrays on a GPU: torch, CuPy, and any other, each with its stream and new arrays of its own."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import numpy as np

from jointbert.cuda.device_array import LEGACY_STREAM, DeviceArray, bits_of
from jointbert.cuda.module import call, load_module

_under_way: deque[tuple[Any, list[Any]]] = deque()
"""Behind each launch, an event, and what the launch reads and writes, until a later call finds it through. A library that takes
its memory back as soon as nobody has an array any more, on a stream that does not wait for this one, would write over what has
yet to be read; and giving our own memory back would wait for the launch."""
_recorded: list[list[Any]] = []
"""The same of launches that became part of a graph, which may be replayed as long as there is a process."""


def _keep(used: list[Any], stream: int, device: int) -> None:
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


class TorchLibrary:
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


class CuPyLibrary:
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


class OtherLibrary:
    """A library of which nothing is known but its arrays."""

    def __init__(self, value: Any, array: DeviceArray) -> None:
        self.value, self.device = value, array.device
        self.stream = array.stream or LEGACY_STREAM
        self.used: list[Any] = [value, array.owner]
        _forget_what_is_through()

    def empty(self, shape: tuple[int, ...], dtype: str) -> DeviceArray:
        memory = call(load_module().Memory, math.prod(shape) * bits_of(dtype) // 8, self.device)
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
        call(load_module().order, given.stream, stream, given.device)
