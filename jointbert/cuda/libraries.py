"""Adapters to the libraries of GPU arrays (torch, CuPy, any other): their CUDA stream, new arrays, conversions."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import numpy as np

from jointbert.cuda.device_array import LEGACY_STREAM, DeviceArray, bits_of
from jointbert.cuda.module import call, load_module

_under_way: deque[tuple[Any, list[Any]]] = deque()
"""For each unfinished launch, a CUDA event that follows it and the arrays that it uses. The arrays stay referenced until the
event has passed. Otherwise their library could reuse the memory on another CUDA stream while the launch still reads it, and
freeing memory of this package would wait for the launch."""
_recorded: list[list[Any]] = []
"""The arrays of launches that were captured in a CUDA graph. They are never released, because the graph may be replayed at any
time."""


def _hold_until_finished(arrays: list[Any], cuda_stream: int, device: int) -> None:
    module = load_module()
    try:
        event = None if module.is_capturing(cuda_stream, device) else module.Event(cuda_stream, device)
    except RuntimeError:  # the next call reports the error; without an event the arrays are kept for good
        event = None
    if event is None:
        _recorded.append(arrays)
    else:
        _under_way.append((event, arrays))


def _release_finished() -> None:
    for _ in range(len(_under_way)):
        try:
            launch = _under_way.popleft()
        except IndexError:  # another thread took the last one
            return
        if not launch[0].passed:
            _under_way.append(launch)


class TorchLibrary:
    """torch: works on the current CUDA stream of the tensor's device."""

    def __init__(self, torch: Any, device: Any) -> None:
        self.torch, self.device = torch, device
        self.cuda_stream = int(torch.cuda.current_stream(device).cuda_stream)
        self.foreign: list[Any] = []  # arrays of other libraries that the launch uses

    def read(self, tensor: Any) -> DeviceArray:
        """Describes a tensor of this device, after a copy if it is not contiguous."""
        tensor = tensor.detach().resolve_conj().resolve_neg().contiguous()
        dtype = str(tensor.dtype).removeprefix("torch.")
        return DeviceArray(tensor.data_ptr(), tuple(tensor.shape), dtype, self.device.index, tensor, self.cuda_stream)

    def empty(self, shape: tuple[int, ...], dtype: str) -> DeviceArray:
        """Allocates a tensor with undefined values."""
        return self.read(self.torch.empty(shape, dtype=getattr(self.torch, dtype), device=self.device))

    def converted(self, given: DeviceArray | np.ndarray, shape: tuple[int, ...], dtype: str, name: str) -> DeviceArray:
        """Converts to a tensor of this device by torch."""
        kind = getattr(self.torch, dtype)
        if isinstance(given, np.ndarray):  # torch keeps pinned memory until the copy is done, so that nothing waits
            tensor = self.torch.tensor(given, dtype=kind, device="cpu", pin_memory=True)
        elif isinstance(given.owner, self.torch.Tensor):
            tensor = given.owner
        else:
            self.foreign.append(given.owner)
            if given.dtype == "bfloat16":
                tensor = self.torch.from_dlpack(given)
            else:
                _wait_for_writer(given, self.cuda_stream)
                tensor = self.torch.as_tensor(given, device=self.torch.device("cuda", given.device))
        return self.read(tensor.to(self.device, kind, non_blocking=True).expand(shape))

    def enqueued(self) -> None:
        """Keeps the arrays of other libraries until the launch has finished."""
        if self.foreign:  # torch's allocator takes care of torch's own arrays
            _hold_until_finished(self.foreign, self.cuda_stream, self.device.index)

    def result(self, array: DeviceArray) -> Any:
        """The tensor."""
        return array.owner


class CuPyLibrary:
    """CuPy: works on the current CUDA stream of the array's device."""

    def __init__(self, cupy: Any, device: int) -> None:
        self.cupy, self.device = cupy, device
        self.foreign: list[Any] = []  # arrays of other libraries that the launch uses
        with cupy.cuda.Device(device):
            self.cuda_stream = int(cupy.cuda.get_current_stream().ptr)

    def read(self, array: Any) -> DeviceArray:
        """Describes an array of this device, after a copy if it is not contiguous."""
        with self.cupy.cuda.Device(self.device):
            array = self.cupy.ascontiguousarray(array)
        return DeviceArray(int(array.data.ptr), tuple(array.shape), array.dtype.name, self.device, array, self.cuda_stream)

    def empty(self, shape: tuple[int, ...], dtype: str) -> DeviceArray:
        """Allocates an array with undefined values."""
        with self.cupy.cuda.Device(self.device):
            return self.read(self.cupy.empty(shape, dtype=dtype))

    def converted(self, given: DeviceArray | np.ndarray, shape: tuple[int, ...], dtype: str, name: str) -> DeviceArray:
        """Converts to an array of this device by CuPy."""
        value: Any = given
        with self.cupy.cuda.Device(self.device):
            if isinstance(given, DeviceArray):
                if given.dtype == "bfloat16":
                    raise TypeError(f"{name}: got bfloat16, which CuPy does not have; expected another dtype")
                # DLPack makes the CUDA stream wait; with the array interface CuPy would block the host.
                if type(given.owner).__module__.split(".")[0] == "cupy":
                    value = given.owner
                else:
                    value = self.cupy.from_dlpack(given)
                    self.foreign.append(given.owner)
            return self.read(self.cupy.broadcast_to(self.cupy.asarray(value, dtype=dtype), shape))

    def enqueued(self) -> None:
        """Keeps the arrays of other libraries until the launch has finished."""
        if self.foreign:  # CuPy's allocator takes care of CuPy's own arrays
            _hold_until_finished(self.foreign, self.cuda_stream, self.device)

    def result(self, array: DeviceArray) -> Any:
        """The CuPy array."""
        return array.owner


class OtherLibrary:
    """Any other library, of which only the two array protocols are known. This package allocates new arrays itself."""

    def __init__(self, value: Any, array: DeviceArray) -> None:
        self.value, self.device = value, array.device
        self.cuda_stream = array.stream or LEGACY_STREAM
        self.used: list[Any] = [value, array.owner]  # arrays that the launch uses
        _release_finished()

    def empty(self, shape: tuple[int, ...], dtype: str) -> DeviceArray:
        """Allocates a :class:`DeviceArray` with undefined values."""
        memory = call(load_module().Memory, math.prod(shape) * bits_of(dtype) // 8, self.device)
        self.used.append(memory)
        return DeviceArray(memory.address, shape, dtype, self.device, memory, self.cuda_stream)

    def converted(self, given: DeviceArray | np.ndarray, shape: tuple[int, ...], dtype: str, name: str) -> DeviceArray:
        """Copies NumPy arrays to the GPU; GPU arrays must fit as they are."""
        if isinstance(given, np.ndarray):
            return self._copy_to_device(np.array(np.broadcast_to(given, shape), dtype=dtype))
        if given.device != self.device:
            raise ValueError(f"{name}: the array is on GPU {given.device}, the joints on GPU {self.device}")
        if given.shape != shape or given.dtype != dtype:
            raise ValueError(f"{name}: got {given.dtype} of the shape {given.shape}; expected {dtype} of the shape {shape}")
        _wait_for_writer(given, self.cuda_stream)
        self.used.append(given.owner)
        return given

    def _copy_to_device(self, value: np.ndarray) -> DeviceArray:
        array = self.empty(value.shape, value.dtype.name)
        call(load_module().copy, array.address, value.ctypes.data, value.nbytes, self.device, self.cuda_stream)
        self.used.append(value)
        return array

    def enqueued(self) -> None:
        """Keeps all arrays of the launch until it has finished."""
        _hold_until_finished(self.used, self.cuda_stream, self.device)

    def result(self, array: DeviceArray) -> Any:
        """An array of the input's library if it implements the array API standard, otherwise the :class:`DeviceArray`."""
        if hasattr(self.value, "__array_namespace__"):
            return self.value.__array_namespace__().from_dlpack(array)
        return array


def _wait_for_writer(given: DeviceArray, cuda_stream: int) -> None:
    """Makes a CUDA stream wait for the one that writes an array."""
    if given.stream not in (None, cuda_stream):
        call(load_module().order, given.stream, cuda_stream, given.device)
