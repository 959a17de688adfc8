"""Batches of crops with their joints, which train the estimator: rendered hands or NYU's images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.utils.data import Dataset

from jointbert.camera import NYU
from jointbert.models.crop import Crop
from training.data.hand import rand
from training.data.render import render, sample_hands, sample_occluders, sense, visibility


class HandImages(NamedTuple):
    """A batch of crops."""

    crops: Tensor  # [B, 1, S, S]: depth in half-cubes
    joints: Tensor  # [B, 14, 3]: true, in the camera frame, mm
    visible: Tensor  # [B, 14] bool; True where visibility is not known
    centres: Tensor  # [B, 3]
    camera: Tensor  # [B, 4]
    cube_mm: Tensor  # [B]
    angle: Tensor  # [B]

    @property
    def crop(self) -> Crop:
        """The windows of the crops in the camera's image."""
        return Crop.around(self.centres, self.camera, self.cube_mm, self.crops.shape[-1], self.angle)


@dataclass(frozen=True)
class RenderConfig:
    """Rendered hands."""

    occluders: float = 0.25
    """Share of images with a rod in front of the hand."""
    noise_mm: float = 1.5
    """Standard deviation of the depth noise at 700 mm."""
    holes: float = 0.5
    """Share of images with a hole."""
    centre_mm: float = 15.0
    """Largest distance of a crop's centre from the joints' mean along each axis."""
    cube: tuple[float, float] = (0.95, 1.1)
    """Range of the cube's side, relative to the estimator's."""


class RenderedHands(Dataset[HandImages]):
    """Batches of rendered hands; batch ``offset + index`` is always the same.

    Args:
        size, cube_mm: pixels and cube of a crop. length: batches per epoch.
    """

    def __init__(self, config: RenderConfig, size: int, cube_mm: float, batch_size: int, length: int, seed: int) -> None:
        self.config, self.size, self.cube_mm = config, size, cube_mm
        self.batch_size, self.length, self.seed = batch_size, length, seed
        self.offset = 0

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> HandImages:
        if not 0 <= index < self.length:
            raise IndexError(index)
        config, n = self.config, self.batch_size
        g = Generator().manual_seed((self.seed * 1_000_003 + self.offset + index) % 2**63)
        hands = sample_hands(n, g)
        centres = hands.joints.mean(1) + rand((n, 3), -config.centre_mm, config.centre_mm, g)
        cube = self.cube_mm * rand((n,), *config.cube, g)
        crop = Crop.around(centres, NYU, cube, self.size)
        camera = intrinsics(crop)
        scene = hands.capsules.and_(sample_occluders(hands, config.occluders, g))
        depth = render(scene, camera, (self.size, self.size))
        visible = visibility(hands, depth, camera)
        seen = sense(depth, g, config.noise_mm, config.holes).unsqueeze(1)
        relative = (seen - centres[:, 2].view(n, 1, 1, 1)) / (cube / 2).view(n, 1, 1, 1)
        crops = torch.where(seen > 0, relative.clamp(-1, 1), 1)
        return HandImages(crops, hands.joints, visible, centres, crop.camera, cube, torch.zeros(n))


def intrinsics(crop: Crop) -> Tensor:
    """``(B, 4)`` fx, fy, cx, cy of a camera whose image is the crop, for crops without rotation."""
    focal = crop.camera[:, :2] / crop.scale
    return torch.cat([focal, (crop.camera[:, 2:] - crop.middle) / crop.scale + (crop.size - 1) / 2], 1)
