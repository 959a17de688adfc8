"""A small sample for demonstrations: poses of a procedural hand, with errors from a model that was fitted to published
predictions.

It contains no recording of a person and no published prediction.
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
    """``(frames, 14, 3)`` float32: the ground truth plus errors that are typical of estimators."""
    confidence: np.ndarray
    """``(frames, 14)`` float32 in [0, 1], simulated."""


def load_demo() -> Demo:
    """The sample that ships with the package: 256 frames."""
    with np.load(Path(__file__).parent / "sample.npz") as archive:
        return Demo(archive["groundtruth"], archive["predictions"], archive["confidence"])
