"""The pinhole camera: converts image coordinates with depth (u v d) to the camera frame (x y z) and back."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Camera:
    """Pinhole intrinsics in pixels. The camera frame is OpenCV's: x right, y down, z away from the camera."""

    fx: float
    fy: float
    cx: float
    cy: float

    def __post_init__(self) -> None:
        values = (self.fx, self.fy, self.cx, self.cy)
        if not all(math.isfinite(v) for v in values) or self.fx <= 0 or self.fy <= 0:
            raise ValueError(f"camera: got fx, fy, cx, cy = {values}; expected finite numbers with positive focal lengths")

    def uvd_to_xyz(self, uvd: np.ndarray) -> np.ndarray:
        """``(..., 3)`` pixels, pixels and depth to ``(..., 3)`` in the depth's unit; x = (u - cx) d / fx."""
        uvd = _check_triples(uvd, "uvd")
        u, v, d = np.moveaxis(uvd, -1, 0)
        return np.stack([(u - self.cx) * d / self.fx, (v - self.cy) * d / self.fy, d], axis=-1)

    def xyz_to_uvd(self, xyz: np.ndarray) -> np.ndarray:
        """``(..., 3)`` in the camera frame to ``(..., 3)`` pixels, pixels and depth; a point at depth 0 becomes non-finite."""
        xyz = _check_triples(xyz, "xyz")
        x, y, z = np.moveaxis(xyz, -1, 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.stack([x * self.fx / z + self.cx, y * self.fy / z + self.cy, z], axis=-1)

    @classmethod
    def parse(cls, text: str) -> Camera:
        """A named camera (``nyu``) or ``fx,fy,cx,cy`` in pixels.

        Raises:
            ValueError: neither a known name nor four numbers that make a camera.
        """
        if text in CAMERAS:
            return CAMERAS[text]
        try:
            numbers = [float(part) for part in text.split(",")]
        except ValueError:
            numbers = []
        if len(numbers) != 4:
            raise ValueError(f"camera: got {text!r}; expected {' or '.join(map(repr, CAMERAS))} or four numbers fx,fy,cx,cy")
        return cls(*numbers)


def _check_triples(array: np.ndarray, name: str) -> np.ndarray:
    array = np.asarray(array)
    if array.shape[-1:] != (3,):
        raise ValueError(f"{name}: got the shape {array.shape}; expected (..., 3)")
    return array if array.dtype.kind == "f" else array.astype(np.float64)


NYU = Camera(588.03, 587.07, 320.0, 240.0)
"""The Kinect of the NYU Hand Pose data set, with the intrinsics that the published predictions use."""

CAMERAS: dict[str, Camera] = {"nyu": NYU}
