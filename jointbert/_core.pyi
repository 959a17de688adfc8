"""The refiners on CPU, in C++ (``csrc/bindings/cpu.cpp``)."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

class Refiner:
    """A refiner's weights, packed for one instruction set. Constant after construction: threads may share one.

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
            confidence: ``(N, 14)`` float32, user's order; None, NaN and what lies outside [0, 1]: unknown.
            error_mm: ``(N, 14)`` float32 in millimetres, user's order; NaN or None: unknown.
            threads: at most so many work on the batch; the result does not depend on it.

        Returns:
            The fields of ``jointbert.contract.Result``: refined joints ``(N, 14, 3)`` in the dtype, order and unit of
            ``joints``; their expected Euclidean error ``(N, 14)`` in the user's unit; status ``(N,)``; size ``(N,)`` and
            chirality ``(N,)`` in millimetres. A frame that is not refined comes back bit for bit.

        Raises:
            TypeError: something that is no array, or of another dtype.
            ValueError: another shape, a permutation that isn't one, ``mm_per_unit`` or ``threads`` that aren't positive.
        """

    def forward(self, features: np.ndarray, threads: int = 1) -> NDArray[np.float32]:
        """The network alone: ``(N, 14, 8)`` float32 features to ``(N, 14, 4)`` outputs (``jointbert.contract.layout``).

        Raises:
            TypeError, ValueError: as :meth:`run`.
        """

    @property
    def isa(self) -> str:
        """The instruction set in use."""

    @property
    def layers(self) -> int:
        """The number of layers of the weights."""

class SequenceRefiner:
    """The second stage on top of a refiner: for sequences, streams and persons whose bone lengths are known.

    It runs on the refiner's instruction set and keeps it alive. Constant after construction: threads may share one.

    Args:
        refiner: the first stage.
        weights: the state dict of ``jointbert.models.sequence.SequenceRefiner``; float32, any number of layers, copied.

    Raises:
        TypeError, ValueError: as :class:`Refiner`.
    """

    def __init__(self, refiner: Refiner, weights: dict[str, np.ndarray]) -> None: ...
    def run(
        self,
        joints: np.ndarray,
        permutation: np.ndarray,
        mm_per_unit: float,
        mirror: np.ndarray | None,
        visible: np.ndarray | None,
        confidence: np.ndarray | None,
        error_mm: np.ndarray | None,
        lengths_mm: np.ndarray | None,
        look_behind: int,
        look_ahead: int,
        alone: bool,
        threads: int,
    ) -> tuple[np.ndarray, NDArray[np.float32], NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]:
        """Refines the consecutive frames of one sequence, or frames that stand alone.

        What it takes beyond :meth:`Refiner.run`'s arguments:

        Args:
            joints: ``(T, 14, 3)``, frame by frame. A cut (``CUT_MM``) divides the sequence: no frame looks beyond one. Bone
                lengths and roughness of a frame are those of all frames between two cuts.
            lengths_mm: ``(9,)`` float64, the person's lengths of ``RIGID_BONES`` in millimetres, for all frames; where NaN,
                and with None, they are measured in the frames.
            look_behind, look_ahead: 0 to ``REACH`` frames before and after a frame that it may look at.
            alone: the frames are no sequence. Each is refined for itself, with the given lengths alone; ``look_behind`` and
                ``look_ahead`` must be 0.
            threads: at most so many work on it; the result does not depend on it.

        Returns:
            As :meth:`Refiner.run`. A frame that is not refined comes back bit for bit, and is to the others as if it were
            missing. Some 8 KB of memory a frame are needed meanwhile.

        Raises:
            TypeError, ValueError: as :meth:`Refiner.run`; lengths that are not positive, ``look_behind`` or ``look_ahead``
                out of range, or not 0 with ``alone``.
        """

    def calibrate(
        self,
        joints: np.ndarray,
        permutation: np.ndarray,
        mm_per_unit: float,
        mirror: np.ndarray | None,
        visible: np.ndarray | None,
        confidence: np.ndarray | None,
        error_mm: np.ndarray | None,
        threads: int,
    ) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]:
        """Measures a person's bones in frames of any order. Arguments and errors are those of :meth:`Refiner.run`.

        Returns:
            ``(9,)`` median lengths of ``RIGID_BONES`` after the first stage, in millimetres, of an even number the lower
            median, NaN where fewer than ``KNOWN_FRAMES`` frames measured one; ``(9,)`` counts of the frames that
            measured each, refined ones with both ends observed; and status, size and chirality ``(N,)`` of the frames, as
            :meth:`Refiner.run`.
        """

    def stream(
        self,
        permutation: np.ndarray,
        mm_per_unit: float,
        mirror: bool,
        lengths_mm: np.ndarray | None,
        look_ahead: int,
    ) -> OnlineSequence:
        """Online refinement of a sequence, frame by frame. Arguments and errors are those of :meth:`run`; ``mirror`` holds
        for all frames."""

    def forward(self, hidden: np.ndarray, features: np.ndarray, threads: int = 1) -> NDArray[np.float32]:
        """The second network alone: hidden states ``(N, 14, 128)`` and features ``(N, 14, 63)``, both float32, to outputs
        ``(N, 14, 4)`` (``jointbert.models.sequence``).

        Raises:
            TypeError, ValueError: as :meth:`run`.
        """

    @property
    def isa(self) -> str:
        """The instruction set in use: the first stage's."""

    @property
    def layers(self) -> int:
        """The number of layers of the second stage."""

class OnlineSequence:
    """Online refinement of one sequence: see :meth:`SequenceRefiner.stream`.

    A frame is refined from up to ``REACH`` frames before it, ``look_ahead`` frames after it, and the bone lengths and
    roughness of those of the last ``HISTORY_FRAMES`` frames that no cut divides from it. Memory does not grow. A mutex
    serialises calls from several threads; the interpreter's lock is released meanwhile.
    """

    def push(
        self,
        joints: np.ndarray,
        visible: np.ndarray | None = None,
        confidence: np.ndarray | None = None,
        error_mm: np.ndarray | None = None,
    ) -> tuple[np.ndarray, NDArray[np.float32], int, float, float] | None:
        """Takes the next frame. Returns the refined frame ``look_ahead`` frames before it, or None if there is none.

        Args:
            joints: ``(14, 3)`` float32 or float64, in the sequence's order and unit; a non-finite joint is missing.
            visible: ``(14,)`` bool; None: all.
            confidence, error_mm: ``(14,)`` float32; NaN or None: unknown.

        Returns:
            Of one frame, the fields of :meth:`Refiner.run`'s result: joints ``(14, 3)`` in the dtype in which that frame
            came, sigma ``(14,)``, status, size and chirality. A frame that is not refined comes back bit for bit.

        Raises:
            TypeError, ValueError: an argument of another type, dtype or shape. The sequence stays as it was.
        """

    def flush(self) -> list[tuple[np.ndarray, NDArray[np.float32], int, float, float]]:
        """Ends the sequence: returns the frames that :meth:`push` has not returned, the last ``look_ahead``. The
        object is then as new, with the same options."""

    def reset(self) -> None:
        """Forgets everything but the options."""

    @property
    def bone_lengths_mm(self) -> NDArray[np.float64]:
        """``(9,)`` lengths of ``RIGID_BONES`` of the person in the last frame, in millimetres: those that were given, else
        those measured so far. NaN: not known yet."""

def run_by(
    network: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    joints: np.ndarray,
    permutation: np.ndarray,
    mm_per_unit: float,
    mirror: np.ndarray | None,
    visible: np.ndarray | None,
    confidence: np.ndarray | None,
    error_mm: np.ndarray | None,
) -> tuple[np.ndarray, NDArray[np.float32], NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]:
    """:meth:`Refiner.run` with another runtime's network: ``(n, 14, 8)`` features to ``(n, 14, 4)`` outputs, float32."""

def supported_isas() -> list[str]:
    """Instruction sets with a kernel that this machine runs, best first: of "avx512", "avx2", "portable"."""

# The C++ values of the layouts, of RefinerConfig, of the sequence model and of Status; tests compare them with Python's.
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
SEQUENCE_FEATURES: int
BLOCKS: tuple[tuple[int, int], ...]
REACH: int
RIGID_BONES: tuple[tuple[int, int], ...]
STEP_UNIT_MM: float
CUT_MM: float
KNOWN_FRAMES: int
HISTORY_FRAMES: int
ROUGHNESS_FLOOR_MM: float
STATUS_REFINED: int
STATUS_TOO_FEW_JOINTS: int
STATUS_NOT_A_HAND: int
