"""Does the refiner use confidence? Two experiments on the validation frames (2440-4375) of published predictions.

    python -m benchmarks.confidence --data DIR

1. All joints have confidence 0.9 except one, which gets 0.9, 0.5 and 0.1 in turn. The table gives how far that joint moves.
2. Confidence is simulated from each joint's error, with noise; 5 % of the values are high regardless of the error. The table
   compares the gain with and without this confidence.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import typer

import jointbert
from benchmarks.common import Data, Weights, mpjpe, validation_frames
from jointbert.evaluation.metrics import relative_gain


def main(
    data: Data,
    weights: Weights = "nyu14",
    stride: Annotated[int, typer.Option(help="The first experiment uses every N-th frame.", min=1)] = 20,
) -> None:
    """Print how confidence changes the refined joints and their error."""
    import torch

    from training.data.corruption import Corruption, simulate_confidence

    published = validation_frames(data)
    refiner = jointbert.Refiner(weights)
    levels = (0.9, 0.5, 0.1)
    moved = np.zeros((len(levels), 14))
    poses = np.concatenate([p[::stride] for p in published.predictions.values()])
    for joint in range(14):
        for i, level in enumerate(levels):
            confidence = np.full(14, 0.9)
            confidence[joint] = level
            refined = refiner(poses, confidence=confidence)
            moved[i, joint] = np.linalg.norm(refined[:, joint] - poses[:, joint], axis=-1).mean()
    print(f"{len(poses)} poses; movement of one joint in mm, by its confidence (the others' is 0.9)")
    print(f"{'joint':16s}" + "".join(f"{level:8.1f}" for level in levels))
    for joint, name in enumerate(jointbert.JOINT_NAMES):
        print(f"{name:16s}" + "".join(f"{value:8.2f}" for value in moved[:, joint]))
    print(f"{'mean':16s}" + "".join(f"{value:8.2f}" for value in moved.mean(1)))

    g = torch.Generator().manual_seed(0)
    known = Corruption(confidence_known=1.0)
    gains: dict[str, list[float]] = {"without": [], "with": []}
    for prediction in published.predictions.values():
        error = np.linalg.norm(prediction - published.groundtruth, axis=-1)
        confidence = simulate_confidence(torch.from_numpy(error).float(), known, g).numpy()
        for name, refined in (("without", refiner(prediction)), ("with", refiner(prediction, confidence=confidence))):
            gains[name].append(relative_gain(error.mean(), mpjpe(refined, published.groundtruth)))
    print(f"\nrelative gain of {len(published.predictions)} methods, mean and worst; methods better with confidence")
    for name, values in gains.items():
        print(f"  {name + ' simulated confidence':30s}{100 * np.mean(values):+8.2f} %{100 * min(values):+8.2f} %")
    better = sum(a > b for a, b in zip(gains["with"], gains["without"], strict=True))
    print(f"  {'better with':30s}{better:6d}/{len(published.predictions)}")


if __name__ == "__main__":
    typer.run(main)
