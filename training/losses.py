"""Losses of the joint refinement module's pre-training, and of the estimator."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from jointbert.backends.layout import LOG_SIGMA_RANGE, SCALE_MM


def l2(output: Tensor, target: Tensor) -> Tensor:
    """Mean squared distance of refined and true joints (thesis, section 4.3.2), in units of (100 mm)^2.

    Args:
        output: ``(B, 14, 4)`` of the refiner. target: ``(B, 14, 3)`` the correction that would be right, over 100 mm.
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
    """Euclidean error relative to what was wrong before, plus the likelihood of that error under the predicted sigma.

    The first term is the mean joint error that methods are compared by, divided for each pose by its own error before (plus
    ``floor_mm``), since a tenth of a millimetre counts for a strong method as much as half a one for a weak one. The second is
    the negative log likelihood e / sigma + log sigma of an exponential distribution, whose best sigma is the expected error;
    it does not move the joints.

    Args:
        output: ``(B, 14, 4)``. target: ``(B, 14, 3)``. observed: ``(B, 14)``; masked joints weigh ``masked_weight``.
        counted: ``(B,)``; the first term is that of these poses alone.
        still: ``(B,)``; it is of these, too, and their joints should not move, whatever sigma's target.
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

    The confidence is a weight: no gradient reaches it, and it is not taken for less than ``floor``, or a heatmap without a
    peak would be all that counts.
    """
    weight = 1 / confidence.detach().clamp(floor, 1)
    return (weight * ((refined - true) / SCALE_MM).abs().sum(-1)).mean()


def sigma_loss(refined: Tensor, true: Tensor, sigma_mm: Tensor) -> Tensor:
    """Keeps sigma honest, as in :func:`likelihood`: e / sigma + log sigma, with no gradient for the joints."""
    error = (refined.detach() - true).norm(dim=-1)
    return (error / sigma_mm + (sigma_mm / SCALE_MM).log()).mean()


def adaptive_weighting_loss(
    closeness: Tensor, directions: Tensor, true_closeness: Tensor, true_directions: Tensor, near: Tensor
) -> Tensor:
    """AWR's dense loss: smooth L1 of closeness everywhere and of directions where a joint is near."""
    of_closeness = F.smooth_l1_loss(closeness.float(), true_closeness, beta=0.1, reduction="none").sum((-2, -1)).mean()
    of_directions = F.smooth_l1_loss(directions.float(), true_directions, beta=0.1, reduction="none").sum(2) * near
    return of_closeness + of_directions.sum((-2, -1)).mean()
