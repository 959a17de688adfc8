"""The hourglass (Newell et al., ECCV 2016; thesis, section 4.2.1, one stack), which gives a heatmap for each joint."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from jointbert.contract.layout import NUM_JOINTS


class Residual(nn.Module):
    """A pre-activation bottleneck with half of the width, added to its input. ``(B, C, H, W)`` to the same shape."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.change = nn.Sequential(
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=False),
            nn.Conv2d(width, half, 1),
            nn.BatchNorm2d(half),
            nn.ReLU(inplace=True),
            nn.Conv2d(half, half, 3, padding=1),
            nn.BatchNorm2d(half),
            nn.ReLU(inplace=True),
            nn.Conv2d(half, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to the same shape."""
        out: Tensor = x + self.change(x)
        return out


class Level(nn.Module):
    """``depth`` nested steps of downsampling and upsampling, each with a skip connection; ``3 * depth + 1`` residuals in
    all."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.beside = Residual(width)
        self.down = Residual(width)
        self.inside: nn.Module = Level(width, depth - 1) if depth > 1 else Residual(width)
        self.up = Residual(width)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to the same shape."""
        low = self.up(self.inside(self.down(F.max_pool2d(x, 2))))
        out: Tensor = self.beside(x) + F.interpolate(low, scale_factor=2.0, mode="nearest")
        return out


class Hourglass(nn.Module):
    """One stack: ``(B, width, H, W)`` features, H and W multiples of ``2 ** depth``, to ``(B, width, H, W)`` features and
    ``(B, 14, H, W)`` heatmaps. 3.07M parameters at width 256 and depth 4."""

    def __init__(self, width: int = 256, depth: int = 4) -> None:
        super().__init__()
        if width % 2 or width < 2 or depth < 1:
            raise ValueError(f"hourglass: got width {width} and depth {depth}; expected an even width and a positive depth")
        self.level = Level(width, depth)
        self.residual = Residual(width)
        self.linear = nn.Sequential(nn.Conv2d(width, width, 1), nn.BatchNorm2d(width), nn.ReLU(inplace=True))
        self.heatmaps = nn.Conv2d(width, NUM_JOINTS, 1)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features ``(B, width, H, W)`` to features of the same shape and heatmaps ``(B, 14, H, W)``."""
        x = self.linear(self.residual(self.level(features)))
        return x, self.heatmaps(x)
