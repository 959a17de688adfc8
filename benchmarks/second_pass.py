"""What does refining twice do?

    python benchmarks/second_pass.py --data DIR

On the validation frames (2440-4375) of published predictions: how far joints move in a first and a second pass, and the
relative gain of the second over the first, by method; once with nothing given, once with the first pass's sigma as error_mm.
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
from training.data.nyu import VALIDATION, read_published


def main(
    data: Annotated[Path, typer.Option(help="Folder with groundtruth.txt and predictions/*.txt.")],
    weights: Annotated[str, typer.Option(help="Shipped weights' name or a .safetensors file.")] = "nyu14",
    stride: Annotated[int, typer.Option(help="Every so-manieth frame.", min=1)] = 4,
) -> None:
    """Movements and gains of a second pass."""
    published = read_published(data).frames(slice(VALIDATION.start, VALIDATION.stop, stride))
    refiner = jointbert.Refiner(weights)

    def distance(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.linalg.norm(a - b, axis=-1).mean())

    print(f"{'':34s}{'moved, mm':>20s}{'second / first':>16s}{'second gains, %':>17s}")
    print(f"{'method':34s}{'first':>8s}{'again':>6s}{'sigma':>6s}{'again':>8s}{'sigma':>8s}{'again':>9s}{'sigma':>8s}")
    rows = []
    for method, poses in published.predictions.items():
        once = refiner(poses, return_details=True)
        again, told = refiner(once.joints), refiner(once.joints, error_mm=once.sigma)
        first, error = distance(once.joints, poses), distance(once.joints, published.groundtruth)
        moved = [distance(x, once.joints) for x in (again, told)]
        gains = [100 * (1 - distance(x, published.groundtruth) / error) for x in (again, told)]
        rows.append([first, *moved, *(m / first for m in moved), *gains])
        first, a, b, ra, rb, ga, gb = rows[-1]
        print(f"{method:34s}{first:8.2f}{a:6.2f}{b:6.2f}{ra:8.2f}{rb:8.2f}{ga:+9.2f}{gb:+8.2f}")
    _, _, _, ra, rb, ga, gb = np.mean(rows, axis=0)
    print(f"{'mean':54s}{ra:8.2f}{rb:8.2f}{ga:+9.2f}{gb:+8.2f}")
    print(f"{'worst':70s}{np.min(rows, axis=0)[5]:+9.2f}{np.min(rows, axis=0)[6]:+8.2f}")


if __name__ == "__main__":
    typer.run(main)
