"""Checks of the estimator's arguments by shapes and NumPy values, for its runtimes with and without torch."""

from __future__ import annotations

from typing import Any

import numpy as np

_CHANNELS = {"depth": 1, "rgb": 3}


def check_camera_images(image: str, shape: tuple[int, ...], kind: str, dtype: str) -> None:
    """Checks a batch of images. ``image``: ``depth`` or ``rgb``. ``kind``: NumPy's kind code of the ``dtype``.

    Raises:
        ValueError: not ``(B, C, H, W)``. TypeError: an unsuitable dtype.
    """
    channels = _CHANNELS[image]
    if len(shape) != 4 or shape[1] != channels or 0 in shape[2:]:
        raise ValueError(f"images: got the shape {shape}; expected (B, {channels}, H, W) for {image} images")
    if kind not in "fiu" or (image == "rgb" and kind != "f"):
        raise TypeError(f"images: got the dtype {dtype}; expected floating point")


def check_centres_shape(shape: tuple[int, ...], count: int) -> None:
    """Raises ValueError if the centres of ``count`` images are not ``(count, 3)``."""
    if shape != (count, 3):
        raise ValueError(f"centres: got the shape {shape}; expected ({count}, 3), x y z in millimetres")


def check_centres(centres: np.ndarray, count: int) -> None:
    """Raises ValueError if centres ``(count, 3)`` are misshapen, not finite or not in front of the camera."""
    check_centres_shape(centres.shape, count)
    bad = ~(np.isfinite(centres).all(1) & (centres[:, 2] > 0))
    if bad.any():
        i = int(np.flatnonzero(bad)[0])
        raise ValueError(f"centres: got {centres[i].tolist()} for image {i}; expected x y z in front of the camera, mm")


def check_centre_pixels(uv: np.ndarray, shape: tuple[int, ...]) -> None:
    """Raises ValueError if a centre's pixel ``(B, 2)`` lies outside the image ``(..., H, W)``: a wrong unit or camera."""
    h, w = shape[-2:]
    outside = ~((uv >= -0.5) & (uv < np.array([w, h]) - 0.5)).all(1)
    if outside.any():
        i = int(np.flatnonzero(outside)[0])
        u, v = uv[i]
        raise ValueError(
            f"centres: that of image {i} falls on pixel ({u:.0f}, {v:.0f}), outside of its {w} x {h} pixels: is it in "
            "millimetres, in the camera frame, and the camera that of the images?"
        )


def check_left(left: Any, count: int) -> np.ndarray:
    """``(count,)`` bool, True for left hands, from one bool for all images or one for each.

    Raises:
        ValueError: another dtype or shape.
    """
    sides = np.asarray(left)
    if sides.dtype != bool or sides.shape not in ((), (count,)):
        raise ValueError(f"left: got {sides.dtype} of the shape {sides.shape}; expected bool, one or ({count},)")
    return np.broadcast_to(sides, (count,))


def check_not_empty(empty: np.ndarray) -> None:
    """Raises ValueError if ``(B,)`` bool is True for an image: it has no depth within its cube."""
    if empty.any():
        i = int(np.flatnonzero(empty)[0])
        raise ValueError(f"images: there is no depth within the cube around the centre of image {i}")
