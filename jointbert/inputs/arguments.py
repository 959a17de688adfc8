"""Checks of the arguments of :func:`jointbert.refine`: errors name the argument and what was expected."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from jointbert.contract.layout import NUM_JOINTS
from jointbert.inputs.arrays import to_numpy

UNITS_MM = {"mm": 1.0, "cm": 10.0, "m": 1000.0}
HANDS = ("right", "left")


def check_flag(name: str, value: Any) -> None:
    """Raises TypeError if an argument is not a bool."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: got {type(value).__name__}; expected a bool")


def check_units(units: Any) -> None:
    """Raises ValueError for an unknown unit."""
    if not isinstance(units, str) or units not in UNITS_MM:
        raise ValueError(f"units: got {units!r}; expected one of {', '.join(map(repr, UNITS_MM))}")


def check_joints(array: np.ndarray) -> np.ndarray:
    """Checks shape and dtype of joints; returns them as float32 or float64, C-contiguous.

    Raises:
        TypeError: an unsuitable dtype. ValueError: another shape than ``(..., 14, 3)``.
    """
    kind = array.dtype.kind
    if kind not in "fiu" or (kind == "f" and array.dtype.itemsize < 2):
        raise TypeError(f"joints: got the dtype {array.dtype}; expected floating-point or integer coordinates")
    shape = array.shape
    if len(shape) < 2 or shape[-2:] != (NUM_JOINTS, 3):
        raise ValueError(f"joints: got the shape {shape}; expected (..., {NUM_JOINTS}, 3){_shape_hint(shape)}")
    small = array.dtype.itemsize <= 4 and kind == "f"
    with np.errstate(over="ignore"):  # a longdouble beyond float64's range becomes infinite, so that its joint is missing
        return np.ascontiguousarray(array, dtype=np.float32 if small else np.float64)


MAX_THREADS = 256
"""Upper limit of CPU threads. More do not help, and a system may end a process that starts too many."""


def check_threads(threads: Any) -> int:
    """Checks a number of CPU threads; returns at most :data:`MAX_THREADS`.

    Raises:
        TypeError: not an integer. ValueError: less than 1.
    """
    if isinstance(threads, bool) or not isinstance(threads, (int, np.integer)):
        raise TypeError(f"threads: got {type(threads).__name__}; expected an integer")
    if threads < 1:
        raise ValueError(f"threads: got {threads}; expected at least 1")
    return min(int(threads), MAX_THREADS)


def check_device_per_joint(name: str, shape: tuple[int, ...], dtype: str, expected: tuple[int, ...]) -> None:
    """Checks shape and dtype of a per-joint argument on a GPU, by the rules for CPU arrays.

    Raises:
        TypeError: an unsuitable dtype. ValueError: a shape that can't be broadcast.
    """
    kinds, what = (("bool", "int", "uint"), "bool") if name == "visible" else (("float", "bfloat", "int", "uint"), "numbers")
    if dtype.rstrip("0123456789") not in kinds:
        raise TypeError(f"{name}: got the dtype {dtype}; expected {what}")
    fits = shape[-1:] == (NUM_JOINTS,) and len(shape) <= len(expected)
    number = name == "error_mm"
    if number and not shape:
        return
    if not fits or not all(a in (1, b) for a, b in zip(shape[::-1], expected[::-1], strict=False)):
        raise ValueError(f"{name}: got the shape {shape}; expected {expected}{', or a number' if number else ''}")


def check_device_joints(shape: tuple[int, ...], dtype: str) -> None:
    """Checks shape and dtype of joints on a GPU.

    Raises:
        TypeError: not floating point. ValueError: another shape than ``(..., 14, 3)``.
    """
    if dtype not in ("float16", "bfloat16", "float32", "float64"):
        raise TypeError(f"joints: got the dtype {dtype}; expected floating-point coordinates")
    if len(shape) < 2 or shape[-2:] != (NUM_JOINTS, 3):
        raise ValueError(f"joints: got the shape {shape}; expected (..., {NUM_JOINTS}, 3){_shape_hint(shape)}")


def _shape_hint(shape: tuple[int, ...]) -> str:
    if len(shape) >= 2 and shape[-2:] == (21, 3):
        return "; 21 joints are another protocol: select the 14 of NYU's (see jointbert.JOINT_NAMES)"
    if len(shape) >= 2 and shape[-2:] == (NUM_JOINTS, 2):
        return "; two coordinates are not enough: the refiner needs x, y, z"
    if len(shape) >= 2 and shape[-2:] == (3, NUM_JOINTS):
        return "; swap the last two axes"
    if shape and shape[-1] == 3 * NUM_JOINTS:
        return f"; reshape it to (..., {NUM_JOINTS}, 3)"
    return ""


def check_hand(hand: Any, leading: tuple[int, ...]) -> np.ndarray | None:
    """``(N,)`` bool, True for left hands, from one word or one for each frame; None if one word says that all are right.

    Raises:
        TypeError: no words. ValueError: another word or shape.
    """
    if isinstance(hand, str):
        if hand not in HANDS:
            raise ValueError(f"hand: got {hand!r}; expected 'right', 'left' or one of these for each frame")
        return np.ones(math.prod(leading), dtype=bool) if hand == "left" else None
    if not isinstance(hand, (list, tuple, np.ndarray)):
        raise TypeError(f"hand: got {type(hand).__name__}; expected 'right', 'left' or one of these for each frame")
    try:
        words = np.asarray(hand)
    except ValueError:
        raise ValueError("hand: got a nested list of uneven lengths; expected one word for each frame") from None
    if words.dtype.kind == "O" and all(isinstance(word, str) for word in words.flat):
        words = words.astype(str)
    if words.dtype.kind != "U" and words.size:
        raise TypeError(f"hand: got an array of {words.dtype}; expected the words 'right' and 'left'")
    if words.shape != leading:
        raise ValueError(f"hand: got the shape {words.shape}; expected one word for each frame, {leading}")
    if not np.isin(words, HANDS).all():
        raise ValueError(f"hand: got {str(words[~np.isin(words, HANDS)][0])!r}; expected 'right' or 'left'")
    return np.ascontiguousarray(words == "left").reshape(-1)


def _check_per_joint(
    value: Any, name: str, shape: tuple[int, ...], kinds: str, expected: str, scalar: bool = False
) -> np.ndarray:
    array = to_numpy(value, name)[0]
    if array.dtype.kind not in kinds:
        raise TypeError(f"{name}: got the dtype {array.dtype}; expected {expected}")
    fits = array.shape[-1:] == (NUM_JOINTS,) and array.ndim <= len(shape)
    if fits:
        fits = all(a in (1, b) for a, b in zip(array.shape[::-1], shape[::-1], strict=False))
    if not fits and not (scalar and array.ndim == 0):
        expectation = f"{shape}" + (", or a number" if scalar else "")
        raise ValueError(f"{name}: got the shape {array.shape}; expected {expectation}")
    return np.broadcast_to(array, shape).reshape(-1, NUM_JOINTS)


def check_visible(visible: Any, shape: tuple[int, ...]) -> np.ndarray:
    """``visible`` as ``(N, 14)`` bool, broadcast to the per-joint ``shape``.

    Raises:
        TypeError: an unsuitable dtype. ValueError: another shape, integers other than 0 and 1.
    """
    array = _check_per_joint(visible, "visible", shape, "biu", "bool")
    if array.dtype.kind != "b" and not np.isin(array, (0, 1)).all():
        raise ValueError("visible: got integers other than 0 and 1; expected bool")
    return np.ascontiguousarray(array, dtype=bool)


def check_confidence(confidence: Any, shape: tuple[int, ...]) -> np.ndarray:
    """``confidence`` as ``(N, 14)`` float32, broadcast to the per-joint ``shape``; NaN: unknown.

    Raises:
        TypeError: an unsuitable dtype. ValueError: another shape, a value outside [0, 1].
    """
    array = _check_per_joint(confidence, "confidence", shape, "fiu", "numbers in [0, 1]")
    bad = (array < 0) | (array > 1)
    if bad.any():
        raise ValueError(f"confidence: got {float(array[bad][0])!r}; expected values in [0, 1], NaN where unknown")
    return np.ascontiguousarray(array, dtype=np.float32)


def check_error(error_mm: Any, shape: tuple[int, ...]) -> np.ndarray:
    """``error_mm`` as ``(N, 14)`` float32, broadcast to the per-joint ``shape``; NaN: unknown.

    Raises:
        TypeError: an unsuitable dtype. ValueError: another shape, a value that is not positive or is infinite.
    """
    array = _check_per_joint(error_mm, "error_mm", shape, "fiu", "positive numbers", scalar=True)
    bad = (array <= 0) | np.isposinf(array)
    if bad.any():
        raise ValueError(f"error_mm: got {float(array[bad][0])!r}; expected positive millimetres, NaN where unknown")
    with np.errstate(over="ignore"):  # values beyond float32's range are clamped anyway
        return np.ascontiguousarray(np.clip(array, 1e-6, 1e6), dtype=np.float32)
