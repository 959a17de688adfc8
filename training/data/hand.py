"""A procedural hand of 14 joints: bone directions from joint angles within limits, sizes from a child's to a large adult's.

Everything is in the palm's frame: origin at the palm joint, y from the wrist's middle to the palm, x from wrist side a to
wrist side b (b is the thumb's), z out of the palm, the side to which the fingers curl (right hand). Rest lengths and positions
of the finger roots are those of subject 1 of NYU's ground truth (palm to wrist 81 mm), found by least-squares spheres through
each finger's mid joint in the palm's frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

ROOTS_MM = torch.tensor([[-33.0, 30, 9], [-14, 34, 5], [3, 33, 5], [21, 31, 6], [17, -52, 22]])
"""Roots of pinky, ring, middle, index (knuckles) and thumb (saddle joint)."""
LENGTHS_MM = torch.tensor([[33.0, 42.8], [41, 50], [49, 56.5], [46, 50.9]])
"""Root to mid and mid to tip of pinky, ring, middle, index; the thumb's are root to base, base to mid, mid to tip."""
THUMB_LENGTHS_MM = torch.tensor([55.4, 48.9, 24.6])
PALM_MM = torch.tensor([[-17.7, -79.3, 0], [17.7, -79.3, 0], [0, 0, 0]])
"""Wrist side a, wrist side b, palm. The triangle has this shape in both of the data set's subjects."""
PALM_LENGTH_MM = 81.3


@dataclass(frozen=True)
class Directions:
    """Unit bone directions in the palm's frame: a pose without sizes."""

    fingers: Tensor  # [B, 4, 2, 3]: root to mid, mid to tip of pinky, ring, middle, index
    thumb: Tensor  # [B, 3, 3]: root to base, base to mid, mid to tip

    def __getitem__(self, rows: Tensor) -> Directions:
        return Directions(self.fingers[rows], self.thumb[rows])


def rand(shape: tuple[int, ...], low: float, high: float, g: Generator) -> Tensor:
    """Uniform in [low, high)."""
    return low + (high - low) * torch.rand(shape, generator=g)


def log_uniform(shape: tuple[int, ...], low: float, high: float, g: Generator) -> Tensor:
    """Log-uniform in [low, high)."""
    return low * (high / low) ** torch.rand(shape, generator=g)


def rotations(n: int, g: Generator) -> Tensor:
    """``(n, 3, 3)`` uniformly distributed rotations (normalised Gaussian quaternions)."""
    w, x, y, z = torch.nn.functional.normalize(torch.randn(n, 4, generator=g), dim=-1).unbind(-1)
    rows = [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)]
    rows += [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)]
    rows += [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)]
    return torch.stack(rows, -1).view(n, 3, 3)


def axis_rotations(axis: Tensor, angle: Tensor) -> Tensor:
    """``(n, 3, 3)`` rotations about unit ``axis`` ``(n, 3)`` by ``angle`` ``(n,)`` radians (Rodrigues)."""
    x, y, z = axis.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).view(-1, 3, 3)
    s, c = angle.sin().view(-1, 1, 1), angle.cos().view(-1, 1, 1)
    return torch.eye(3) + s * cross + (1 - c) * (cross @ cross)


def palm_frame(joints: Tensor) -> Tensor:
    """``(B, 3, 3)`` rotations from the palm's frame to that of ``joints`` ``(B, 14, 3)``; columns are x, y, z."""
    a, b, palm = joints[:, 11], joints[:, 12], joints[:, 13]
    y = torch.nn.functional.normalize(palm - (a + b) / 2, dim=-1)
    x = b - a
    x = torch.nn.functional.normalize(x - (x * y).sum(-1, keepdim=True) * y, dim=-1)
    return torch.stack([x, y, torch.linalg.cross(x, y)], -1)


def sample_directions(n: int, g: Generator) -> Directions:
    """Random articulation: flexion, spread and thumb angles within human limits, partly shared by neighbouring fingers.

    Limits (degrees): knuckle -25 to 90, spread +-18 (less when flexed), mid joint 0 to 105 with the last joint following at
    a fraction, thumb as a cone about its rest direction with 0 to 80 at its last joint.
    """
    deg = torch.pi / 180
    shared = torch.rand(n, 1, generator=g)
    alone = torch.rand(n, 4, generator=g)
    mix = rand((n, 1), 0, 1, g)  # 1: all four fingers curl alike; 0: independently
    curl = mix * shared + (1 - mix) * alone
    knuckle = (-25 + 115 * (curl * rand((n, 4), 0.5, 1.15, g)).clamp(0, 1)) * deg
    second = (105 * (curl * rand((n, 4), 0.3, 1.4, g) - 0.1).clamp(0, 1)) * deg
    last = second * rand((n, 4), 0.1, 0.45, g)  # the last two bones are one bone from mid to tip
    rest = torch.tensor([-30.0, -12, 1, 17]) * deg
    spread = rest * rand((n, 1), -0.2, 1.4, g) + rand((n, 4), -9, 9, g) * deg
    spread = spread * (1 - 0.7 * (knuckle / (90 * deg)).clamp(0, 1))

    def bone(flexion: Tensor) -> Tensor:  # flexion in the finger's plane, then rotation by the spread about z
        along, out = flexion.cos(), flexion.sin()
        return torch.stack([along * spread.sin(), along * spread.cos(), out], -1)

    fingers = torch.stack([bone(knuckle), bone(knuckle + second + last)], 2)

    normalise = torch.nn.functional.normalize
    base = normalise(torch.tensor([0.74, 0.57, 0.15]) + 0.28 * torch.randn(n, 3, generator=g), dim=-1)
    middle = normalise(base + torch.tensor([-0.15, 0.45, 0.15]) + 0.35 * torch.randn(n, 3, generator=g), dim=-1)
    # The last bone bends in one plane, toward the palm.
    toward = normalise(torch.tensor([-0.7, 0.3, 0.35]) + 0.3 * torch.randn(n, 3, generator=g), dim=-1)
    toward = normalise(toward - (toward * middle).sum(-1, keepdim=True) * middle, dim=-1)
    bend = (80 * torch.rand(n, 1, generator=g) ** 1.5 - 10) * deg
    tip = bend.cos() * middle + bend.sin() * toward
    return Directions(fingers, torch.stack([base, middle, tip], 1))


def sample_scales(n: int, g: Generator) -> Tensor:
    """``(n,)`` hand sizes relative to the rest lengths: a child of six (0.62) to a large adult (1.12)."""
    return rand((n,), 0.62, 1.12, g)


def build(directions: Directions, g: Generator, variation: float = 0.06, people: int | None = None) -> Tensor:
    """The joints of :func:`build_with_roots`."""
    return build_with_roots(directions, g, variation, people)[0]


def build_with_roots(
    directions: Directions, g: Generator, variation: float = 0.06, people: int | None = None
) -> tuple[Tensor, Tensor]:
    """``(B, 14, 3)`` joints in the palm's frame, millimetres, at the rest size, with each person's own proportions; and
    the fingers' roots ``(B, 5, 3)``.

    Args:
        variation: standard deviation of every length and of the roots' places, as a fraction.
        people: number of people, each with the same number of consecutive poses; default: B.
    """
    n = len(directions.fingers)
    people = people or n

    def vary(rest: Tensor, amount: float = variation) -> Tensor:
        return rest * (1 + amount * torch.randn(people, *rest.shape, generator=g)).repeat_interleave(n // people, 0)

    fingers, thumb = vary(LENGTHS_MM), vary(THUMB_LENGTHS_MM)
    roots = vary(ROOTS_MM) + 1.5 * torch.randn(people, 5, 3, generator=g).repeat_interleave(n // people, 0)
    mid = roots[:, :4] + fingers[..., :1] * directions.fingers[:, :, 0]
    tip = mid + fingers[..., 1:] * directions.fingers[:, :, 1]
    base = roots[:, 4] + thumb[:, :1] * directions.thumb[:, 0]
    thumb_mid = base + thumb[:, 1:2] * directions.thumb[:, 1]
    thumb_tip = thumb_mid + thumb[:, 2:] * directions.thumb[:, 2]
    joints = torch.stack([tip, mid], 2).flatten(1, 2)
    return torch.cat([joints, torch.stack([thumb_tip, thumb_mid, base], 1), PALM_MM.expand(n, 3, 3)], 1), roots
