"""Heatmaps for tests, and the soft-argmax kernels' results in the emulator beside the torch reference."""

from __future__ import annotations

import ctypes
from typing import Any

import torch

from jointbert.models.heatmap import Keypoints, soft_argmax

DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


def pointer(tensor: torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def kernel_arguments(maps: torch.Tensor, mode: str, beta: float, window: int | None) -> tuple[Any, ...]:
    """The leading arguments that all functions of the harnesses share."""
    poses, _, h, w = maps.shape
    last = not maps.is_contiguous()
    assert not last or maps.is_contiguous(memory_format=torch.channels_last)
    return (
        pointer(maps),
        DTYPES[maps.dtype],
        poses,
        h,
        w,
        int(last),
        int(mode == "soft"),
        ctypes.c_float(beta),
        -1 if window is None else window,
    )


def heatmaps(poses: int, h: int, w: int, seed: int = 0) -> torch.Tensor:
    """Blobs of any height at any place, with noise; some maps flat, some with equal peaks."""
    g = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    u, v = (torch.rand(poses, 14, 1, 1, generator=g) * n for n in (w, h))
    maps = torch.rand(poses, 14, 1, 1, generator=g) * 1.2 * torch.exp(-((x - u) ** 2 + (y - v) ** 2) / 8)
    maps = maps + 0.01 * torch.randn(poses, 14, h, w, generator=g)
    maps[:, 3] = 0.25
    maps[:, 4] = (maps[:, 4] * 4).round() / 4
    maps[:, 5] = -maps[:, 5] - 1
    return maps


def assert_equals_reference(found: Keypoints, maps: torch.Tensor, mode: str, beta: float, window: int | None) -> None:
    """At most twice torch's own float32 error, and 1e-5 pixels."""
    exact = soft_argmax(maps.double(), mode, beta, window)  # type: ignore[arg-type]
    single = soft_argmax(maps.float(), mode, beta, window)  # type: ignore[arg-type]
    assert torch.equal(found.status, exact.status)
    assert torch.equal(found.uv.isnan(), exact.uv.isnan())
    assert torch.equal(found.confidence, exact.confidence.float())
    good = exact.status == 0
    if good.any():
        own = (single.uv[good] - exact.uv[good]).abs().max()
        assert (found.uv[good] - exact.uv[good]).abs().max() <= 2 * own + 1e-5
