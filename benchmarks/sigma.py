"""Is sigma calibrated: does it predict the Euclidean error of the refined joint?

    python -m benchmarks.sigma --data DIR

On the validation frames (2440-4375) of published predictions, once with each method's MPJPE stated as ``error_mm`` and once
without it. Sigma is multiplied by one scale, fitted on subject 1 (frames 0-2439). The joints of all methods are divided into
ten groups of equal size by sigma; the table gives mean sigma, mean error and their ratio of each group. The last line gives
this ratio by method.
"""

from __future__ import annotations

import numpy as np
import typer

import jointbert
from benchmarks.common import Data, Stride, Weights, mpjpe
from training.data.nyu import TRAINING, VALIDATION, Published, read_published


def sigma_and_error(refiner: jointbert.Refiner, data: Published, given: bool) -> tuple[np.ndarray, np.ndarray]:
    """Sigma and error of the refined joints, both ``(methods, frames, 14)``, mm; ``given``: the MPJPE is stated."""
    sigmas, errors = [], []
    for poses in data.predictions.values():
        before = mpjpe(poses, data.groundtruth)
        refined = refiner(poses, error_mm=before if given else None, return_details=True)
        sigmas.append(refined.sigma)
        errors.append(np.linalg.norm(refined.joints - data.groundtruth, axis=-1))
    return np.stack(sigmas), np.stack(errors)


def main(
    data: Data,
    weights: Weights = "nyu14",
    stride: Stride = 4,
) -> None:
    """Print sigma and error by decile, and their ratio by method."""
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
