"""Options of a call, and the preparation of poses: checks the user's arrays and makes the batch for a backend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from jointbert.contract import Batch
from jointbert.contract.layout import NUM_JOINTS
from jointbert.inputs.arguments import (
    UNITS_MM,
    check_confidence,
    check_error,
    check_flag,
    check_hand,
    check_joints,
    check_units,
    check_visible,
)
from jointbert.inputs.arrays import Restore, to_numpy
from jointbert.skeletons import NYU14, Skeleton


@dataclass(frozen=True, eq=False)
class PoseOptions:
    """Arguments that describe poses, unchecked; :func:`jointbert.refine` documents them."""

    confidence: Any = None
    visible: Any = None
    error_mm: Any = None
    order: str | Sequence[str] = "nyu14"
    units: str = "mm"
    hand: str | Sequence[str] = "right"

    @property
    def states_error(self) -> bool:
        """Whether the user stated the size of errors, or confidences."""
        return self.error_mm is not None or self.confidence is not None


@dataclass(frozen=True, eq=False)
class RefineOptions(PoseOptions):
    """All options of a call of :func:`jointbert.refine`.

    Raises:
        TypeError: a flag is not a bool.
    """

    sequence: bool = False
    check: bool = False
    return_details: bool = False

    def __post_init__(self) -> None:
        for flag in ("sequence", "check", "return_details"):
            check_flag(flag, getattr(self, flag))


class PreparedPoses(NamedTuple):
    """Checked poses, and what is needed to return a result in the input's type."""

    batch: Batch
    given: np.ndarray
    """The input as a NumPy array."""
    restore: Restore
    """Converts a NumPy result to an array of the input's library."""
    leading: tuple[int, ...]
    """The input's shape without its last two axes, joints and coordinates."""


def prepare(joints: Any, options: PoseOptions, skeleton: Skeleton = NYU14) -> PreparedPoses:
    """Checks poses in the host's memory and their options.

    Raises:
        ValueError, TypeError: as :func:`jointbert.refine`.
    """
    check_units(options.units)
    permutation = skeleton.resolve_order(options.order)
    given, restore = to_numpy(joints, "joints")
    poses = check_joints(given)
    leading = poses.shape[:-2]
    per_joint = (*leading, NUM_JOINTS)
    confidence, visible, error_mm = options.confidence, options.visible, options.error_mm
    batch = Batch(
        joints=poses.reshape(-1, NUM_JOINTS, 3),
        permutation=permutation,
        mm_per_unit=UNITS_MM[options.units],
        mirror=check_hand(options.hand, leading),
        visible=None if visible is None else check_visible(visible, per_joint),
        confidence=None if confidence is None else check_confidence(confidence, per_joint),
        error_mm=None if error_mm is None else check_error(error_mm, per_joint),
    )
    return PreparedPoses(batch, given, restore, leading)
