"""``torch.ops.jointbert``: operators with kernels of our own, for those who train with them. Importing this registers them.

``jointbert::soft_argmax(Tensor heatmaps, str mode, float beta, int window) -> (Tensor uv, Tensor confidence, Tensor status)``
is :func:`jointbert.models.heatmap.soft_argmax` on ``(B, 14, H, W)`` maps; ``window`` is -1 for none. It works under
``torch.compile`` and has a gradient. On the CPU it is the reference itself; on a GPU one launch of ``csrc/cuda``, where the
installation has it, for 14 maps a pose in float32, float16 or bfloat16, contiguous or channels last, on the current stream.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jointbert.backends.cuda import load_module
from jointbert.models.heatmap import Keypoints, Mode, check_heatmaps
from jointbert.models.heatmap import soft_argmax as reference
from jointbert.skeleton import NUM_JOINTS

_ELEMENTS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}  # csrc/cuda/soft_argmax.h


def soft_argmax(heatmaps: Tensor, mode: Mode = "soft", beta: float = 100.0, window: int | None = None) -> Keypoints:
    """:func:`jointbert.models.heatmap.soft_argmax` of ``(B, 14, H, W)`` maps by one operator; arguments, result and errors are
    the same. Results are float32, float64 of float64 maps."""
    check_heatmaps(heatmaps, mode, beta, window)
    return Keypoints(*torch.ops.jointbert.soft_argmax(heatmaps, mode, float(beta), -1 if window is None else window))


@torch.library.custom_op("jointbert::soft_argmax", mutates_args=(), device_types="cpu")
def _forward(heatmaps: Tensor, mode: str, beta: float, window: int) -> tuple[Tensor, Tensor, Tensor]:
    return _reference(heatmaps, mode, beta, window)


@_forward.register_kernel("cuda")
def _(heatmaps: Tensor, mode: str, beta: float, window: int) -> tuple[Tensor, Tensor, Tensor]:
    if not _has_kernel(heatmaps):
        return _reference(heatmaps, mode, beta, window)
    maps = _dense(heatmaps)
    uv = torch.empty((*maps.shape[:2], 2), dtype=torch.float32, device=maps.device)
    confidence, status = torch.empty_like(uv[..., 0]), torch.empty(maps.shape[:2], dtype=torch.uint8, device=maps.device)
    with torch.cuda.device(maps.device):
        results = (x.data_ptr() for x in (uv, confidence, status))
        load_module().soft_argmax(*_call(maps, mode, beta, window), *results, torch.cuda.current_stream().cuda_stream)
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
    if not _has_kernel(heatmaps):
        return _gradient_of(heatmaps, to_uv, to_confidence, mode, beta, window)
    maps = _dense(heatmaps)
    gradient = torch.empty_like(maps)
    told = [x.contiguous() for x in (status, to_uv.float(), to_confidence.float())]
    with torch.cuda.device(maps.device):
        arguments = (*(x.data_ptr() for x in told), gradient.data_ptr(), torch.cuda.current_stream().cuda_stream)
        load_module().soft_argmax_backward(*_call(maps, mode, beta, window), *arguments)
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
    return gradient.masked_fill(~peak.isfinite(), 0).view(heatmaps.shape).to(heatmaps.dtype)


@_backward.register_fake
def _(heatmaps: Tensor, status: Tensor, to_uv: Tensor, to_confidence: Tensor, mode: str, beta: float, window: int) -> Tensor:
    return torch.empty_like(heatmaps)


def _reference(heatmaps: Tensor, mode: str, beta: float, window: int) -> tuple[Tensor, Tensor, Tensor]:
    uv, confidence, status = reference(heatmaps, mode, beta, None if window < 0 else window)  # type: ignore[arg-type]
    return uv, confidence, status


def _has_kernel(heatmaps: Tensor) -> bool:
    return heatmaps.dtype in _ELEMENTS and heatmaps.ndim == 4 and heatmaps.shape[1] == NUM_JOINTS


def _dense(heatmaps: Tensor) -> Tensor:
    """Contiguous or channels last, without a copy where it is one of them."""
    return heatmaps if heatmaps.is_contiguous(memory_format=torch.channels_last) else heatmaps.contiguous()


def _call(maps: Tensor, mode: str, beta: float, window: int) -> tuple[Any, ...]:
    """The arguments that both kernels begin with."""
    poses, _, h, w = maps.shape
    return (maps.data_ptr(), _ELEMENTS[maps.dtype], poses, h, w, not maps.is_contiguous(), mode == "soft", beta, window)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(inputs[0], output[2])
    ctx.options = inputs[1:]
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(True)


def _gradient(ctx: Any, to_uv: Tensor, to_confidence: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    heatmaps, status = ctx.saved_tensors
    return torch.ops.jointbert.soft_argmax_backward(heatmaps, status, to_uv, to_confidence, *ctx.options), None, None, None


_forward.register_autograd(_gradient, setup_context=_setup)
