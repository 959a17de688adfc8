"""Poses of any library's arrays on a GPU: checked by shape and type, refined where they lie, on their library's stream."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from jointbert.contract import Refinement, Result
from jointbert.contract.layout import NUM_JOINTS
from jointbert.cuda.arrays import NUMPY_TYPES, DeviceArray, Library, is_on_gpu, read
from jointbert.inputs.arguments import (
    UNITS_MM,
    check_confidence,
    check_device_joints,
    check_device_stated,
    check_error,
    check_hand,
    check_units,
    check_visible,
)
from jointbert.inputs.poses import RefineOptions
from jointbert.runtimes.cuda.poses import DeviceBatch, DeviceResult
from jointbert.skeletons import NYU14, Skeleton

_Check = Callable[[Any, tuple[int, ...]], np.ndarray]


class DeviceRunner(Protocol):
    """What of the backend is needed here."""

    def check_process(self) -> None: ...

    def run_on_device(self, batch: DeviceBatch, library: Library, leading: tuple[int, ...], checks: bool) -> DeviceResult: ...

    def to_host(self, array: DeviceArray, stream: int) -> np.ndarray: ...


def refine_arrays(backend: DeviceRunner, joints: Any, options: RefineOptions, skeleton: Skeleton = NYU14) -> Refinement:
    """Refines poses where they are; without ``options.check`` nothing waits for the GPU.

    Raises:
        ValueError, TypeError: as :func:`jointbert.refine`. RuntimeError: what CUDA says.
    """
    check_units(options.units)
    permutation = skeleton.resolve_order(options.order)
    backend.check_process()
    given, library = read(joints, "joints")
    check_device_joints(given.shape, given.dtype)
    leading = given.shape[:-2]
    count = math.prod(leading)
    mirror = check_hand(options.hand, leading)
    side: DeviceArray | bool = mirror is not None and bool(mirror.all())
    if mirror is not None and mirror.any() and not side:
        side = library.converted(mirror, (count,), "bool", "hand")
    stated = _Stated(backend, library, (*leading, NUM_JOINTS), options.check)
    batch = DeviceBatch(
        joints=replace(given, shape=(count, NUM_JOINTS, 3)),
        permutation=permutation,
        mm_per_unit=UNITS_MM[options.units],
        mirror=side,
        visible=stated.on_gpu(options.visible, "visible", "bool", check_visible),
        confidence=stated.on_gpu(options.confidence, "confidence", "float32", check_confidence),
        error_mm=float(check_error(options.error_mm, (NUM_JOINTS,))[0, 0])
        if np.isscalar(options.error_mm)
        else stated.on_gpu(options.error_mm, "error_mm", "float32", check_error),
    )
    result = backend.run_on_device(batch, library, leading, options.check)
    noticed = _noticed(backend, result, library) if options.check and count else None
    refined, sigma, status = (library.result(x) for x in (result.joints, result.sigma, result.status))
    return Refinement(refined, sigma, status, noticed, mirror)


class _Stated:
    """What is said of each joint, brought to the joints' GPU."""

    def __init__(self, backend: DeviceRunner, library: Library, per_joint: tuple[int, ...], check: bool) -> None:
        self.backend, self.library, self.per_joint, self.check = backend, library, per_joint, check

    def on_gpu(self, value: Any, name: str, dtype: str, checked: _Check) -> DeviceArray | None:
        """An argument as an array of ``dtype`` on the GPU; ``checked`` looks at its values where that waits for nothing, or
        where the call is to check."""
        if value is None:
            return None
        if not is_on_gpu(value):
            return self.library.converted(checked(value, self.per_joint).reshape(self.per_joint), self.per_joint, dtype, name)
        there, _ = read(value, name, self.library.stream)
        check_device_stated(name, there.shape, there.dtype, self.per_joint)
        array = self.library.converted(there, self.per_joint, dtype, name)
        if self.check:  # as it was given: rounding hides what is out of range
            source = there if there.dtype in NUMPY_TYPES else array
            checked(self.backend.to_host(source, self.library.stream), self.per_joint)
        return array


def _noticed(backend: DeviceRunner, result: DeviceResult, library: Library) -> Result:
    """What the checks look at, on the host; waits for the result."""
    assert result.size_mm is not None
    assert result.chirality is not None
    looked_at = (result.status, result.sigma, result.size_mm, result.chirality)
    status, sigma, size, chirality = (backend.to_host(x, library.stream) for x in looked_at)
    return Result(np.empty(0), sigma.reshape(-1, NUM_JOINTS), status.reshape(-1), size, chirality)
