"""How long does the soft-argmax with confidence take on a GPU?

    python benchmarks/soft_argmax_gpu.py

14 heatmaps of 64 x 64 a pose, without and with the linear depth head (57,344 to 14): our kernel (one launch) against the same
in torch, eager and compiled, and against the time in which the maps' bytes could be read at the bandwidth that a copy reaches.
All in one run, the buffers rotating through four times the L2 cache.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def main(
    batches: Annotated[str, typer.Option(help="Batch sizes, comma-separated.")] = "1,16,64,256,1024",
    compiled: Annotated[bool, typer.Option(help="torch.compile, too.")] = True,
) -> None:
    """Print the table and add it to benchmarks/results/<device>.json."""
    import torch

    from benchmarks import gpu
    from jointbert.backends.cuda import load_module
    from jointbert.models import operators
    from jointbert.models.heatmap import soft_argmax

    if not torch.cuda.is_available():
        typer.echo("Error: torch finds no GPU", err=True)
        raise typer.Exit(2)
    try:
        load_module()
    except ImportError as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(2) from None
    bandwidth = gpu.copy_bandwidth()
    print(f"{gpu.device()['device']}, a copy reads and writes {bandwidth / 1e9:.0f} GB/s")
    print(f"{'batch':>6s} {'dtype':9s} {'layout':14s}{'runtime':22s}{'p50 us':>10s}{'p99 us':>10s}{'of bandwidth':>14s}")
    keys = ("batch", "dtype", "layout", "runtime")
    nothing = gpu.percentiles(lambda _: None)[0]  # what two events take by themselves
    for batch in (int(b) for b in batches.split(",")):
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            for layout in (torch.contiguous_format, torch.channels_last):

                def make(shape: tuple[int, ...] = (batch, 14, 64, 64), d: Any = dtype, m: Any = layout) -> torch.Tensor:
                    return torch.rand(shape, device="cuda").to(d).to(memory_format=m)

                maps = gpu.Rotating(make)
                runtimes: dict[str, Any] = {"ours": operators.soft_argmax}
                if layout == torch.contiguous_format:
                    weight, bias = torch.randn(14, 14 * 64 * 64, device="cuda").to(dtype), torch.randn(14, device="cuda")
                    narrow = bias.to(dtype)

                    def with_head(x: torch.Tensor, w: Any = weight, b: Any = narrow) -> tuple[Any, torch.Tensor]:
                        return soft_argmax(x), torch.nn.functional.linear(x.flatten(1), w, b)

                    def ours_with_head(x: torch.Tensor, w: Any = weight, b: Any = bias) -> Any:
                        return operators.soft_argmax_depth(x, w, b)

                    runtimes |= {"ours, head": ours_with_head, "torch": soft_argmax, "torch, head": with_head}
                    if compiled and dtype == torch.float16 and batch in (1, 256):  # each takes seconds to compile
                        torch._dynamo.reset()  # each shape is compiled anew: after eight, it would run eagerly
                        for name, f in (("torch.compile", soft_argmax), ("torch.compile, head", with_head)):
                            runtimes[name] = torch.compile(f, dynamic=False, fullgraph=True)
                for name, run in runtimes.items():
                    with torch.no_grad():
                        p50, p99 = gpu.percentiles(lambda k, f=run, m=maps: f(m[k]), repeats=500)  # type: ignore[misc]
                    row = {
                        "batch": batch,
                        "dtype": str(dtype).removeprefix("torch."),
                        "layout": str(layout).removeprefix("torch."),
                        "runtime": name,
                        "p50_us": p50,
                        "p99_us": p99,
                        "of_bandwidth": maps.bytes / p50 * 1e6 / bandwidth,
                    }
                    print(
                        f"{batch:6d} {row['dtype']:9s} {row['layout'][:13]:14s}{name:22s}{p50:10.1f}{p99:10.1f}"
                        f"{100 * row['of_bandwidth']:12.0f} %",
                        flush=True,
                    )
                    path = gpu.write("soft_argmax", row, keys, {"copy_bytes_per_s": bandwidth, "empty_events_us": nothing})
                del maps
    print(f"wrote {path}")


if __name__ == "__main__":
    typer.run(main)
