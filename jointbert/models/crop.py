"""Crops: the image of a cube around a hand, and transformations between its pixels and millimetres.

A crop is a square window of ``size`` x ``size`` pixels. It is the projection of an axis-aligned square through the hand's
centre whose side is the cube's. Pixel coordinates are integers at pixels' centres. Depth is relative to the centre in
half-cubes: -1 at the cube's near side, 1 at its far side.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from jointbert.camera import Camera


@dataclass(frozen=True)
class Crop:
    """Crop windows of a batch of images."""

    centres: Tensor  # [B, 3]: x y z of the cube's centre in the camera frame, mm
    camera: Tensor  # [B, 4]: fx, fy, cx, cy, pixels
    half_mm: Tensor  # [B]: half the cube's side
    turn: Tensor  # [B, 2, 2]: rotation of the window, from the crop's axes to the image's
    size: int

    @classmethod
    def around(
        cls, centres: Tensor, camera: Camera | Tensor, cube_mm: float | Tensor, size: int, angle: Tensor | None = None
    ) -> Crop:
        """Cubes of side ``cube_mm`` (one, or ``(B,)``) at ``centres`` ``(B, 3)``; windows rotated clockwise in the
        image by ``angle`` ``(B,)`` radians.

        Raises:
            ValueError: wrong shapes, centres that are not finite or not in front of the camera, sides that are not positive.
        """
        if centres.ndim != 2 or centres.shape[1] != 3:
            raise ValueError(f"centres: got the shape {tuple(centres.shape)}; expected (B, 3), x y z in millimetres")
        batch = len(centres)
        if isinstance(camera, Camera):
            camera = centres.new_tensor([camera.fx, camera.fy, camera.cx, camera.cy])
        if tuple(camera.shape) not in ((4,), (batch, 4)):
            raise ValueError(f"camera: got the shape {tuple(camera.shape)}; expected (4,) or ({batch}, 4): fx, fy, cx, cy")
        half = torch.as_tensor(cube_mm, dtype=centres.dtype, device=centres.device) / 2
        if tuple(half.shape) not in ((), (batch,)):
            raise ValueError(f"cube_mm: got the shape {tuple(half.shape)}; expected one number or ({batch},)")
        camera, half = camera.to(centres).expand(batch, 4), half.expand(batch)
        if not bool(((half > 0) & half.isfinite()).all()):
            raise ValueError("cube_mm: expected positive sides")
        if not bool((camera.isfinite().all(1) & (camera[:, :2] > 0).all(1)).all()):
            raise ValueError("camera: expected finite numbers with positive focal lengths")
        bad = ~(centres.isfinite().all(1) & (centres[:, 2] > 0))
        if bool(bad.any()):
            i = int(bad.nonzero()[0])
            raise ValueError(f"centres: got {centres[i].tolist()} for image {i}; expected x y z in front of the camera, mm")
        angle = torch.zeros(batch).to(centres) if angle is None else angle.to(centres)
        s, c = angle.sin(), angle.cos()
        return cls(centres, camera, half, torch.stack([c, -s, s, c], -1).view(batch, 2, 2), size)

    @property
    def middle(self) -> Tensor:
        """``(B, 2)`` image pixel of the cube's centre."""
        return self.centres[:, :2] * self.camera[:, :2] / self.centres[:, 2:] + self.camera[:, 2:]

    @property
    def scale(self) -> Tensor:
        """``(B, 2)`` image pixels per crop pixel."""
        return 2 * self.half_mm.unsqueeze(1) * self.camera[:, :2] / self.centres[:, 2:] / self.size

    def to_image(self, uv: Tensor) -> Tensor:
        """``(B, N, 2)`` crop pixels to image pixels."""
        turned = _batch_product(uv - (self.size - 1) / 2, self.turn)
        return self.middle.unsqueeze(1) + turned * self.scale.unsqueeze(1)

    def from_image(self, uv: Tensor) -> Tensor:
        """``(B, N, 2)`` image pixels to crop pixels."""
        return _batch_product((uv - self.middle.unsqueeze(1)) / self.scale.unsqueeze(1), self.turn.mT) + (self.size - 1) / 2

    def to_xyz(self, uv: Tensor, depth: Tensor) -> Tensor:
        """``(B, N, 2)`` crop pixels and ``(B, N)`` depth in half-cubes to ``(B, N, 3)`` millimetres in the camera frame."""
        z = (self.centres[:, 2:] + depth * self.half_mm.unsqueeze(1)).unsqueeze(-1)
        focal, principal = self.camera[:, None, :2], self.camera[:, None, 2:]
        return torch.cat([(self.to_image(uv) - principal) * z / focal, z], -1)

    def from_xyz(self, xyz: Tensor) -> tuple[Tensor, Tensor]:
        """``(B, N, 3)`` millimetres in the camera frame to crop pixels ``(B, N, 2)`` and depth in half-cubes ``(B, N)``."""
        focal, principal = self.camera[:, None, :2], self.camera[:, None, 2:]
        uv = xyz[..., :2] * focal / xyz[..., 2:] + principal
        return self.from_image(uv), (xyz[..., 2] - self.centres[:, 2:]) / self.half_mm.unsqueeze(1)

    def depth(self, images: Tensor) -> Tensor:
        """``(B, 1, H, W)`` depth images in millimetres to ``(B, 1, size, size)`` in half-cubes, clamped to [-1, 1].

        Holes (0, or not finite) and pixels outside the image get 1, the far side. Sampling takes the nearest pixel, since a
        mean of two depths at an edge would be a surface that does not exist.
        """
        z = self._sample(torch.where(images.isfinite(), images, 0), "nearest")
        relative = (z - self.centres[:, 2, None, None, None]) / self.half_mm[:, None, None, None]
        return torch.where(z > 0, relative.clamp(-1, 1), 1)

    def rgb(self, images: Tensor) -> Tensor:
        """``(B, 3, H, W)`` images to ``(B, 3, size, size)``, bilinear; pixels outside the image get 0."""
        return self._sample(images, "bilinear")

    def _sample(self, images: Tensor, mode: str) -> Tensor:
        h, w = images.shape[-2:]
        pixels = torch.arange(self.size, device=images.device, dtype=self.centres.dtype)
        v, u = torch.meshgrid(pixels, pixels, indexing="ij")
        places = self.to_image(torch.stack([u, v], -1).view(1, -1, 2)).view(-1, self.size, self.size, 2)
        # in grid_sample's coordinates the image's edges are at -1 and 1
        edges = torch.stack([(2 * places[..., 0] + 1) / w, (2 * places[..., 1] + 1) / h], -1) - 1
        return F.grid_sample(images, edges.to(images.dtype), mode=mode, padding_mode="zeros", align_corners=False)


def _batch_product(points: Tensor, matrix: Tensor) -> Tensor:
    """``(B, N, 2)`` points times ``(B, 2, 2)``. Written out, because autocast runs matrix products in bfloat16."""
    return (points.unsqueeze(-2) * matrix.unsqueeze(1)).sum(-1)
