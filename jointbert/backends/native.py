"""The refiner on CPU in C++ (``csrc/cpu``): what :func:`jointbert.refine` uses without further ado."""

from __future__ import annotations

from jointbert.backends.base import Batch, Result
from jointbert.weights import Weights

try:
    from jointbert import _core
except ImportError as error:
    raise ImportError(
        f"jointbert: the native module jointbert._core can't be loaded ({error}). In a checkout the sources hide an installed "
        "package: run from another folder, or pip install -e . there; elsewhere, install jointbert with this Python's pip"
    ) from error

_SIZES = {"heads": _core.HEADS, "width": _core.WIDTH, "ffn": _core.FFN, "features": _core.FEATURES, "outputs": _core.OUTPUTS}


class NativeBackend:
    """Runs the refiner on the CPU, in float32; poses are encoded and decoded in float64.

    Args:
        weights: any number of layers; the other sizes are the thesis's, which the kernels are compiled for.
        threads: at most so many work on a batch; a few poses stay on one. The result is the same, bit for bit.
        isa: one of ``jointbert._core.supported_isas()``, or ``"auto"`` for the best of them.

    Raises:
        ValueError: weights of other sizes, a tensor missing, unknown, misshapen or not finite, an ``isa`` that this machine
            doesn't run, no threads.
    """

    name = "native"

    def __init__(self, weights: Weights, threads: int = 1, isa: str = "auto") -> None:
        if threads < 1:
            raise ValueError(f"threads: got {threads}; expected at least 1")
        for key, expected in _SIZES.items():
            if weights.sizes[key] != expected:
                raise ValueError(f"weights: {key} is {weights.sizes[key]}; the native backend is compiled for {expected}")
        self._refiner = _core.Refiner(weights.tensors, isa)
        if weights.sizes["layers"] != self._refiner.layers:
            raise ValueError(f"weights: {weights.sizes['layers']} layers are stated, {self._refiner.layers} are there")
        self.isa = self._refiner.isa
        self.threads = threads

    def run(self, batch: Batch) -> Result:
        return Result(
            *self._refiner.run(
                batch.joints,
                batch.permutation,
                batch.mm_per_unit,
                batch.mirror,
                batch.visible,
                batch.confidence,
                batch.error_mm,
                self.threads,
            )
        )
