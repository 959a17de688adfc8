"""Backend ``cuda`` and its device: variants, failures of CUDA, processes and threads. On the fake CUDA runtime."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import jointbert
from jointbert import Refiner
from jointbert.cuda.module import load_module
from jointbert.runtimes.cuda import CudaBackend
from jointbert.weights import load_weights
from tests.support.fake_gpu import GpuArray, empty_session, launch_variant, plain_batch

pytestmark = pytest.mark.usefixtures("gpu")


def test_freeing_memory_releases_the_gil(gpu: ctypes.CDLL, emulated_module: ModuleType) -> None:
    """It waits for the device, where work may wait for Python."""
    session = empty_session()
    for make in (lambda: emulated_module.Memory(16, 0), lambda: empty_session()):
        flag = ctypes.c_int(0)
        kept = [make()]
        gpu.fake_block_stream(session.stream, ctypes.addressof(flag))
        ending = threading.Thread(target=kept.clear)
        ending.start()
        time.sleep(0.1)
        flag.value = flag.value or 1
        ending.join()
        assert flag.value == 1


def test_the_fastest_measured_variant_is_chosen(
    few: np.ndarray, small: Path, gpu: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch, full: bool
) -> None:
    """The best of three rounds of five launches counts, for each size that is measured. Timed kernels run with --full."""
    before = CudaBackend(load_weights(small))
    unmeasured = [before.refiner(0).choose(n) for n in (1, 4, 5000)]
    assert before.refiner(0).measured == []
    monkeypatch.setattr(CudaBackend, "measured_sizes", (1, 2, 4))
    # Tiles, clusters and grid at 1 and 2; clusters take more than twice the tiles' time at 2 and are not timed at 4.
    rounds = [(3, 2, 4), (1.5, 9, 1), (1.2, 8, 7), (2, 3, 2), (4.5, 5, 6), (1.9, 9, 9), (2, 2, 2), (2.5, 9, 9)]
    for times in [(1e3, 1e3, 1e3), *rounds]:  # the warm-up comes first
        for ms in times:
            gpu.fake_event_time(ms)
    backend = CudaBackend(load_weights(small))
    gpu.fake_skip_launches(not full)
    refiner = backend.refiner(0)
    gpu.fake_skip_launches(False)
    rows = [(1, 0, 200.0), (2, 1, 380.0), (4, 2, 400.0)]
    assert [(n, v) for n, v, _ in refiner.measured] == [(n, v) for n, v, _ in rows]
    np.testing.assert_allclose([us for _, _, us in refiner.measured], [us for _, _, us in rows], rtol=1e-6)
    assert [refiner.choose(n) for n in (1, 2, 3, 4, 5, 5000)] == [0, 1, 2, 2, 2, 2]
    # The choice does not change the result.
    for count in (1, 2, 3):
        part = plain_batch(few[:count])
        np.testing.assert_array_equal(backend.run(part).joints, before.run(part).joints)
    assert unmeasured[0] != 2
    # Where the measured variant does not run so many poses, another does.
    gpu.fake_skip_launches(not full)
    monkeypatch.setattr(CudaBackend, "measured_sizes", (2,))
    for ms in (1e3, 1e3, 1e3, *(2, 2, 2), *(3, 3, 3), *(1, 1, 1)):
        gpu.fake_event_time(ms)
    grid = CudaBackend(load_weights(small)).refiner(0)
    assert [grid.choose(n) for n in (1, 2, 20)] == [1, 1, 1]
    assert grid.choose(5000) == unmeasured[2]
    # A variant whose launch fails is not chosen: its first launch follows the warm-up's 16.
    for ms in (1e3, 1e3, 1e3, *(9, 9, 9), *(8, 8, 8)):
        gpu.fake_event_time(ms)
    gpu.fake_fail_launch(16)
    assert [v for _, v, _ in CudaBackend(load_weights(small)).refiner(0).measured] == [1]
    # Invalid sizes, and a timer that fails.
    for sizes in ([64, 1], [2, 0], [-1], [0], [2, 2]):
        with pytest.raises(ValueError, match="sizes: expected positive numbers of poses that rise"):
            grid.measure(sizes)
    gpu.fake_fail(b"cudaEventElapsedTime")
    with pytest.raises(RuntimeError, match="cudaEventElapsedTime: unknown error"):
        CudaBackend(load_weights(small)).refiner(0)


def test_grid_launches_from_several_threads(poses: np.ndarray, small: Path) -> None:
    """Every launch of the grid variant allocates memory."""
    backend = CudaBackend(load_weights(small))
    expected = backend.run(plain_batch(poses[:8])).joints
    failed: list[int] = []

    def work(i: int) -> None:
        for k in range(i, 8, 4):
            if not np.array_equal(launch_variant(backend, poses[k : k + 1], 1)[0], expected[k]):
                failed.append(k)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_no_gpu_and_no_module_are_one_sentence(
    few: np.ndarray, gpu: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch, refine: Callable[..., Any], make: Callable[..., Refiner]
) -> None:
    gpu.fake_devices(0, 90, 13000)
    with pytest.raises(RuntimeError, match=r"^backend 'cuda' needs a GPU: there is no GPU, or no driver for it$"):
        make(backend="cuda")
    monkeypatch.setitem(sys.modules, "jointbert._cuda", None)
    monkeypatch.delattr(jointbert, "_cuda")
    load_module.cache_clear()
    with pytest.raises(ImportError, match="joints: the array is on a GPU; jointbert: this installation has no GPU kernels"):
        make()(GpuArray(few))


@pytest.mark.parametrize(
    "name", ["cudaMalloc", "cudaMemcpyAsync", "cudaMallocHost", "cudaStreamBeginCapture", "cudaGraphLaunch"]
)
def test_after_a_failed_cuda_call_the_next_call_works(
    few: np.ndarray, gpu: ctypes.CDLL, name: str, make: Callable[..., Refiner]
) -> None:
    refiner = make(backend="cuda")
    gpu.fake_fail(name.encode())
    with pytest.raises(RuntimeError, match=rf"^{name}: unknown error \(CUDA error 999\)$"):
        refiner(few)
    assert np.isfinite(refiner(few)).all()


@pytest.mark.parametrize("name", ["cudaMemcpyAsync", "cudaStreamSynchronize", "cudaDeviceGetAttribute"])
def test_a_failed_upload_of_weights_leaks_nothing(small: Path, gpu: ctypes.CDLL, name: str) -> None:
    backend = CudaBackend(load_weights(small))
    before = gpu.fake_allocations()
    gpu.fake_fail(name.encode())
    with pytest.raises(RuntimeError, match="unknown error"):
        backend.refiner(0)
    assert gpu.fake_allocations() == before
    backend.refiner(0)


@pytest.mark.parametrize("name", ["cudaMemPoolCreate", "cudaMemPoolSetAttribute"])
def test_a_gpu_without_memory_pools_has_no_grid_variant(few: np.ndarray, small: Path, gpu: ctypes.CDLL, name: str) -> None:
    """MIG instances and virtual GPUs may refuse pools: the other variants run."""
    before = gpu.fake_allocations()
    gpu.fake_fail(name.encode())
    backend = CudaBackend(load_weights(small))
    batch = plain_batch(few)
    np.testing.assert_array_equal(backend.run(batch).joints, CudaBackend(load_weights(small)).run(batch).joints)
    with pytest.raises(ValueError, match="variant: this GPU runs no cooperative grid"):
        launch_variant(backend, few, 1)
    del backend
    assert gpu.fake_allocations() == before


def test_an_older_gpu_has_no_clusters_and_no_bfloat16(few: np.ndarray, small: Path, gpu: ctypes.CDLL) -> None:
    expected = launch_variant(CudaBackend(load_weights(small)), few, 2)
    gpu.fake_devices(1, 75, 13000)
    with pytest.raises(
        ValueError, match=r"precision: this GPU, of compute capability 7.5, multiplies no bfloat16 .* take 'f16'"
    ):
        CudaBackend(load_weights(small), precision="bf16").refiner(0)
    backend = CudaBackend(load_weights(small))
    with pytest.raises(
        ValueError, match=r"variant: this GPU runs no clusters \(compute capability 9.0 and later have them\); got 5"
    ):
        launch_variant(backend, few, 0)
    np.testing.assert_array_equal(launch_variant(backend, few, -1), expected)
    with pytest.raises(ValueError, match="variant: expected 0, 1, 2 or -1"):
        launch_variant(backend, few, 3)


def test_an_old_driver_is_named(small: Path, gpu: ctypes.CDLL) -> None:
    gpu.fake_devices(1, 90, 12040)
    with pytest.raises(RuntimeError, match=r"needs a GPU: the driver is for CUDA 12.4, this build needs 13.0"):
        CudaBackend(load_weights(small))


def test_arguments_of_the_backend_are_checked(few: np.ndarray) -> None:
    with pytest.raises(ValueError, match="precision: got 'f32'; expected one of 'f16', 'bf16'"):
        CudaBackend(load_weights(), precision="f32")
    with pytest.raises(ValueError, match="device: got 3; expected a GPU's number, 0 to 0 here"):
        CudaBackend(load_weights(), device=3)
    with pytest.raises(TypeError, match="device: got str; expected a GPU's number"):
        CudaBackend(load_weights(), device="cuda")  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="cudaSetDevice"):
        CudaBackend(load_weights()).refiner(3)
    with pytest.raises(ValueError, match=r"precision: got 'f32'; .*cuda: f16, bf16"):
        Refiner(backend="cuda", precision="f32")
    refiner = Refiner(precision="f32")  # the CPU's runtime has it
    assert np.isfinite(refiner(few)).all()
    with pytest.raises(ValueError, match=r"precision: got 'f32', which backend 'cuda' does not have \(f16, bf16\)"):
        refiner(GpuArray(few))


def test_a_forked_process_is_refused(few: np.ndarray, make: Callable[..., Refiner], monkeypatch: pytest.MonkeyPatch) -> None:
    refiner = make(backend="cuda")
    refiner(few)
    monkeypatch.setattr(os, "getpid", lambda: -1)
    for given in (few, GpuArray(few)):
        with pytest.raises(RuntimeError, match=r"this process was forked from the one that made it.*'spawn'"):
            refiner(given)


def test_concurrent_first_calls_make_one_backend(
    few: np.ndarray, make: Callable[..., Refiner], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[CudaBackend] = []
    plain = CudaBackend.__init__

    def counted(self: CudaBackend, *given: Any, **named: Any) -> None:
        made.append(self)
        time.sleep(0.05)
        plain(self, *given, **named)

    monkeypatch.setattr(CudaBackend, "__init__", counted)
    refiner = make()
    threads = [threading.Thread(target=refiner, args=(GpuArray(few),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
