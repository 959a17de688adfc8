"""The 14 joints of the NYU protocol: names, orders, bones.

The canonical order, ``nyu14``, is the one of the published prediction files: joints 0 3 6 9 12 15 18 21 24 25 27 30 31 32 of
the 36 that the NYU Hand Pose data set annotates (Tompson et al., ACM TOG 2014).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from functools import lru_cache

import numpy as np

JOINT_NAMES: tuple[str, ...] = (
    "pinky_tip",
    "pinky_mid",
    "ring_tip",
    "ring_mid",
    "middle_tip",
    "middle_mid",
    "index_tip",
    "index_mid",
    "thumb_tip",
    "thumb_mid",
    "thumb_base",
    "wrist_side_a",
    "wrist_side_b",
    "palm",
)
NUM_JOINTS = len(JOINT_NAMES)

NYU36_INDICES: tuple[int, ...] = (0, 3, 6, 9, 12, 15, 18, 21, 24, 25, 27, 30, 31, 32)
"""Index of each joint among the 36 of the NYU annotation."""

ORDERS: dict[str, tuple[str, ...]] = {
    "nyu14": JOINT_NAMES,
    "palm_first": JOINT_NAMES[::-1],
}
"""Named joint orders. ``palm_first`` is ``nyu14`` reversed: root to leaf, thumb to pinky."""

FINGERS: dict[str, tuple[int, ...]] = {
    "pinky": (0, 1),
    "ring": (2, 3),
    "middle": (4, 5),
    "index": (6, 7),
    "thumb": (8, 9, 10),
}
"""Joints of each finger, tip first."""

PALM: tuple[int, ...] = (11, 12, 13)
"""The rigid triangle: two sides of the wrist and the palm's centre."""

FINGER_BONES: tuple[tuple[int, int], ...] = ((0, 1), (2, 3), (4, 5), (6, 7), (8, 9), (9, 10))
PALM_SIDES: tuple[tuple[int, int], ...] = ((11, 12), (11, 13), (12, 13))
RIGID_BONES: tuple[tuple[int, int], ...] = FINGER_BONES + PALM_SIDES
"""Bones whose length does not change for one person: what a calibration measures."""
PALM_TO_MID: tuple[tuple[int, int], ...] = ((1, 13), (3, 13), (5, 13), (7, 13))
BONES: tuple[tuple[int, int], ...] = FINGER_BONES + PALM_SIDES + PALM_TO_MID + ((10, 13),)
"""Every pair of joints that a drawing joins; the lengths of the first nine hardly change for one person."""


def resolve_order(order: str | Sequence[str]) -> np.ndarray:
    """Where each canonical joint stands in ``order``.

    Args:
        order: a key of :data:`ORDERS`, or the 14 joint names in the order of the array's second-last axis.

    Returns:
        ``(14,)`` int32 ``p`` with ``canonical = joints[..., p, :]``.

    Raises:
        ValueError: an unknown order or joint name, or not each of the 14 names exactly once.
        TypeError: ``order`` is neither a string nor a sequence of strings.
    """
    if isinstance(order, str):
        if order not in ORDERS:
            raise ValueError(
                f"order: {order!r} is no named order; expected one of {', '.join(map(repr, ORDERS))} or 14 joint names"
            )
        return _permutation(ORDERS[order])
    else:
        if isinstance(order, (Set, Mapping)) or not isinstance(order, Iterable):  # a set has no order
            raise TypeError(f"order: got {type(order).__name__}; expected a named order or a sequence of 14 joint names")
        names = tuple(order)
        for name in names:
            if not isinstance(name, str):
                raise TypeError(f"order: got an element of type {type(name).__name__}; expected joint names as strings")
            if name not in JOINT_NAMES:
                raise ValueError(f"order: {name!r} is no joint name; expected {', '.join(JOINT_NAMES)}")
        if sorted(names) != sorted(JOINT_NAMES):
            missing = [n for n in JOINT_NAMES if n not in names]
            detail = f"missing {', '.join(missing)}" if missing else "some stand there twice"
            raise ValueError(f"order: got {len(names)} names; expected each of the 14 joint names exactly once ({detail})")
    return _permutation(names)


@lru_cache(maxsize=64)
def _permutation(names: tuple[str, ...]) -> np.ndarray:
    permutation = np.array([names.index(name) for name in JOINT_NAMES], dtype=np.int32)
    permutation.flags.writeable = False  # every call gets the same one
    return permutation
