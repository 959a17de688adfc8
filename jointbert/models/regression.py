"""3D regression (thesis, section 4.2.2): two heads that compute joints in the crop from heatmaps and features.

``linear`` is the thesis's: u and v are the heatmap's peak, and one linear layer over all heatmaps gives the depths. ``awr`` is
the depth-offset representation of *AWR: Adaptive Weighting Regression for 3D Hand Pose Estimation* (Huang et al., AAAI 2020),
for comparison.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from jointbert.contract.layout import NUM_JOINTS
from jointbert.models.heatmap import Mode, soft_argmax
from jointbert.models.operators import soft_argmax_depth


class CropJoints(NamedTuple):
    """Joints in the crop."""

    uv: Tensor  # [B, 14, 2]: heatmap pixels
    depth: Tensor  # [B, 14]: from the crop's centre, in half-cubes
    confidence: Tensor  # [B, 14] in [0, 1]


class LinearDepth(nn.Module):
    """``(B, 14, S, S)`` heatmaps to joints: argmax or soft-argmax, and a linear layer over all of a pose's heatmap values
    (0.80M parameters at 64 x 64). One operator does both, on a GPU one launch."""

    def __init__(self, size: int, mode: Mode = "soft", beta: float = 100.0, window: int | None = None) -> None:
        super().__init__()
        self.linear = nn.Linear(NUM_JOINTS * size * size, NUM_JOINTS)
        self.mode: Mode = mode
        self.beta, self.window = beta, window
        self.plain = False
        """Whether torch's own operators are used, as an export needs."""
        # Most heatmap values are close to 0, so that weights of this size give depths of order 1.
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def forward(self, heatmaps: Tensor) -> CropJoints:
        """Heatmaps ``(B, 14, S, S)`` to joints."""
        if self.plain:
            found = soft_argmax(heatmaps, self.mode, self.beta, self.window)
            return CropJoints(found.uv, self.linear(heatmaps.flatten(1)), found.confidence)
        weight, bias = self.linear.weight, self.linear.bias
        both = soft_argmax_depth(heatmaps, weight, bias, self.mode, self.beta, self.window)
        return CropJoints(both.uv, both.depth, both.confidence)


class AdaptiveWeighting(nn.Module):
    """AWR. Each foreground pixel predicts its closeness to a joint (1 at the joint, 0 from the distance ``radius`` on; these
    maps replace the heatmaps) and the direction to the joint, in units of half-cubes. A joint is the mean of the pixels' votes,
    weighted by a softmax of ``beta`` times their closeness.

    A pixel's point has x and y from -1 to 1 across the crop, and the depth in half-cubes as z.
    """

    def __init__(self, width: int, radius: float = 0.8, beta: float = 30.0) -> None:
        super().__init__()
        self.radius, self.beta = radius, beta
        self.directions = nn.Conv2d(width, 3 * NUM_JOINTS, 1)

    def forward(self, features: Tensor, closeness: Tensor, depth: Tensor) -> tuple[CropJoints, Tensor]:
        """Joints, and the directions ``(B, 14, 3, S, S)``, which training needs, too.

        Args:
            features: ``(B, width, S, S)``. closeness: ``(B, 14, S, S)``. depth: ``(B, 1, S, S)`` in half-cubes; 1: no hand.
        """
        directions: Tensor = self.directions(features).unflatten(1, (NUM_JOINTS, 3)).float()
        return self.vote(closeness.float(), directions, depth.float()), directions

    def vote(self, closeness: Tensor, directions: Tensor, depth: Tensor) -> CropJoints:
        """Joints from closeness ``(B, 14, S, S)`` and directions ``(B, 14, 3, S, S)``."""
        size = closeness.shape[-1]
        votes = pixel_points(depth).unsqueeze(1) + directions * (self.radius * (1 - closeness)).unsqueeze(2)
        # Background pixels do not vote, unless the crop has no foreground.
        foreground = foreground_of(depth)
        scores = torch.where(foreground | ~foreground.flatten(1).any(1)[:, None, None, None], self.beta * closeness, -torch.inf)
        weights = scores.flatten(2).softmax(-1)
        joints = (votes.flatten(3) * weights.unsqueeze(2)).sum(-1)  # [B, 14, 3]
        uv = (joints[..., :2] + 1) * size / 2 - 0.5
        peak = closeness.flatten(2).amax(-1).clamp(0, 1)
        return CropJoints(uv, joints[..., 2], peak)

    def targets(self, joints: Tensor, depth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """True closeness ``(B, 14, S, S)`` and directions ``(B, 14, 3, S, S)``, and ``(B, 14, S, S)`` bool where directions
        count: on the foreground within ``radius`` of the true joints ``(B, 14, 3)``, which are in the pixels' coordinates."""
        offset = joints[..., None, None] - pixel_points(depth).unsqueeze(1)
        distance = offset.norm(dim=2)
        near = (distance < self.radius) & foreground_of(depth)
        closeness = torch.where(near, 1 - distance / self.radius, 0)
        return closeness, torch.where(near.unsqueeze(2), offset / distance.clamp(min=1e-6).unsqueeze(2), 0), near


def foreground_of(depth: Tensor) -> Tensor:
    """``(B, 1, S, S)`` bool: where a crop in half-cubes shows a surface within the cube."""
    return depth < 0.99


def pixel_points(depth: Tensor) -> Tensor:
    """``(B, 3, S, S)`` points of the pixels of a crop ``(B, 1, S, S)``: x and y from -1 to 1 across the crop, z its depth."""
    size = depth.shape[-1]
    across = (torch.arange(size, device=depth.device, dtype=depth.dtype) + 0.5) * (2 / size) - 1
    x, y = across.expand(size, size), across.unsqueeze(1).expand(size, size)
    return torch.cat([torch.stack([x, y]).expand(depth.shape[0], 2, size, size), depth], 1)
