"""Reads depth and RGB images from files, and finds the probable centre of a hand in a depth image."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jointbert.camera import Camera


def read_depth(path: str | Path, mm_per_unit: float = 1.0) -> np.ndarray:
    """``(H, W)`` float32 millimetres, 0 where there is no reading.

    A 16-bit PNG and a ``.npy`` array hold depth in units of ``mm_per_unit``. An 8-bit RGB PNG holds 256 G + B millimetres, as
    in the NYU data set.

    Raises:
        OSError: there is no such file. ValueError: it is truncated, or no depth image.
    """
    path = Path(path)
    pixels = _read(path)
    if pixels.ndim == 3 and pixels.shape[2] >= 3 and pixels.dtype == np.uint8:
        coded: np.ndarray = pixels[..., 1].astype(np.float32) * 256 + pixels[..., 2]
        return coded
    if pixels.ndim != 2 or pixels.dtype == np.uint8 or pixels.dtype.kind not in "iuf" or 0 in pixels.shape:
        raise ValueError(
            f"{path}: got an image of the shape {pixels.shape}, {pixels.dtype}; expected 16 bits of depth, or 8-bit RGB with "
            "256 G + B millimetres"
        )
    return np.asarray(np.nan_to_num(pixels.astype(np.float32) * mm_per_unit, posinf=0, neginf=0))


def read_rgb(path: str | Path) -> np.ndarray:
    """``(3, H, W)`` float32 in [0, 1].

    Raises:
        OSError: there is no such file. ValueError: it is truncated, or no 8-bit RGB image.
    """
    path = Path(path)
    pixels = _read(path)
    if pixels.ndim != 3 or pixels.shape[2] < 3 or pixels.dtype != np.uint8:
        raise ValueError(f"{path}: got an image of the shape {pixels.shape}, {pixels.dtype}; expected 8-bit RGB")
    return np.ascontiguousarray(pixels[..., :3].transpose(2, 0, 1)).astype(np.float32) / 255


def _read(path: Path) -> np.ndarray:
    if not path.is_file():
        raise OSError(f"{path}: no such file")
    try:
        if path.suffix == ".npy":
            return np.asarray(np.load(path, allow_pickle=False))
        from PIL import Image

        with Image.open(path) as image:
            return np.asarray(image)
    except ImportError:
        raise ImportError("images need pillow; pip install pillow") from None
    except Exception as error:  # pillow raises many types of errors for broken files
        raise ValueError(f"{path}: no readable image ({error})") from None


def centre_of_mass(depth: np.ndarray, camera: Camera, cube_mm: float = 300.0, rounds: int = 5) -> np.ndarray:
    """``(3,)`` x y z in millimetres: the centre of the object that is nearest to the camera.

    The first estimate is the median of the nearest 1 % of the readings. It is replaced ``rounds`` times by the mean of the
    readings within a cube around it.

    Args:
        depth: ``(H, W)`` millimetres, 0 where there is no reading.

    Raises:
        ValueError: there are no readings.
    """
    v, u = np.nonzero(depth > 0)
    if not len(u):
        raise ValueError("an image without any depth has no hand, and no centre")
    points = camera.uvd_to_xyz(np.stack([u, v, depth[v, u]], 1).astype(np.float64))
    z = points[:, 2]
    nearest = max(0, len(z) // 100 - 1)
    middle: np.ndarray = np.median(points[z <= np.partition(z, nearest)[nearest]], axis=0)
    for _ in range(rounds):
        inside = (np.abs(points - middle) <= cube_mm / 2).all(1)
        if inside.any():
            middle = points[inside].mean(0)
    return middle
