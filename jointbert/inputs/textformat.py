"""Reads and writes the text format of published predictions: one line per frame, 42 numbers, u v d or x y z of 14 joints."""

from __future__ import annotations

import os
import shutil
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple, TextIO

import numpy as np

from jointbert.camera import Camera
from jointbert.contract.layout import NUM_JOINTS

Format = Literal["uvd", "xyz"]
NUMBERS = 3 * NUM_JOINTS


class Frames(NamedTuple):
    """The content of a prediction file: its joints, and its lines as text."""

    joints: np.ndarray  # (frames, 14, 3) float64, x y z
    lines: list[str]  # one per frame, without line ends


def read_frames(path: str | Path, format: Format, camera: Camera | None = None) -> Frames:
    """Reads a prediction file.

    Args:
        path: the file; numbers separated by white space or commas. A joint is missing, and becomes nan, if a number is
            ``nan`` or, in u v d, the depth is not positive. Blank lines are allowed at the end only.
        format: ``uvd`` (pixels, pixels, millimetres) or ``xyz`` (millimetres).
        camera: converts u v d to x y z; required for ``uvd``.

    Raises:
        ValueError: an empty file, a line without 42 numbers (the message has its number), an unknown format, u v d with no
            camera.
        OSError: the file can't be read.
    """
    _check_format(format, camera)
    numbers, lines, blank = array("d"), [], 0
    # Undecodable bytes are replaced, so that they cause the message below instead of a UnicodeDecodeError.
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        for number, line in enumerate(file, 1):
            parts = line.replace(",", " ").split()
            if not parts:
                blank = blank or number
                continue
            if blank:
                raise ValueError(f"{path}: line {blank} is blank, and frames follow; expected one line a frame")
            if len(parts) != NUMBERS:
                raise ValueError(f"{path}: line {number} has {len(parts)} numbers; expected {NUMBERS} (14 joints, three each)")
            try:
                numbers.extend([float(part) for part in parts])
            except ValueError as error:
                raise ValueError(f"{path}: line {number}: {error}") from None
            lines.append(line.rstrip("\r\n"))
    if not lines:
        raise ValueError(f"{path}: the file holds no frame")
    joints = np.array(numbers).reshape(-1, NUM_JOINTS, 3)
    if format == "uvd" and camera is not None:
        joints[~(joints[..., 2] > 0)] = np.nan  # a depth that is not positive marks a missing joint
        joints = camera.uvd_to_xyz(joints)
    return Frames(joints, lines)


def read_joints(path: str | Path, format: Format, camera: Camera | None = None) -> np.ndarray:
    """The joints of :func:`read_frames`: ``(frames, 14, 3)`` float64, x y z in the camera frame, the file's joint order."""
    return read_frames(path, format, camera).joints


def write_joints(
    path: str | Path,
    joints: np.ndarray,
    format: Format,
    camera: Camera | None = None,
    lines: Sequence[str | None] | None = None,
) -> None:
    """Writes ``(frames, 14, 3)`` x y z as a prediction file, with three decimals for millimetres and four for pixels.

    An existing file is replaced only when the new one is complete.

    Args:
        lines: for each frame, a line that is written instead of its joints, or ``None``.

    Raises:
        ValueError: another shape, an unknown format, u v d with no camera. OSError: the file can't be written.
    """
    _check_format(format, camera)
    joints = np.asarray(joints)
    if joints.ndim != 3 or joints.shape[1:] != (NUM_JOINTS, 3):
        raise ValueError(f"joints: got the shape {joints.shape}; expected (frames, {NUM_JOINTS}, 3)")
    if format == "uvd" and camera is not None:
        joints = camera.xyz_to_uvd(joints)
    decimals = ("%.4f", "%.4f", "%.3f") if format == "uvd" else ("%.3f",) * 3
    template = " ".join(decimals * NUM_JOINTS)
    rows = joints.reshape(len(joints), NUMBERS).tolist()
    kept: Sequence[str | None] = lines if lines is not None else [None] * len(rows)
    with _atomic_writer(Path(path)) as file:
        for row, line in zip(rows, kept, strict=True):
            file.write((line if line is not None else template % tuple(row)) + "\n")


@contextmanager
def _atomic_writer(path: Path) -> Iterator[TextIO]:
    """A text file that replaces ``path`` when it is complete; devices and pipes are written directly."""
    if path.exists() and not path.is_file():
        with open(path, "w", encoding="utf-8") as file:
            yield file
        return
    target = path.resolve()
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            yield file
        if target.exists():
            shutil.copymode(target, temporary)
        os.replace(temporary, target)
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(path)) from None
    finally:
        temporary.unlink(missing_ok=True)


def _check_format(format: str, camera: Camera | None) -> None:
    if format not in ("uvd", "xyz"):
        raise ValueError(f"format: got {format!r}; expected 'uvd' or 'xyz'")
    if format == "uvd" and camera is None:
        raise ValueError("camera: u v d needs a camera ('nyu' or fx,fy,cx,cy); it is never guessed")
