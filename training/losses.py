"""Losses of the joint refinement module's pre-training, and of the estimator."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from jointbert.contract.layout import LOG_SIGMA_RANGE, SCALE_MM


def l2(output: Tensor, target: Tensor) -> Tensor:
    """Mean squared distance of refined and true joints (thesis, section 4.3.2), in units of (100 mm)^2.

    Args:
        output: ``(B, 14, 4)`` of the refiner. target: ``(B, 14, 3)`` true joints minus given ones, in units of 100 mm.
    """
    return (output[..., :3].float() - target).square().sum(-1).mean()


def likelihood(
    output: Tensor,
    target: Tensor,
    observed: Tensor,
    counted: Tensor,
    still: Tensor | None = None,
    masked_weight: float = 0.5,
    floor_mm: float = 8.0,
) -> Tensor:
    """Euclidean error relative to the error before, plus the negative log likelihood of the error under the predicted sigma.

    The first term is the MPJPE, divided for each pose by its error before (plus ``floor_mm``), so that relative gains on
    accurate and inaccurate predictions have the same weight. The second term is the negative log likelihood e / sigma + log
    sigma of an exponential distribution; it is smallest where sigma is the expected error, and has no gradient for the joints.

    Args:
        output: ``(B, 14, 4)``. target: ``(B, 14, 3)``. observed: ``(B, 14)``; masked joints have the weight ``masked_weight``.
        counted: ``(B,)`` bool; other poses have no part in the first term.
        still: ``(B,)`` bool; in the first term the target of these poses is no movement; the second term is unchanged.
    """
    output = output.float()
    error = ((output[..., :3] - target).square().sum(-1) + 1e-6).sqrt()  # smooth within 0.1 mm
    before = (target.norm(dim=-1) * observed).sum(1, keepdim=True) / observed.sum(1, keepdim=True)
    still = torch.zeros_like(counted) if still is None else still
    weight = torch.where(observed, 1.0, masked_weight) * (counted | still).unsqueeze(1)
    moved = (output[..., :3].square().sum(-1) + 1e-6).sqrt()
    accuracy = (weight * torch.where(still.unsqueeze(1), moved, error) / (before + floor_mm / SCALE_MM)).mean()
    log_sigma = output[..., 3].clamp(*LOG_SIGMA_RANGE)
    return accuracy + 0.1 * (error.detach() * torch.exp(-log_sigma) + log_sigma).mean()


def blobs(uv: Tensor, size: int, sigma: float) -> Tensor:
    """``(B, 14, S, S)`` true heatmaps: Gaussian blobs of height 1 around ``(B, 14, 2)`` heatmap pixels."""
    pixels = torch.arange(size, device=uv.device, dtype=uv.dtype)
    across, down = ((pixels - uv[..., i, None]).square() for i in (0, 1))
    return torch.exp(-(across.unsqueeze(-2) + down.unsqueeze(-1)) / (2 * sigma**2))


def heatmap_loss(heatmaps: Tensor, true: Tensor) -> Tensor:
    """Eq. 4.1: the squared difference, summed over a map's pixels, the mean over maps."""
    return (heatmaps.float() - true).square().sum((-2, -1)).mean()


def joint_loss(joints: Tensor, true: Tensor) -> Tensor:
    """Eq. 4.2, the mean over joints of the squared distance, in units of (100 mm)^2; ``(B, 14, 3)`` mm."""
    return ((joints - true) / SCALE_MM).square().sum(-1).mean()


def refinement_loss(refined: Tensor, true: Tensor, confidence: Tensor, floor: float) -> Tensor:
    """Eq. 4.4, the mean over joints of the L1 distance in units of 100 mm over the confidence ``(B, 14)``.

    The confidence is a weight without gradient. It is clamped to ``floor``, so that heatmaps without a peak do not dominate.
    """
    weight = 1 / confidence.detach().clamp(floor, 1)
    return (weight * ((refined - true) / SCALE_MM).abs().sum(-1)).mean()


def sigma_loss(refined: Tensor, true: Tensor, sigma_mm: Tensor) -> Tensor:
    """Calibrates sigma as in :func:`likelihood`: e / sigma + log sigma, without gradient for the joints."""
    error = (refined.detach() - true).norm(dim=-1)
    return (error / sigma_mm + (sigma_mm / SCALE_MM).log()).mean()


def adaptive_weighting_loss(
    closeness: Tensor, directions: Tensor, true_closeness: Tensor, true_directions: Tensor, near: Tensor
) -> Tensor:
    """AWR's dense loss: smooth L1 of closeness on all pixels and of directions on pixels near a joint."""
    of_closeness = F.smooth_l1_loss(closeness.float(), true_closeness, beta=0.1, reduction="none").sum((-2, -1)).mean()
    of_directions = F.smooth_l1_loss(directions.float(), true_directions, beta=0.1, reduction="none").sum(2) * near
    return of_closeness + of_directions.sum((-2, -1)).mean()
