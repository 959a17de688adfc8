"""The heatmap kernels of ``csrc/cuda/heatmaps`` on raw addresses: what the functions for arrays of any library and torch's
operators both launch. Shapes, dtypes and devices are the caller's to check."""

from __future__ import annotations

from typing import NamedTuple

from jointbert.contract.heatmap import MAX_HEATMAP
from jointbert.cuda.module import call, load_module

ELEMENTS = ("float32", "float16", "bfloat16")
"""Types of heatmap values that the kernels take."""


class Heatmaps(NamedTuple):
    """Maps on a GPU: ``(poses, 14, height, width)``, or with the joints last."""

    address: int
    dtype: str  # one of ELEMENTS
    poses: int
    height: int
    width: int
    device: int
    channels_last: bool = False

    @property
    def arguments(self) -> tuple[int, ...]:
        return self.address, load_module().ELEMENTS[self.dtype], self.poses, self.height, self.width


class Peak(NamedTuple):
    """How the peak of a map is found: see :func:`jointbert.models.heatmap.soft_argmax`."""

    mode: str
    beta: float
    window: int | None  # None or negative: the whole map

    @property
    def arguments(self) -> tuple[bool, float, int]:
        whole = self.window is None or self.window < 0
        return self.mode == "soft", float(self.beta), -1 if whole else min(self.window or 0, MAX_HEATMAP)


class KeypointAddresses(NamedTuple):
    """Where the results go: ``(poses, 14, 2)`` float32, ``(poses, 14)`` float32 and ``(poses, 14)`` uint8."""

    uv: int
    confidence: int
    status: int


def launch_soft_argmax(maps: Heatmaps, peak: Peak, out: KeypointAddresses, stream: int) -> None:
    """Enqueues the soft-argmax with confidence on a CUDA stream.

    Raises:
        RuntimeError: what CUDA says. ImportError: an installation without GPU kernels.
    """
    call(load_module().soft_argmax, *maps.arguments, maps.channels_last, *peak.arguments, *out, stream, maps.device)


def launch_soft_argmax_depth(
    maps: Heatmaps, peak: Peak, weight: int, bias: int, out: KeypointAddresses, depth: int, scratch: int, stream: int
) -> None:
    """The same with the linear depth head, in one launch; maps must be contiguous. ``scratch``: :func:`depth_scratch_bytes`.

    Raises:
        RuntimeError, ImportError: as :func:`launch_soft_argmax`.
    """
    addresses = (weight, bias, *out, depth, scratch)
    call(load_module().soft_argmax_depth, *maps.arguments, *peak.arguments, *addresses, stream, maps.device)


class GradientAddresses(NamedTuple):
    """The forward's status, the gradients of uv and confidence, float32, and where the maps' gradient goes."""

    status: int
    to_uv: int
    to_confidence: int
    gradient: int


def launch_soft_argmax_backward(maps: Heatmaps, peak: Peak, arrays: GradientAddresses, stream: int) -> None:
    """Enqueues the gradient of the maps, in their type and layout, from those of uv and confidence.

    Raises:
        RuntimeError, ImportError: as :func:`launch_soft_argmax`.
    """
    module = load_module()
    call(module.soft_argmax_backward, *maps.arguments, maps.channels_last, *peak.arguments, *arrays, stream, maps.device)


def depth_scratch_bytes(poses: int) -> int:
    """Bytes of device memory that the depth head needs for one launch."""
    return int(load_module().soft_argmax_depth_memory(poses))
