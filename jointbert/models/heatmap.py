"""From heatmaps to joints in pixels: argmax (thesis, section 4.2.1) and soft-argmax (Iqbal et al., ECCV 2018; Sun et al., ECCV
2018), with the confidence that weighs the refinement loss (eq. 4.4). The reference of the CUDA kernels.

A heatmap's ``u`` runs along its width, ``v`` along its height; an integer is a pixel's centre.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from jointbert.contract.heatmap import check_soft_argmax

Mode = Literal["argmax", "soft"]
Convention = Literal["half_pixel", "align_corners", "corner"]


class Keypoints(NamedTuple):
    """What the heatmaps say of each joint."""

    uv: Tensor  # [..., 2]: heatmap pixels; NaN where the map is not valid
    confidence: Tensor  # [...]: the map's raw peak, clamped to [0, 1]; 0 where the map is not valid
    status: Tensor  # [...] uint8: 0 found; 1 a value is NaN or +inf, or all are -inf


def soft_argmax(heatmaps: Tensor, mode: Mode = "soft", beta: float = 100.0, window: int | None = None) -> Keypoints:
    """Places of the heatmaps' peaks and their confidence.

    ``argmax``: the highest pixel, the lowest linear index among equals; no gradient reaches ``uv``. ``soft``: the mean of the
    pixels' places under ``softmax(beta * heatmap)``, with the maximum subtracted first, in float32 at least (float64 maps stay
    float64). The confidence is the raw peak, not the softmax's: its gradient goes to the peak, where it lies between 0 and 1.

    A soft-argmax over a whole map with a faint peak (an occluded joint's) is pulled to the middle by the many pixels that are
    nearly as high, the more so the smaller ``beta`` is. A ``window`` looks at the pixels around the peak alone.

    Args:
        heatmaps: ``(..., H, W)``, floating point, up to 128 x 128. -inf excludes a pixel.
        beta: the softmax's inverse temperature, over the maps' unit; positive.
        window: soft mode: only pixels at most so far from the peak along either axis count; ``None``: all do.

    Raises:
        ValueError: a shape, mode, beta or window out of range. TypeError: a tensor that is not floating point.
    """
    check_heatmaps(heatmaps, mode, beta, window)
    h, w = heatmaps.shape[-2:]
    maps = heatmaps.flatten(-2)
    maps = maps if maps.dtype == torch.float64 else maps.float()
    at = maps.argmax(-1)  # the first among equals; NaN counts as the highest
    peak = maps.gather(-1, at.unsqueeze(-1)).squeeze(-1)
    invalid = ~peak.isfinite()
    status = invalid.to(torch.uint8)
    # Written out: at 0 and 1 themselves, what flows back through torch's clamp depends on its version.
    confidence = torch.where((peak >= 0) & (peak <= 1), peak, peak.detach().clamp(0, 1)).masked_fill(invalid, 0)
    top = torch.stack([at % w, at // w], -1)
    if mode == "argmax":
        uv = top.to(maps.dtype)
    else:
        # Of a map that is not valid nothing must flow back, not even NaN.
        weights = (beta * (maps - peak.detach().unsqueeze(-1))).masked_fill(invalid.unsqueeze(-1), 0).exp()
        index = torch.arange(h * w, device=maps.device)
        du, dv = index % w - top[..., :1], index // w - top[..., 1:]  # from the peak: small where it counts
        if window is not None:
            weights = weights * ((du.abs() <= window) & (dv.abs() <= window))
        # Plain sums: a matrix product would be taken in less than float32 under autocast.
        total = weights.sum(-1)
        uv = top + torch.stack([(weights * d).sum(-1) / total for d in (du, dv)], -1)
    uv = uv.masked_fill(invalid.unsqueeze(-1), torch.nan)
    return Keypoints(uv, confidence, status)


def to_image_pixels(
    uv: Tensor, heatmap_size: tuple[int, int], image_size: tuple[int, int], convention: Convention = "half_pixel"
) -> Tensor:
    """Heatmap pixels to pixels of the image that the network saw.

    Args:
        uv: ``(..., 2)``. heatmap_size, image_size: (height, width).
        convention: ``half_pixel``: both grids cover the same area, an integer is a pixel's centre: at stride 4
            ``4 (u + 0.5) - 0.5``. This is what a network with stride 4 means, and ours. ``align_corners``: first and last
            centres coincide. ``corner``: ``4 u``, the upper left pixel of the four; half a stride short, but common.

    Raises:
        ValueError: sizes that are not positive, or ``align_corners`` with a side of one pixel; an unknown convention.
    """
    if min(*heatmap_size, *image_size) < 1:
        raise ValueError(f"sizes: got {heatmap_size} and {image_size}; expected positive (height, width)")
    if convention not in get_args(Convention):
        raise ValueError(f"convention: got {convention!r}; expected 'half_pixel', 'align_corners' or 'corner'")
    if convention == "align_corners" and min(heatmap_size) < 2:
        raise ValueError(f"heatmap_size: got {heatmap_size}; align_corners needs at least two pixels a side")
    less = 1 if convention == "align_corners" else 0
    v, u = ((image - less) / (heatmap - less) for heatmap, image in zip(heatmap_size, image_size, strict=True))
    shift = 0.5 if convention == "half_pixel" else 0.0
    # Numbers, not a tensor of them: that would be a copy to the device, which no CUDA graph can hold.
    return torch.stack([(uv[..., 0] + shift) * u - shift, (uv[..., 1] + shift) * v - shift], -1)


def check_heatmaps(heatmaps: Tensor, mode: Mode, beta: float, window: int | None) -> None:
    """What :func:`soft_argmax` and the operator of the kernels refuse."""
    if not isinstance(heatmaps, Tensor):
        raise TypeError(f"heatmaps: got {type(heatmaps).__name__}; expected a torch tensor")
    if not heatmaps.is_floating_point():
        raise TypeError(f"heatmaps: got the dtype {heatmaps.dtype}; expected floating point")
    check_soft_argmax(tuple(heatmaps.shape), mode, beta, window)
