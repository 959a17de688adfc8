"""Articulations of the Leap Motion recordings (leapjs-playback, Apache-2.0), as bone directions for the procedural hand.

Only directions are read, because the bone lengths are those of the tracker's model. The 26 points of a frame are the palm's
centre, then carp, metacarpophalangeal, proximal, distal and tip of thumb, index, middle, ring and pinky.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from training.data.hand import ROOTS_MM, Directions

DUPLICATES = ("hand-splay_19738c", "waiting_aa9e75")
"""Recordings that are in the archive under another name, too."""


def read_leap(path: str | Path, stride: int = 2) -> Directions:
    """Bone directions of every ``stride``-th frame of all recordings, left hands mirrored, in the palm's frame."""
    recordings = read_recordings(path, stride)
    return Directions(torch.cat([r.fingers for r in recordings]), torch.cat([r.thumb for r in recordings]))


def read_recordings(path: str | Path, stride: int = 1) -> list[Directions]:
    """The bone directions of each recording; frames with missing points are left out."""
    archive = np.load(path)
    names = [name for name in archive.files if not name.endswith("__type") and name not in DUPLICATES]
    return [_directions(archive[name][::stride], archive[f"{name}__type"][::stride]) for name in names]


def _directions(frames: np.ndarray, sides: np.ndarray) -> Directions:
    """Bone directions of one recording.

    The palm's frame comes from the four knuckles and the palm's centre, fitted by a rotation (Kabsch) to the rest hand's
    knuckles, because the recordings have no wrist sides.
    """
    joints = torch.from_numpy(frames).double()
    joints[torch.from_numpy(sides == "left"), :, 0] *= -1
    needed = [0, *range(3, 6), *range(7, 11), *range(12, 16), *range(17, 21), *range(22, 26), 2]
    joints = joints[joints[:, needed].isfinite().all(-1).all(-1)]

    def chain(finger: int) -> Tensor:  # metacarpophalangeal, proximal, distal, tip
        return joints[:, 2 + 5 * finger : 6 + 5 * finger]

    pinky, ring, middle, index, thumb = chain(4), chain(3), chain(2), chain(1), chain(0)
    knuckles = torch.stack([f[:, 0] for f in (pinky, ring, middle, index)], 1)
    rest = torch.cat([ROOTS_MM[:4].double(), torch.zeros(1, 3, dtype=torch.float64)])
    seen = torch.cat([knuckles, joints[:, :1]], 1)
    rotation = _kabsch(seen - seen.mean(1, keepdim=True), rest - rest.mean(0))

    def direction(start: Tensor, end: Tensor) -> Tensor:
        return torch.nn.functional.normalize(torch.einsum("nij,nj->ni", rotation, end - start), dim=-1)

    fingers = torch.stack(
        [torch.stack([direction(f[:, 0], f[:, 1]), direction(f[:, 1], f[:, 3])], 1) for f in (pinky, ring, middle, index)], 1
    )
    bones = torch.stack([direction(thumb[:, i], thumb[:, i + 1]) for i in range(3)], 1)
    keep = fingers.isfinite().flatten(1).all(1) & bones.isfinite().flatten(1).all(1)
    return Directions(fingers[keep].float(), bones[keep].float())


def _kabsch(points: Tensor, target: Tensor) -> Tensor:
    """``(B, 3, 3)`` proper rotations that turn ``points`` ``(B, K, 3)`` onto ``target`` ``(K, 3)``, both centred."""
    u, _, v = torch.linalg.svd(torch.einsum("nki,kj->nij", points, target))
    sign = torch.ones(len(points), 3, dtype=points.dtype)
    sign[:, 2] = torch.sign(torch.linalg.det(u @ v))
    return (v.transpose(-1, -2) * sign.unsqueeze(1)) @ u.transpose(-1, -2)
