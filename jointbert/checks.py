"""What the front door checks: arguments, which are errors, and what a backend noticed, which is a warning."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np

from jointbert.arrays import to_numpy
from jointbert.backends import Result, Status
from jointbert.backends.layout import HAND_SIZE_MM, MIN_JOINTS
from jointbert.skeleton import NUM_JOINTS

UNITS_MM = {"mm": 1.0, "cm": 10.0, "m": 1000.0}
HANDS = ("right", "left")

_TYPICAL_SIZE_MM = 65.0  # root mean square distance of an adult's joints from their mean
_MIRRORED_MM = 12.0  # a frame counts as mirrored beyond this chirality; see Result.chirality
_PLAUSIBLE_MM = (16.0, 120.0)
# Expected error of a frame's fourth best joint over the frame's size, beyond which it doesn't look like a hand: the published
# methods' hands have 0.16 to 0.24 in the median, random points and joints in another order 0.4 to 0.9.
_STRANGE = 1 / 3
_STRANGE_RANK = 3


class JointbertWarning(UserWarning):
    """Something about the input looks wrong; the result is given all the same."""


def check_flag(name: str, value: Any) -> None:
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: got {type(value).__name__}; expected a bool")


def check_units(units: Any) -> None:
    if not isinstance(units, str) or units not in UNITS_MM:
        raise ValueError(f"units: got {units!r}; expected one of {', '.join(map(repr, UNITS_MM))}")


def check_joints(array: np.ndarray) -> np.ndarray:
    """Shape and dtype; returns float32 or float64, C-contiguous."""
    kind = array.dtype.kind
    if kind not in "fiu" or (kind == "f" and array.dtype.itemsize < 2):
        raise TypeError(f"joints: got the dtype {array.dtype}; expected floating-point or integer coordinates")
    shape = array.shape
    if len(shape) < 2 or shape[-2:] != (NUM_JOINTS, 3):
        raise ValueError(f"joints: got the shape {shape}; expected (..., {NUM_JOINTS}, 3){_shape_hint(shape)}")
    small = array.dtype.itemsize <= 4 and kind == "f"
    with np.errstate(over="ignore"):  # a longdouble beyond float64 becomes infinite: missing
        return np.ascontiguousarray(array, dtype=np.float32 if small else np.float64)


MAX_THREADS = 256
"""More than this many help nobody, and a machine may refuse them by an end of the process."""


def check_threads(threads: Any) -> int:
    """A number of CPU threads, 256 at most."""
    if isinstance(threads, bool) or not isinstance(threads, (int, np.integer)):
        raise TypeError(f"threads: got {type(threads).__name__}; expected an integer")
    if threads < 1:
        raise ValueError(f"threads: got {threads}; expected at least 1")
    return min(int(threads), MAX_THREADS)


MAX_HEATMAP = 128
"""Neither side of a heatmap is longer."""
_MAX_BETA = 1e30  # stays finite in float32 when it is multiplied by a heatmap's values


def check_soft_argmax(shape: tuple[int, ...], mode: str, beta: Any, window: int | None) -> None:
    """Heatmaps' shape, and how their peaks are found."""
    if len(shape) < 2 or not (1 <= shape[-1] <= MAX_HEATMAP and 1 <= shape[-2] <= MAX_HEATMAP):
        raise ValueError(f"heatmaps: got the shape {shape}; expected (..., H, W), up to {MAX_HEATMAP} x {MAX_HEATMAP}")
    if mode not in ("argmax", "soft"):
        raise ValueError(f"mode: got {mode!r}; expected 'argmax' or 'soft'")
    if not 0 < beta <= _MAX_BETA:
        raise ValueError(f"beta: got {beta!r}; expected a positive number, {_MAX_BETA:g} at most")
    if window is not None and (isinstance(window, bool) or not isinstance(window, int) or window < 0):
        raise ValueError(f"window: got {window!r}; expected a whole number of pixels, or None")


def check_device_stated(name: str, shape: tuple[int, ...], dtype: str, expected: tuple[int, ...]) -> None:
    """Shape and dtype of what is said of joints on a GPU; the rules are those of arrays on the CPU."""
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
    """Shape and dtype of joints on a GPU, where they stay as they are."""
    if dtype not in ("float16", "bfloat16", "float32", "float64"):
        raise TypeError(f"joints: got the dtype {dtype}; expected floating-point coordinates")
    if len(shape) < 2 or shape[-2:] != (NUM_JOINTS, 3):
        raise ValueError(f"joints: got the shape {shape}; expected (..., {NUM_JOINTS}, 3){_shape_hint(shape)}")


def _shape_hint(shape: tuple[int, ...]) -> str:
    if len(shape) >= 2 and shape[-2:] == (21, 3):
        return "; 21 joints are another protocol: select the 14 of NYU's (see jointbert.skeleton.JOINT_NAMES)"
    if len(shape) >= 2 and shape[-2:] == (NUM_JOINTS, 2):
        return "; two coordinates are not enough: the refiner needs x, y, z"
    if len(shape) >= 2 and shape[-2:] == (3, NUM_JOINTS):
        return "; swap the last two axes"
    if shape and shape[-1] == 3 * NUM_JOINTS:
        return f"; reshape it to (..., {NUM_JOINTS}, 3)"
    return ""


def check_hand(hand: Any, leading: tuple[int, ...]) -> np.ndarray | None:
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


def _per_joint(value: Any, name: str, shape: tuple[int, ...], kinds: str, expected: str, scalar: bool = False) -> np.ndarray:
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
    array = _per_joint(visible, "visible", shape, "biu", "bool")
    if array.dtype.kind != "b" and not np.isin(array, (0, 1)).all():
        raise ValueError("visible: got integers other than 0 and 1; expected bool")
    return np.ascontiguousarray(array, dtype=bool)


def check_confidence(confidence: Any, shape: tuple[int, ...]) -> np.ndarray:
    array = _per_joint(confidence, "confidence", shape, "fiu", "numbers in [0, 1]")
    bad = (array < 0) | (array > 1)
    if bad.any():
        raise ValueError(f"confidence: got {float(array[bad][0])!r}; expected values in [0, 1], NaN where unknown")
    return np.ascontiguousarray(array, dtype=np.float32)


def check_error(error_mm: Any, shape: tuple[int, ...]) -> np.ndarray:
    array = _per_joint(error_mm, "error_mm", shape, "fiu", "positive numbers", scalar=True)
    bad = (array <= 0) | np.isposinf(array)
    if bad.any():
        raise ValueError(f"error_mm: got {float(array[bad][0])!r}; expected positive millimetres, NaN where unknown")
    with np.errstate(over="ignore"):  # beyond float32 is beyond the clamp, too, on either side
        return np.ascontiguousarray(np.clip(array, 1e-6, 1e6), dtype=np.float32)


def report(result: Result, units: str, mirror: np.ndarray | None, sigma_tells: bool, stacklevel: int) -> None:
    """Turns what the backend noticed into an error (nothing is usable) or one warning.

    ``sigma_tells``: sigma says whether points look like a hand (its weights were trained to, nothing was stated of the error).
    """
    frames = len(result.status)
    if not frames or _looks_right(result, UNITS_MM[units], sigma_tells):
        return
    few = int((result.status == Status.TOO_FEW_JOINTS).sum())
    if few == frames:
        which = "the frame has" if frames == 1 else f"each of the {frames} frames has"
        raise ValueError(f"joints: {which} fewer than {MIN_JOINTS} finite, visible joints; there is nothing to refine")
    hints = []
    strange = int((result.status == Status.NOT_A_HAND).sum())
    if few or strange:
        reasons = [f"{few} with fewer than {MIN_JOINTS} joints"] if few else []
        if strange:
            low, high = HAND_SIZE_MM
            reasons.append(f"{strange} of a size that can't be a hand's (outside {low:g} to {high:g} mm root mean square)")
        hints.append(f"{few + strange} of {frames} frames came back as they were: {', '.join(reasons)}")
    sizes = result.size_mm[(result.status != Status.TOO_FEW_JOINTS) & np.isfinite(result.size_mm)]
    size = float(np.median(sizes)) if len(sizes) else np.inf
    if not _PLAUSIBLE_MM[0] <= size <= _PLAUSIBLE_MM[1]:
        hints.append(_size_hint(size, units))
    sides = result.chirality[(result.status == Status.REFINED) & np.isfinite(result.chirality)]
    if len(sides) and (sides > _MIRRORED_MM).mean() > 0.5:
        if mirror is None:
            hints.append("most hands are mirrored: pass hand='left' for left hands, or negate y if it points up")
        else:
            hints.append("most hands are not of the stated side: check hand=, or negate y if it points up")
    good = result.status == Status.REFINED
    if sigma_tells and good.any():
        sigma_mm = UNITS_MM[units] * np.partition(result.sigma[good], _STRANGE_RANK, axis=1)[:, _STRANGE_RANK]
        if (sigma_mm > _STRANGE * result.size_mm[good]).mean() > 0.5:
            # No number: a loop over single frames would say each one anew.
            hints.append("most frames don't look like a hand (sigma is large): check order=, and that the points are a hand's")
    if hints:
        warnings.warn("joints: " + "; ".join(hints), JointbertWarning, stacklevel=stacklevel)


def _looks_right(result: Result, mm_per_unit: float, sigma_tells: bool) -> bool:
    """Nothing to say of any frame: the usual case, found out in a few microseconds."""
    if len(result.status) == 1:  # in plain numbers: right after a pose, all that Python does is done with cold caches
        size, side = result.size_mm.item(), result.chirality.item()
        if result.status.item() or not _PLAUSIBLE_MM[0] <= size <= _PLAUSIBLE_MM[1] or side > _MIRRORED_MM:
            return False
        return not sigma_tells or sorted(result.sigma[0].tolist())[_STRANGE_RANK] * mm_per_unit <= _STRANGE * size
    if result.status.any():
        return False
    smallest, largest = result.size_mm.min(), result.size_mm.max()
    plausible = smallest >= _PLAUSIBLE_MM[0] and largest <= _PLAUSIBLE_MM[1]
    if not plausible or (result.chirality > _MIRRORED_MM).any():
        return False
    return not sigma_tells or bool(result.sigma.max() * mm_per_unit <= _STRANGE * smallest)


def _size_hint(size_mm: float, units: str) -> str:
    """What unit would make a median hand of this size an adult's."""
    candidates = {"metres (units='m')": 1000.0, "centimetres (units='cm')": 10.0, "inches (multiply by 25.4)": 25.4}
    as_given = size_mm / UNITS_MM[units]  # in whatever the numbers really are
    if as_given > _PLAUSIBLE_MM[1]:
        return f"the median hand measures {size_mm:.4g} mm, which looks like pixels or a finer unit than {units!r}"
    candidates["millimetres (units='mm')"] = 1.0
    name, factor = min(candidates.items(), key=lambda item: abs(np.log(max(as_given, 1e-30) * item[1] / _TYPICAL_SIZE_MM)))
    if 0.25 < as_given * factor / _TYPICAL_SIZE_MM < 2:
        return f"the median hand measures {size_mm:.4g} mm, which looks like {name}"
    return f"the median hand measures {size_mm:.4g} mm, which no unit explains"
