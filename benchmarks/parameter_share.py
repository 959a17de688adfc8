"""What share of the estimator's parameters does the refiner have?

    python -m benchmarks.parameter_share

Counts the parameters of the modules at the thesis's sizes. The exit code is 1 unless the refiner has 1.6M +- 1 % parameters and
a share of 5.15 to 5.25 % (thesis: 1.6M, 5.2 %).
"""

from __future__ import annotations

import sys

from jointbert.models.estimator import HandPoseEstimator

REFINER, SHARE = (1.584e6, 1.616e6), (0.0515, 0.0525)


def count() -> dict[str, int]:
    """Number of parameters by module."""
    return {name: sum(p.numel() for p in module.parameters()) for name, module in HandPoseEstimator().named_children()}


def main() -> int:
    """Print the table; returns the exit code."""
    parts = count()
    total = sum(parts.values())
    for name, parameters in parts.items():
        print(f"{name:12s}{parameters / 1e6:8.2f}M{100 * parameters / total:8.1f} %")
    print(f"{'total':12s}{total / 1e6:8.2f}M")
    good = REFINER[0] <= parts["refiner"] <= REFINER[1] and SHARE[0] <= parts["refiner"] / total <= SHARE[1]
    if not good:
        print(f"outside the bounds: refiner {REFINER}, share {SHARE}", file=sys.stderr)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
