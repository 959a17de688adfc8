"""Depth images of the procedural hand: ray-traced capsules with self-occlusion, occluders and sensor noise.

A capsule is a cylinder with a hemisphere at each end; its intersection with a ray has a closed form. Rays go through the
pixels' centres and have z = 1, so that a ray's parameter is the depth. Only pixels within a capsule's outline are computed, for
all capsules of a batch at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from training.data.hand import build_with_roots, rand, rotations, sample_directions, sample_scales

FINGER_RADII_MM = torch.tensor([[7.0, 6.2], [8.0, 7.0], [8.5, 7.5], [8.3, 7.3]])
"""Root to mid and mid to tip of pinky, ring, middle, index, at the rest size."""
THUMB_RADII_MM = torch.tensor([13.0, 10.0, 8.5])
METACARPAL_RADIUS_MM, WRIST_RADIUS_MM, FOREARM_RADIUS_MM = 12.0, 15.0, 25.0
FOREARM_MM = 150.0


@dataclass(frozen=True)
class Capsules:
    """A batch of scenes in the camera frame, millimetres; capsules with radius 0 are ignored."""

    a: Tensor  # [B, N, 3]
    b: Tensor  # [B, N, 3]
    radius: Tensor  # [B, N]

    def and_(self, other: Capsules) -> Capsules:
        """The capsules of both scenes."""
        pairs = ((self.a, other.a), (self.b, other.b), (self.radius, other.radius))
        return Capsules(*(torch.cat(pair, 1) for pair in pairs))


@dataclass(frozen=True)
class Hands:
    """Hands in the camera frame, millimetres."""

    joints: Tensor  # [B, 14, 3]
    capsules: Capsules


def sample_hands(n: int, g: Generator) -> Hands:
    """Random articulations, sizes, views (half of them any, the others with the palm's side to the camera within some 70
    degrees) and places: 0.5 to 1 m away, where an image of NYU's camera shows nearly all of them whole."""
    joints, roots = build_with_roots(sample_directions(n, g), g)
    scale = sample_scales(n, g)
    points = torch.cat([joints, roots], 1) * scale.view(n, 1, 1)
    # Palm's frame to camera: y (wrist to fingers) up in the image, which is -y; z (the palm's side) to the camera, which is -z.
    upright = torch.diag(torch.tensor([1.0, -1, -1])).expand(n, 3, 3)
    angles = rand((n, 3), -1, 1, g) * torch.tensor([1.0, 1.0, torch.pi])
    facing = _turned(angles) @ upright
    view = torch.where((torch.rand(n, 1, 1, generator=g) < 0.5), rotations(n, g), facing)
    points = points @ view.mT
    z = rand((n, 1), 500, 1000, g)
    place = torch.cat([rand((n, 1), -0.35, 0.35, g) * z, rand((n, 1), -0.25, 0.25, g) * z, z], 1)
    points = points - points[:, :14].mean(1, keepdim=True) + place.unsqueeze(1)
    return Hands(points[:, :14], _surface(points[:, :14], points[:, 14:], scale))


def _turned(angles: Tensor) -> Tensor:
    """``(n, 3, 3)`` rotations about x, then y, then z, by ``(n, 3)`` radians."""
    s, c = angles.sin(), angles.cos()
    zero, one = torch.zeros_like(s[:, 0]), torch.ones_like(s[:, 0])

    def matrix(*rows: Tensor) -> Tensor:
        return torch.stack(rows, -1).view(-1, 3, 3)

    about_x = matrix(one, zero, zero, zero, c[:, 0], -s[:, 0], zero, s[:, 0], c[:, 0])
    about_y = matrix(c[:, 1], zero, s[:, 1], zero, one, zero, -s[:, 1], zero, c[:, 1])
    about_z = matrix(c[:, 2], -s[:, 2], zero, s[:, 2], c[:, 2], zero, zero, zero, one)
    return about_z @ about_y @ about_x


def _surface(joints: Tensor, roots: Tensor, scale: Tensor) -> Capsules:
    tips, mids = joints[:, 0:8:2], joints[:, 1:8:2]
    thumb_tip, thumb_mid, base, side_a, side_b = (joints[:, i] for i in range(8, 13))
    palm = joints[:, 13]
    wrist = (side_a + side_b) / 2
    elbow = wrist + FOREARM_MM * scale.unsqueeze(1) * torch.nn.functional.normalize(wrist - palm, dim=-1)
    knuckles = roots[:, :4]
    across = torch.linspace(0, 1, 4).view(1, 4, 1)
    carpals = side_a.unsqueeze(1) + across * (side_b - side_a).unsqueeze(1)
    thumb = torch.stack([roots[:, 4], base, thumb_mid, thumb_tip], 1)
    parts = [  # from, to, radius at the rest size
        (knuckles, mids, FINGER_RADII_MM[:, 0]),
        (mids, tips, FINGER_RADII_MM[:, 1]),
        (thumb[:, :3], thumb[:, 1:], THUMB_RADII_MM),
        (carpals, knuckles, torch.full((4,), METACARPAL_RADIUS_MM)),
        (knuckles[:, :3], knuckles[:, 1:], torch.full((3,), 0.8 * METACARPAL_RADIUS_MM)),
        (side_b.unsqueeze(1), thumb[:, :1], torch.tensor([METACARPAL_RADIUS_MM])),
        (thumb[:, :1], knuckles[:, 3:], torch.tensor([0.8 * METACARPAL_RADIUS_MM])),
        (side_a.unsqueeze(1), side_b.unsqueeze(1), torch.tensor([WRIST_RADIUS_MM])),
        (wrist.unsqueeze(1), elbow.unsqueeze(1), torch.tensor([FOREARM_RADIUS_MM])),
    ]
    radius = torch.cat([r for _, _, r in parts]) * scale.unsqueeze(1)
    return Capsules(torch.cat([a for a, _, _ in parts], 1), torch.cat([b for _, b, _ in parts], 1), radius)


def sample_occluders(hands: Hands, share: float, g: Generator) -> Capsules:
    """Rods in front of a share of the hands, 30 to 120 mm nearer than their middle."""
    n = len(hands.joints)
    middle = hands.joints.mean(1) + torch.cat([rand((n, 2), -50, 50, g), rand((n, 1), -120, -30, g)], 1)
    direction = torch.nn.functional.normalize(torch.randn(n, 3, generator=g) * torch.tensor([1.0, 1, 0.3]), dim=-1)
    half = rand((n, 1), 20, 90, g) * direction
    radius = rand((n,), 6, 22, g) * (torch.rand(n, generator=g) < share)
    return Capsules((middle - half).unsqueeze(1), (middle + half).unsqueeze(1), radius.unsqueeze(1))


def render(scene: Capsules, camera: Tensor, size: tuple[int, int]) -> Tensor:
    """``(B, height, width)`` depth in millimetres, 0 where no ray meets anything.

    Args:
        camera: ``(B, 4)`` fx, fy, cx, cy. size: (height, width).
    """
    height, width = size
    count = scene.radius.shape[1]
    a, b, radius = scene.a.flatten(0, 1), scene.b.flatten(0, 1), scene.radius.flatten()
    intrinsics = camera.repeat_interleave(count, 0)
    low, high = _outline(a, b, radius, intrinsics)
    low, high = low.clamp(min=0), torch.minimum(high, torch.tensor([width - 1, height - 1]))
    extent = (high - low + 1).clamp(min=0) * (radius > 0).unsqueeze(1)
    pixels = extent.prod(1)
    # Of every pair of a capsule and a pixel within its outline: which capsule, which pixel.
    owner = torch.repeat_interleave(torch.arange(len(pixels)), pixels)
    image = torch.arange(len(camera)).repeat_interleave(count)
    first, corner = pixels.cumsum(0) - pixels, (image * height + low[:, 1]) * width + low[:, 0]
    offset = (torch.arange(len(owner)) - first.index_select(0, owner)).float()
    known = torch.cat([_terms(a, b, radius), intrinsics.T, low.T, extent[:, :1].T]).index_select(1, owner)
    *terms, fx, fy, cx, cy, u0, v0, across = known
    row = ((offset + 0.5) / across).floor()
    column = offset - row * across
    depth = hit(terms, (u0 + column - cx) / fx, (v0 + row - cy) / fy)
    buffer = torch.full((len(camera) * height * width,), torch.inf)
    buffer.scatter_reduce_(0, corner.index_select(0, owner) + (row * width + column).long(), depth, "amin")
    return torch.where(buffer.isfinite(), buffer, 0).view(-1, height, width)


def _terms(a: Tensor, b: Tensor, radius: Tensor) -> Tensor:
    """``(11, N)``: what :func:`hit` has to know of a capsule."""
    axis = b - a
    axis2, axis_a, a2 = (axis * axis).sum(1), (axis * a).sum(1), (a * a).sum(1)
    round_ = radius * radius
    rest = axis2 * (a2 - round_) - axis_a * axis_a
    return torch.stack([*axis.unbind(1), *a.unbind(1), axis2, axis_a, rest, a2 - round_, (b * b).sum(1) - round_])


def hit(capsules: Sequence[Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Depth at which rays from the origin along (x, y, 1) first meet capsules in front of it; infinite where they do not.

    All ``(N,)``; capsules as of :func:`_terms`. Components stand apart because dot products of three terms along a tensor's
    last axis take most of the time otherwise. Roots of what is negative are NaN, which no comparison takes for true and fmin
    passes over.
    """
    axis_x, axis_y, axis_z, a_x, a_y, a_z, axis2, axis_a, rest, a_ball, b_ball = capsules
    axis_ray = axis_x * x + axis_y * y + axis_z
    ray_a = a_x * x + a_y * y + a_z
    ray2 = x * x + y * y + 1
    # |a - t ray|^2 minus its part along the axis is radius^2.
    p = axis2 * ray2 - axis_ray * axis_ray
    q = axis2 * ray_a - axis_a * axis_ray
    t = (q - (q * q - p * rest).sqrt()) / p
    along = t * axis_ray - axis_a
    on_side = (along > 0) & (along < axis2) & (p > 1e-6 * axis2 * ray2)
    depth = torch.where(on_side, t, torch.inf)
    for end_ray, ball in ((ray_a, a_ball), (ray_a + axis_ray, b_ball)):
        depth = torch.fmin(depth, (end_ray - (end_ray * end_ray - ray2 * ball).sqrt()) / ray2)
    return torch.where(depth > 0, depth, torch.inf)


def _outline(a: Tensor, b: Tensor, radius: Tensor, camera: Tensor) -> tuple[Tensor, Tensor]:
    """``(N, 2)`` first and last pixels that a capsule can reach, a little generous."""
    low, high = [], []
    for end in (a, b):
        near = (end[:, 2:] - radius.unsqueeze(1)).clamp(min=1)
        slope = end[:, :2] / end[:, 2:].clamp(min=1)
        middle = slope * camera[:, :2] + camera[:, 2:]
        reach = radius.unsqueeze(1) * camera[:, :2] / near * (1 + slope.abs()) + 1
        low.append(middle - reach)
        high.append(middle + reach)
    bound = 1e6
    first = torch.minimum(*low).clamp(-bound, bound).floor().long()
    return first, torch.maximum(*high).clamp(-bound, bound).ceil().long()


def visibility(hands: Hands, depth: Tensor, camera: Tensor) -> Tensor:
    """``(B, 14)`` bool: whether the z-buffer ``(B, h, w)`` shows, at a joint's pixel, a part of the hand that it lies in.

    Such a part is a capsule around the joint (within 1 mm); what it shows must not be more than 25 mm in front of the joint, as
    the tip of a finger is that points at the camera. A joint outside the image is not visible.
    """
    h, w = depth.shape[1:]
    count = hands.capsules.radius.shape[1]
    x, y, z = hands.joints.unbind(-1)
    u = (x / z * camera[:, 0:1] + camera[:, 2:3]).round().long()
    v = (y / z * camera[:, 1:2] + camera[:, 3:4]).round().long()
    inside = (u >= 0) & (u < w) & (v >= 0) & (v < h)
    seen = depth.flatten(1).gather(1, v.clamp(0, h - 1) * w + u.clamp(0, w - 1))
    # That pixel's ray meets the parts somewhat beside the joint.
    ray_x, ray_y = (u - camera[:, 2:3]) / camera[:, 0:1], (v - camera[:, 3:4]) / camera[:, 1:2]
    a, b = (end.unsqueeze(1).expand(-1, 14, -1, -1) for end in (hands.capsules.a, hands.capsules.b))
    radius = hands.capsules.radius.unsqueeze(1).expand(-1, 14, -1)
    joint = hands.joints.unsqueeze(2)
    along = (((joint - a) * (b - a)).sum(-1) / (b - a).square().sum(-1).clamp(min=1e-9)).clamp(0, 1)
    around = (a + along.unsqueeze(-1) * (b - a) - joint).norm(dim=-1) <= radius + 1
    terms = _terms(*(t.flatten(0, 2) for t in (a, b, radius)))
    own = hit(tuple(terms), *(t.unsqueeze(2).expand(-1, -1, count).flatten() for t in (ray_x, ray_y))).view(around.shape)
    own = torch.where(around, own, torch.inf).amin(-1)
    return inside & (seen > 0) & (seen >= own - 1) & (seen >= z - 25)


def sense(depth: Tensor, g: Generator, noise_mm: float = 1.5, holes: float = 0.5) -> Tensor:
    """What a structured-light camera makes of ``(B, h, w)``: edges that waver by a pixel, noise that grows with the square of
    the distance (``noise_mm`` at 700 mm), whole millimetres, lost edges, and round holes in a share ``holes`` of the images."""
    n, h, w = depth.shape
    chance = torch.randint(0, 256, (n, h, w), dtype=torch.uint8, generator=g)
    seen = depth
    for low, high, shift, axis in ((0, 32, 1, 1), (32, 64, -1, 1), (64, 96, 1, 2), (96, 128, -1, 2)):
        seen = torch.where((chance >= low) & (chance < high), depth.roll(shift, axis), seen)
    seen = seen + noise_mm / 700**2 * seen.square() * torch.randn(n, h, w, generator=g)
    edge = (depth.roll(1, 2) == 0) | (depth.roll(-1, 2) == 0)
    lost = (depth == 0) | (edge & (chance >= 180))
    v, u = torch.arange(h).view(1, h, 1), torch.arange(w).view(1, 1, w)
    middle = torch.rand(2, n, 1, 1, generator=g)
    radius = rand((n, 1, 1), 0.01, 0.06, g) * w * (torch.rand(n, 1, 1, generator=g) < holes)
    hole = (u - w * middle[0]).square() + (v - h * middle[1]).square() < radius.square()
    return torch.where(lost | hole, 0, seen.clamp(min=0).round())
