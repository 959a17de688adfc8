"""A batch of poses on a GPU, and the kernels' result."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jointbert.cuda.arrays import DeviceArray


@dataclass(frozen=True)
class DeviceBatch:
    """Poses on a GPU, with the fields of :class:`jointbert.contract.Batch`."""

    joints: DeviceArray  # (N, 14, 3)
    permutation: np.ndarray
    mm_per_unit: float
    mirror: DeviceArray | bool  # (N,) bool, or one value for all poses
    visible: DeviceArray | None  # (N, 14) bool
    confidence: DeviceArray | None  # (N, 14) float32; outside [0, 1]: unknown
    error_mm: DeviceArray | float | None  # (N, 14) float32, or one value for all joints; not positive: unknown


@dataclass(frozen=True)
class DeviceResult:
    """:class:`jointbert.contract.Result` on a GPU; the last two fields only if they were asked for."""

    joints: DeviceArray
    sigma: DeviceArray
    status: DeviceArray
    size_mm: DeviceArray | None
    chirality: DeviceArray | None
