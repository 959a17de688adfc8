"""What an estimator does to a pose: BERT's scheme on joints and fingers, noise of many sizes, scale, offset; and what it says
of itself: confidence and expected error, simulated, since no recorded prediction carries them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from training.data.bank import FINGER_OF_JOINT
from training.data.hand import axis_rotations, log_uniform, rand


@dataclass(frozen=True)
class Corruption:
    """Probabilities and sizes (millimetres unless said otherwise)."""

    error_gain_median: float = 2.5
    """Recorded errors are multiplied by a log-normal factor: methods err more on subjects and in poses they were not trained
    on, and a refiner that expects small errors mistakes large ones for poses."""
    error_gain_sigma: float = 0.45
    plausible_gain_median: float = 2.2
    plausible_gain_sigma: float = 0.6
    """The same factor for the source ``predictions``."""
    transplant: float = 0.9
    """Probability that a pose gets a recorded error, of another frame."""
    masked_transplant: float = 0.4
    """The same for poses with masked joints, of which more are otherwise right."""
    gaussian: float = 0.3
    """Probability of Gaussian noise, its size log-uniform in ``gaussian_mm``."""
    gaussian_mm: tuple[float, float] = (0.5, 30.0)
    gaussian_finger: float = 0.6
    """Share of the noise's variance that a finger's joints have in common."""
    gaussian_depth: tuple[float, float] = (0.8, 2.0)
    """Factor of the noise along the camera's axis."""
    replace_finger: float = 0.06
    """Probability, per finger, that another pose's finger stands in its place (BERT's random token)."""
    replace_joint: float = 0.02
    """Probability, per joint, that it lies anywhere in the hand's volume."""
    mask_some: float = 0.45
    """Probability that a pose has masked joints at all."""
    mask_joints: int = 6
    """At most so many random joints are masked; a whole finger (or two) in half of such poses."""
    scale_sigma: float = 0.03
    """Standard deviation of the predicted hand's size, a fraction; each finger's by the same again."""
    offset_mm: float = 4.0
    """Standard deviation of a whole-hand offset, along each axis."""
    confidence_known: float = 0.5
    confidence_wrong: float = 0.05
    """Rate at which a confidence is high whatever the joint's error: the mistake that heatmaps make."""
    error_known: float = 0.5
    error_noise: float = 0.25
    """Standard deviation of the logarithm of a given error size."""


def noise(shape_like: Tensor, config: Corruption, g: Generator) -> Tensor:
    """Gaussian noise ``(B, 14, 3)``: one size a pose, part of it shared by a finger's joints, larger along depth."""
    n = len(shape_like)
    size = log_uniform((n, 1, 1), *config.gaussian_mm, g)
    joint = torch.randn(n, 14, 3, generator=g)
    finger = torch.randn(n, 6, 3, generator=g)[:, FINGER_OF_JOINT]
    share = config.gaussian_finger * torch.rand(n, 1, 1, generator=g)
    depth = torch.ones(n, 1, 3)
    depth[..., 2] = log_uniform((n, 1), *config.gaussian_depth, g)
    on = (torch.rand(n, 1, 1, generator=g) < config.gaussian).float()
    return on * size * depth * (share.sqrt() * finger + (1 - share).sqrt() * joint)


def replace(poses: Tensor, config: Corruption, g: Generator) -> Tensor:
    """Other poses' fingers, and stray joints, in ``poses`` ``(B, 14, 3)`` that all stand in one frame; others stay (keep)."""
    n = len(poses)
    other = poses[torch.randperm(n, generator=g)]
    finger = torch.rand(n, 5, generator=g) < config.replace_finger
    chosen = torch.cat([finger, torch.zeros(n, 1, dtype=torch.bool)], 1)[:, FINGER_OF_JOINT].unsqueeze(-1)
    poses = torch.where(chosen, other, poses)
    stray = (torch.rand(n, 14, 1, generator=g) < config.replace_joint) & (torch.rand(n, 1, 1, generator=g) < 0.5)
    anywhere = poses.mean(1, keepdim=True) + 60 * torch.randn(n, 14, 3, generator=g)
    return torch.where(stray, anywhere, poses)


def misjudge_size(poses: Tensor, config: Corruption, g: Generator) -> Tensor:
    """The predicted hand is a little too large or small, its fingers each by their own factor.

    ``poses``: ``(B, 14, 3)``, or ``(B, T, 14, 3)`` with one misjudgement for all T.
    """
    n = len(poses)
    whole = config.scale_sigma * torch.randn(n, 1, generator=g)
    finger = config.scale_sigma * torch.randn(n, 6, generator=g)
    factor = 1 + whole + finger[:, FINGER_OF_JOINT] * torch.rand(n, 1, generator=g)
    palm = poses[..., 13:, :]
    return palm + factor.view(n, *(1,) * (poses.ndim - 3), 14, 1) * (poses - palm)


def mask(n: int, config: Corruption, g: Generator) -> Tensor:
    """``(n, 14)`` bool, True where a joint is observed; at least four of each pose are."""
    count = torch.randint(1, config.mask_joints + 1, (n, 1), generator=g)
    rank = torch.rand(n, 14, generator=g).argsort(1).argsort(1)
    joints = rank < count
    fingers = torch.rand(n, 5, generator=g).argsort(1).argsort(1) < torch.randint(1, 3, (n, 1), generator=g)
    fingers = torch.cat([fingers, torch.zeros(n, 1, dtype=torch.bool)], 1)[:, FINGER_OF_JOINT]
    masked = torch.where(torch.rand(n, 1, generator=g) < 1 / 2, fingers, joints)
    return ~(masked & (torch.rand(n, 1, generator=g) < config.mask_some))


def simulate_confidence(error: Tensor, config: Corruption, g: Generator) -> Tensor:
    """``(B, 14)`` heatmap peaks in [0, 1] that fall with the joints' error ``(B, 14)`` mm; NaN where unknown.

    Each pose has its own estimator: how fast its confidence falls (to 1/e at 10 to 40 mm), how high it can get, how noisy
    it is. At a stated rate a joint's confidence is high whatever its error. The opposite, a low one on a joint that is right,
    comes from the noise alone: drawn at random, it taught the refiner to take every low confidence on a plausible joint for
    a mistake of the confidence.
    """
    n = len(error)
    fall = log_uniform((n, 1), 10, 40, g)
    peak = rand((n, 1), 0.5, 1, g)
    noisy = (-error / fall + rand((n, 1), 0.05, 0.4, g) * torch.randn(n, 14, generator=g)).exp().clamp(max=1) * peak
    wrong = torch.rand(n, 14, generator=g) < config.confidence_wrong
    confidence = torch.where(wrong, peak * rand((n, 14), 0.7, 1, g), noisy)
    return confidence.masked_fill(torch.rand(n, 1, generator=g) >= config.confidence_known, torch.nan)


def simulate_error_size(expected: Tensor, config: Corruption, g: Generator) -> Tensor:
    """``(B, 14)`` stated error of a method from its true mean ``expected`` ``(B, 1)`` mm; NaN where it isn't stated."""
    n = len(expected)
    stated = expected * (config.error_noise * torch.randn(n, 1, generator=g)).exp()
    return stated.masked_fill(torch.rand(n, 1, generator=g) >= config.error_known, torch.nan).expand(n, 14)


def random_view(n: int, upright: float, g: Generator) -> Tensor:
    """``(n, 3, 3)`` rotations about the camera's axis by any angle or, with probability ``upright``, by some 25 degrees; then
    by some 12 degrees about an axis in the image plane, which leaves depth errors along depth."""
    small = torch.rand(n, generator=g) < upright
    angle = torch.where(small, 0.44 * torch.randn(n, generator=g), rand((n,), -torch.pi, torch.pi, g))
    turn = axis_rotations(torch.tensor([0.0, 0, 1]).expand(n, 3), angle)
    direction = rand((n,), 0, 2 * torch.pi, g)
    axis = torch.stack([direction.cos(), direction.sin(), torch.zeros(n)], -1)
    return axis_rotations(axis, 0.2 * torch.randn(n, generator=g)) @ turn
