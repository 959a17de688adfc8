"""How long ``refine()`` takes here, by each backend that there is: ``jointbert bench``."""

from __future__ import annotations

import importlib
import os
import platform
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jointbert import __version__
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
    """Pins the process to its first ``threads`` cores, where the system can; returns them."""
    if not hasattr(os, "sched_setaffinity"):
        return []
    cores = sorted(os.sched_getaffinity(0))[:threads]
    os.sched_setaffinity(0, cores)
    return cores


def interleaved(calls: dict[str, Callable[[], object]], seconds: float) -> dict[str, np.ndarray]:
    """Times each call in turn, repeatedly, for about ``seconds``; microseconds."""
    for call in calls.values():
        end = time.perf_counter() + 0.3
        while time.perf_counter() < end:
            call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or min(map(len, times.values())) < 20:
        for name, call in calls.items():
            call()  # once to bring its own weights back into the caches
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return {name: 1e6 * np.array(values) for name, values in times.items()}


class Row(NamedTuple):
    """Times of one call, microseconds."""

    batch: int
    call: str
    p50_us: float
    p99_us: float
    runs: int


class Report(NamedTuple):
    """What was measured, and what could not be."""

    where: dict[str, Any]
    rows: list[Row]
    missing: dict[str, str]
    """Backends that are not here, and why."""


def bench(weights: str | os.PathLike[str], batches: Sequence[int], threads: int, seconds: float) -> Report:
    """Times refine() by every backend, from NumPy millimetres to NumPy millimetres, interleaved, ``seconds`` for each batch
    size; with torch and a GPU, from a tensor there until its result is there, too.

    Raises:
        ValueError, ImportError: weights that no backend here runs. ValueError: no batch size or one below 1, no threads.
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
            refiner(load_demo().predictions[:1])  # a GPU's kernels may be built for another
            refiners[name] = refiner
        except (ImportError, RuntimeError, ValueError) as error:
            failed[name] = error
    if not refiners:
        raise next(iter(failed.values()))
    before = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    torchs = importlib.import_module("torch").get_num_threads() if "torch" in refiners else None
    try:
        return _measured(refiners, {name: str(error) for name, error in failed.items()}, batches, threads, seconds)
    finally:
        if before is not None:
            os.sched_setaffinity(0, before)
        if torchs is not None:
            importlib.import_module("torch").set_num_threads(torchs)


def _measured(
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
            calls["cuda, tensor on the GPU"] = partial(_finished, torch, refiners["cuda"], torch.from_numpy(given).cuda())
        for name, times in interleaved(calls, seconds).items():
            p50, p99 = np.percentile(times, (50, 99))
            rows.append(Row(batch, name, float(p50), float(p99), len(times)))
    return Report(where, rows, missing)


def _finished(torch: Any, refiner: Refiner, poses: Any) -> None:
    refiner(poses)
    torch.cuda.synchronize()
