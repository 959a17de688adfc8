"""Timing on a GPU: what the device takes, without the host's gaps."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

RESULTS = Path(__file__).resolve().parent / "results"


def percentiles(
    call: Callable[[int], object], repeats: int = 1000, warmup: int = 20, together: int = 50
) -> tuple[float, float]:
    """p50 and p99 of the device's time for ``call(k)``, microseconds; ``k`` counts on from the warm-up.

    ``together`` calls at a time are enqueued behind a kernel that waits, so the device never waits for the host; two events
    stand around each. The queue holds some thousand launches: where they do not fit, fewer calls are enqueued together.

    Raises:
        RuntimeError: a single call takes the host longer than the kernel waits, or more launches than the queue holds.
    """
    for k in range(warmup):
        call(k)
    torch.cuda.synchronize()
    times: list[float] = []
    while len(times) < repeats:
        pairs = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(together)]
        torch.cuda._sleep(60_000_000)  # some 30 ms: longer than it takes to enqueue what follows
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
    """What ``timed`` measures; None where it can't, and the row that ``line`` begins says why."""
    try:
        return timed()
    except RuntimeError as error:
        print(f"{line} failed: {' '.join(str(error).split())[:80]}", flush=True)
        return None


def wall_clock(call: Callable[[], object], repeats: int = 500, warmup: int = 50) -> tuple[float, float]:
    """p50 and p99 of a call in microseconds, as the host sees it; the GPU is idle when it begins."""
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
    """Copies of a tensor, at least four times the L2 cache together: ``rotating[k]`` comes from memory for each new k, whoever
    read the last one."""

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
    """Bytes read and written a second by a device copy of 1 GiB."""
    source = torch.empty(1 << 28, dtype=torch.float32, device="cuda")
    target = torch.empty_like(source)
    p50, _ = percentiles(lambda _: target.copy_(source), repeats=50, warmup=5)
    return 2 * source.numel() * 4 / (p50 * 1e-6)


def device() -> dict[str, str]:
    """What the figures belong to."""
    major, minor = torch.cuda.get_device_capability()
    return {
        "device": torch.cuda.get_device_name(),
        "compute_capability": f"{major}.{minor}",
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
    }


def write(question: str, row: dict[str, Any], keys: tuple[str, ...], more: dict[str, Any] | None = None) -> Path:
    """Puts one row of a benchmark into ``results/<device>.json``, in place of the one with the same ``keys``."""
    name = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
    path = RESULTS / f"{name}.json"
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    old = content.get(question, {}).get("rows", [])
    rows = [r for r in old if any(r.get(key) != row[key] for key in keys)] + [row]
    content[question] = {**device(), **(more or {}), "rows": rows}
    whole = path.with_suffix(".part")  # an end in the midst of it must not leave half a file
    whole.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    whole.replace(path)
    return path
