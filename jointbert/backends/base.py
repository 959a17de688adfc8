"""What a runtime must do: one small protocol behind :func:`jointbert.refine`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Protocol

import numpy as np

from jointbert.weights import Weights


class Status(IntEnum):
    """What became of a frame."""

    REFINED = 0
    TOO_FEW_JOINTS = 1
    """Fewer than four joints are there: the frame came back as it was."""
    NOT_A_HAND = 2
    """Too small or too large to be a hand in the stated unit: the frame came back as it was."""


@dataclass(frozen=True)
class Batch:
    """Poses as the user gave them. Order, unit, hand side, centring and masking are the backend's work."""

    joints: np.ndarray  # (N, 14, 3) float32 or float64, C-contiguous, in the user's order and unit
    permutation: np.ndarray  # (14,) int32: where each canonical joint stands in the user's order
    mm_per_unit: float
    mirror: np.ndarray | None  # (N,) bool: left hands; x is negated on the way in and out
    visible: np.ndarray | None  # (N, 14) bool, user's order; False: missing
    confidence: np.ndarray | None  # (N, 14) float32, user's order; NaN: unknown
    error_mm: np.ndarray | None  # (N, 14) float32, user's order; NaN: unknown


@dataclass(frozen=True)
class Result:
    """Refined poses in the user's order and unit, and what the backend noticed about each frame."""

    joints: np.ndarray  # (N, 14, 3), dtype of the input
    sigma: np.ndarray  # (N, 14) float32: expected Euclidean error, user's unit; NaN where the frame was not refined
    status: np.ndarray  # (N,) uint8: Status
    size_mm: np.ndarray  # (N,) float32: root mean square distance of the observed joints from their mean; NaN: none
    chirality: (
        np.ndarray
    )  # (N,) float32: see `jointbert.backends.torch.chirality`; negative for a right hand, NaN: can't be told


class Backend(Protocol):
    """A runtime of the refiner. ``run`` gives the same result for a pose alone or in a batch; it never modifies its input."""

    name: str

    def run(self, batch: Batch) -> Result: ...

    def sequence(self, weights: Weights) -> SequenceBackend:
        """The second stage of these weights behind this refiner."""


class SequenceStream(Protocol):
    """One online sequence."""

    def push(
        self, joints: np.ndarray, visible: np.ndarray | None, confidence: np.ndarray | None, error_mm: np.ndarray | None
    ) -> tuple[Any, ...] | None:
        """Takes ``(14, 3)`` and optional ``(14,)`` arrays as in :class:`Batch`; gives the fields of :class:`Result` for one
        frame, or None as long as it has to wait."""

    def flush(self) -> list[tuple[Any, ...]]:
        """The frames that wait; then the stream is as new."""

    def reset(self) -> None: ...


class SequenceBackend(Protocol):
    """The second stage of a runtime: sequences, streams, calibrated persons. ``lengths_mm``: ``(9,)`` float64 lengths of
    :data:`jointbert.skeleton.RIGID_BONES`, NaN where unknown; None: no person is known."""

    def run(self, batch: Batch, lengths_mm: np.ndarray | None, alone: bool) -> Result:
        """Refines one sequence, or frames that each stand ``alone``."""

    def calibrate(self, batch: Batch) -> tuple[np.ndarray, np.ndarray, Result]:
        """``(9,)`` median lengths over the frames, the ``(9,)`` numbers of frames that tell, and what was noticed."""

    def stream(
        self, permutation: np.ndarray, mm_per_unit: float, mirror: bool, lengths_mm: np.ndarray | None, look_ahead: int
    ) -> SequenceStream: ...
