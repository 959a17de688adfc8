"""Checks of a result: raises an error if no frame is usable, and warns if frames look wrong (unit, side, order)."""

from __future__ import annotations

import warnings

import numpy as np

from jointbert.contract import JointbertWarning, Result, Status
from jointbert.contract.layout import HAND_SIZE_MM, MIN_JOINTS
from jointbert.inputs.arguments import UNITS_MM

_TYPICAL_SIZE_MM = 65.0  # an adult's hand: root mean square distance of the joints from their mean
_MIRRORED_MM = 12.0  # a frame with a larger chirality (Result.chirality) counts as mirrored
_PLAUSIBLE_MM = (16.0, 120.0)
# A frame does not look like a hand if its fourth smallest sigma, divided by the frame's size, exceeds this limit. The median of
# published predictions is 0.16 to 0.24, that of random points and of joints in a wrong order 0.4 to 0.9.
_MAX_RELATIVE_SIGMA = 1 / 3
_SIGMA_RANK = 3


def report(result: Result, units: str, mirror: np.ndarray | None, sigma_is_informative: bool, stacklevel: int) -> None:
    """Warns once if frames look wrong.

    Args:
        result: of a backend. units: as stated by the user. mirror: ``(N,)`` bool, True for left hands; None: all right.
        sigma_is_informative: a large sigma indicates poses that are no hand: the weights were trained to predict sigma, and the
            user stated neither a confidence nor an error.
        stacklevel: of the warning.

    Raises:
        ValueError: all frames have too few joints.

    Warns:
        JointbertWarning: frames were returned unchanged, or most frames have an implausible size, side or sigma.
    """
    frames = len(result.status)
    if not frames or _looks_right(result, UNITS_MM[units], sigma_is_informative):
        return
    too_few = int((result.status == Status.TOO_FEW_JOINTS).sum())
    if too_few == frames:
        which = "the frame has" if frames == 1 else f"each of the {frames} frames has"
        raise ValueError(f"joints: {which} fewer than {MIN_JOINTS} finite, visible joints; there is nothing to refine")
    hints = []
    not_a_hand = int((result.status == Status.NOT_A_HAND).sum())
    if too_few or not_a_hand:
        reasons = [f"{too_few} with fewer than {MIN_JOINTS} joints"] if too_few else []
        if not_a_hand:
            low, high = HAND_SIZE_MM
            reasons.append(f"{not_a_hand} of a size that can't be a hand's (outside {low:g} to {high:g} mm root mean square)")
        hints.append(f"{too_few + not_a_hand} of {frames} frames were returned unchanged: {', '.join(reasons)}")
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
    if sigma_is_informative and good.any():
        sigma_mm = UNITS_MM[units] * np.partition(result.sigma[good], _SIGMA_RANK, axis=1)[:, _SIGMA_RANK]
        if (sigma_mm > _MAX_RELATIVE_SIGMA * result.size_mm[good]).mean() > 0.5:
            # The text has no number, so that Python shows the warning once in a loop over single frames.
            hints.append("most frames don't look like a hand (sigma is large): check order=, and that the points are a hand's")
    if hints:
        warnings.warn("joints: " + "; ".join(hints), JointbertWarning, stacklevel=stacklevel)


def _looks_right(result: Result, mm_per_unit: float, sigma_is_informative: bool) -> bool:
    """Whether all frames look right. This is the usual case, so that the check takes only a few microseconds."""
    if len(result.status) == 1:  # plain Python numbers: for one frame they are faster than NumPy
        size, side = result.size_mm.item(), result.chirality.item()
        if result.status.item() or not _PLAUSIBLE_MM[0] <= size <= _PLAUSIBLE_MM[1] or side > _MIRRORED_MM:
            return False
        return (
            not sigma_is_informative
            or sorted(result.sigma[0].tolist())[_SIGMA_RANK] * mm_per_unit <= _MAX_RELATIVE_SIGMA * size
        )
    if result.status.any():
        return False
    smallest, largest = result.size_mm.min(), result.size_mm.max()
    plausible = smallest >= _PLAUSIBLE_MM[0] and largest <= _PLAUSIBLE_MM[1]
    if not plausible or (result.chirality > _MIRRORED_MM).any():
        return False
    return not sigma_is_informative or bool(result.sigma.max() * mm_per_unit <= _MAX_RELATIVE_SIGMA * smallest)


def _size_hint(size_mm: float, units: str) -> str:
    """The message for an implausible size: it suggests the unit that gives the size of an adult's hand."""
    candidates = {"metres (units='m')": 1000.0, "centimetres (units='cm')": 10.0, "inches (multiply by 25.4)": 25.4}
    as_given = size_mm / UNITS_MM[units]  # in the unknown unit of the input
    if as_given > _PLAUSIBLE_MM[1]:
        return f"the median hand measures {size_mm:.4g} mm, which looks like pixels or a finer unit than {units!r}"
    candidates["millimetres (units='mm')"] = 1.0
    name, factor = min(candidates.items(), key=lambda item: abs(np.log(max(as_given, 1e-30) * item[1] / _TYPICAL_SIZE_MM)))
    if 0.25 < as_given * factor / _TYPICAL_SIZE_MM < 2:
        return f"the median hand measures {size_mm:.4g} mm, which looks like {name}"
    return f"the median hand measures {size_mm:.4g} mm, which no unit explains"
