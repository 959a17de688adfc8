"""How long does the soft-argmax with confidence take on a GPU?

    python -m benchmarks.soft_argmax_gpu

A pose has 14 heatmaps of 64 x 64. This library's kernel (one launch) is compared with torch, eager and compiled, with and
without the linear depth head (57,344 inputs, 14 outputs). ``of bandwidth`` is the rate at which the heatmaps' bytes are read,
as a share of the bandwidth that a device copy reaches in the same run. The calls rotate through buffers of four times the L2
cache.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import torch
import typer

from benchmarks import gpu
from benchmarks.common import Batches, numbers
from training.errors import one_sentence


def main(
    batches: Batches = "1,16,64,256,1024",
    compiled: Annotated[bool, typer.Option(help="Measure torch.compile, too.")] = True,
) -> None:
    """Print the table and add it to benchmarks/results/<device>.json."""
    from jointbert.cuda.module import load_module
    from jointbert.models import operators
    from jointbert.models.heatmap import soft_argmax

    gpu.require()
    with one_sentence():
        load_module()
    bandwidth = gpu.copy_bandwidth()
    print(f"{gpu.device()['device']}, a copy reads and writes {bandwidth / 1e9:.0f} GB/s")
    print(f"{'batch':>6s} {'dtype':9s} {'layout':14s}{'runtime':22s}{'p50 us':>10s}{'p99 us':>10s}{'of bandwidth':>14s}")
    nothing = gpu.percentiles(lambda _: None)[0]  # the time between two events without work between them
    more = {"copy_bytes_per_s": bandwidth, "empty_events_us": nothing}
    sizes = numbers(batches)
    for batch in sizes:
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            for layout in (torch.contiguous_format, torch.channels_last):
                maps = gpu.Rotating(partial(random_maps, batch, dtype, layout))
                runtimes: dict[str, Any] = {"ours": operators.soft_argmax}
                if layout == torch.contiguous_format:
                    ours, theirs = with_head(dtype)
                    runtimes |= {"ours, head": ours, "torch": soft_argmax, "torch, head": theirs}
                row = {"batch": batch, "dtype": str(dtype)[6:], "layout": str(layout)[6:]}
                for name, run in runtimes.items():
                    report({**row, "runtime": name}, run, maps, bandwidth, more)
                del maps
    for batch in {1, 256}.intersection(sizes) if compiled else ():  # each batch size compiles for seconds
        torch._dynamo.reset()  # torch would run eagerly after eight recompilations
        maps = gpu.Rotating(partial(random_maps, batch, torch.float16, torch.contiguous_format))
        _, theirs = with_head(torch.float16)
        row = {"batch": batch, "dtype": "float16", "layout": "contiguous_format"}
        for name, run in (("torch.compile", soft_argmax), ("torch.compile, head", theirs)):
            fast = torch.compile(run, dynamic=False, fullgraph=True)
            report({**row, "runtime": name}, fast, maps, bandwidth, more)


def random_maps(batch: int, dtype: Any, layout: Any) -> Any:
    """Random heatmaps ``(B, 14, 64, 64)`` on the GPU."""
    return torch.rand((batch, 14, 64, 64), device="cuda").to(dtype).to(memory_format=layout)


def with_head(dtype: Any) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """Soft-argmax with the linear depth head: this library's operator and torch's."""
    from jointbert.models import operators
    from jointbert.models.heatmap import soft_argmax

    weight, bias = torch.randn(14, 14 * 64 * 64, device="cuda").to(dtype), torch.randn(14, device="cuda")
    narrow = bias.to(dtype)
    ours = partial(operators.soft_argmax_depth, weight=weight, bias=bias)
    return ours, lambda x: (soft_argmax(x), torch.nn.functional.linear(x.flatten(1), weight, narrow))


def report(row: dict[str, Any], run: Any, maps: Any, bandwidth: float, more: dict[str, Any]) -> None:
    """Measures, prints and writes one row."""
    line = f"{row['batch']:6d} {row['dtype']:9s} {row['layout'][:13]:14s}{row['runtime']:22s}"
    with torch.no_grad():
        times = gpu.attempt(line, lambda: gpu.percentiles(lambda k: run(maps[k]), repeats=500))
    if times is None:
        return
    p50, p99 = times
    share = maps.bytes / p50 * 1e6 / bandwidth
    print(f"{line}{p50:10.1f}{p99:10.1f}{100 * share:12.0f} %", flush=True)
    row = {**row, "p50_us": p50, "p99_us": p99, "of_bandwidth": share}
    gpu.write("soft_argmax", row, ("batch", "dtype", "layout", "runtime"), more)


if __name__ == "__main__":
    typer.run(main)
