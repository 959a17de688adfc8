"""Timing on a GPU: what the device takes, without the host's gaps."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

RESULTS = Path(__file__).resolve().parent / "results"


def percentiles(call: Callable[[int], object], repeats: int = 200, warmup: int = 20) -> tuple[float, float]:
    """p50 and p99 of the device's time for ``call(k)``, microseconds.

    All calls are enqueued behind a kernel that waits, so the device never waits for the host; two events stand around each.
    """
    for k in range(warmup):
        call(k)
    torch.cuda.synchronize()
    times: list[float] = []
    while len(times) < repeats:
        pairs = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(20)]
        torch.cuda._sleep(20_000_000)  # some 10 ms: longer than it takes to enqueue 20 calls
        for k, (begin, end) in enumerate(pairs):
            begin.record()
            call(len(times) + k)
            end.record()
        torch.cuda.synchronize()
        times += [1e3 * begin.elapsed_time(end) for begin, end in pairs]
    p50, p99 = np.percentile(times, (50, 99))
    return float(p50), float(p99)


def rotating(make: Callable[[], torch.Tensor]) -> Sequence[torch.Tensor]:
    """Copies of a tensor of at least four times the L2 cache together, so that each reading comes from memory."""
    first = make()
    cache = torch.cuda.get_device_properties(first.device).L2_cache_size
    count = max(2, -(-4 * cache // max(1, first.numel() * first.element_size())))
    return [first] + [first.clone(memory_format=torch.preserve_format) for _ in range(min(count, 4096) - 1)]


def copy_bandwidth() -> float:
    """Bytes read and written a second by a device copy of 1 GiB."""
    source = torch.empty(1 << 28, dtype=torch.float32, device="cuda")
    target = torch.empty_like(source)
    p50, _ = percentiles(lambda _: target.copy_(source), repeats=40, warmup=5)
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


def write(question: str, rows: list[dict[str, Any]], more: dict[str, Any] | None = None) -> Path:
    """Adds a benchmark's rows to ``results/<device>.json``; other benchmarks' stay."""
    name = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
    path = RESULTS / f"{name}.json"
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    content[question] = {**device(), **(more or {}), "rows": rows}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path
