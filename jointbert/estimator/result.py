"""The result of an estimator, and the protocol of its runtimes."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np


class Estimated(NamedTuple):
    """An estimator's result for a batch of images."""

    joints: np.ndarray  # (B, 14, 3): camera frame, mm, before refinement
    refined: np.ndarray  # (B, 14, 3)
    confidence: np.ndarray  # (B, 14) in [0, 1]: the heatmaps' peaks
    sigma: np.ndarray  # (B, 14): the refined joints' expected error, mm; NaN if nothing was refined: without a refiner, or, in
    # 16-bit precision on a GPU, for joints that can't be a hand, which stay unchanged
    heatmaps: np.ndarray  # (B, 14, S / 4, S / 4)
    crops: np.ndarray  # (B, 1, S, S) depth in half-cubes around the centre, or (B, 3, S, S) RGB
    uv: np.ndarray  # (B, 14, 2): the refined joints in the crop, pixels


class EstimatorRuntime(Protocol):
    """A runtime of the estimator. Its arguments have been checked."""

    image: str
    cube_mm: float

    def __call__(self, images: np.ndarray, centres: np.ndarray, camera: np.ndarray, left: np.ndarray) -> Estimated:
        """float32 images ``(B, C, H, W)``, centres ``(B, 3)``, camera ``(B, 4)``; left ``(B,)`` bool."""
