"""Refines GPU arrays of any library: checks them and runs the backend on their GPU, on their library's CUDA stream."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from jointbert.contract import Refinement, RefineOptions, Result
from jointbert.contract.layout import NUM_JOINTS
from jointbert.cuda.arrays import NUMPY_TYPES, DeviceArray, Library, is_on_gpu, read
from jointbert.inputs.arguments import (
    UNITS_MM,
    check_confidence,
    check_device_joints,
    check_device_per_joint,
    check_error,
    check_hand,
    check_units,
    check_visible,
)
from jointbert.runtimes.cuda.poses import DeviceBatch, DeviceResult
from jointbert.skeletons import NYU14

_Check = Callable[[Any, tuple[int, ...]], np.ndarray]


class DeviceRunner(Protocol):
    """The methods of the backend that this module calls."""

    def check_process(self) -> None:
        """See :meth:`CudaBackend.check_process`."""

    def run_on_device(self, batch: DeviceBatch, library: Library, leading: tuple[int, ...], checks: bool) -> DeviceResult:
        """See :meth:`CudaBackend.run_on_device`."""

    def to_host(self, array: DeviceArray, cuda_stream: int) -> np.ndarray:
        """See :meth:`CudaBackend.to_host`."""


def refine_arrays(backend: DeviceRunner, joints: Any, options: RefineOptions) -> Refinement:
    """Refines poses on their GPU. Without ``options.check`` the call does not wait for the result.

    Raises:
        ValueError, TypeError: as :func:`jointbert.refine`. RuntimeError: a CUDA error.
    """
    check_units(options.units)
    permutation = NYU14.resolve_order(options.order)
    backend.check_process()
    given, library = read(joints, "joints")
    check_device_joints(given.shape, given.dtype)
    leading = given.shape[:-2]
    count = math.prod(leading)
    mirror = check_hand(options.hand, leading)
    mirrored: DeviceArray | bool = mirror is not None and bool(mirror.all())
    if mirror is not None and mirror.any() and not mirrored:
        mirrored = library.converted(mirror, (count,), "bool", "hand")
    per_joint = _PerJointArguments(backend, library, (*leading, NUM_JOINTS), options.check)
    batch = DeviceBatch(
        joints=replace(given, shape=(count, NUM_JOINTS, 3)),
        permutation=permutation,
        mm_per_unit=UNITS_MM[options.units],
        mirror=mirrored,
        visible=per_joint.on_gpu(options.visible, "visible", "bool", check_visible),
        confidence=per_joint.on_gpu(options.confidence, "confidence", "float32", check_confidence),
        error_mm=float(check_error(options.error_mm, (NUM_JOINTS,))[0, 0])
        if np.isscalar(options.error_mm)
        else per_joint.on_gpu(options.error_mm, "error_mm", "float32", check_error),
    )
    result = backend.run_on_device(batch, library, leading, options.check)
    diagnostics = _diagnostics(backend, result, library) if options.check and count else None
    refined, sigma, status = (library.result(x) for x in (result.joints, result.sigma, result.status))
    return Refinement(refined, sigma, status, diagnostics, mirror)


class _PerJointArguments:
    """Brings the arguments for each joint (visible, confidence, error_mm) to the joints' GPU."""

    def __init__(self, backend: DeviceRunner, library: Library, shape: tuple[int, ...], check: bool) -> None:
        self.backend, self.library, self.shape, self.check = backend, library, shape, check

    def on_gpu(self, value: Any, name: str, dtype: str, check_values: _Check) -> DeviceArray | None:
        """An argument as an array of ``dtype`` on the GPU.

        ``check_values`` checks arguments in the host's memory always, and arguments on a GPU only if the call asked for checks,
        because that waits for the GPU.
        """
        if value is None:
            return None
        if not is_on_gpu(value):
            return self.library.converted(check_values(value, self.shape).reshape(self.shape), self.shape, dtype, name)
        given, _ = read(value, name, self.library.cuda_stream)
        check_device_per_joint(name, given.shape, given.dtype, self.shape)
        array = self.library.converted(given, self.shape, dtype, name)
        if self.check:  # in the given dtype, because rounding may hide values out of range
            source = given if given.dtype in NUMPY_TYPES else array
            check_values(self.backend.to_host(source, self.library.cuda_stream), self.shape)
        return array


def _diagnostics(backend: DeviceRunner, result: DeviceResult, library: Library) -> Result:
    """The parts of the result that the checks need, on the host; waits for the GPU."""
    assert result.size_mm is not None
    assert result.chirality is not None
    arrays = (result.status, result.sigma, result.size_mm, result.chirality)
    status, sigma, size, chirality = (backend.to_host(x, library.cuda_stream) for x in arrays)
    return Result(np.empty(0), sigma.reshape(-1, NUM_JOINTS), status.reshape(-1), size, chirality)
