"""How much of a whole estimator's time on a CPU does the refiner take?

    python -m benchmarks.estimator_latency --threads 1

The estimator has the thesis's sizes (30.55M parameters) and random weights, on which its time does not depend. It takes depth
images of 640 x 480 and gives joints in millimetres. Measured with torch and with ONNX Runtime: the estimator with the refiner,
without it, and the refiner alone, because its time is smaller than the noise of the difference. All calls are interleaved in
one run and take and give NumPy arrays.
"""

from __future__ import annotations

import importlib
import tempfile
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

import jointbert
from benchmarks.common import Batches, numbers
from jointbert.bench import cpu_name, interleaved, pin
from jointbert.camera import NYU
from jointbert.estimator import Estimator


def main(
    batches: Batches = "1,8",
    threads: Annotated[int, typer.Option(min=1)] = 1,
    seconds: Annotated[float, typer.Option(help="Duration of the measurement of each batch size.")] = 60.0,
) -> None:
    """Print the table."""
    import torch

    from jointbert.export.onnx import export_estimator, export_refiner
    from jointbert.models.estimator import EstimatorConfig, HandPoseEstimator

    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    cores = pin(threads)
    estimators: dict[tuple[str, str], Estimator] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, config in (("without", replace(EstimatorConfig(), refiner=None)), ("with", EstimatorConfig())):
            torch.manual_seed(0)
            path = Path(folder) / f"{name}.safetensors"
            HandPoseEstimator(config).save(path)
            export_estimator(path.with_suffix(".onnx"), path)
            estimators["torch", name] = Estimator(path, threads)
            estimators["ONNX Runtime", name] = Estimator(path.with_suffix(".onnx"), threads)
        refiner_file = Path(folder) / "refiner.onnx"
        export_refiner(refiner_file)
        refiners = {
            "torch": jointbert.Refiner(backend="torch", threads=threads),
            "ONNX Runtime": jointbert.Refiner(refiner_file, threads=threads),
        }
    versions = f"torch {torch.__version__}, ONNX Runtime {importlib.import_module('onnxruntime').__version__}"
    print(f"{cpu_name()}, cores {cores}, {threads} thread(s); {versions}")
    print(f"{'batch':>6s} {'runtime':14s}{'what':20s}{'p50 ms':>10s}{'p99 ms':>10s}{'share':>10s}")
    depth = np.zeros((480, 640), np.float32)
    depth[180:300, 260:380] = 800
    for batch in numbers(batches):
        given = (np.repeat(depth[None], batch, 0), np.array([[0.0, 0, 800]] * batch), NYU)
        joints = np.repeat(jointbert.load_demo().predictions[:1], batch, 0)
        calls = {f"{runtime}|{name} refiner": partial(run, *given) for (runtime, name), run in estimators.items()}
        calls |= {f"{runtime}|refiner alone": partial(run, joints) for runtime, run in refiners.items()}
        times = interleaved(calls, seconds)
        for runtime in refiners:
            whole = np.median(times[f"{runtime}|with refiner"])
            for what in ("without refiner", "with refiner", "refiner alone"):
                p50, p99 = np.percentile(times[f"{runtime}|{what}"], (50, 99))
                print(
                    f"{batch:6d} {runtime:14s}{what:20s}{p50 / 1e3:10.2f}{p99 / 1e3:10.2f}{100 * p50 / whole:8.1f} %",
                    flush=True,
                )


if __name__ == "__main__":
    typer.run(main)
