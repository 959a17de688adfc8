"""What does the refiner add to a whole estimator's time on a GPU?

    python benchmarks/estimator_gpu.py

The thesis's sizes (30.55M parameters, untrained: time does not depend on weights), from depth images of 640 x 480 that lie on
the GPU to joints in millimetres, with and without the refiner. ``ours``: what ``Estimator(..., device="cuda")`` runs, float16
in a CUDA graph with our kernels for heatmaps, depths and refiner; the same with torch's own operators alone, eager and compiled
with CUDA graphs. The device's time between two events; then one call from NumPy to NumPy.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def main(
    batches: Annotated[str, typer.Option(help="Batch sizes, comma-separated.")] = "1,8,64",
    compiled: Annotated[str, typer.Option(help="Those that torch.compile takes, too; each takes half a minute.")] = "1",
    repeats: Annotated[int, typer.Option(min=10)] = 100,
) -> None:
    """Print the table and add it to benchmarks/results/<device>.json."""
    import torch

    from benchmarks import gpu

    if not torch.cuda.is_available():
        typer.echo("Error: torch finds no GPU", err=True)
        raise typer.Exit(2)
    from jointbert.cuda.module import load_module

    try:
        from jointbert.estimator.torch_runtime import TorchEstimator
        from jointbert.models.estimator import EstimatorConfig, HandPoseEstimator
    except ImportError as error:
        typer.echo(f"Error: the estimator needs torchvision ({error})", err=True)
        raise typer.Exit(2) from None
    warnings.simplefilter("ignore")
    torch.backends.cudnn.benchmark = True
    names = {"with refiner": EstimatorConfig(), "without refiner": replace(EstimatorConfig(), refiner=None)}
    ours: dict[str, TorchEstimator] = {}
    plain: dict[str, TorchEstimator] = {}
    try:
        load_module()  # torch's operators would do the work
        with tempfile.TemporaryDirectory() as folder:
            for name, config in names.items():
                torch.manual_seed(0)
                path = Path(folder) / "estimator.safetensors"
                HandPoseEstimator(config).save(path)
                ours[name], plain[name] = (TorchEstimator(path, 1, "cuda", "f16", kernels) for kernels in (True, False))
    except ImportError as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(2) from None
    print(f"{gpu.device()['device']}, torch {torch.__version__}, float16")
    print(f"{'batch':>6s} {'runtime':24s}{'what':18s}{'p50 us':>10s}{'p99 us':>10s}{'share':>9s}")
    whole: dict[tuple[int, str], float] = {}
    for batch in (int(b) for b in batches.split(",")):
        given = inputs(batch)
        on_gpu = tuple(torch.from_numpy(x).cuda() for x in given)
        for name in names:  # with the refiner first: the whole
            row = {"batch": batch, "what": name}
            for runtime, run, together in (("ours", ours[name].replay, 20), ("torch", plain[name].run, 1)):
                how = (repeats, 5, together)
                report({**row, "runtime": runtime}, partial(gpu.percentiles, partial(on_inputs, run, on_gpu), *how), whole)
        row = {"batch": batch, "what": "NumPy to NumPy", "runtime": "ours"}
        report(row, partial(gpu.wall_clock, partial(ours["with refiner"], *given), repeats, 5), whole)
    for batch in (int(b) for b in compiled.split(",") if b):
        on_gpu = tuple(torch.from_numpy(x).cuda() for x in inputs(batch))
        for name in names:
            torch._dynamo.reset()
            fast = torch.compile(plain[name].run, mode="reduce-overhead", dynamic=False)
            row = {"batch": batch, "what": name, "runtime": "torch.compile, graphs"}
            report(row, partial(gpu.percentiles, partial(on_inputs, fast, on_gpu), repeats, 5, 5), whole)


def report(row: dict[str, Any], timed: Callable[[], tuple[float, float]], whole: dict[tuple[int, str], float]) -> None:
    """Times, prints and writes one row; ``whole`` keeps the times with the refiner, by batch and runtime."""
    from benchmarks import gpu

    line = f"{row['batch']:6d} {row['runtime']:24s}{row['what']:18s}"
    times = gpu.attempt(line, timed)
    if times is None:
        return
    p50, p99 = times
    key = (row["batch"], row["runtime"])
    if row["what"] == "with refiner":
        whole[key] = p50
    share = p50 / whole[key] if key in whole and row["what"] != "NumPy to NumPy" else None
    print(f"{line}{p50:10.1f}{p99:10.1f}" + (f"{100 * share:7.1f} %" if share is not None else ""), flush=True)
    gpu.write("estimator", {**row, "p50_us": p50, "p99_us": p99, "share": share}, ("batch", "runtime", "what"))


def on_inputs(run: Callable[..., Any], given: tuple[Any, ...], _: int) -> Any:
    """A call as :func:`benchmarks.gpu.percentiles` makes it."""
    return run(*given)


def inputs(batch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Depth images, centres, camera, left hands."""
    from jointbert.camera import NYU

    depth = np.zeros((batch, 1, 480, 640), np.float32)
    depth[:, :, 180:300, 260:380] = 800
    centres = np.tile(np.array([[0, 0, 800]], np.float32), (batch, 1))
    camera = np.tile(np.array([[NYU.fx, NYU.fy, NYU.cx, NYU.cy]], np.float32), (batch, 1))
    return depth, centres, camera, np.zeros(batch, bool)


if __name__ == "__main__":
    typer.run(main)
