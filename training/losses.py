"""Losses of the joint refinement module's pre-training."""

from __future__ import annotations

import torch
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
    hidden_weight: float = 0.5,
    floor_mm: float = 8.0,
) -> Tensor:
    """Euclidean error relative to what was wrong before, plus the likelihood of that error under the predicted sigma.

    The first term is the mean joint error that methods are compared by, divided for each pose by its own error before (plus
    ``floor_mm``), since a tenth of a millimetre counts for a strong method as much as half a one for a weak one. The second is
    the negative log likelihood e / sigma + log sigma of an exponential distribution, whose best sigma is the expected error;
    it does not move the joints.

    Args:
        output: ``(B, 14, 4)``. target: ``(B, 14, 3)``. observed: ``(B, 14)``; masked joints weigh ``hidden_weight``.
        counted: ``(B,)``; the first term is that of these poses alone.
        still: ``(B,)``; it is of these, too, and their joints should not move, whatever sigma's target.
    """
    output = output.float()
    error = ((output[..., :3] - target).square().sum(-1) + 1e-6).sqrt()  # smooth within 0.1 mm
    before = (target.norm(dim=-1) * observed).sum(1, keepdim=True) / observed.sum(1, keepdim=True)
    still = torch.zeros_like(counted) if still is None else still
    weight = torch.where(observed, 1.0, hidden_weight) * (counted | still).unsqueeze(1)
    moved = (output[..., :3].square().sum(-1) + 1e-6).sqrt()
    accuracy = (weight * torch.where(still.unsqueeze(1), moved, error) / (before + floor_mm / SCALE_MM)).mean()
    log_sigma = output[..., 3].clamp(*LOG_SIGMA_RANGE)
    return accuracy + 0.1 * (error.detach() * torch.exp(-log_sigma) + log_sigma).mean()
