"""A small sample to try things on: a procedural hand with errors drawn from a model that was fitted to published predictions.

Nothing in it is a recording of anybody's hand or anybody's prediction.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np


class Demo(NamedTuple):
    """Generated poses, millimetres, camera frame, canonical order, right hands."""

    groundtruth: np.ndarray
    """``(frames, 14, 3)`` float32."""
    predictions: np.ndarray
    """``(frames, 14, 3)`` float32: the same with errors such as estimators make."""
    confidence: np.ndarray
    """``(frames, 14)`` float32 in [0, 1], simulated."""


def load_demo() -> Demo:
    """The sample that ships with the package: 256 frames."""
    with np.load(Path(__file__).parent / "sample.npz") as archive:
        return Demo(archive["groundtruth"], archive["predictions"], archive["confidence"])
