"""An array on a GPU (address, shape, type), and the protocol of the libraries that such arrays come from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from jointbert.cuda.detect import DLPACK_CUDA
from jointbert.cuda.module import call, load_module

# By dtype name: the array interface's typestr without byte order, DLPack's kind and bits, DLPack's type code.
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
"""Types that NumPy has, too."""
LEGACY_STREAM = 1
"""The ``cudaStream_t`` of CUDA's legacy default stream."""


def bits_of(dtype: str) -> int:
    """Bits of one value of a dtype, by its name."""
    return 8 if dtype == "bool" else int(dtype.lstrip("abcdefghijklmnopqrstuvwxyz"))


@dataclass(frozen=True)
class DeviceArray:
    """An array on a GPU in C order, which other libraries read by ``__cuda_array_interface__`` or DLPack.

    Results are of this class if the input's library can't make arrays from them.

    Attributes:
        address: the device address of the first value.
        shape: sizes of the axes, in values.
        dtype: NumPy's name, or ``bfloat16``; for a type that is not in :data:`TYPES`, its code in the protocol.
        device: the GPU's number.
        owner: the object that owns the memory; the array keeps it alive.
        stream: the ``cudaStream_t`` on which the values are written; None: they are complete, or written on the legacy stream.
    """

    address: int
    shape: tuple[int, ...]
    dtype: str
    device: int
    owner: Any
    stream: int | None = None

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * bits_of(self.dtype) // 8

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        kind = TYPES[self.dtype][0]
        if kind is None:
            raise AttributeError(f"__cuda_array_interface__ has no {self.dtype}; use DLPack")
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
            raise BufferError("__dlpack__: this array makes no copies; expected copy=None")
        if dl_device not in (None, self.__dlpack_device__()):
            raise BufferError(f"__dlpack__: got the device {dl_device}; the array is on {self.__dlpack_device__()}")
        module, writer = load_module(), self.stream or LEGACY_STREAM
        consumer = LEGACY_STREAM if stream is None else int(stream)  # -1: the consumer synchronizes itself
        if consumer not in (-1, writer):
            call(module.order, writer, consumer, self.device)
        return module.write_dlpack(
            self.address, list(self.shape), TYPES[self.dtype][2], bits_of(self.dtype), self.device, self.owner
        )

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise TypeError(
            "the array is on a GPU; copy it to the host with a library that reads DLPack or __cuda_array_interface__"
        )


class Library(Protocol):
    """The array library of an input: torch, CuPy or another."""

    cuda_stream: int
    """The ``cudaStream_t`` on which the work for this input is enqueued."""

    def empty(self, shape: tuple[int, ...], dtype: str) -> DeviceArray:
        """A new array with undefined values; its ``owner`` is an array of the library."""

    def converted(self, given: DeviceArray | np.ndarray, shape: tuple[int, ...], dtype: str, name: str) -> DeviceArray:
        """A GPU array (from :func:`jointbert.cuda.arrays.read`) or a NumPy array, broadcast to ``shape`` and converted to
        ``dtype``.

        The work is enqueued on :attr:`cuda_stream`. ``name`` is the argument's name in messages.

        Raises:
            ValueError, TypeError: the array can't be broadcast or converted.
        """

    def enqueued(self) -> None:
        """Must be called after each launch, even a failed one: keeps the arrays that the launch uses until it has finished."""

    def result(self, array: DeviceArray) -> Any:
        """The user's view of an array that :meth:`empty` made."""
