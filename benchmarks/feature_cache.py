"""How much faster does the hourglass train on cached features of the frozen encoder?

    python -m benchmarks.feature_cache --threads 1

A step is one forward and backward pass of the hourglass's pre-training (thesis, table 4.1) in float32, on images that are
already in memory. The sizes are the config's, by default the thesis's; the weights are random, and times do not depend on them.
All calls are interleaved in one run. The feature cache is in the operating system's page cache, as it is for a data set that
fits into memory.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from jointbert.bench import cpu_name, interleaved, pin
from jointbert.models.estimator import HandPoseEstimator
from training.config import EstimatorExperiment, ImageDataConfig, read_experiment
from training.data.batches import ImageBatch, OneByOne
from training.data.feature_cache import FeatureCache, build_cache
from training.errors import one_sentence
from training.estimator import EstimatorTraining, training_set

CONFIG = Path(__file__).resolve().parents[1] / "training/configs/estimator/thesis-hourglass.yaml"


def main(
    config: Annotated[Path, typer.Option(help="Experiment whose sizes are taken.", exists=True, dir_okay=False)] = CONFIG,
    batch: Annotated[int, typer.Option(help="Images per step.", min=2)] = 8,
    threads: Annotated[int, typer.Option(min=1)] = 1,
    seconds: Annotated[float, typer.Option(help="Duration of the measurement.", min=0.1)] = 60.0,
) -> None:
    """Print the times of a step."""
    torch.set_num_threads(threads)
    cores = pin(threads)
    with one_sentence():
        experiment = read_experiment(config, EstimatorExperiment)
    experiment = replace(experiment, data=ImageDataConfig(images=4 * batch), model=replace(experiment.model, refiner=None))
    model = HandPoseEstimator(experiment.model)
    model.encoder.freeze()
    images, images_id = training_set(experiment.data, experiment.model)
    assert isinstance(images, OneByOne)
    with tempfile.TemporaryDirectory() as folder:
        build_cache(folder, model, images, images_id)
        cache = FeatureCache(folder, model, images_id)
        maps = sum(array[0].nbytes for name, array in cache.arrays.items() if name.startswith("map"))
        rows = list(range(batch))
        ready = images.take(rows)
        module = EstimatorTraining(experiment, model, "hourglass", cache)
        module.model.train()

        def step(given: ImageBatch) -> None:
            module.zero_grad()
            module.terms(given)["loss"].backward()

        calls = {
            "encoder": lambda: model.encode(ready.images.crops),
            "reading": lambda: cache.take(rows),
            "step, encoder": lambda: step(ready),
            "step, cache": lambda: step(cache.take(rows)),
        }
        times = interleaved(calls, seconds)
    print(f"{cpu_name()}, cores {cores}, {threads} thread(s); torch {torch.__version__}; {experiment.model.backbone}, ", end="")
    print(f"{experiment.model.size} x {experiment.model.size}, {maps / 2**20:.2f} MiB of maps an image")
    for name, values in times.items():
        p50, p99 = np.percentile(values, (50, 99)) / 1e3 / batch
        print(f"{name:16s}{p50:10.2f} ms an image (p99 {p99:.2f})")
    ratio = np.median(times["step, encoder"]) / np.median(times["step, cache"])
    print(f"a step from the cache is {ratio:.2f} times as fast")


if __name__ == "__main__":
    typer.run(main)
