"""An array on a GPU as an address with shape and type, and what a library of such arrays must be able to do."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from jointbert.cuda.module import call, load_module

# By name: the array interface's type, DLPack's kind, its code.
TYPES = {
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
NUMPY_TYPES = tuple(name for name in TYPES if name != "bfloat16")
"""Types of arrays that NumPy and a GPU's libraries have in common."""
DLPACK_CUDA, DLPACK_MANAGED = 2, 13
"""DLPack's device types of a GPU's memory."""
LEGACY_STREAM = 1


def bits_of(dtype: str) -> int:
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
        return math.prod(self.shape) * bits_of(self.dtype) // 8

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        kind = TYPES[self.dtype][0]
        if kind is None:
            raise AttributeError(f"__cuda_array_interface__ has no {self.dtype}; take DLPack")
        return {
            "shape": self.shape,
            "typestr": ("|" if bits_of(self.dtype) == 8 else "<") + kind,
            "data": (self.address, False),
            "stream": self.stream or LEGACY_STREAM,
            "version": 3,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return DLPACK_CUDA, self.device

    def __dlpack__(
        self, *, stream: int | None = None, max_version: Any = None, dl_device: Any = None, copy: bool | None = None
    ) -> Any:
        if copy:
            raise BufferError("__dlpack__: copies are the consumer's; expected copy=None")
        if dl_device not in (None, self.__dlpack_device__()):
            raise BufferError(f"__dlpack__: got the device {dl_device}; the array is on {self.__dlpack_device__()}")
        module, own = load_module(), self.stream or LEGACY_STREAM
        consumer = LEGACY_STREAM if stream is None else int(stream)  # -1: it takes care itself
        if consumer not in (-1, own):
            call(module.order, own, consumer, self.device)
        return module.write_dlpack(
            self.address, list(self.shape), TYPES[self.dtype][2], bits_of(self.dtype), self.device, self.owner
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
