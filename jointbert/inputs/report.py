"""What a backend noticed about the frames of a call, as an error (nothing is usable) or as one warning."""

from __future__ import annotations

import warnings

import numpy as np

from jointbert.contract import JointbertWarning, Result, Status
from jointbert.contract.layout import HAND_SIZE_MM, MIN_JOINTS
from jointbert.inputs.arguments import UNITS_MM

_TYPICAL_SIZE_MM = 65.0  # root mean square distance of an adult's joints from their mean
_MIRRORED_MM = 12.0  # a frame counts as mirrored beyond this chirality; see Result.chirality
_PLAUSIBLE_MM = (16.0, 120.0)
# Expected error of a frame's fourth best joint over the frame's size, beyond which it doesn't look like a hand: the published
# methods' hands have 0.16 to 0.24 in the median, random points and joints in another order 0.4 to 0.9.
_STRANGE = 1 / 3
_STRANGE_RANK = 3


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
