"""Timing on a GPU: the device's own time, without the gaps in which it waits for the host."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer

RESULTS = Path(__file__).resolve().parent / "results"


def require() -> None:
    """Ends the command with one sentence and exit code 2 where torch finds no GPU."""
    if not torch.cuda.is_available():
        typer.echo("Error: torch finds no GPU", err=True)
        raise typer.Exit(2)


def percentiles(
    call: Callable[[int], object], repeats: int = 1000, warmup: int = 20, together: int = 50
) -> tuple[float, float]:
    """p50 and p99 of the device's time for ``call(k)``, microseconds; ``k`` is 0, 1, ... from the first warm-up call on.

    ``together`` calls at a time are enqueued behind a kernel that sleeps, so that the device never waits for the host; each
    call is enclosed by two events. The launch queue holds about a thousand launches: where the calls do not fit, fewer are
    enqueued together.

    Raises:
        RuntimeError: enqueueing a single call takes longer than the sleeping kernel, or more launches than the queue holds.
    """
    for k in range(warmup):
        call(k)
    torch.cuda.synchronize()
    times: list[float] = []
    while len(times) < repeats:
        pairs = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(together)]
        torch.cuda._sleep(60_000_000)  # about 30 ms, longer than enqueueing the calls takes
        for k, (begin, end) in enumerate(pairs):
            begin.record()
            call(warmup + len(times) + k)
            end.record()
        begun = pairs[0][0].query()
        torch.cuda.synchronize()
        if begun and together == 1:
            raise RuntimeError("the device had begun before the call was enqueued: its time would hold the host's gaps")
        if begun:
            together = max(1, together // 2)
            continue
        times += [1e3 * begin.elapsed_time(end) for begin, end in pairs]
    p50, p99 = np.percentile(times, (50, 99))
    return float(p50), float(p99)


def attempt(line: str, timed: Callable[[], tuple[float, float]]) -> tuple[float, float] | None:
    """The result of ``timed``; None where it raises RuntimeError, whose message is printed after ``line``."""
    try:
        return timed()
    except RuntimeError as error:
        print(f"{line} failed: {' '.join(str(error).split())[:80]}", flush=True)
        return None


def wall_clock(call: Callable[[], object], repeats: int = 500, warmup: int = 50) -> tuple[float, float]:
    """p50 and p99 of the host's time for a call, microseconds; the GPU is idle when the call begins."""
    for _ in range(warmup):
        call()
    times = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        begin = time.perf_counter_ns()
        call()
        times.append((time.perf_counter_ns() - begin) / 1e3)
    p50, p99 = np.percentile(times, (50, 99))
    return float(p50), float(p99)


class Rotating:
    """Copies of a tensor that together are at least four times the L2 cache: each ``rotating[k]`` is the next copy, which is
    read from memory, not from the cache."""

    def __init__(self, make: Callable[[], torch.Tensor]) -> None:
        first = make()
        cache = torch.cuda.get_device_properties(first.device).L2_cache_size
        self.bytes = first.numel() * first.element_size()
        count = max(2, -(-4 * cache // self.bytes))
        self.tensors = [first] + [first.clone(memory_format=torch.preserve_format) for _ in range(count - 1)]
        self.next = 0

    def __getitem__(self, _: int) -> torch.Tensor:
        self.next = (self.next + 1) % len(self.tensors)
        return self.tensors[self.next]


def copy_bandwidth() -> float:
    """Bytes per second, read and written, of a device copy of 1 GiB."""
    source = torch.empty(1 << 28, dtype=torch.float32, device="cuda")
    target = torch.empty_like(source)
    p50, _ = percentiles(lambda _: target.copy_(source), repeats=50, warmup=5)
    return 2 * source.numel() * 4 / (p50 * 1e-6)


def device() -> dict[str, str]:
    """Names and versions that belong to every measurement on this device."""
    major, minor = torch.cuda.get_device_capability()
    return {
        "device": torch.cuda.get_device_name(),
        "compute_capability": f"{major}.{minor}",
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
    }


def write(question: str, row: dict[str, Any], keys: tuple[str, ...], more: dict[str, Any] | None = None) -> Path:
    """Writes one row of a benchmark to ``results/<device>.json``, in place of the row with the same values of ``keys``."""
    name = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
    path = RESULTS / f"{name}.json"
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    old = content.get(question, {}).get("rows", [])
    rows = [r for r in old if any(r.get(key) != row[key] for key in keys)] + [row]
    content[question] = {**device(), **(more or {}), "rows": rows}
    whole = path.with_suffix(".part")  # an interrupted run must not leave half a file
    whole.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    whole.replace(path)
    return path
