"""Is the predicted sigma honest: does it predict the refined joint's Euclidean error?

    python benchmarks/sigma.py --data DIR

On the validation frames (2440-4375) of published predictions, with the method's mean error given as error_mm and without it:
joints in ten groups by sigma, every method weighing the same; mean sigma and mean error of each group. One scale, fitted
on subject 1 (frames 0-2439), is applied. Then the ratio of the two means for each method.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jointbert
from training.data.nyu import TRAINING, VALIDATION, Published, read_published


def sigma_and_error(refiner: jointbert.Refiner, data: Published, given: bool) -> tuple[np.ndarray, np.ndarray]:
    """Both ``(methods, frames, 14)``, mm."""
    sigmas, errors = [], []
    for poses in data.predictions.values():
        before = float(np.linalg.norm(poses - data.groundtruth, axis=-1).mean())
        refined = refiner(poses, error_mm=before if given else None, return_details=True)
        sigmas.append(refined.sigma)
        errors.append(np.linalg.norm(refined.joints - data.groundtruth, axis=-1))
    return np.stack(sigmas), np.stack(errors)


def main(
    data: Annotated[Path, typer.Option(help="Folder with groundtruth.txt and predictions/*.txt.")],
    weights: Annotated[str, typer.Option(help="Shipped weights' name or a .safetensors file.")] = "nyu14",
    stride: Annotated[int, typer.Option(help="Every so-manieth frame.", min=1)] = 4,
) -> None:
    """Deciles and methods."""
    published = read_published(data)
    refiner = jointbert.Refiner(weights)
    fit = published.frames(slice(TRAINING.start, TRAINING.stop, stride))
    judge = published.frames(slice(VALIDATION.start, VALIDATION.stop, stride))
    for given in (True, False):
        sigma, error = sigma_and_error(refiner, fit, given)
        scale = error.mean() / sigma.mean()
        sigma, error = sigma_and_error(refiner, judge, given)
        sigma = scale * sigma
        print(f"\nerror_mm {'given: each method its mean error' if given else 'not given'}; scale from subject 1: {scale:.2f}")
        groups = np.array_split(np.argsort(sigma, axis=None), 10)
        pairs = [(sigma.flat[g].mean(), error.flat[g].mean()) for g in groups]
        print("decile     " + "".join(f"{i + 1:8d}" for i in range(10)))
        print("sigma, mm  " + "".join(f"{s:8.2f}" for s, _ in pairs))
        print("error, mm  " + "".join(f"{e:8.2f}" for _, e in pairs))
        print("ratio      " + "".join(f"{s / e:8.2f}" for s, e in pairs))
        ratios = sigma.mean((1, 2)) / error.mean((1, 2))
        print("by method: " + ", ".join(f"{r:.2f}" for r in ratios) + f" (within 30 %: {(abs(ratios - 1) <= 0.3).sum()})")


if __name__ == "__main__":
    typer.run(main)
