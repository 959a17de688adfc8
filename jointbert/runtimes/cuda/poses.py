"""Poses on a GPU, and what the kernels make of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jointbert.cuda.arrays import DeviceArray


@dataclass(frozen=True)
class DeviceBatch:
    """Poses on a GPU: :class:`jointbert.contract.Batch` there."""

    joints: DeviceArray  # (N, 14, 3)
    permutation: np.ndarray
    mm_per_unit: float
    mirror: DeviceArray | bool  # (N,) bool, or all or none
    visible: DeviceArray | None  # (N, 14) bool
    confidence: DeviceArray | None  # (N, 14) float32; outside [0, 1]: unknown
    error_mm: DeviceArray | float | None  # (N, 14) float32, or for all; not positive: unknown


@dataclass(frozen=True)
class DeviceResult:
    """:class:`jointbert.contract.Result` on a GPU; the last two where they were asked for."""

    joints: DeviceArray
    sigma: DeviceArray
    status: DeviceArray
    size_mm: DeviceArray | None
    chirality: DeviceArray | None
