"""How well are hidden joints filled in from the others?

    python benchmarks/hidden_joints.py --data DIR

On the ground truth of the validation frames (2440-4375) of a folder of published predictions: four random joints of each frame
are hidden. Against the conditional mean of a Gaussian fitted to subject 1's root-centred poses.
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


def main(
    data: Annotated[Path, typer.Option(help="Folder with groundtruth.txt and predictions/*.txt.")],
    weights: Annotated[str, typer.Option(help="Shipped weights' name or a .safetensors file.")] = "nyu14",
    seeds: Annotated[int, typer.Option(help="Draws of the hidden joints.", min=1)] = 3,
) -> None:
    """Error of hidden joints, filled in."""
    from training.data.nyu import TRAINING, VALIDATION, read_published
    from training.validation import gaussian_fill_error, hidden_patterns

    published = read_published(data)
    truth = published.groundtruth[VALIDATION]
    refiner = jointbert.Refiner(weights)
    print(f"{'hidden joints':>14s}{'refine() mm':>14s}{'Gaussian mm':>14s}{'relative':>10s}")
    for count in (1, 2, 4):
        ours, gaussian = [], []
        for seed in range(seeds):
            seen = hidden_patterns(len(truth), count, seed)
            filled = refiner(truth, visible=seen.numpy())
            ours.append(np.linalg.norm(filled - truth, axis=-1)[~seen.numpy()].mean())
            gaussian.append(gaussian_fill_error(published.groundtruth[TRAINING], truth, seen))
        a, b = np.mean(ours), np.mean(gaussian)
        print(f"{count:14d}{a:14.2f}{b:14.2f}{100 * (a - b) / b:+9.1f} %")


if __name__ == "__main__":
    typer.run(main)
