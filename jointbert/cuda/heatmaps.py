"""Keypoints from heatmaps on a GPU, in one launch, for arrays of any library (``csrc/cuda/heatmaps``).

:mod:`jointbert.models.operators` has the same functions as torch operators with gradients, for training. Pixel coordinates are
those of :mod:`jointbert.models.heatmap`: ``u`` runs along a heatmap's width, and integers are pixels' centres.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

from jointbert.contract.heatmap import check_soft_argmax
from jointbert.contract.layout import NUM_JOINTS
from jointbert.cuda import kernels
from jointbert.cuda.arrays import DeviceArray, Library, is_on_gpu, read
from jointbert.cuda.module import load_module


class DeviceKeypoints(NamedTuple):
    """Each joint's keypoint, as arrays of the heatmaps' library."""

    uv: Any  # [..., 14, 2] float32: heatmap pixels; NaN where the map is not valid
    confidence: Any  # [..., 14] float32: the map's raw peak, clamped to [0, 1]; 0 where the map is not valid
    status: Any  # [..., 14] uint8: 0 found; 1 a value is NaN or +inf, or all are -inf


class DeviceKeypointsWithDepth(NamedTuple):
    """:class:`DeviceKeypoints` and each joint's depth offset."""

    uv: Any
    confidence: Any
    status: Any
    depth: Any  # [..., 14] float32: in the unit that the layer was trained in


def soft_argmax(
    heatmaps: Any, mode: Literal["argmax", "soft"] = "soft", beta: float = 100.0, window: int | None = None
) -> DeviceKeypoints:
    """Positions and confidences of the heatmaps' peaks: :func:`jointbert.models.heatmap.soft_argmax` on a GPU.

    The work is enqueued on the current CUDA stream of torch or CuPy. For other libraries it is the stream that
    ``__cuda_array_interface__`` names, or the legacy stream. The call does not wait for the result; for libraries other than
    torch and CuPy, it allocates and frees GPU memory itself, which may wait.

    Args:
        heatmaps: ``(..., 14, H, W)`` on a GPU (torch, CuPy, DLPack, ``__cuda_array_interface__``), float32, float16 or
            bfloat16, C order, up to 128 x 128.
        mode: ``argmax``: the highest pixel, the lowest index among equals; ``soft``: the mean position under the softmax.
        beta: the softmax's inverse temperature, per unit of the heatmaps.
        window: soft mode: only pixels within this distance of the peak along either axis count; ``None``: all do.

    Raises:
        ValueError: a shape, mode, beta or window out of range. TypeError: no array on a GPU, another dtype. ImportError: an
            installation without GPU kernels. RuntimeError: a CUDA error.
    """
    maps, library, leading = _read_heatmaps(heatmaps, mode, beta, window)
    out = _empty_keypoints(library, leading)
    try:
        addresses = kernels.KeypointAddresses(*(x.address for x in out))
        kernels.launch_soft_argmax(_describe(maps), kernels.Peak(mode, beta, window), addresses, library.cuda_stream)
    finally:
        library.enqueued()
    return DeviceKeypoints(*(library.result(x) for x in out))


def soft_argmax_depth(
    heatmaps: Any,
    weight: Any,
    bias: Any,
    mode: Literal["argmax", "soft"] = "soft",
    beta: float = 100.0,
    window: int | None = None,
) -> DeviceKeypointsWithDepth:
    """:func:`soft_argmax` and, in the same launch, a linear layer from all heatmaps of a pose to each joint's depth offset.

    The layer is that of the thesis, section 4.2.2. Sums are float32, and their order does not depend on the batch size.

    Args:
        weight: ``(14, 14 * H * W)``, of the heatmaps' dtype. bias: ``(14,)`` float32. Both on the heatmaps' GPU. For torch and
            CuPy, other dtypes and devices are converted.

    Raises:
        ValueError, TypeError, ImportError, RuntimeError: as :func:`soft_argmax`.
    """
    maps, library, leading = _read_heatmaps(heatmaps, mode, beta, window)
    inputs = math.prod(maps.shape[-3:])
    head: list[DeviceArray] = []
    for name, value, shape, dtype in (
        ("weight", weight, (NUM_JOINTS, inputs), maps.dtype),
        ("bias", bias, (NUM_JOINTS,), "float32"),
    ):
        given = _read_gpu_array(value, name, library.cuda_stream)[0]
        if given.shape != shape:
            raise ValueError(f"{name}: got the shape {given.shape}; expected {shape} for heatmaps {maps.shape}")
        head.append(library.converted(given, shape, dtype, name))
    out = _empty_keypoints(library, leading)
    depth = library.empty((*leading, NUM_JOINTS), "float32")
    scratch = library.empty((kernels.depth_scratch_bytes(math.prod(leading)),), "uint8")
    try:
        kernels.launch_soft_argmax_depth(
            _describe(maps),
            kernels.Peak(mode, beta, window),
            head[0].address,
            head[1].address,
            kernels.KeypointAddresses(*(x.address for x in out)),
            depth.address,
            scratch.address,
            library.cuda_stream,
        )
    finally:
        library.enqueued()
    return DeviceKeypointsWithDepth(*(library.result(x) for x in (*out, depth)))


def _read_gpu_array(value: Any, name: str, cuda_stream: int | None = None) -> tuple[DeviceArray, Library]:
    if not is_on_gpu(value):
        raise TypeError(f"{name}: got {type(value).__name__}; expected an array on a GPU")
    return read(value, name, cuda_stream)


def _read_heatmaps(heatmaps: Any, mode: str, beta: float, window: int | None) -> tuple[DeviceArray, Library, tuple[int, ...]]:
    load_module()  # raises ImportError without GPU kernels
    maps, library = _read_gpu_array(heatmaps, "heatmaps")
    if maps.dtype not in kernels.ELEMENTS:
        raise TypeError(f"heatmaps: got the dtype {maps.dtype}; expected one of {', '.join(kernels.ELEMENTS)}")
    if len(maps.shape) < 3 or maps.shape[-3] != NUM_JOINTS:
        raise ValueError(f"heatmaps: got the shape {maps.shape}; expected (..., {NUM_JOINTS}, H, W)")
    check_soft_argmax(maps.shape, mode, beta, window)
    return maps, library, maps.shape[:-3]


def _empty_keypoints(library: Library, leading: tuple[int, ...]) -> tuple[DeviceArray, DeviceArray, DeviceArray]:
    joints = (*leading, NUM_JOINTS)
    return library.empty((*joints, 2), "float32"), library.empty(joints, "float32"), library.empty(joints, "uint8")


def _describe(maps: DeviceArray) -> kernels.Heatmaps:
    height, width = maps.shape[-2:]
    return kernels.Heatmaps(maps.address, maps.dtype, math.prod(maps.shape[:-3]), height, width, maps.device)
