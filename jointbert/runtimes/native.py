"""The refiner in C++ on the CPU (``csrc/cpu``), the default runtime of :func:`jointbert.refine`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from jointbert.contract import Batch, OnlineSequence, Result, Weights
from jointbert.contract.layout import BLOCKS

try:
    from jointbert import _core
except ImportError as error:
    raise ImportError(
        f"jointbert: the native module jointbert._core can't be loaded ({error}). In a checkout the sources hide an installed "
        "package: run from another folder, or pip install -e . there; elsewhere, install jointbert with this Python's pip"
    ) from error

_SIZES = {"heads": _core.HEADS, "width": _core.WIDTH, "ffn": _core.FFN, "features": _core.FEATURES, "outputs": _core.OUTPUTS}
_SEQUENCE_SIZES = {**_SIZES, "features": _core.SEQUENCE_FEATURES}


class NativeBackend:
    """Runs the refiner on the CPU, in float32; poses are encoded and decoded in float64.

    Args:
        weights: of any number of layers. The other sizes must be the thesis's, for which the kernels are compiled.
        threads: the largest number of threads for a batch; a few poses use one. The results are bit-equal for any number.
        isa: one of ``jointbert._core.supported_isas()``, or ``"auto"`` for the best of them.

    Raises:
        ValueError: weights of other sizes; a tensor that is missing, unknown, misshapen or not finite; an ``isa`` that this
            machine doesn't support; fewer than one thread.
    """

    name = "native"
    precision = "f32"

    def __init__(self, weights: Weights, threads: int = 1, isa: str = "auto") -> None:
        if threads < 1:
            raise ValueError(f"threads: got {threads}; expected at least 1")
        _check_sizes(weights, _SIZES)
        self._refiner = _core.Refiner(weights.tensors, isa)
        if weights.sizes["layers"] != self._refiner.layers:
            raise ValueError(
                f"weights: the metadata states {weights.sizes['layers']} layers, the tensors have {self._refiner.layers}"
            )
        self.isa = self.detail = self._refiner.isa
        self.threads = threads

    def run(self, batch: Batch) -> Result:
        """See :meth:`jointbert.contract.Backend.run`."""
        return Result(*self._refiner.run(*pose_arguments(batch), self.threads))

    def sequence(self, weights: Weights) -> NativeSequenceBackend:
        """See :meth:`jointbert.contract.SequentialBackend.sequence`."""
        return NativeSequenceBackend(self._refiner, weights, self.threads)


class NativeSequenceBackend:
    """Runs the second stage on the CPU.

    Raises:
        ValueError: as :class:`NativeBackend`.
    """

    def __init__(self, refiner: _core.Refiner, weights: Weights, threads: int = 1) -> None:
        _check_sizes(weights, _SEQUENCE_SIZES)
        self._refiner = _core.SequenceRefiner(refiner, weights.tensors)
        self.threads = threads

    def run(self, batch: Batch, lengths_mm: np.ndarray | None, alone: bool) -> Result:
        """See :meth:`jointbert.contract.SequenceBackend.run`."""
        look = 0 if alone else BLOCKS[-1][1]
        return Result(*self._refiner.run(*pose_arguments(batch), lengths_mm, look, look, alone, self.threads))

    def calibrate(self, batch: Batch) -> tuple[np.ndarray, np.ndarray, Result]:
        """See :meth:`jointbert.contract.SequenceBackend.calibrate`."""
        lengths, counts, status, size_mm, chirality = self._refiner.calibrate(*pose_arguments(batch), self.threads)
        sigma = np.full(batch.joints.shape[:2], np.nan, np.float32)
        return lengths, counts, Result(batch.joints, sigma, status, size_mm, chirality)

    def stream(
        self, permutation: np.ndarray, mm_per_unit: float, mirror: bool, lengths_mm: np.ndarray | None, look_ahead: int
    ) -> OnlineSequence:
        """See :meth:`jointbert.contract.SequenceBackend.stream`."""
        return self._refiner.stream(permutation, mm_per_unit, mirror, lengths_mm, look_ahead)


def run_by(network: Callable[[np.ndarray], np.ndarray], batch: Batch) -> Result:
    """:meth:`NativeBackend.run` with another runtime's ``network``, from ``(n, 14, 8)`` features to ``(n, 14, 4)`` outputs,
    float32."""
    return Result(*_core.run_by(network, *pose_arguments(batch)))


_Array = np.ndarray
_Arguments = tuple[_Array, _Array, float, _Array | None, _Array | None, _Array | None, _Array | None]


def pose_arguments(batch: Batch) -> _Arguments:
    """A batch as the leading arguments of the native module's functions."""
    return (
        batch.joints,
        batch.permutation,
        batch.mm_per_unit,
        batch.mirror,
        batch.visible,
        batch.confidence,
        batch.error_mm,
    )


def _check_sizes(weights: Weights, expected: dict[str, int]) -> None:
    for key, size in expected.items():
        if weights.sizes[key] != size:
            raise ValueError(f"weights: {key} is {weights.sizes[key]}; the native backend is compiled for {size}")
