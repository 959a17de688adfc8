"""The text format of published predictions: one line a frame, 42 numbers, u v d or x y z of each of the 14 joints."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from jointbert.camera import Camera
from jointbert.skeleton import NUM_JOINTS

Format = Literal["uvd", "xyz"]
NUMBERS = 3 * NUM_JOINTS


def read_joints(path: str | Path, format: Format, camera: Camera | None = None) -> np.ndarray:
    """Reads a prediction file.

    Args:
        path: the file; numbers separated by white space or commas; ``nan`` marks a missing joint; blank lines are skipped.
        format: ``uvd`` (pixels, pixels, millimetres) or ``xyz`` (millimetres).
        camera: what turns u v d into x y z; required for ``uvd``, never guessed.

    Returns:
        ``(frames, 14, 3)`` float64, x y z in the camera frame, the file's unit and joint order.

    Raises:
        ValueError: an empty file, a line without 42 numbers (named by its number), an unknown format, u v d with no camera.
        OSError: the file can't be read.
    """
    _check(format, camera)
    rows: list[list[float]] = []
    # Undecodable bytes can't be part of a number: they reach the message below instead of a UnicodeDecodeError.
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            parts = line.replace(",", " ").split()
            if not parts:
                continue
            if len(parts) != NUMBERS:
                raise ValueError(f"{path}: line {number} has {len(parts)} numbers; expected {NUMBERS} (14 joints, three each)")
            try:
                rows.append([float(part) for part in parts])
            except ValueError as error:
                raise ValueError(f"{path}: line {number}: {error}") from None
    if not rows:
        raise ValueError(f"{path}: the file holds no frame")
    joints = np.array(rows).reshape(-1, NUM_JOINTS, 3)
    return camera.uvd_to_xyz(joints) if format == "uvd" and camera is not None else joints


def write_joints(path: str | Path, joints: np.ndarray, format: Format, camera: Camera | None = None) -> None:
    """Writes ``(frames, 14, 3)`` x y z as a prediction file, with three decimals for millimetres, four for pixels.

    Raises:
        ValueError: another shape, an unknown format, u v d with no camera.
    """
    _check(format, camera)
    joints = np.asarray(joints)
    if joints.ndim != 3 or joints.shape[1:] != (NUM_JOINTS, 3):
        raise ValueError(f"joints: got the shape {joints.shape}; expected (frames, {NUM_JOINTS}, 3)")
    if format == "uvd" and camera is not None:
        joints = camera.xyz_to_uvd(joints)
    decimals = ("%.4f", "%.4f", "%.3f") if format == "uvd" else ("%.3f",) * 3
    np.savetxt(path, joints.reshape(len(joints), NUMBERS), fmt=list(decimals) * NUM_JOINTS)


def _check(format: str, camera: Camera | None) -> None:
    if format not in ("uvd", "xyz"):
        raise ValueError(f"format: got {format!r}; expected 'uvd' or 'xyz'")
    if format == "uvd" and camera is None:
        raise ValueError("camera: u v d needs a camera ('nyu' or fx,fy,cx,cy); it is never guessed")
