"""``torch.ops.jointbert``: operators with kernels of our own, for those who train with them. Importing this registers them.

``jointbert::soft_argmax(Tensor heatmaps, str mode, float beta, int window) -> (Tensor uv, Tensor confidence, Tensor status)``
is :func:`jointbert.models.heatmap.soft_argmax` on ``(B, 14, H, W)`` maps; ``window`` is -1 for none. It works under
``torch.compile`` and has a gradient. On the CPU it is the reference itself; on a GPU one launch of ``csrc/cuda`` on the current
stream, for 14 maps a pose in float32, float16 or bfloat16, contiguous or channels last (other strides are copied). For other
dtypes and shapes, and with a warning in an installation without GPU kernels, it is the reference there, too.
"""

from __future__ import annotations

import warnings
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from jointbert.backends.cuda import call, load_module
from jointbert.checks import JointbertWarning
from jointbert.models.heatmap import MAX_SIZE, Keypoints, Mode, check_heatmaps
from jointbert.models.heatmap import soft_argmax as reference
from jointbert.skeleton import NUM_JOINTS

_ELEMENTS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}  # csrc/cuda/soft_argmax.h


def soft_argmax(heatmaps: Tensor, mode: Mode = "soft", beta: float = 100.0, window: int | None = None) -> Keypoints:
    """:func:`jointbert.models.heatmap.soft_argmax` of ``(B, 14, H, W)`` maps by one operator; arguments, result and errors are
    the same. Results are float32, float64 of float64 maps.

    Raises:
        ValueError, TypeError: as the reference. RuntimeError: what CUDA says of a launch.
    """
    check_heatmaps(heatmaps, mode, beta, window)
    window = -1 if window is None else min(window, MAX_SIZE)
    return Keypoints(*torch.ops.jointbert.soft_argmax(heatmaps, mode, float(beta), window))


@torch.library.custom_op("jointbert::soft_argmax", mutates_args=(), device_types="cpu")
def _forward(heatmaps: Tensor, mode: str, beta: float, window: int) -> tuple[Tensor, Tensor, Tensor]:
    return _reference(heatmaps, mode, beta, window)


@_forward.register_kernel("cuda")
def _(heatmaps: Tensor, mode: str, beta: float, window: int) -> tuple[Tensor, Tensor, Tensor]:
    check_heatmaps(heatmaps, mode, beta, None if window < 0 else window)  # type: ignore[arg-type]
    kernels = _kernels() if _has_kernel(heatmaps) else None
    if kernels is None:
        return _reference(heatmaps, mode, beta, window)
    maps = heatmaps.contiguous(memory_format=_layout(heatmaps))
    uv = torch.empty((*maps.shape[:2], 2), dtype=torch.float32, device=maps.device)
    confidence, status = torch.empty_like(uv[..., 0]), torch.empty(maps.shape[:2], dtype=torch.uint8, device=maps.device)
    with torch.cuda.device(maps.device):
        results = (x.data_ptr() for x in (uv, confidence, status))
        stream = torch.cuda.current_stream().cuda_stream
        call(kernels.soft_argmax, *_arguments(maps, mode, beta, window), *results, stream)
    return uv, confidence, status


@_forward.register_fake
def _(heatmaps: Tensor, mode: str, beta: float, window: int) -> tuple[Tensor, Tensor, Tensor]:
    leading = heatmaps.shape[:-2]
    dtype = torch.float64 if heatmaps.dtype == torch.float64 else torch.float32
    confidence = heatmaps.new_empty(leading, dtype=dtype)
    return heatmaps.new_empty((*leading, 2), dtype=dtype), confidence, heatmaps.new_empty(leading, dtype=torch.uint8)


@torch.library.custom_op("jointbert::soft_argmax_backward", mutates_args=(), device_types="cpu")
def _backward(
    heatmaps: Tensor, status: Tensor, to_uv: Tensor, to_confidence: Tensor, mode: str, beta: float, window: int
) -> Tensor:
    return _gradient_of(heatmaps, to_uv, to_confidence, mode, beta, window)


@_backward.register_kernel("cuda")
def _(heatmaps: Tensor, status: Tensor, to_uv: Tensor, to_confidence: Tensor, mode: str, beta: float, window: int) -> Tensor:
    kernels = _kernels() if _has_kernel(heatmaps) else None
    if kernels is None:
        return _gradient_of(heatmaps, to_uv, to_confidence, mode, beta, window)
    maps = heatmaps.contiguous(memory_format=_layout(heatmaps))
    gradient = torch.empty_like(maps, memory_format=_layout(heatmaps))
    told = [x.contiguous() for x in (status, to_uv.float(), to_confidence.float())]
    with torch.cuda.device(maps.device):
        pointers = (*(x.data_ptr() for x in told), gradient.data_ptr(), torch.cuda.current_stream().cuda_stream)
        call(kernels.soft_argmax_backward, *_arguments(maps, mode, beta, window), *pointers)
    return gradient


def _gradient_of(heatmaps: Tensor, to_uv: Tensor, to_confidence: Tensor, mode: str, beta: float, window: int) -> Tensor:
    # In closed form: autograd does not reach inside an operator. d uv / d h = beta p (place - uv), p the softmax.
    h, w = heatmaps.shape[-2:]
    maps = heatmaps.flatten(-2)
    maps = maps if maps.dtype == torch.float64 else maps.float()
    at = maps.argmax(-1, keepdim=True)
    peak = maps.gather(-1, at)
    gradient = torch.zeros_like(maps)
    if mode == "soft":
        index = torch.arange(h * w, device=maps.device)
        u, v = index % w, index // w
        weights = (beta * (maps - peak)).exp()
        if window >= 0:
            weights = weights * (((u - at % w).abs() <= window) & ((v - at // w).abs() <= window))
        p = weights / weights.sum(-1, keepdim=True)
        for place, to in ((u, to_uv[..., :1]), (v, to_uv[..., 1:])):
            gradient += beta * p * to * (place - (p * place).sum(-1, keepdim=True))
    inside = (peak >= 0) & (peak <= 1)
    gradient.scatter_add_(-1, at, torch.where(inside, to_confidence.unsqueeze(-1), 0).to(maps.dtype))
    gradient = gradient.masked_fill(~peak.isfinite(), 0).view(heatmaps.shape).to(heatmaps.dtype)
    return gradient.contiguous(memory_format=_layout(heatmaps))


@_backward.register_fake
def _(heatmaps: Tensor, status: Tensor, to_uv: Tensor, to_confidence: Tensor, mode: str, beta: float, window: int) -> Tensor:
    return torch.empty_like(heatmaps, memory_format=_layout(heatmaps))


def _reference(heatmaps: Tensor, mode: str, beta: float, window: int) -> tuple[Tensor, Tensor, Tensor]:
    uv, confidence, status = reference(heatmaps, mode, beta, None if window < 0 else window)  # type: ignore[arg-type]
    return uv, confidence, status


def _has_kernel(heatmaps: Tensor) -> bool:
    return heatmaps.dtype in _ELEMENTS and heatmaps.ndim == 4 and heatmaps.shape[1] == NUM_JOINTS


def _layout(heatmaps: Tensor) -> torch.memory_format:
    """In which the kernels read maps and every gradient comes: channels last where they are, else contiguous."""
    last = heatmaps.ndim == 4 and heatmaps.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last and not heatmaps.is_contiguous() else torch.contiguous_format


@lru_cache(maxsize=1)
def _kernels() -> Any:
    """The module, or None after a warning."""
    try:
        return load_module()
    except ImportError as error:
        warnings.warn(f"{error}; torch's own operators do the work", JointbertWarning, stacklevel=2)
        return None


def _arguments(maps: Tensor, mode: str, beta: float, window: int) -> tuple[Any, ...]:
    """Those that both kernels begin with."""
    poses, _, h, w = maps.shape
    return (maps.data_ptr(), _ELEMENTS[maps.dtype], poses, h, w, not maps.is_contiguous(), mode == "soft", beta, window)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(inputs[0], output[2])
    ctx.options = inputs[1:]
    uv, _, status = output
    ctx.mark_non_differentiable(*((uv, status) if inputs[1] == "argmax" else (status,)))
    ctx.set_materialize_grads(True)


def _gradient(ctx: Any, to_uv: Tensor, to_confidence: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    heatmaps, status = ctx.saved_tensors
    return torch.ops.jointbert.soft_argmax_backward(heatmaps, status, to_uv, to_confidence, *ctx.options), None, None, None


_forward.register_autograd(_gradient, setup_context=_setup)
