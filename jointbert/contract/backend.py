"""Poses in, refined poses out: the types that a backend takes and gives, and what it must be able to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np


class JointbertWarning(UserWarning):
    """Something about the input looks wrong; the result is given all the same."""


class Status(IntEnum):
    """What became of a frame."""

    REFINED = 0
    TOO_FEW_JOINTS = 1
    """Fewer than four joints are there: the frame came back as it was."""
    NOT_A_HAND = 2
    """Too small or too large to be a hand in the stated unit: the frame came back as it was."""


@dataclass(frozen=True)
class Weights:
    """A refiner's weights, or its second stage's: tensors by name (float32), sizes, the file and its metadata."""

    name: str
    tensors: dict[str, np.ndarray]
    sizes: dict[str, int]
    metadata: dict[str, str]
    path: Path = Path()

    @property
    def predicts_sigma(self) -> bool:
        """Whether these weights were trained to predict sigma; otherwise, as with the thesis's L2 loss, it means nothing."""
        return self.metadata.get("loss") == "likelihood"


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

    def rows(self, start: int, stop: int) -> Batch:
        """Some of the poses; views."""

        def part(values: np.ndarray | None) -> np.ndarray | None:
            return None if values is None else values[start:stop]

        return replace(
            self,
            joints=self.joints[start:stop],
            mirror=part(self.mirror),
            visible=part(self.visible),
            confidence=part(self.confidence),
            error_mm=part(self.error_mm),
        )


@dataclass(frozen=True)
class Result:
    """Refined poses in the user's order and unit, and what the backend noticed about each frame."""

    joints: np.ndarray  # (N, 14, 3), dtype of the input
    sigma: np.ndarray  # (N, 14) float32: expected Euclidean error, user's unit; NaN where the frame was not refined
    status: np.ndarray  # (N,) uint8: Status
    size_mm: np.ndarray  # (N,) float32: root mean square distance of the observed joints from their mean; NaN: none
    chirality: np.ndarray  # (N,) float32, mm: see jointbert.runtimes.torch.chirality; negative: right hand, NaN: can't be told

    @classmethod
    def joined(cls, parts: Sequence[Result]) -> Result:
        """The results of consecutive poses as one."""
        return cls(**{f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(cls)})


class Refinement(NamedTuple):
    """What a backend made of an array of the user's, in its library."""

    joints: Any
    sigma: Any
    status: Any
    noticed: Result | None  # where the call was to check: what the checks look at; its joints are empty
    mirror: np.ndarray | None  # (N,) bool: left hands


class Backend(Protocol):
    """A runtime of the refiner. ``run`` gives the same result for a pose alone or in a batch; it never modifies its input."""

    name: str
    """As the registry of runtimes has it."""
    precision: str
    """Of the products: ``f32``, ``f16`` ... ; of a model file that fixes it, ``file``."""
    detail: str
    """What runs, for people to read: an instruction set; empty where there is nothing to add."""

    def run(self, batch: Batch) -> Result: ...


class SequentialBackend(Backend, Protocol):
    """A backend with a second stage: sequences and calibrated persons, and streams where the registry says so."""

    def sequence(self, weights: Weights) -> SequenceBackend:
        """The second stage of these weights behind this refiner."""


class ArrayBackend(Backend, Protocol):
    """A backend that also takes arrays where they lie: on a GPU."""

    def refine_arrays(self, joints: Any, options: Any) -> Refinement:
        """``options``: those of the call, :class:`jointbert.inputs.poses.RefineOptions`."""


class OnlineSequence(Protocol):
    """A sequence whose frames come one by one."""

    def push(
        self, joints: np.ndarray, visible: np.ndarray | None, confidence: np.ndarray | None, error_mm: np.ndarray | None
    ) -> tuple[Any, ...] | None:
        """Takes ``(14, 3)`` and optional ``(14,)`` arrays as in :class:`Batch`; gives the fields of :class:`Result` for one
        frame, or None as long as it has to wait."""

    def flush(self) -> list[tuple[Any, ...]]:
        """The frames that wait; then the sequence is as new."""

    def reset(self) -> None: ...


class SequenceBackend(Protocol):
    """The second stage of a runtime: sequences, streams, calibrated persons. ``lengths_mm``: ``(9,)`` float64 lengths of the
    skeleton's rigid bones, NaN where unknown; None: no person is known."""

    def run(self, batch: Batch, lengths_mm: np.ndarray | None, alone: bool) -> Result:
        """Refines one sequence, or frames that each stand ``alone``."""

    def calibrate(self, batch: Batch) -> tuple[np.ndarray, np.ndarray, Result]:
        """``(9,)`` median lengths over the frames, the ``(9,)`` numbers of frames that tell, and what was noticed."""

    def stream(
        self, permutation: np.ndarray, mm_per_unit: float, mirror: bool, lengths_mm: np.ndarray | None, look_ahead: int
    ) -> OnlineSequence: ...
