"""The class :class:`Skeleton`: names of a protocol's joints, the bones between them, the palm."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import numpy as np

Bone = tuple[int, int]


@dataclass(frozen=True)
class PalmFrame:
    """Indices of the joints that define the palm's plane, and the side of it to which the fingers curl."""

    across: Bone
    """Direction from the index finger's side to the little finger's, as joints (end, start)."""
    up: tuple[tuple[int, ...], tuple[int, ...]]
    """Direction from the wrist to the fingers: joints whose mean is its end, and joints whose mean is its start."""
    curl: tuple[Bone, ...]
    """Directions of the fingers, which curl to the palm's side: (tip, near joint)."""
    thumb: Bone
    """Direction from the palm to the thumb, which is on the palm's side: (thumb, palm)."""

    @cached_property
    def joints(self) -> tuple[int, ...]:
        """All joints that are needed to distinguish right and left hands."""
        pairs = (self.across, self.thumb, *self.curl, *self.up)
        return tuple(sorted({joint for pair in pairs for joint in pair}))


@dataclass(frozen=True)
class Skeleton:
    """The joints of a protocol.

    Attributes:
        name: the protocol's name, as in ``order="nyu14"``.
        names: the joints' names in canonical order, which is the order of arrays ``(..., J, 3)``.
        parents: for each joint, the index of the next joint towards the root; -1 for the root.
        bones: pairs of joints that drawings connect.
        rigid_bones: pairs of joints whose distance hardly changes for one person; a calibration measures them.
        fingers: the joints of each finger, tip first, by the finger's name.
        palm: the joints of the rigid part between fingers and wrist.
        palm_frame: the joints that define the palm's plane and side.
        anatomy: the anatomical position of each joint, in the order of ``names``.
        orders: other orders of the same joints, by name.
        mirror: factors of x, y, z that mirror a left hand to a right one; the joints keep their names.
        indices: indices of the joints in other annotations, by the annotation's name.
    """

    name: str
    names: tuple[str, ...]
    parents: tuple[int, ...]
    bones: tuple[Bone, ...]
    rigid_bones: tuple[Bone, ...]
    fingers: Mapping[str, tuple[int, ...]]
    palm: tuple[int, ...]
    palm_frame: PalmFrame
    anatomy: tuple[str, ...]
    orders: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    mirror: tuple[float, float, float] = (-1.0, 1.0, 1.0)
    indices: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        joints = range(len(self.names))
        if len(set(self.names)) != len(self.names):
            raise ValueError(f"skeleton {self.name!r}: a joint's name occurs twice")
        for what, values in (("parents", self.parents), ("anatomy", self.anatomy), *self.indices.items()):
            if len(values) != len(self.names):
                raise ValueError(f"skeleton {self.name!r}: got {len(values)} {what} for {len(self.names)} joints")
        if list(self.parents).count(-1) != 1 or not all(parent == -1 or parent in joints for parent in self.parents):
            raise ValueError(f"skeleton {self.name!r}: expected one root, and joints as parents")
        for joint in joints:
            steps, at = 0, joint
            while (at := self.parents[at]) >= 0 and steps < len(self.names):
                steps += 1
            if at >= 0:
                raise ValueError(f"skeleton {self.name!r}: the parents of {self.names[joint]!r} never reach the root")
        if not all(self.anatomy):
            raise ValueError(f"skeleton {self.name!r}: a joint has no sentence of anatomy")
        if len(self.mirror) != 3 or not all(abs(factor) == 1 for factor in self.mirror):
            raise ValueError(f"skeleton {self.name!r}: got mirror = {self.mirror}; expected three factors of 1 or -1")
        groups = (*self.bones, *self.rigid_bones, *self.fingers.values(), self.palm, self.palm_frame.joints)
        if not all(joint in joints for group in groups for joint in group):
            raise ValueError(f"skeleton {self.name!r}: a bone, finger or palm has an index that is not a joint")
        for order, names in self.orders.items():
            if sorted(names) != sorted(self.names):
                raise ValueError(f"skeleton {self.name!r}: the order {order!r} does not contain each joint exactly once")

    def __hash__(self) -> int:
        return hash((self.name, self.names))

    @property
    def num_joints(self) -> int:
        """Number of joints."""
        return len(self.names)

    @cached_property
    def all_orders(self) -> dict[str, tuple[str, ...]]:
        """Named orders, the canonical one first."""
        return {self.name: self.names, **self.orders}

    @cached_property
    def chains(self) -> tuple[tuple[int, ...], ...]:
        """For each finger, the joints from its tip to the root."""
        chains = []
        for finger in self.fingers.values():
            chain = list(finger)
            while (parent := self.parents[chain[-1]]) >= 0:
                chain.append(parent)
            chains.append(tuple(chain))
        return tuple(chains)

    def resolve_order(self, order: str | Sequence[str]) -> np.ndarray:
        """The index of each canonical joint in ``order``.

        Args:
            order: a key of :attr:`all_orders`, or the joints' names in the order of the array's second-last axis.

        Returns:
            ``(J,)`` int32 ``p`` with ``canonical = joints[..., p, :]``; read-only.

        Raises:
            ValueError: an unknown order or joint name, or not each of the names exactly once.
            TypeError: ``order`` is neither a string nor a sequence of strings.
        """
        count = self.num_joints
        if isinstance(order, str):
            if order not in self.all_orders:
                raise ValueError(
                    f"order: {order!r} is no named order; expected one of {', '.join(map(repr, self.all_orders))} or "
                    f"{count} joint names"
                )
            return _permutation(self.names, self.all_orders[order])
        if isinstance(order, (Set, Mapping)) or not isinstance(order, Iterable):  # a set has no order
            raise TypeError(f"order: got {type(order).__name__}; expected a named order or a sequence of {count} joint names")
        names = tuple(order)
        for name in names:
            if not isinstance(name, str):
                raise TypeError(f"order: got an element of type {type(name).__name__}; expected joint names as strings")
            if name not in self.names:
                raise ValueError(f"order: {name!r} is no joint name; expected {', '.join(self.names)}")
        if sorted(names) != sorted(self.names):
            missing = [n for n in self.names if n not in names]
            detail = f"missing {', '.join(missing)}" if missing else "some names occur twice"
            raise ValueError(f"order: got {len(names)} names; expected each of the {count} joint names exactly once ({detail})")
        return _permutation(self.names, names)


@lru_cache(maxsize=64)
def _permutation(canonical: tuple[str, ...], names: tuple[str, ...]) -> np.ndarray:
    permutation = np.array([names.index(name) for name in canonical], dtype=np.int32)
    permutation.flags.writeable = False  # cached: all calls share the array
    return permutation
