"""Simulated mistakes of an estimator: BERT's scheme on joints and fingers, noise of many sizes, scale, offset; and simulated
confidence and expected error, which no recorded prediction has."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from training.data.bank import FINGER_OF_JOINT
from training.data.hand import axis_rotations, log_uniform, rand


@dataclass(frozen=True)
class Corruption:
    """Probabilities and sizes (millimetres unless stated otherwise)."""

    error_gain_median: float = 2.5
    """Median of the log-normal factor of recorded errors. Methods have larger errors on subjects and poses that they were not
    trained on, and a refiner that expects small errors takes large ones for poses."""
    error_gain_sigma: float = 0.45
    plausible_gain_median: float = 2.2
    plausible_gain_sigma: float = 0.6
    """The same factor for the source ``predictions``."""
    transplant: float = 0.9
    """Probability that a pose gets a recorded error of another frame."""
    masked_transplant: float = 0.4
    """The same for poses with masked joints, more of which have no other error."""
    gaussian: float = 0.3
    """Probability of Gaussian noise, its size log-uniform in ``gaussian_mm``."""
    gaussian_mm: tuple[float, float] = (0.5, 30.0)
    gaussian_finger: float = 0.6
    """Share of the noise's variance that a finger's joints have in common."""
    gaussian_depth: tuple[float, float] = (0.8, 2.0)
    """Factor of the noise along the camera's axis."""
    replace_finger: float = 0.06
    """Probability of each finger to be replaced by another pose's (BERT's random token)."""
    replace_joint: float = 0.02
    """Probability of each joint to be anywhere in the hand's volume."""
    mask_some: float = 0.45
    """Probability that a pose has masked joints at all."""
    mask_joints: int = 6
    """Largest number of random masked joints; in half of the poses with masked joints one or two whole fingers are masked
    instead."""
    scale_sigma: float = 0.03
    """Standard deviation of the predicted hand's size and, in addition, of each finger's, as a fraction."""
    offset_mm: float = 4.0
    """Standard deviation of a whole-hand offset, along each axis."""
    confidence_known: float = 0.5
    confidence_wrong: float = 0.05
    """Rate of confidences that are high regardless of the joint's error, as heatmaps' peaks can be."""
    error_known: float = 0.5
    error_noise: float = 0.25
    """Standard deviation of the logarithm of a stated error size."""


def noise(shape_like: Tensor, config: Corruption, g: Generator) -> Tensor:
    """Gaussian noise ``(B, 14, 3)``: one size for each pose, partly shared by a finger's joints, larger along depth."""
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
    """``poses`` ``(B, 14, 3)``, in one common frame, with some fingers replaced by other poses' and some stray joints."""
    n = len(poses)
    other = poses[torch.randperm(n, generator=g)]
    finger = torch.rand(n, 5, generator=g) < config.replace_finger
    chosen = torch.cat([finger, torch.zeros(n, 1, dtype=torch.bool)], 1)[:, FINGER_OF_JOINT].unsqueeze(-1)
    poses = torch.where(chosen, other, poses)
    stray = (torch.rand(n, 14, 1, generator=g) < config.replace_joint) & (torch.rand(n, 1, 1, generator=g) < 0.5)
    anywhere = poses.mean(1, keepdim=True) + 60 * torch.randn(n, 14, 3, generator=g)
    return torch.where(stray, anywhere, poses)


def misjudge_size(poses: Tensor, config: Corruption, g: Generator) -> Tensor:
    """Poses whose hand is slightly too large or small, and each finger by a factor of its own.

    ``poses``: ``(B, 14, 3)``, or ``(B, T, 14, 3)`` with the same factors for all T.
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

    Each pose has an estimator of its own: the error at which its confidence falls to 1/e (10 to 40 mm), its highest confidence,
    its noise. At the rate ``confidence_wrong`` a joint's confidence is high regardless of its error. A low confidence of a
    correct joint comes from the noise alone: random low confidences taught the refiner to ignore low confidences of plausible
    joints.
    """
    n = len(error)
    fall = log_uniform((n, 1), 10, 40, g)
    peak = rand((n, 1), 0.5, 1, g)
    noisy = (-error / fall + rand((n, 1), 0.05, 0.4, g) * torch.randn(n, 14, generator=g)).exp().clamp(max=1) * peak
    wrong = torch.rand(n, 14, generator=g) < config.confidence_wrong
    confidence = torch.where(wrong, peak * rand((n, 14), 0.7, 1, g), noisy)
    return confidence.masked_fill(torch.rand(n, 1, generator=g) >= config.confidence_known, torch.nan)


def simulate_error_size(expected: Tensor, config: Corruption, g: Generator) -> Tensor:
    """``(B, 14)`` stated error of a method from its true mean ``expected`` ``(B, 1)`` mm; NaN where it is not stated."""
    n = len(expected)
    stated = expected * (config.error_noise * torch.randn(n, 1, generator=g)).exp()
    return stated.masked_fill(torch.rand(n, 1, generator=g) >= config.error_known, torch.nan).expand(n, 14)


def random_view(n: int, upright: float, g: Generator) -> Tensor:
    """``(n, 3, 3)`` rotations about the camera's axis by any angle or, with probability ``upright``, by about 25 degrees; then
    by about 12 degrees about an axis in the image plane, so that depth errors stay along depth."""
    small = torch.rand(n, generator=g) < upright
    angle = torch.where(small, 0.44 * torch.randn(n, generator=g), rand((n,), -torch.pi, torch.pi, g))
    turn = axis_rotations(torch.tensor([0.0, 0, 1]).expand(n, 3), angle)
    direction = rand((n,), 0, 2 * torch.pi, g)
    axis = torch.stack([direction.cos(), direction.sin(), torch.zeros(n)], -1)
    return axis_rotations(axis, 0.2 * torch.randn(n, generator=g)) @ turn
