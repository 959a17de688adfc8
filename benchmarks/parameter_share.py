"""How large is the refiner's share of the whole estimator?

    python benchmarks/parameter_share.py

Counts the live modules' parameters at the thesis's sizes; fails outside 1.6M +- 1 % for the refiner and 5.15 to 5.25 % for its
share (thesis: 1.6M, 5.2 %).
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jointbert.models.estimator import HandPoseEstimator

REFINER, SHARE = (1.584e6, 1.616e6), (0.0515, 0.0525)


def count() -> dict[str, int]:
    """Parameters by module."""
    return {name: sum(p.numel() for p in module.parameters()) for name, module in HandPoseEstimator().named_children()}


def main() -> int:
    """Print the table; 0 within the bounds."""
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
