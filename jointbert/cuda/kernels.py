"""Launches the heatmap kernels of ``csrc/cuda/heatmaps`` on raw device addresses.

:mod:`jointbert.cuda.heatmaps` and the torch operators of :mod:`jointbert.models.operators` both call these functions. The
caller checks shapes, dtypes and devices.
"""

from __future__ import annotations

from typing import NamedTuple

from jointbert.contract.heatmap import MAX_HEATMAP
from jointbert.cuda.module import call, load_module

ELEMENTS = ("float32", "float16", "bfloat16")
"""Types of heatmap values that the kernels take."""


class Heatmaps(NamedTuple):
    """Heatmaps on a GPU: ``(poses, 14, height, width)``, or ``(poses, height, width, 14)`` if ``channels_last``."""

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
    """How the peak of a heatmap is found: the options of :func:`jointbert.models.heatmap.soft_argmax`."""

    mode: str
    beta: float
    window: int | None  # None or negative: the whole map

    @property
    def arguments(self) -> tuple[bool, float, int]:
        """The native functions' arguments: whether the mode is ``soft``, beta, the window (-1: the whole map)."""
        whole = self.window is None or self.window < 0
        return self.mode == "soft", float(self.beta), -1 if whole else min(self.window or 0, MAX_HEATMAP)


class KeypointAddresses(NamedTuple):
    """Addresses of the results: ``(poses, 14, 2)`` float32, ``(poses, 14)`` float32 and ``(poses, 14)`` uint8, in this
    order."""

    uv: int
    confidence: int
    status: int


def launch_soft_argmax(maps: Heatmaps, peak: Peak, out: KeypointAddresses, cuda_stream: int) -> None:
    """Enqueues the soft-argmax with confidence on a CUDA cuda_stream.

    Raises:
        RuntimeError: a CUDA error. ImportError: an installation without GPU kernels.
    """
    call(load_module().soft_argmax, *maps.arguments, maps.channels_last, *peak.arguments, *out, cuda_stream, maps.device)


def launch_soft_argmax_depth(
    maps: Heatmaps, peak: Peak, weight: int, bias: int, out: KeypointAddresses, depth: int, scratch: int, cuda_stream: int
) -> None:
    """Enqueues the soft-argmax and the linear depth head as one launch.

    The maps must be contiguous. ``scratch`` is the address of :func:`depth_scratch_bytes` bytes.

    Raises:
        RuntimeError, ImportError: as :func:`launch_soft_argmax`.
    """
    addresses = (weight, bias, *out, depth, scratch)
    call(load_module().soft_argmax_depth, *maps.arguments, *peak.arguments, *addresses, cuda_stream, maps.device)


class GradientAddresses(NamedTuple):
    """Addresses for the backward pass: the forward pass's status, the float32 gradients of uv and confidence, and the
    result."""

    status: int
    to_uv: int
    to_confidence: int
    gradient: int


def launch_soft_argmax_backward(maps: Heatmaps, peak: Peak, arrays: GradientAddresses, cuda_stream: int) -> None:
    """Enqueues the backward pass: the maps' gradient, in their type and layout, from the gradients of uv and confidence.

    Raises:
        RuntimeError, ImportError: as :func:`launch_soft_argmax`.
    """
    module = load_module()
    call(module.soft_argmax_backward, *maps.arguments, maps.channels_last, *peak.arguments, *arrays, cuda_stream, maps.device)


def depth_scratch_bytes(poses: int) -> int:
    """Bytes of device memory that the depth head needs for one launch."""
    return int(load_module().soft_argmax_depth_memory(poses))
