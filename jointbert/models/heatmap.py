"""Converts heatmaps to keypoints in pixels: the reference implementation of the CUDA kernels.

The methods are argmax (thesis, section 4.2.1) and soft-argmax (Iqbal et al., ECCV 2018; Sun et al., ECCV 2018). The confidence
weights the refinement loss (eq. 4.4). ``u`` runs along a heatmap's width, ``v`` along its height; integers are pixels' centres.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from jointbert.contract.heatmap import check_soft_argmax

Mode = Literal["argmax", "soft"]
Convention = Literal["half_pixel", "align_corners", "corner"]


class Keypoints(NamedTuple):
    """The keypoint of each heatmap."""

    uv: Tensor  # [..., 2]: heatmap pixels; NaN where the map is not valid
    confidence: Tensor  # [...]: the map's raw peak, clamped to [0, 1]; 0 where the map is not valid
    status: Tensor  # [...] uint8: 0 found; 1 a value is NaN or +inf, or all are -inf


def soft_argmax(heatmaps: Tensor, mode: Mode = "soft", beta: float = 100.0, window: int | None = None) -> Keypoints:
    """Positions and confidences of the heatmaps' peaks.

    ``argmax``: the highest pixel, the lowest linear index among equals; ``uv`` has no gradient. ``soft``: the mean of the
    pixels' positions under ``softmax(beta * heatmap)``, with the maximum subtracted first, in float32 (for float64 maps in
    float64). The confidence is the peak's raw value, not the softmax's. Its gradient goes to the peak's pixel if the value is
    in [0, 1].

    If the peak is low, as for an occluded joint, a soft-argmax over the whole map is biased to the map's centre by the many
    pixels that are nearly as high, the more the smaller ``beta`` is. With a ``window``, only pixels near the peak count.

    Args:
        heatmaps: ``(..., H, W)``, floating point, up to 128 x 128. -inf excludes a pixel.
        beta: the softmax's inverse temperature, per unit of the heatmaps; positive.
        window: soft mode: only pixels within this distance of the peak along either axis count; ``None``: all do.

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
    # Not torch's clamp, whose gradient at exactly 0 and 1 depends on torch's version.
    confidence = torch.where((peak >= 0) & (peak <= 1), peak, peak.detach().clamp(0, 1)).masked_fill(invalid, 0)
    top = torch.stack([at % w, at // w], -1)
    if mode == "argmax":
        uv = top.to(maps.dtype)
    else:
        # An invalid map must get a zero gradient, not NaN.
        weights = (beta * (maps - peak.detach().unsqueeze(-1))).masked_fill(invalid.unsqueeze(-1), 0).exp()
        index = torch.arange(h * w, device=maps.device)
        du, dv = index % w - top[..., :1], index // w - top[..., 1:]  # relative to the peak, for precision
        if window is not None:
            weights = weights * ((du.abs() <= window) & (dv.abs() <= window))
        # Sums, because autocast would compute a matrix product in less than float32.
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
        convention: ``half_pixel``: both grids cover the same area and integers are pixels' centres; at stride 4
            ``4 (u + 0.5) - 0.5``. This package's networks use it. ``align_corners``: the centres of the first and last pixels
            coincide. ``corner``: at stride 4 ``4 u``, the upper left pixel of four: common, but off by half a stride.

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
    # Python numbers, because a tensor would be copied to the device, which a CUDA graph can't record.
    return torch.stack([(uv[..., 0] + shift) * u - shift, (uv[..., 1] + shift) * v - shift], -1)


def check_heatmaps(heatmaps: Tensor, mode: Mode, beta: float, window: int | None) -> None:
    """Checks the arguments of :func:`soft_argmax`, for it and for the torch operators.

    Raises:
        ValueError, TypeError: as :func:`soft_argmax`.
    """
    if not isinstance(heatmaps, Tensor):
        raise TypeError(f"heatmaps: got {type(heatmaps).__name__}; expected a torch tensor")
    if not heatmaps.is_floating_point():
        raise TypeError(f"heatmaps: got the dtype {heatmaps.dtype}; expected floating point")
    check_soft_argmax(tuple(heatmaps.shape), mode, beta, window)
