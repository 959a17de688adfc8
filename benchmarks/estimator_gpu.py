"""How much of a whole estimator's time on a GPU does the refiner take?

    python -m benchmarks.estimator_gpu

The estimator has the thesis's sizes (30.55M parameters) and random weights, on which its time does not depend. It takes depth
images of 640 x 480 in GPU memory and gives joints in millimetres, with and without the refiner. ``ours`` is what
``Estimator(..., device="cuda")`` runs: float16 in a CUDA graph, with this library's kernels for heatmaps, depths and refiner.
``torch`` is the same network with torch's operators alone, eager and compiled with CUDA graphs. Times are the device's, between
two events; one more row times a whole call from NumPy to NumPy.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from benchmarks import gpu
from benchmarks.common import Batches, numbers
from training.errors import one_sentence


def main(
    batches: Batches = "1,8,64",
    compiled: Annotated[
        str, typer.Option(help="Batch sizes that torch.compile is measured at; each compiles for half a minute.")
    ] = "1",
    repeats: Annotated[int, typer.Option(min=10)] = 100,
) -> None:
    """Print the table and add it to benchmarks/results/<device>.json."""
    gpu.require()
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
    with one_sentence():
        load_module()  # without the module TorchEstimator would run torch's operators
        with tempfile.TemporaryDirectory() as folder:
            for name, config in names.items():
                torch.manual_seed(0)
                path = Path(folder) / "estimator.safetensors"
                HandPoseEstimator(config).save(path)
                ours[name], plain[name] = (TorchEstimator(path, 1, "cuda", "f16", kernels) for kernels in (True, False))
    print(f"{gpu.device()['device']}, torch {torch.__version__}, float16")
    print(f"{'batch':>6s} {'runtime':24s}{'what':18s}{'p50 us':>10s}{'p99 us':>10s}{'share':>9s}")
    whole: dict[tuple[int, str], float] = {}
    for batch in numbers(batches):
        given = inputs(batch)
        on_gpu = tuple(torch.from_numpy(x).cuda() for x in given)
        for name in names:  # the row with the refiner comes first: shares are relative to it
            row = {"batch": batch, "what": name}
            for runtime, run, together in (("ours", ours[name].replay, 20), ("torch", plain[name].run, 1)):
                how = (repeats, 5, together)
                report({**row, "runtime": runtime}, partial(gpu.percentiles, partial(on_inputs, run, on_gpu), *how), whole)
        row = {"batch": batch, "what": "NumPy to NumPy", "runtime": "ours"}
        report(row, partial(gpu.wall_clock, partial(ours["with refiner"], *given), repeats, 5), whole)
    for batch in numbers(compiled):
        on_gpu = tuple(torch.from_numpy(x).cuda() for x in inputs(batch))
        for name in names:
            torch._dynamo.reset()
            fast = torch.compile(plain[name].run, mode="reduce-overhead", dynamic=False)
            row = {"batch": batch, "what": name, "runtime": "torch.compile, graphs"}
            report(row, partial(gpu.percentiles, partial(on_inputs, fast, on_gpu), repeats, 5, 5), whole)


def report(row: dict[str, Any], timed: Callable[[], tuple[float, float]], whole: dict[tuple[int, str], float]) -> None:
    """Measures, prints and writes one row; ``whole`` collects the times with the refiner, by batch and runtime."""
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
    """Adapts ``run`` to :func:`benchmarks.gpu.percentiles`, which passes the number of the call."""
    return run(*given)


def inputs(batch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Depth images ``(B, 1, 480, 640)``, centres ``(B, 3)``, cameras ``(B, 4)`` and left hands ``(B,)``."""
    from jointbert.camera import NYU

    depth = np.zeros((batch, 1, 480, 640), np.float32)
    depth[:, :, 180:300, 260:380] = 800
    centres = np.tile(np.array([[0, 0, 800]], np.float32), (batch, 1))
    camera = np.tile(np.array([[NYU.fx, NYU.fy, NYU.cx, NYU.cy]], np.float32), (batch, 1))
    return depth, centres, camera, np.zeros(batch, bool)


if __name__ == "__main__":
    typer.run(main)
