"""``jointbert demo``: refines the shipped sample and prints its errors before and after."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from jointbert.cli.common import BackendOption, check_folder, one_sentence
from jointbert.evaluation.metrics import relative_gain
from jointbert.refine import Refiner


def command(
    picture: Annotated[
        Path | None, typer.Option(help="Write a picture of one frame before and after (needs matplotlib).")
    ] = None,
    frame: Annotated[int | None, typer.Option(help="Which frame the picture shows; the one of median gain without it.")] = None,
    backend: BackendOption = "auto",
) -> None:
    """Refine the sample that ships: a generated hand with errors such as published methods make, no recording."""
    with one_sentence():
        from jointbert.demo import load_demo

        check_folder(picture)
        sample = load_demo()
        if frame is not None and picture is None:
            raise ValueError("--frame: without --picture nothing is drawn, and it has no effect")
        if frame is not None and not 0 <= frame < len(sample.predictions):
            raise ValueError(f"--frame: got {frame}; expected 0 to {len(sample.predictions) - 1}")
        refiner = Refiner(backend=backend)
        refined = refiner(sample.predictions)
        confident = refiner(sample.predictions, confidence=sample.confidence)
        masked = sample.predictions.copy()
        masked[:, 4:6] = np.nan
        filled = refiner(masked)

        def errors(joints: np.ndarray) -> np.ndarray:
            return np.asarray(np.linalg.norm(joints - sample.groundtruth, axis=-1))

        before, after = errors(sample.predictions), errors(refined)
        typer.echo(f"{len(before)} frames of a generated hand, errors modelled on published methods' (mean joint error, mm)")
        for label, value in (
            ("predicted", before.mean()),
            ("refined", after.mean()),
            ("refined, confidence given", errors(confident).mean()),
        ):
            gain = "" if label == "predicted" else f"{100 * relative_gain(before.mean(), value):+8.1f} %"
            typer.echo(f"  {label:42s}{value:8.2f}{gain}")
        typer.echo(f"  {'middle finger, masked (it moves at random)':42s}{errors(filled)[:, 4:6].mean():8.2f}")
        if picture is not None:
            from jointbert.evaluation.figures import before_after

            gains = before.mean(1) - after.mean(1)
            shown = int(np.argsort(gains)[len(gains) // 2]) if frame is None else frame
            before_after(picture, sample.groundtruth[shown], sample.predictions[shown], refined[shown])
            typer.echo(f"picture of frame {shown}: {picture}")
