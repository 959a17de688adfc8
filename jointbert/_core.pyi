"""The refiner on CPU, in C++ (``csrc/bindings/cpu.cpp``)."""

import numpy as np
from numpy.typing import NDArray

class Refiner:
    """A refiner's weights, packed for one instruction set. Nothing changes after construction: threads may share one.

    Args:
        weights: the state dict of ``jointbert.models.refiner.JointRefiner``; float32, any number of layers, copied.
        isa: one of :func:`supported_isas`, or ``"auto"`` for the best of them.

    Raises:
        ValueError: a tensor that is missing, unknown, of another shape or dtype, or not finite (the message names it); an
            ``isa`` that this machine doesn't run.
        TypeError: a name that is no str, a value that is no array.
    """

    def __init__(self, weights: dict[str, np.ndarray], isa: str = "auto") -> None: ...
    def run(
        self,
        joints: np.ndarray,
        permutation: np.ndarray,
        mm_per_unit: float,
        mirror: np.ndarray | None,
        visible: np.ndarray | None,
        confidence: np.ndarray | None,
        error_mm: np.ndarray | None,
        threads: int,
    ) -> tuple[np.ndarray, NDArray[np.float32], NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]:
        """Refines poses as the user gave them. The interpreter's lock is released meanwhile.

        Args:
            joints: ``(N, 14, 3)`` float32 or float64, in the user's order and unit; a non-finite joint is missing.
            permutation: ``(14,)`` int32: where each canonical joint stands in the user's order.
            mm_per_unit: millimetres in the user's unit.
            mirror: ``(N,)`` bool, left hands; None: none.
            visible: ``(N, 14)`` bool, user's order; None: all.
            confidence: ``(N, 14)`` float32, user's order; NaN or None: unknown.
            error_mm: ``(N, 14)`` float32 in millimetres, user's order; NaN or None: unknown.
            threads: at most so many work on the batch; the result does not depend on it.

        Returns:
            The fields of ``jointbert.backends.base.Result``: refined joints ``(N, 14, 3)`` in the dtype, order and unit of
            ``joints``; their expected Euclidean error ``(N, 14)`` in the user's unit; status ``(N,)``; size ``(N,)`` and
            chirality ``(N,)`` in millimetres. A frame that is not refined comes back bit for bit.

        Raises:
            TypeError: something that is no array, or of another dtype.
            ValueError: another shape, a permutation that isn't one, ``mm_per_unit`` or ``threads`` that aren't positive.
        """

    def forward(self, features: np.ndarray, threads: int = 1) -> NDArray[np.float32]:
        """The network alone: ``(N, 14, 8)`` float32 features to ``(N, 14, 4)`` outputs (``jointbert.backends.layout``).

        Raises:
            TypeError, ValueError: as :meth:`run`.
        """

    @property
    def isa(self) -> str:
        """The instruction set in use."""

    @property
    def layers(self) -> int:
        """The number of layers of the weights."""

def supported_isas() -> list[str]:
    """Instruction sets with a kernel that this machine runs, best first: of "avx512", "avx2", "portable"."""

# The C++ copies of jointbert.skeleton, jointbert.models.refiner.RefinerConfig, jointbert.backends.layout and .base.Status
NUM_JOINTS: int
HEADS: int
WIDTH: int
FFN: int
FEATURES: int
OUTPUTS: int
SCALE_MM: float
ERROR_UNIT_MM: float
ERROR_RANGE_MM: tuple[float, float]
LOG_SIGMA_RANGE: tuple[float, float]
MIN_JOINTS: int
HAND_SIZE_MM: tuple[float, float]
STATUS_REFINED: int
STATUS_TOO_FEW_JOINTS: int
STATUS_NOT_A_HAND: int
