"""Torch operators with CUDA kernels and gradients, for training: importing this module registers ``torch.ops.jointbert``.

``jointbert::soft_argmax(Tensor heatmaps, str mode, float beta, int window) -> (Tensor uv, Tensor confidence, Tensor status)``
is :func:`jointbert.models.heatmap.soft_argmax` on ``(B, 14, H, W)`` maps; ``window`` is -1 for none. It works under
``torch.compile`` and has a gradient. On the CPU it calls the reference implementation. On a GPU it is one kernel launch on the
current CUDA stream, for 14 maps per pose in float32, float16 or bfloat16, contiguous or channels last (other strides are
copied). For other dtypes and shapes, and with a warning in an installation without GPU kernels, it calls the reference
implementation on the GPU, too.

``jointbert::soft_argmax_depth(Tensor heatmaps, Tensor weight, Tensor bias, str mode, float beta, int window) -> (Tensor uv,
Tensor confidence, Tensor status, Tensor depth)`` also applies, in the same launch, the linear layer from all maps of a pose to
each joint's depth offset. Maps that are not contiguous are copied first.

``jointbert::soft_argmax_backward(Tensor heatmaps, Tensor status, Tensor to_uv, Tensor to_confidence, str mode, float beta, int
window) -> Tensor`` is the maps' gradient, in their shape and dtype, from the gradients of ``uv`` and ``confidence``.

The operators have no second derivatives, no forward-mode derivatives and none by ``beta``. In forward mode, or if ``beta`` is a
tensor, :func:`soft_argmax` and :func:`soft_argmax_depth` call the reference implementation instead.
"""

from __future__ import annotations

import warnings
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F

from jointbert.contract import JointbertWarning
from jointbert.contract.heatmap import MAX_HEATMAP
from jointbert.contract.layout import NUM_JOINTS
from jointbert.cuda import kernels
from jointbert.cuda.module import load_module
from jointbert.models.heatmap import Keypoints, Mode, check_heatmaps
from jointbert.models.heatmap import soft_argmax as reference


def soft_argmax(heatmaps: Tensor, mode: Mode = "soft", beta: float = 100.0, window: int | None = None) -> Keypoints:
    """:func:`jointbert.models.heatmap.soft_argmax` of ``(B, 14, H, W)`` maps as one operator, with the same arguments.

    Results are float32, for float64 maps float64.

    Raises:
        ValueError, TypeError: as the reference implementation. RuntimeError: a CUDA error.
    """
    check_heatmaps(heatmaps, mode, beta, window)
    if _needs_reference(beta):
        return reference(heatmaps, mode, beta, window)
    window = -1 if window is None else min(window, MAX_HEATMAP)
    return Keypoints(*torch.ops.jointbert.soft_argmax(heatmaps, mode, float(beta), window))


class KeypointsWithDepth(NamedTuple):
    """:class:`jointbert.models.heatmap.Keypoints` and each joint's depth offset."""

    uv: Tensor  # [B, 14, 2]
    confidence: Tensor  # [B, 14]
    status: Tensor  # [B, 14] uint8
    depth: Tensor  # [B, 14]: in the unit that the layer was trained in; not finite if a map of the pose is not


def soft_argmax_depth(
    heatmaps: Tensor, weight: Tensor, bias: Tensor, mode: Mode = "soft", beta: float = 100.0, window: int | None = None
) -> KeypointsWithDepth:
    """:func:`soft_argmax` of ``(B, 14, H, W)`` maps and ``linear(heatmaps.flatten(1), weight, bias)`` as one operator.

    The linear layer gives the depth offsets of the thesis's 3D regression (section 4.2.2). The maps are read once. Factors have
    the heatmaps' dtype, as under autocast; sums are float32 in a fixed order (for float64 maps, both are float64). Maps, weight
    and bias have gradients.

    Args:
        weight: ``(14, 14 * H * W)``. bias: ``(14,)``. Both on the maps' device.

    Raises:
        ValueError: a shape, device, mode, beta or window out of range. TypeError: a dtype that is not floating point.
        RuntimeError: a CUDA error.
    """
    check_heatmaps(heatmaps, mode, beta, window)
    _check_linear(heatmaps, weight, bias)
    if _needs_reference(beta):
        return KeypointsWithDepth(*reference(heatmaps, mode, beta, window), _linear(heatmaps, weight, bias))
    window = -1 if window is None else min(window, MAX_HEATMAP)
    return KeypointsWithDepth(*torch.ops.jointbert.soft_argmax_depth(heatmaps, weight, bias, mode, float(beta), window))


def _needs_reference(beta: object) -> bool:
    """Whether derivatives are needed that the operators lack and would silently omit: in forward mode, or by ``beta``."""
    return isinstance(beta, Tensor) or getattr(forward_ad, "_current_level", -1) >= 0


def _check_linear(heatmaps: Tensor, weight: Tensor, bias: Tensor) -> None:
    shape = tuple(heatmaps.shape)
    if heatmaps.ndim != 4 or shape[1] != NUM_JOINTS:
        raise ValueError(f"heatmaps: got the shape {shape}; expected (B, 14, H, W)")
    inputs = shape[1] * shape[2] * shape[3]
    for name, given, expected in (("weight", weight, (NUM_JOINTS, inputs)), ("bias", bias, (NUM_JOINTS,))):
        if tuple(given.shape) != expected:
            raise ValueError(f"{name}: got the shape {tuple(given.shape)}; expected {expected} for heatmaps {shape}")
        if not given.is_floating_point():
            raise TypeError(f"{name}: got the dtype {given.dtype}; expected floating point")
        if given.device != heatmaps.device:
            raise ValueError(f"{name}: got a tensor on {given.device}; expected {heatmaps.device}, where the heatmaps are")


@torch.library.custom_op("jointbert::soft_argmax", mutates_args=(), device_types="cpu")
def _forward(heatmaps: Tensor, mode: str, beta: float, window: int) -> tuple[Tensor, Tensor, Tensor]:
    return _reference(heatmaps, mode, beta, window)


@_forward.register_kernel("cuda")
def _(heatmaps: Tensor, mode: str, beta: float, window: int) -> tuple[Tensor, Tensor, Tensor]:
    check_heatmaps(heatmaps, mode, beta, None if window < 0 else window)  # type: ignore[arg-type]
    if not _runs_kernel(heatmaps):
        return _reference(heatmaps, mode, beta, window)
    maps = heatmaps.contiguous(memory_format=_memory_format(heatmaps))
    results = _empty_results(maps)
    with torch.cuda.device(maps.device):
        kernels.launch_soft_argmax(_describe(maps), kernels.Peak(mode, beta, window), _addresses(results), _cuda_stream(maps))
    return results


@_forward.register_fake
def _(heatmaps: Tensor, mode: str, beta: float, window: int) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_results(heatmaps)


@torch.library.custom_op("jointbert::soft_argmax_depth", mutates_args=(), device_types="cpu")
def _with_depth(
    heatmaps: Tensor, weight: Tensor, bias: Tensor, mode: str, beta: float, window: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _check_linear(heatmaps, weight, bias)
    return *_reference(heatmaps, mode, beta, window), _linear(heatmaps, weight, bias)


@_with_depth.register_kernel("cuda")
def _(
    heatmaps: Tensor, weight: Tensor, bias: Tensor, mode: str, beta: float, window: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    check_heatmaps(heatmaps, mode, beta, None if window < 0 else window)  # type: ignore[arg-type]
    _check_linear(heatmaps, weight, bias)
    if not _runs_kernel(heatmaps):
        return *_reference(heatmaps, mode, beta, window), _linear(heatmaps, weight, bias)
    maps = heatmaps.contiguous()
    weight, bias = weight.to(maps.dtype).contiguous(), bias.float().contiguous()
    results, depth = _empty_results(maps), _empty_depth(maps)
    scratch = maps.new_empty(kernels.depth_scratch_bytes(maps.shape[0]), dtype=torch.uint8)
    with torch.cuda.device(maps.device):
        kernels.launch_soft_argmax_depth(
            _describe(maps),
            kernels.Peak(mode, beta, window),
            weight.data_ptr(),
            bias.data_ptr(),
            _addresses(results),
            depth.data_ptr(),
            scratch.data_ptr(),
            _cuda_stream(maps),
        )
    return *results, depth


@_with_depth.register_fake
def _(
    heatmaps: Tensor, weight: Tensor, bias: Tensor, mode: str, beta: float, window: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return *_empty_results(heatmaps), _empty_depth(heatmaps)


def _linear(heatmaps: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    dtype = _accumulation_dtype(heatmaps)
    with torch.autocast(heatmaps.device.type, enabled=False):  # autocast would reduce the precision of the sums
        return F.linear(heatmaps.to(dtype).flatten(1), weight.to(heatmaps.dtype).to(dtype), bias.to(dtype))


def _accumulation_dtype(heatmaps: Tensor) -> torch.dtype:
    """The dtype of sums and results."""
    return torch.float64 if heatmaps.dtype == torch.float64 else torch.float32


def _empty_results(heatmaps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Uninitialized uv, confidence and status."""
    leading, dtype = heatmaps.shape[:-2], _accumulation_dtype(heatmaps)
    confidence = heatmaps.new_empty(leading, dtype=dtype)
    return heatmaps.new_empty((*leading, 2), dtype=dtype), confidence, heatmaps.new_empty(leading, dtype=torch.uint8)


def _empty_depth(heatmaps: Tensor) -> Tensor:
    return heatmaps.new_empty((heatmaps.shape[0], NUM_JOINTS), dtype=_accumulation_dtype(heatmaps))


@torch.library.custom_op("jointbert::soft_argmax_backward", mutates_args=(), device_types="cpu")
def _backward(
    heatmaps: Tensor, status: Tensor, to_uv: Tensor, to_confidence: Tensor, mode: str, beta: float, window: int
) -> Tensor:
    return _reference_gradient(heatmaps, to_uv, to_confidence, mode, beta, window)


@_backward.register_kernel("cuda")
def _(heatmaps: Tensor, status: Tensor, to_uv: Tensor, to_confidence: Tensor, mode: str, beta: float, window: int) -> Tensor:
    if not _runs_kernel(heatmaps):
        return _reference_gradient(heatmaps, to_uv, to_confidence, mode, beta, window)
    maps = heatmaps.contiguous(memory_format=_memory_format(heatmaps))
    gradient = torch.empty_like(maps, memory_format=_memory_format(heatmaps))
    given = [x.contiguous() for x in (status, to_uv.float(), to_confidence.float())]  # referenced until the launch is enqueued
    addresses = kernels.GradientAddresses(*(x.data_ptr() for x in (*given, gradient)))
    with torch.cuda.device(maps.device):
        kernels.launch_soft_argmax_backward(_describe(maps), kernels.Peak(mode, beta, window), addresses, _cuda_stream(maps))
    return gradient


def _reference_gradient(heatmaps: Tensor, to_uv: Tensor, to_confidence: Tensor, mode: str, beta: float, window: int) -> Tensor:
    # In closed form, since autograd does not differentiate inside an operator. For ``soft``, with the softmax p,
    # d uv / d heatmap = beta p (position - uv).
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
        for position, to in ((u, to_uv[..., :1]), (v, to_uv[..., 1:])):
            gradient += beta * p * to * (position - (p * position).sum(-1, keepdim=True))
    inside = (peak >= 0) & (peak <= 1)
    gradient.scatter_add_(-1, at, torch.where(inside, to_confidence.unsqueeze(-1), 0).to(maps.dtype))
    gradient = gradient.masked_fill(~peak.isfinite(), 0).view(heatmaps.shape).to(heatmaps.dtype)
    return gradient.contiguous(memory_format=_memory_format(heatmaps))


@_backward.register_fake
def _(heatmaps: Tensor, status: Tensor, to_uv: Tensor, to_confidence: Tensor, mode: str, beta: float, window: int) -> Tensor:
    return torch.empty_like(heatmaps, memory_format=_memory_format(heatmaps))


def _reference(heatmaps: Tensor, mode: str, beta: float, window: int) -> tuple[Tensor, Tensor, Tensor]:
    uv, confidence, status = reference(heatmaps, mode, beta, None if window < 0 else window)  # type: ignore[arg-type]
    return uv, confidence, status


def _runs_kernel(heatmaps: Tensor) -> bool:
    """Whether the kernels support these maps and this installation has them."""
    fits = _dtype_name(heatmaps) in kernels.ELEMENTS and heatmaps.ndim == 4 and heatmaps.shape[1] == NUM_JOINTS
    return fits and has_kernels()


def _dtype_name(heatmaps: Tensor) -> str:
    return str(heatmaps.dtype).removeprefix("torch.")


def _memory_format(heatmaps: Tensor) -> torch.memory_format:
    """The memory format of maps for the kernels, and of gradients: channels last if the maps are, otherwise contiguous."""
    last = heatmaps.ndim == 4 and heatmaps.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last and not heatmaps.is_contiguous() else torch.contiguous_format


@lru_cache(maxsize=1)
def has_kernels() -> bool:
    """Whether this installation has GPU kernels; warns once if not."""
    try:
        load_module()
    except ImportError as error:
        warnings.warn(f"{error}; torch's own operators do the work", JointbertWarning, stacklevel=2)
        return False
    return True


def _describe(maps: Tensor) -> kernels.Heatmaps:
    poses, _, height, width = maps.shape
    return kernels.Heatmaps(
        maps.data_ptr(), _dtype_name(maps), poses, height, width, maps.get_device(), channels_last=not maps.is_contiguous()
    )


def _addresses(results: tuple[Tensor, Tensor, Tensor]) -> kernels.KeypointAddresses:
    return kernels.KeypointAddresses(*(x.data_ptr() for x in results))


def _cuda_stream(maps: Tensor) -> int:
    """The current CUDA stream of the maps' GPU."""
    return torch.cuda.current_stream(maps.device).cuda_stream


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(inputs[0], output[2])
    ctx.options = inputs[1:]
    uv, _, status = output
    ctx.mark_non_differentiable(*((uv, status) if inputs[1] == "argmax" else (status,)))
    ctx.set_materialize_grads(True)


def _setup_with_depth(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    heatmaps, weight, bias, *options = inputs
    uv, _, status, _ = output
    ctx.save_for_backward(heatmaps, weight, bias, status)
    ctx.options = options
    ctx.mark_non_differentiable(*((uv, status) if options[0] == "argmax" else (status,)))
    ctx.set_materialize_grads(True)


def _gradient_with_depth(
    ctx: Any, to_uv: Tensor, to_confidence: Tensor, _: Tensor, to_depth: Tensor
) -> tuple[Tensor | None, ...]:
    heatmaps, weight, bias, status = ctx.saved_tensors
    to_heatmaps = to_weight = to_bias = None
    to = to_depth.to(heatmaps.dtype)
    if ctx.needs_input_grad[0]:
        operands = (heatmaps, status, to_uv, to_confidence)
        to_heatmaps = torch.ops.jointbert.soft_argmax_backward(*operands, *ctx.options)
        to_heatmaps = to_heatmaps + (to @ weight.to(to.dtype)).view(heatmaps.shape)
    if ctx.needs_input_grad[1]:
        to_weight = (to.T @ heatmaps.flatten(1)).to(weight.dtype)
    if ctx.needs_input_grad[2]:
        to_bias = to_depth.sum(0).to(bias.dtype)
    return to_heatmaps, to_weight, to_bias, None, None, None


def _gradient(ctx: Any, to_uv: Tensor, to_confidence: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    heatmaps, status = ctx.saved_tensors
    return torch.ops.jointbert.soft_argmax_backward(heatmaps, status, to_uv, to_confidence, *ctx.options), None, None, None


_forward.register_autograd(_gradient, setup_context=_setup)
_with_depth.register_autograd(_gradient_with_depth, setup_context=_setup_with_depth)
