"""What an estimator gives, and what a runtime of it must be able to do."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np


class Estimated(NamedTuple):
    """What an estimator says of a batch of images."""

    joints: np.ndarray  # (B, 14, 3): camera frame, mm, before refinement
    refined: np.ndarray  # (B, 14, 3)
    confidence: np.ndarray  # (B, 14) in [0, 1]: the heatmaps' peaks
    sigma: np.ndarray  # (B, 14): the refined joints' expected error, mm; NaN where nothing was refined: without a refiner,
    # and, by the GPU's kernel, joints that can't be a hand's, which stay as they are
    heatmaps: np.ndarray  # (B, 14, S / 4, S / 4)
    crops: np.ndarray  # (B, 1, S, S) depth in half-cubes around the centre, or (B, 3, S, S) RGB
    uv: np.ndarray  # (B, 14, 2): the refined joints in the crop, pixels


class EstimatorRuntime(Protocol):
    """What runs an estimator; arrays that come here are checked."""

    image: str
    cube_mm: float

    def __call__(self, images: np.ndarray, centres: np.ndarray, camera: np.ndarray, left: np.ndarray) -> Estimated:
        """float32 images ``(B, C, H, W)``, centres ``(B, 3)``, camera ``(B, 4)``; left ``(B,)`` bool."""
