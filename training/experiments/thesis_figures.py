"""The thesis's figures of a trained estimator: heatmaps (4.2), errors by joint (5.3), attention by layer and head (5.4 to 5.9).

    python -m training.experiments.thesis_figures --config C --estimator runs/all/estimator.safetensors --out figures

The images were not used for training. Prints the mean errors, of visible and occluded joints where both are known, and the
refiner's attention by layer.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from jointbert.evaluation.attention import print_shares
from jointbert.evaluation.figures import save_attention_layers, save_estimate, save_joint_errors
from jointbert.models.estimator import HandPoseEstimator
from training.config import EstimatorExperiment, read_experiment
from training.data.batches import ImageSet
from training.errors import one_sentence
from training.estimator import VALIDATION_BATCH, measure, test_set

BEFORE, AFTER = "before refinement", "after"


def seen_by(model: HandPoseEstimator) -> tuple[object, ...]:
    """Properties of the crops that the estimator takes."""
    return model.config.image, model.config.size, model.config.cube_mm


@torch.inference_mode()
def mean_attention(model: HandPoseEstimator, images: ImageSet) -> np.ndarray:
    """``(layers, heads, 14, 14)``, a mean over the images."""
    assert model.refiner is not None
    total = torch.zeros(())
    for first in range(0, len(images), VALIDATION_BATCH):
        seen = images.take(list(range(first, min(first + VALIDATION_BATCH, len(images))))).images
        dense = model.dense(seen.crops)
        features, _ = model.refiner_features(model.to_xyz(dense.joints, seen.crop), dense.joints.confidence.float())
        total = total + model.refiner.attention(features).sum(1)
    return np.asarray((total / len(images)).numpy())


@torch.inference_mode()
def draw_samples(model: HandPoseEstimator, images: ImageSet, count: int, out: Path) -> None:
    """Draws the first images with their skeletons and heatmaps."""
    seen = images.take(list(range(min(count, len(images))))).images
    dense = model.dense(seen.crops)
    refined, _ = model.refine(model.to_xyz(dense.joints, seen.crop), dense.joints.confidence.float())
    uv, _ = seen.crop.from_xyz(refined)
    for i in range(len(refined)):
        parts = (seen.crops[i, 0], dense.heatmaps[i], uv[i], refined[i], seen.joints[i])
        save_estimate(out / f"heatmaps-{i + 1}.png", *(x.float().numpy() for x in parts))


def main(
    config: Annotated[Path, typer.Option(help="Experiment whose test images are taken.", exists=True, dir_okay=False)],
    estimator: Annotated[Path, typer.Option(help="A trained estimator.", exists=True, dir_okay=False)],
    out: Annotated[Path, typer.Option(help="Folder for the pictures.", file_okay=False)],
    beside: Annotated[
        Path | None, typer.Option(help="Another estimator, whose errors are drawn beside.", exists=True, dir_okay=False)
    ] = None,
    samples: Annotated[int, typer.Option(help="Images to draw.", min=1)] = 4,
    threads: Annotated[int, typer.Option(help="CPU threads.", min=1)] = 2,
) -> None:
    """Draw the figures, and print their numbers."""
    torch.set_num_threads(threads)
    with one_sentence():
        model = HandPoseEstimator.load(estimator)
        other = HandPoseEstimator.load(beside) if beside is not None else None
        if model.config.image != "depth":
            raise ValueError(
                f"--estimator: {estimator} takes {model.config.image} images; there are depth images to measure on"
            )
        if other is not None and seen_by(other) != seen_by(model):
            raise ValueError(f"--beside: {beside} looks at other crops than {estimator}")
        if beside is not None and beside.resolve().parent.name in (BEFORE, AFTER):
            raise ValueError(f"--beside: its folder names it in the picture; {beside.resolve().parent.name!r} is taken")
        experiment = read_experiment(config, EstimatorExperiment)
        images = test_set(experiment.data, model.config)
    found = measure(model, images, experiment.loss.blob)
    out.mkdir(parents=True, exist_ok=True)
    errors = {}
    if other is not None and beside is not None:
        errors[beside.resolve().parent.name] = measure(other, images, experiment.loss.blob).after.numpy()
    errors[BEFORE] = found.before.numpy()
    if model.refiner is not None:
        errors[AFTER] = found.after.numpy()
    visible = found.visible.numpy()
    for name, values in errors.items():
        where = "" if visible.all() else f" (visible {values[visible].mean():.2f}, occluded {values[~visible].mean():.2f})"
        print(f"{name}: {values.mean():.2f} mm{where}, {len(values)} images")
    save_joint_errors(out / "joint-errors.png", errors)
    draw_samples(model, images, samples, out)
    if model.refiner is not None:
        attention = mean_attention(model, images)
        print_shares(attention)
        save_attention_layers(out, attention)


if __name__ == "__main__":
    sys.exit(typer.run(main))
