"""The front door: :func:`refine` and :class:`Refiner`."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from jointbert.arrays import to_numpy
from jointbert.backends import Batch, Result, Status, load_backend
from jointbert.backends.layout import HAND_SIZE_MM, MIN_JOINTS
from jointbert.skeleton import NUM_JOINTS, resolve_order
from jointbert.weights import load_weights

UNITS_MM = {"mm": 1.0, "cm": 10.0, "m": 1000.0}
HANDS = ("right", "left")

_TYPICAL_SIZE_MM = 65.0  # root mean square distance of an adult's joints from their mean
_MIRRORED_MM = 12.0  # a frame counts as mirrored beyond this chirality; see Result.chirality
_PLAUSIBLE_MM = (16.0, 120.0)
_MAX_THREADS = 256
_STEP = 1024  # frames between two looks at interrupts: some tenths of a second


class JointbertWarning(UserWarning):
    """Something about the input looks wrong; the result is given all the same."""


class Refined(NamedTuple):
    """What ``return_details=True`` gives; arrays of the input's library."""

    joints: Any
    """``(..., 14, 3)``, as the input."""
    sigma: Any
    """``(..., 14)`` expected Euclidean error of each refined joint, in the input's unit; NaN where a frame was not refined."""
    status: Any
    """``(...)`` uint8, see :class:`Status`."""


class Refiner:
    """Loads weights once; call it on poses thereafter. Safe to use from several threads.

    Args:
        weights: a shipped name, or the path of a ``.safetensors`` file.
        backend: ``auto``, ``native`` or ``torch``.
        threads: CPU threads for a batch, 256 at most (``native``; ``torch`` follows ``torch.set_num_threads``).

    Raises:
        ValueError: unknown weights or backend, a file that does not fit, a bad number of threads.
    """

    def __init__(self, weights: str | os.PathLike[str] = "nyu14", backend: str = "auto", threads: int = 1) -> None:
        if isinstance(threads, bool) or not isinstance(threads, (int, np.integer)):
            raise TypeError(f"threads: got {type(threads).__name__}; expected an integer")
        if threads < 1:
            raise ValueError(f"threads: got {threads}; expected at least 1")
        threads = min(int(threads), _MAX_THREADS)
        self._arguments = (weights, backend, threads)
        self._weights = load_weights(weights)
        self._backend = load_backend(backend, self._weights, threads)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles and copies as what it was made of; weights given by path are read again."""
        return Refiner, self._arguments

    def __repr__(self) -> str:
        return f"Refiner(weights={self._weights.name!r}, backend={self._backend.name!r})"

    def __call__(
        self,
        joints: Any,
        *,
        confidence: Any = None,
        visible: Any = None,
        error_mm: Any = None,
        order: str | Sequence[str] = "nyu14",
        units: str = "mm",
        hand: str | Sequence[str] = "right",
        sequence: bool = False,
        return_details: bool = False,
    ) -> Any:
        """Refines poses; arguments, result and errors are those of :func:`refine`."""
        return self._call(
            joints,
            confidence=confidence,
            visible=visible,
            error_mm=error_mm,
            order=order,
            units=units,
            hand=hand,
            sequence=sequence,
            return_details=return_details,
        )

    def _call(
        self,
        joints: Any,
        *,
        confidence: Any = None,
        visible: Any = None,
        error_mm: Any = None,
        order: str | Sequence[str] = "nyu14",
        units: str = "mm",
        hand: str | Sequence[str] = "right",
        sequence: bool = False,
        return_details: bool = False,
        stacklevel: int = 3,
        progress: Callable[[int], None] | None = None,
    ) -> Any:
        for name, flag in (("sequence", sequence), ("return_details", return_details)):
            if not isinstance(flag, (bool, np.bool_)):
                raise TypeError(f"{name}: got {type(flag).__name__}; expected a bool")
        if sequence:
            raise ValueError(f"sequence: the weights {self._weights.name!r} refine single frames; expected sequence=False")
        if not isinstance(units, str) or units not in UNITS_MM:
            raise ValueError(f"units: got {units!r}; expected one of {', '.join(map(repr, UNITS_MM))}")
        permutation = resolve_order(order)
        given, restore = to_numpy(joints, "joints")
        poses = _check_joints(given)
        leading = poses.shape[:-2]
        per_joint = (*leading, NUM_JOINTS)
        frames = math.prod(leading)
        batch = Batch(
            joints=poses.reshape(frames, NUM_JOINTS, 3),
            permutation=permutation,
            mm_per_unit=UNITS_MM[units],
            mirror=_check_hand(hand, leading),
            visible=None if visible is None else _check_visible(visible, per_joint),
            confidence=None if confidence is None else _check_confidence(confidence, per_joint),
            error_mm=None if error_mm is None else _check_error(error_mm, per_joint),
        )
        result = self._backend.run(batch) if frames <= _STEP else self._run_in_steps(batch, progress)
        _report(result, units, batch.mirror, stacklevel + 1)

        out = result.joints.reshape(poses.shape)
        if given.dtype.kind == "f" and out.dtype != given.dtype:  # float16, longdouble, swapped bytes
            with np.errstate(over="ignore"):  # beyond float16: infinite, as in any arithmetic of that type
                out = out.astype(given.dtype)
            kept = (result.status != Status.REFINED).reshape(leading)
            out[kept] = given[kept]
        if not return_details:
            return restore(out)
        sigma = result.sigma.reshape(per_joint).astype(out.dtype, copy=False)
        return Refined(restore(out), restore(sigma), restore(result.status.reshape(leading)))

    def _run_in_steps(self, batch: Batch, progress: Callable[[int], None] | None) -> Result:
        """The same result as one run; between steps there is time for an interrupt and for progress."""

        def part(rows: np.ndarray | None, start: int) -> np.ndarray | None:
            return None if rows is None else rows[start : start + _STEP]

        results = []
        for start in range(0, len(batch.joints), _STEP):
            results.append(
                self._backend.run(
                    replace(
                        batch,
                        joints=batch.joints[start : start + _STEP],
                        mirror=part(batch.mirror, start),
                        visible=part(batch.visible, start),
                        confidence=part(batch.confidence, start),
                        error_mm=part(batch.error_mm, start),
                    )
                )
            )
            if progress is not None:
                progress(len(results[-1].status))
        return Result(**{f.name: np.concatenate([getattr(r, f.name) for r in results]) for f in fields(Result)})


def refine(
    joints: Any,
    *,
    confidence: Any = None,
    visible: Any = None,
    error_mm: Any = None,
    order: str | Sequence[str] = "nyu14",
    units: str = "mm",
    hand: str | Sequence[str] = "right",
    sequence: bool = False,
    weights: str | os.PathLike[str] = "nyu14",
    backend: str = "auto",
    return_details: bool = False,
) -> Any:
    """Refines 3D hand poses of 14 joints.

    Args:
        joints: ``(14, 3)`` or ``(..., 14, 3)``; NumPy, torch, anything with DLPack or ``__array__``, or nested lists; in the
            camera frame of OpenCV (x right, y down, z away). A joint with a non-finite coordinate is missing and comes back
            filled in. A frame needs at least 4 joints.
        confidence: ``(..., 14)`` in [0, 1], the heatmap's peak; NaN for a joint, or ``None``: unknown.
        visible: ``(..., 14)`` bool; False marks a joint as missing.
        error_mm: the expected joint error of the method in millimetres, a number or ``(..., 14)``; NaN or ``None``: inferred.
        order: ``nyu14``, ``palm_first`` or the 14 joint names in the order of ``joints`` and every per-joint argument.
        units: ``mm``, ``cm`` or ``m``.
        hand: ``right``, ``left``, or one of these words for each frame; left hands are mirrored on the way in and out.
        sequence: temporal refinement; needs weights that have it.
        weights: a shipped name or a ``.safetensors`` path.
        backend: ``auto``, ``native`` (C++) or ``torch``.
        return_details: return :class:`Refined` instead of the joints alone.

        The leading dimensions of a per-joint argument may be left out, or 1.

    Returns:
        Joints of the same type, shape, dtype, unit and order; lists and integers come back as float64 NumPy, subclasses and
        what has no library behind it as plain arrays. A frame with too few joints, or that can't be a hand, comes back as it
        was.

    Raises:
        ValueError: a wrong shape or word, a confidence or error out of range, no frame with 4 joints, weights that don't fit.
        TypeError: no array, a dtype that holds no coordinates, a tensor that requires grad.
        ImportError: the backend's library is missing.

    Warns:
        JointbertWarning: once a call, if frames came back as they were, or sizes or sides look wrong.

    >>> import numpy as np, jointbert
    >>> poses = jointbert.load_demo().predictions[:2]
    >>> jointbert.refine(poses).shape
    (2, 14, 3)
    """
    refiner = _cached_refiner(weights, backend)
    return refiner._call(
        joints,
        confidence=confidence,
        visible=visible,
        error_mm=error_mm,
        order=order,
        units=units,
        hand=hand,
        sequence=sequence,
        return_details=return_details,
    )


@lru_cache(maxsize=8)
def _load(weights: str, stamp: tuple[int, ...] | None, backend: str) -> Refiner:
    return Refiner(weights, backend)


def _cached_refiner(weights: Any, backend: Any) -> Refiner:
    """The refiner of a name or file; a file is read again once it has changed or another stands at its path."""
    if not isinstance(weights, (str, os.PathLike)) or not isinstance(backend, str):
        return Refiner(weights, backend)  # which says what is wrong
    path = os.fspath(weights)
    if isinstance(weights, str) and os.path.basename(path) == path and not path.endswith(".safetensors"):
        return _load(path, None, backend)  # a shipped name, whatever file is called so
    try:
        stat = os.stat(path)
    except (OSError, ValueError):
        stat = None
    if stat is None:
        return Refiner(weights, backend)  # which says what is wrong
    return _load(os.path.abspath(path), (stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_size), backend)


def _check_joints(array: np.ndarray) -> np.ndarray:
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


def _check_hand(hand: Any, leading: tuple[int, ...]) -> np.ndarray | None:
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


def _check_visible(visible: Any, shape: tuple[int, ...]) -> np.ndarray:
    array = _per_joint(visible, "visible", shape, "biu", "bool")
    if array.dtype.kind != "b" and not np.isin(array, (0, 1)).all():
        raise ValueError("visible: got integers other than 0 and 1; expected bool")
    return np.ascontiguousarray(array, dtype=bool)


def _check_confidence(confidence: Any, shape: tuple[int, ...]) -> np.ndarray:
    array = _per_joint(confidence, "confidence", shape, "fiu", "numbers in [0, 1]")
    bad = (array < 0) | (array > 1)
    if bad.any():
        raise ValueError(f"confidence: got {float(array[bad][0])!r}; expected values in [0, 1], NaN where unknown")
    return np.ascontiguousarray(array, dtype=np.float32)


def _check_error(error_mm: Any, shape: tuple[int, ...]) -> np.ndarray:
    array = _per_joint(error_mm, "error_mm", shape, "fiu", "positive numbers", scalar=True)
    bad = (array <= 0) | np.isposinf(array)
    if bad.any():
        raise ValueError(f"error_mm: got {float(array[bad][0])!r}; expected positive millimetres, NaN where unknown")
    with np.errstate(over="ignore"):  # beyond float32 is beyond the clamp, too
        return np.ascontiguousarray(np.minimum(array, 1e6), dtype=np.float32)


def _report(result: Result, units: str, mirror: np.ndarray | None, stacklevel: int) -> None:
    """Turns what the backend noticed into an error (nothing is usable) or one warning."""
    frames = len(result.status)
    if not frames or _looks_right(result):
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
    if hints:
        warnings.warn("joints: " + "; ".join(hints), JointbertWarning, stacklevel=stacklevel)


def _looks_right(result: Result) -> bool:
    """Nothing to say of any frame: the usual case, found out in a few microseconds."""
    if len(result.status) == 1:  # in plain numbers: right after a pose, all that Python does is done with cold caches
        size, side = result.size_mm.item(), result.chirality.item()
        return result.status.item() == 0 and _PLAUSIBLE_MM[0] <= size <= _PLAUSIBLE_MM[1] and not side > _MIRRORED_MM
    if result.status.any():
        return False
    smallest, largest = result.size_mm.min(), result.size_mm.max()
    plausible = smallest >= _PLAUSIBLE_MM[0] and largest <= _PLAUSIBLE_MM[1]
    return bool(plausible and not (result.chirality > _MIRRORED_MM).any())


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
