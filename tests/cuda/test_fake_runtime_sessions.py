"""Graph sessions, on the fake CUDA runtime."""

from __future__ import annotations

import ctypes
import gc
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from jointbert import Refiner
from jointbert.cuda.graph_session import GraphSession
from jointbert.cuda.heatmaps import soft_argmax_depth
from jointbert.cuda.module import load_module
from jointbert.runtimes.cuda import CudaBackend, DeviceBatch, DeviceResult
from jointbert.weights import load_weights
from tests.support.fake_gpu import GpuArray, empty_session, enqueue_copy, launch_variant, to_numpy

pytestmark = pytest.mark.usefixtures("gpu")


@pytest.mark.sanitize
def test_a_session_replays_the_captured_work() -> None:
    session = GraphSession({"x": ((3,), "float32")}, {"y": ((3,), "float32")}, rows=8)
    recorded: list[int] = []
    session.capture(enqueue_copy(session, recorded), batches=(2, 8))
    assert session.batches == (2, 8)
    for rows in (1, 2, 5, 8):
        x = np.arange(3 * rows, dtype=np.float32).reshape(rows, 3)
        np.testing.assert_array_equal(session(x=x)["y"], x)
    assert recorded == [2, 8]  # Python enqueues once for each size


@pytest.mark.sanitize
def test_arguments_of_a_session_are_checked(gpu: ctypes.CDLL) -> None:
    session = GraphSession({"x": ((3,), "float32")}, {"y": ((3,), "float32")}, rows=8)
    x = np.zeros((2, 3), np.float32)
    with pytest.raises(ValueError, match="batch: got 2; nothing was captured yet"):
        session(x=x)
    session.capture(enqueue_copy(session, []), batches=(4,))
    with pytest.raises(ValueError, match="batch: got 5; the largest that was captured is 4"):
        session(x=np.zeros((5, 3), np.float32))
    with pytest.raises(ValueError, match=r"x: got float64 of the shape \(2, 3\); expected float32"):
        session(x=x.astype(np.float64))
    with pytest.raises(ValueError, match=r"got \['z'\]; expected \['x'\]"):
        session(z=x)
    with pytest.raises(ValueError, match="batch: got 9; this session has room for 1 to 8"):
        session.capture(enqueue_copy(session, []), batches=(9,))
    with pytest.raises(ValueError, match="at least one row and one output"):
        GraphSession({}, {}, rows=8)
    for dtype in ("float33", "object", ">f4", "complex64"):
        with pytest.raises(ValueError, match=f"got the dtype '{dtype}'; expected one of float16"):
            GraphSession({}, {"y": ((3,), dtype)}, rows=8)
    with pytest.raises(ValueError, match=r"got 2305843009213693952 rows of 8 bytes; expected \d+ bytes at most"):
        GraphSession({}, {"y": ((), "float64")}, rows=2**61)
    for batch in (9, -1):
        with pytest.raises(ValueError, match=f"batch: got {batch}; this session has room"):
            session.input("x", batch)
    with pytest.raises(ValueError, match=r"got the name 'z'; expected one of \['x'\]"):
        session.input("z")
    with pytest.raises(TypeError, match="x: got list; expected a plain NumPy array"):
        session(x=[1, 2])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="x: got MaskedArray; expected a plain NumPy array"):
        session(x=np.ma.array(x, mask=x == 0))
    with pytest.raises(TypeError, match="inputs: got list; expected shape and dtype by name, in a dict"):
        GraphSession([], {"y": ((), "uint8")}, rows=8)  # type: ignore[arg-type]
    for name, wrong in (("rows", 1.5), ("device", "cuda:0")):
        with pytest.raises(TypeError, match=f"{name}: got {type(wrong).__name__}; expected an integer"):
            GraphSession({}, {"y": ((), "uint8")}, **{"rows": 8, name: wrong})
    with pytest.raises(ValueError, match=r"got the shape \(-3, -2\); expected sides of at least 0"):
        GraphSession({}, {"y": ((-3, -2), "uint8")}, rows=8)
    with pytest.raises(ValueError, match="batch: got 99; this session has room for 1 to 8"):
        session.capture(enqueue_copy(session, []), batches=(2, 99))
    assert session.batches == (4,)  # all sizes are checked before anything is captured
    alone = GraphSession({}, {"y": ((), "uint8")}, rows=8)
    alone.capture(lambda _: None, (2, 4))
    assert alone()["y"].shape == (4,)
    gpu.fake_fail(b"cudaMemcpyAsync")
    with pytest.raises(RuntimeError, match="cudaMemcpyAsync: unknown error"):
        session.capture(enqueue_copy(session, []), batches=(8,))
    np.testing.assert_array_equal(session(x=x)["y"], x)


@pytest.mark.sanitize
def test_a_failed_capture_leaves_the_session_unchanged(gpu: ctypes.CDLL) -> None:
    session = GraphSession({"x": ((), "uint8")}, {"y": ((), "uint8")}, rows=4)
    session.capture(enqueue_copy(session, []), batches=(4,))

    def broken(batch: int) -> None:
        raise KeyError(batch)

    with pytest.raises(KeyError):
        session.capture(broken, batches=(2,))
    with pytest.raises(RuntimeError, match="cudaStreamSynchronize: error"):
        session.capture(lambda batch: load_module().synchronize(session.stream, 0), batches=(2,))
    for call in (b"cudaStreamEndCapture", b"cudaGraphInstantiate"):
        gpu.fake_fail(call)
        with pytest.raises(RuntimeError, match=call.decode()):
            session.capture(enqueue_copy(session, []), batches=(2,))
    assert session.batches == (4,)
    x = np.arange(3, dtype=np.uint8)
    np.testing.assert_array_equal(session(x=x)["y"], x)


def test_first_launch_and_new_sessions_during_a_capture(
    few: np.ndarray, small: Path, gpu: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first launch allocates memory, uploads weights and measures. It breaks neither its own capture nor a foreign one."""
    expected = launch_variant(CudaBackend(load_weights(small)), few, 2)
    monkeypatch.setattr(CudaBackend, "measured_sizes", (1,))
    for ms in (1e3, 1e3, 1e3):  # a short warm-up
        gpu.fake_event_time(ms)
    backend = CudaBackend(load_weights(small))
    types = {"joints": ((14, 3), "float64"), "sigma": ((14,), "float32"), "status": ((), "uint8")}
    session = GraphSession({"given": types["joints"]}, types, rows=5)

    def enqueue(batch: int) -> None:
        given = DeviceBatch(session.input("given", batch), np.arange(14, dtype=np.int32), 1.0, False, None, None, None)
        backend.enqueue(given, DeviceResult(*(session.output(name, batch) for name in types), None, None), session.stream)
        GraphSession({}, {"z": ((), "uint8")}, rows=1)

    session.capture(enqueue, (5,))
    np.testing.assert_array_equal(session(given=few)["joints"], expected)
    monkeypatch.setattr(CudaBackend, "measured_sizes", ())
    gpu.fake_begin_foreign_capture()
    launch_variant(CudaBackend(load_weights(small)), few, 2)
    GraphSession({}, {"z": ((), "uint8")}, rows=1)
    gc.collect()
    assert gpu.fake_end_foreign_capture() == 0


@pytest.mark.sanitize
def test_a_graph_keeps_its_scratch_and_copies_alive(few: np.ndarray, make: Callable[..., Refiner], gpu: ctypes.CDLL) -> None:
    """Several calls in one capture, with scratch memory and converted copies; other calls between capture and replay."""
    rng = np.random.default_rng(0)
    maps, weight = rng.random((3, 14, 8, 8), dtype=np.float32), rng.random((14, 14 * 64), dtype=np.float32)
    bias = np.arange(14, dtype=np.float32)
    refiner = make(backend="cuda")
    confidence = np.full((3, 14), 0.2)
    expected = to_numpy(refiner(GpuArray(few[:3].astype(np.float32)), confidence=confidence, hand=["left", "right", "left"]))
    session = GraphSession(
        {"maps": ((14, 8, 8), "float32"), "joints": ((14, 3), "float32")},
        {"depth": ((14,), "float32"), "refined": ((14, 3), "float32")},
        rows=3,
    )
    head = (GpuArray(weight), GpuArray(bias))

    def enqueue(batch: int) -> None:
        depth = soft_argmax_depth(session.input("maps"), *head).depth
        refined = refiner(session.input("joints"), confidence=confidence, hand=["left", "right", "left"])
        for name, array in (("depth", depth), ("refined", refined)):
            to = session.output(name)
            load_module().copy(to.address, array.address, array.nbytes, 0, session.stream)

    session.capture(enqueue, (3,))
    for _ in range(3):
        refiner(GpuArray(few))
        load_module().synchronize(1, 0)
    confidence[:] = 1
    gc.collect()
    found = session(maps=maps, joints=few[:3].astype(np.float32))
    np.testing.assert_allclose(found["depth"], maps.reshape(3, -1).astype(float) @ weight.T.astype(float) + bias, rtol=1e-6)
    np.testing.assert_array_equal(found["refined"], expected)


def test_a_replay_releases_the_gil(gpu: ctypes.CDLL) -> None:
    session = empty_session()
    flag = ctypes.c_int(0)
    session.capture(lambda _: gpu.fake_block_stream(session.stream, ctypes.addressof(flag)), (1,))
    replay = threading.Thread(target=session)
    replay.start()
    time.sleep(0.2)  # the replay waits for the flag
    flag.value = flag.value or 1
    replay.join()
    assert flag.value == 1  # -1: the replay timed out


@pytest.mark.sanitize
def test_a_thread_that_waits_for_a_capture_does_not_block_it() -> None:
    session = GraphSession({"x": ((), "uint8")}, {"y": ((), "uint8")}, rows=4)
    seen: list[tuple[int, ...]] = []
    other = threading.Thread(target=lambda: seen.append(session.batches))

    def enqueue(batch: int) -> None:
        other.start()
        time.sleep(0.05)  # the other thread waits by now, and must not hold the GIL
        enqueue_copy(session, [])(batch)

    session.capture(enqueue, batches=(4,))
    other.join(10)
    assert seen == [(4,)]


@pytest.mark.sanitize
def test_a_session_frees_its_memory(gpu: ctypes.CDLL) -> None:
    before = gpu.fake_allocations()
    session = GraphSession({"x": ((3,), "float32")}, {"y": ((3,), "float32")}, rows=8)
    session.capture(enqueue_copy(session, []), batches=(4,))
    assert gpu.fake_allocations() == before + 4
    del session
    assert gpu.fake_allocations() == before
    gpu.fake_fail(b"cudaMallocHost")
    with pytest.raises(RuntimeError, match="cudaMallocHost"):
        GraphSession({"x": ((3,), "float32")}, {"y": ((3,), "float32")}, rows=8)
    assert gpu.fake_allocations() == before
