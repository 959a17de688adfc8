"""Arrays of other libraries on the GPU: protocols, streams, lifetime. On the fake CUDA runtime."""

from __future__ import annotations

import ctypes
import math
import sys
import weakref
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from jointbert import Refiner
from jointbert.cuda.arrays import DeviceArray
from jointbert.cuda.module import load_module
from tests.support.fake_gpu import GpuArray, empty_session, to_numpy

pytestmark = pytest.mark.usefixtures("gpu")


def test_a_broken_protocol_is_a_type_error(few: np.ndarray, refine: Callable[..., Any]) -> None:
    incomplete = GpuArray(few)
    del incomplete.__cuda_array_interface__["shape"]

    class NoStream:
        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, 0

        def __dlpack__(self) -> None: ...

    class Raises:
        def __dlpack_device__(self) -> tuple[int, int]:
            raise OSError("gone")

    for broken in (incomplete, NoStream(), Raises()):
        with pytest.raises(TypeError, match=rf"^joints: .*{type(broken).__name__}.*"):
            refine(broken)


def test_streams_of_inputs_and_results_are_ordered(
    few: np.ndarray, emulated_module: ModuleType, refine: Callable[..., Any]
) -> None:
    """The launch waits for the stream that writes the confidences; DLPack makes a reader wait for the launch."""
    session = empty_session()
    confidence = np.linspace(0, 1, 70, dtype=np.float32).reshape(5, 14)
    late = GpuArray(np.full((5, 14), np.nan, np.float32))
    late.__cuda_array_interface__["stream"] = session.stream
    emulated_module.copy(late.array.ctypes.data, confidence.ctypes.data, confidence.nbytes, 0, session.stream)
    found = refine(GpuArray(few), confidence=late)
    np.testing.assert_array_equal(to_numpy(found), to_numpy(refine(GpuArray(few), confidence=GpuArray(confidence))))

    pending = GpuArray(few)
    pending.__cuda_array_interface__["stream"] = session.stream
    result = refine(pending)
    assert result.stream == session.stream
    capsule = result.__dlpack__()  # for the legacy stream, by DLPack's rule
    emulated_module.synchronize(1, 0)
    address = emulated_module.read_dlpack(capsule)[0]
    there = np.frombuffer(bytes((ctypes.c_char * result.nbytes).from_address(address)), np.float64)
    np.testing.assert_array_equal(there.reshape(5, 14, 3), to_numpy(refine(GpuArray(few))))


def test_an_interface_without_a_stream_falls_back_to_dlpack(
    few: np.ndarray, emulated_module: ModuleType, refine: Callable[..., Any]
) -> None:
    """The interface names a stream from version 3 on (JAX has version 2); before, DLPack orders the streams."""
    session = empty_session()

    class Late(GpuArray):
        def __init__(self) -> None:
            super().__init__(np.full_like(few, np.nan))
            self.__cuda_array_interface__["version"] = 2
            emulated_module.copy(self.array.ctypes.data, few.ctypes.data, few.nbytes, 0, session.stream)

        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, 0

        def __dlpack__(self, stream: int) -> Any:
            emulated_module.order(session.stream, stream, 0)
            return emulated_module.write_dlpack(self.array.ctypes.data, list(few.shape), 2, 64, 0, self)

    np.testing.assert_array_equal(to_numpy(refine(Late())), to_numpy(refine(GpuArray(few))))


class CuPyArray(GpuArray):
    """A stand-in for CuPy's array, in host memory."""

    __module__ = "cupy"

    def __init__(self, array: np.ndarray, device: int = 0) -> None:
        super().__init__(array)
        self.shape, self.dtype = array.shape, array.dtype
        self.data, self.device = SimpleNamespace(ptr=self.array.ctypes.data), SimpleNamespace(id=device)


def test_arrays_of_cupy(few: np.ndarray, refine: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Results are CuPy arrays, on its current stream; CuPy broadcasts and converts the optional arguments."""
    stream = empty_session()
    used: list[int] = []

    def on_host_first(function: Callable[..., np.ndarray]) -> Callable[..., CuPyArray]:
        return lambda x, *more, **named: CuPyArray(function(getattr(x, "array", x), *more, **named))

    class Device:
        def __init__(self, number: int) -> None:
            self.number = number

        def __enter__(self) -> None:
            used.append(self.number)

        def __exit__(self, *_: object) -> None: ...

    cupy = ModuleType("cupy")
    for name in ("ascontiguousarray", "asarray", "broadcast_to", "empty"):
        setattr(cupy, name, on_host_first(getattr(np, name)))
    cupy.cuda = SimpleNamespace(Device=Device, get_current_stream=lambda: SimpleNamespace(ptr=stream.stream))  # type: ignore[attr-defined]

    def from_dlpack(array: DeviceArray) -> CuPyArray:
        address, shape, _, _, _, _, owner = load_module().read_dlpack(array.__dlpack__(stream=stream.stream))
        values = np.ctypeslib.as_array((ctypes.c_float * math.prod(shape)).from_address(address)).reshape(shape)
        made = CuPyArray(values)
        made.array, made.data.ptr, made.kept = values, address, owner  # type: ignore[attr-defined]
        return made

    cupy.from_dlpack = from_dlpack  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    # The device writes to the array's own memory, so the stand-in must not copy.
    monkeypatch.setattr(cupy, "ascontiguousarray", lambda x: x)
    confidence, error = np.linspace(0.2, 1, 14), 9.0
    found = refine(CuPyArray(few), confidence=CuPyArray(confidence), error_mm=error, return_details=True)
    for array in found:
        assert isinstance(array, CuPyArray)
    load_module().synchronize(stream.stream, 0)
    expected = refine(GpuArray(few), confidence=np.tile(confidence, (5, 1)), error_mm=error)
    np.testing.assert_array_equal(found.joints.array, to_numpy(expected))
    assert found.sigma.shape == (5, 14)
    assert set(used) == {0}
    from_host = refine(CuPyArray(few), confidence=confidence, error_mm=error)
    load_module().synchronize(stream.stream, 0)
    np.testing.assert_array_equal(from_host.array, found.joints.array)
    # An array of another library, which is written later, on that library's stream.
    late = GpuArray(np.full((5, 14), np.nan, np.float32))
    other = empty_session()
    late.__cuda_array_interface__["stream"] = other.stream
    tiled = np.tile(confidence, (5, 1)).astype(np.float32)
    load_module().copy(late.array.ctypes.data, tiled.ctypes.data, tiled.nbytes, 0, other.stream)
    of_both = refine(CuPyArray(few), confidence=late, error_mm=error)
    ended: list[str] = []
    weakref.finalize(late, ended.append, "late")
    del late
    assert not ended  # it is not freed, hence not reused, before the launch has read it
    load_module().synchronize(stream.stream, 0)
    np.testing.assert_array_equal(of_both.array, found.joints.array)


def test_an_array_api_library_gets_its_own_arrays(few: np.ndarray, refine: Callable[..., Any]) -> None:
    class Array(GpuArray):
        def __array_namespace__(self) -> Any:
            return SimpleNamespace(
                from_dlpack=lambda x: ("its own", x.__dlpack_device__(), load_module().read_dlpack(x.__dlpack__()))
            )

    kind, device, (address, shape, *_, owner) = refine(Array(few))
    assert (kind, device, shape) == ("its own", (2, 0), (5, 14, 3))
    load_module().synchronize(1, 0)
    there = np.frombuffer(bytes((ctypes.c_char * few.nbytes).from_address(address)), few.dtype)
    np.testing.assert_array_equal(there.reshape(few.shape), to_numpy(refine(GpuArray(few))))
    del owner


def test_inputs_live_until_their_launch_is_done(few: np.ndarray, gpu: ctypes.CDLL, make: Callable[..., Refiner]) -> None:
    """A freed input may be overwritten, so inputs live until then. Results keep neither inputs nor each other alive."""
    refiner = make(backend="cuda")
    ended: list[str] = []

    def array(name: str, values: np.ndarray) -> GpuArray:
        made = GpuArray(values)
        weakref.finalize(made, ended.append, name)
        return made

    found = refiner(array("joints", few), confidence=array("confidence", np.ones((5, 14), np.float32)))
    assert not ended
    refiner(GpuArray(few[:0]))  # a later call releases inputs, but this launch is not done
    assert not ended
    load_module().synchronize(1, 0)
    refiner(GpuArray(few[:0]))
    assert sorted(ended) == ["confidence", "joints"]
    del found
    before, waits = gpu.fake_allocations(), gpu.fake_synchronisations()
    again = refiner(GpuArray(few))
    for _ in range(5):
        again = refiner(again)
    assert gpu.fake_synchronisations() == waits  # freeing memory does not synchronise
    load_module().synchronize(1, 0)
    del again
    refiner(GpuArray(few[:0]))
    assert gpu.fake_allocations() == before


def test_null_unaligned_and_foreign_memory_is_refused(few: np.ndarray, gpu: ctypes.CDLL, refine: Callable[..., Any]) -> None:
    null, odd, foreign = GpuArray(np.ones((5, 14), np.float32)), GpuArray(np.ones((5, 14), np.float32)), GpuArray(few)
    null.__cuda_array_interface__["data"] = (0, False)
    odd.__cuda_array_interface__["data"] = (odd.array.ctypes.data + 1, False)
    foreign.__dlpack_device__ = lambda: (10, 0)  # type: ignore[attr-defined]
    for field, wrong, message in (
        ("stream", -1, "got the stream -1; expected a cudaStream_t, 1, 2 or None"),
        ("stream", "abc", "got the stream 'abc'"),
        ("shape", (-1, 14, 3), r"got the shape \(-1, 14, 3\); expected sides of at least 0"),
        ("shape", (5.0, 14, 3), r"got the shape \(5.0, 14, 3\)"),
        ("shape", (2**62, 14, 3), r"got the shape \(4611686018427387904, 14, 3\)"),
        ("strides", (8,), r"got strides \(8,\) for the shape \(5, 14, 3\)"),
    ):
        odd_field = GpuArray(few)
        odd_field.__cuda_array_interface__[field] = wrong
        with pytest.raises(TypeError, match=f"joints: {message}"):
            refine(odd_field)
    with pytest.raises(ValueError, match=r"confidence: got a null pointer for an array of the shape \(5, 14\)"):
        refine(GpuArray(few), confidence=null)
    with pytest.raises(ValueError, match="error_mm: the memory is not aligned for float32"):
        refine(GpuArray(few), error_mm=odd)
    with pytest.raises(TypeError, match="joints: got memory of DLPack's device type 10; expected CUDA's"):
        refine(foreign)
    here = GpuArray(few)
    gpu.fake_host_address(here.array.ctypes.data)
    with pytest.raises(ValueError, match="joints: the pointer is not a GPU's; pass NumPy arrays as they are"):
        refine(here)
    gpu.fake_fail(b"cudaPointerGetAttributes")
    with pytest.raises(TypeError, match=r"joints: .*cudaPointerGetAttributes: unknown error"):
        refine(GpuArray(few))


def test_dlpack_is_called_once_for_each_array(few: np.ndarray, emulated_module: ModuleType, refine: Callable[..., Any]) -> None:
    """With the stream that reads the array."""
    session = empty_session()
    streams: list[int] = []

    class Once:
        def __init__(self, values: np.ndarray) -> None:
            self.values = values

        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, 0

        def __dlpack__(self, stream: int) -> Any:
            streams.append(stream)
            return emulated_module.write_dlpack(self.values.ctypes.data, list(self.values.shape), 2, 32, 0, self)

    joints = GpuArray(few)
    joints.__cuda_array_interface__["stream"] = session.stream
    confidence = np.full((5, 14), 0.5, np.float32)
    found = refine(joints, confidence=Once(confidence))
    assert streams == [session.stream]
    np.testing.assert_array_equal(to_numpy(found), to_numpy(refine(GpuArray(few), confidence=confidence)))


def test_conversions_that_a_result_refuses(few: np.ndarray, refine: Callable[..., Any]) -> None:
    found = refine(GpuArray(few))
    with pytest.raises(TypeError, match="the array is on a GPU"):
        np.asarray(found)
    with pytest.raises(BufferError, match="this array makes no copies"):
        found.__dlpack__(copy=True)
    with pytest.raises(BufferError, match=r"the array is on \(2, 0\)"):
        found.__dlpack__(dl_device=(1, 0))
    assert found.__dlpack__(max_version=(1, 0), dl_device=(2, 0)) is not None


def test_results_are_inputs_again(few: np.ndarray, emulated_module: ModuleType, refine: Callable[..., Any]) -> None:
    """By either protocol. The memory lives as long as an array that uses it."""
    first = refine(GpuArray(few))

    class OnlyDlpack:
        def __dlpack_device__(self) -> tuple[int, int]:
            return first.__dlpack_device__()

        def __dlpack__(self, **options: Any) -> Any:
            return first.__dlpack__(**options)

    np.testing.assert_array_equal(to_numpy(refine(OnlyDlpack())), to_numpy(refine(first)))
    capsule = first.__dlpack__()
    emulated_module.read_dlpack(capsule)
    with pytest.raises(ValueError, match="holds no tensor, or was used before"):
        emulated_module.read_dlpack(capsule)


def test_repeated_calls_keep_no_memory(few: np.ndarray, gpu: ctypes.CDLL, make: Callable[..., Refiner]) -> None:
    refiner = make(backend="cuda")

    def end() -> int:
        load_module().synchronize(1, 0)
        refiner(GpuArray(few[:0]))  # a later call releases the inputs of finished launches
        return gpu.fake_allocations()

    refiner(GpuArray(few))
    before = end()
    for _ in range(3):
        refiner(GpuArray(few), confidence=np.ones((5, 14)))
        refiner(GpuArray(few)).__dlpack__()
    assert end() == before
