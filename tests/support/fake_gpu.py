"""Arrays and launches on the fake CUDA runtime, whose device memory is host memory."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import numpy as np

from jointbert.contract import Batch
from jointbert.cuda.arrays import DeviceArray
from jointbert.cuda.graph_session import GraphSession
from jointbert.cuda.module import load_module
from jointbert.runtimes.cuda import CudaBackend, DeviceBatch, DeviceResult


class GpuArray:
    """An array of an unknown library on the GPU, behind ``__cuda_array_interface__``."""

    def __init__(self, array: np.ndarray, strides: tuple[int, ...] | None = None) -> None:
        self.array = np.ascontiguousarray(array)
        self.__cuda_array_interface__ = {
            "shape": array.shape,
            "typestr": array.dtype.str,
            "data": (self.array.ctypes.data, True),
            "strides": strides,
            "version": 3,
        }


def to_numpy(array: DeviceArray) -> np.ndarray:
    """A copy of an array, after its stream's work is done."""
    load_module().synchronize(array.stream, array.device)
    if not array.nbytes:
        return np.empty(array.shape, array.dtype)
    memory = (ctypes.c_char * array.nbytes).from_address(array.address)
    return np.frombuffer(bytes(memory), array.dtype).reshape(array.shape)


def plain_batch(joints: np.ndarray) -> Batch:
    """Poses in canonical order and millimetres, with nothing else known."""
    return Batch(joints, np.arange(14, dtype=np.int32), 1.0, None, None, None, None)


def launch_variant(backend: CudaBackend, joints: np.ndarray, variant: int) -> np.ndarray:
    """Joints refined by one launch of a variant (-1: the fastest)."""
    count = len(joints)
    out = [np.empty(s, d) for s, d in ((joints.shape, joints.dtype), ((count, 14), np.float32), ((count,), np.uint8))]
    given, *arrays = (DeviceArray(x.ctypes.data, x.shape, x.dtype.name, 0, x) for x in (joints, *out))
    batch = DeviceBatch(given, np.arange(14, dtype=np.int32), 1.0, False, None, None, None)
    backend.enqueue(batch, DeviceResult(*arrays, None, None), 0, variant)
    load_module().synchronize(0, 0)
    return out[0]


def empty_session() -> GraphSession:
    """A session that is used for its stream alone."""
    return GraphSession({}, {"y": ((), "uint8")}, rows=1)


def enqueue_copy(session: GraphSession, enqueued: list[int]) -> Callable[[int], None]:
    """Work to capture: y = x on the session's stream. Appends each batch size that it is called for to ``enqueued``."""

    def enqueue(batch: int) -> None:
        x, y = session.input("x", batch), session.output("y", batch)
        load_module().copy(y.address, x.address, y.nbytes, 0, session.stream)
        enqueued.append(batch)

    return enqueue
