"""Options of a call, and the preparation of poses: checks the user's arrays and makes the batch for a backend."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from jointbert.contract import Batch, PoseOptions, RefineOptions
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
from jointbert.skeletons import NYU14


class PreparedPoses(NamedTuple):
    """Checked poses, and what is needed to return a result in the input's type."""

    batch: Batch
    given: np.ndarray
    """The input as a NumPy array."""
    restore: Restore
    """Converts a NumPy result to an array of the input's library."""
    leading: tuple[int, ...]
    """The input's shape without its last two axes, joints and coordinates."""


def prepare(joints: Any, options: PoseOptions) -> PreparedPoses:
    """Checks poses in the host's memory and their options.

    Raises:
        ValueError, TypeError: as :func:`jointbert.refine`.
    """
    check_units(options.units)
    permutation = NYU14.resolve_order(options.order)
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


def check_flags(options: RefineOptions) -> None:
    """Raises TypeError if an option that switches something on is no bool."""
    check_flag("sequence", options.sequence)
    check_flag("check", options.check)
    check_flag("return_details", options.return_details)
