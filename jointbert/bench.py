"""Measures the latency of ``refine()`` on this machine for each available backend: ``jointbert bench``."""

from __future__ import annotations

import importlib
import os
import platform
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jointbert import __version__
from jointbert.contract import JointbertWarning
from jointbert.demo import load_demo
from jointbert.inputs.arguments import check_threads
from jointbert.refine import Refiner
from jointbert.runtimes import RUNTIMES
from jointbert.runtimes.registry import file_kind


def cpu_name() -> str:
    """The processor's name as the system states it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def pin(threads: int) -> list[int]:
    """Pins the process to its first ``threads`` cores and returns them; where the system can't pin, returns an empty list."""
    if not hasattr(os, "sched_setaffinity"):
        return []
    cores = sorted(os.sched_getaffinity(0))[:threads]
    os.sched_setaffinity(0, cores)
    return cores


def interleaved(calls: dict[str, Callable[[], object]], seconds: float) -> dict[str, np.ndarray]:
    """Times all calls in turn, repeatedly, for about ``seconds`` after a warm-up; returns each one's times in microseconds."""
    for call in calls.values():
        end = time.perf_counter() + 0.3
        while time.perf_counter() < end:
            call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or min(map(len, times.values())) < 20:
        for name, call in calls.items():
            call()  # untimed: brings the call's weights back into the CPU's caches
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return {name: 1e6 * np.array(values) for name, values in times.items()}


class Row(NamedTuple):
    """Percentiles of one call's times, microseconds."""

    batch: int
    call: str
    p50_us: float
    p99_us: float
    runs: int


class Report(NamedTuple):
    """The measurements, the environment, and the backends that could not run."""

    where: dict[str, Any]
    rows: list[Row]
    missing: dict[str, str]
    """Backends that are not available, with the reason."""


def bench(weights: str | os.PathLike[str], batches: Sequence[int], threads: int, seconds: float) -> Report:
    """Times refine() with each available backend, from NumPy millimetres to NumPy millimetres, ``seconds`` for each batch size.

    The backends' calls are interleaved. With torch and a GPU, it also times a call from a GPU tensor to its result on the GPU.

    Raises:
        ValueError, ImportError: no available backend runs the weights. ValueError: no batch size or one below 1, fewer than one
            thread.
    """
    if not batches or min(batches) < 1:
        raise ValueError(f"batch: got {list(batches)}; expected sizes of at least 1")
    threads = check_threads(threads)
    refiners: dict[str, Refiner] = {}
    failed: dict[str, Exception] = {}
    kind = file_kind(Path(weights))
    for name in (spec.name for spec in RUNTIMES if kind in spec.suffixes):
        try:
            refiner = Refiner(weights, name, threads)
            refiner(load_demo().predictions[:1])  # fails if the kernels are not built for this GPU
            refiners[name] = refiner
        except (ImportError, RuntimeError, ValueError) as error:
            failed[name] = error
    if not refiners:
        raise next(iter(failed.values()))
    affinity = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    torch_threads = importlib.import_module("torch").get_num_threads() if "torch" in refiners else None
    try:
        return _measure(refiners, {name: str(error) for name, error in failed.items()}, batches, threads, seconds)
    finally:
        if affinity is not None:
            os.sched_setaffinity(0, affinity)
        if torch_threads is not None:
            importlib.import_module("torch").set_num_threads(torch_threads)


def _measure(
    refiners: dict[str, Refiner], missing: dict[str, str], batches: Sequence[int], threads: int, seconds: float
) -> Report:
    where: dict[str, Any] = {"jointbert": __version__, "cpu": cpu_name(), "cores": pin(threads), "threads": threads}
    torch: Any = None
    if "torch" in refiners:
        torch = importlib.import_module("torch")
        torch.set_num_threads(threads)
        where["torch"] = torch.__version__
    if torch is not None and "cuda" in refiners and torch.cuda.is_available():
        where["gpu"] = torch.cuda.get_device_name()
    poses = load_demo().predictions
    rows = []
    for batch in batches:
        given = np.resize(poses, (batch, 14, 3))
        calls: dict[str, Callable[[], object]] = {name: partial(refiner, given) for name, refiner in refiners.items()}
        if "gpu" in where:
            calls["cuda, tensor on the GPU"] = partial(
                _refine_and_wait, torch, refiners["cuda"], torch.from_numpy(given).cuda()
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", JointbertWarning)  # a warning in each of thousands of calls
            measured = interleaved(calls, seconds)
        for name, times in measured.items():
            p50, p99 = np.percentile(times, (50, 99))
            rows.append(Row(batch, name, float(p50), float(p99), len(times)))
    return Report(where, rows, missing)


def _refine_and_wait(torch: Any, refiner: Refiner, poses: Any) -> None:
    refiner(poses)
    torch.cuda.synchronize()
