"""What does a second refinement of the same poses change?

    python -m benchmarks.second_pass --data DIR

On the validation frames (2440-4375) of published predictions, by method: how far joints move in the first and in the second
pass, and the relative gain of the second pass over the first. The second pass runs once with nothing stated (``again``) and
once with the first pass's sigma as ``error_mm`` (``sigma``).
"""

from __future__ import annotations

import numpy as np
import typer

import jointbert
from benchmarks.common import Data, Stride, Weights, mpjpe, validation_frames


def main(
    data: Data,
    weights: Weights = "nyu14",
    stride: Stride = 4,
) -> None:
    """Print movements and gains of a second pass."""
    published = validation_frames(data, stride)
    refiner = jointbert.Refiner(weights)

    print(f"{'':34s}{'moved, mm':>20s}{'second / first':>16s}{'second gains, %':>17s}")
    print(f"{'method':34s}{'first':>8s}{'again':>6s}{'sigma':>6s}{'again':>8s}{'sigma':>8s}{'again':>9s}{'sigma':>8s}")
    rows = []
    for method, poses in published.predictions.items():
        once = refiner(poses, return_details=True)
        again, told = refiner(once.joints), refiner(once.joints, error_mm=once.sigma)
        first, error = mpjpe(once.joints, poses), mpjpe(once.joints, published.groundtruth)
        moved = [mpjpe(x, once.joints) for x in (again, told)]
        gains = [100 * (1 - mpjpe(x, published.groundtruth) / error) for x in (again, told)]
        rows.append([first, *moved, *(m / first for m in moved), *gains])
        first, a, b, ra, rb, ga, gb = rows[-1]
        print(f"{method:34s}{first:8.2f}{a:6.2f}{b:6.2f}{ra:8.2f}{rb:8.2f}{ga:+9.2f}{gb:+8.2f}")
    _, _, _, ra, rb, ga, gb = np.mean(rows, axis=0)
    print(f"{'mean':54s}{ra:8.2f}{rb:8.2f}{ga:+9.2f}{gb:+8.2f}")
    print(f"{'worst':70s}{np.min(rows, axis=0)[5]:+9.2f}{np.min(rows, axis=0)[6]:+8.2f}")


if __name__ == "__main__":
    typer.run(main)
