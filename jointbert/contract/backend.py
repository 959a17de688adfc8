"""The types that a backend takes and gives (poses, refined poses, weights), and the protocols that it implements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np


class JointbertWarning(UserWarning):
    """The input looks wrong; the result is returned nevertheless."""


class Status(IntEnum):
    """The outcome of a frame's refinement."""

    REFINED = 0
    TOO_FEW_JOINTS = 1
    """Fewer than four joints are observed: the frame is returned unchanged."""
    NOT_A_HAND = 2
    """In the stated unit, the frame is too small or too large to be a hand: it is returned unchanged."""


@dataclass(frozen=True)
class Weights:
    """The weights of a refiner or of its second stage: float32 tensors by name, sizes, the file's path and metadata."""

    name: str
    tensors: dict[str, np.ndarray]
    sizes: dict[str, int]
    metadata: dict[str, str]
    path: Path = Path()

    @property
    def predicts_sigma(self) -> bool:
        """Whether the weights were trained to predict sigma. Without that, as with the thesis's L2 loss, sigma is
        meaningless."""
        return self.metadata.get("loss") == "likelihood"


@dataclass(eq=False)
class PoseOptions:
    """What is said of poses, as the user passed it; :func:`jointbert.refine` documents each field. Not yet checked."""

    confidence: Any = None
    visible: Any = None
    error_mm: Any = None
    order: str | Sequence[str] = "nyu14"
    units: str = "mm"
    hand: str | Sequence[str] = "right"

    @property
    def states_error(self) -> bool:
        """Whether ``confidence`` or ``error_mm`` says how far off the joints are."""
        return self.error_mm is not None or self.confidence is not None


@dataclass(eq=False)
class RefineOptions(PoseOptions):
    """:class:`PoseOptions`, and the options of one refinement."""

    sequence: bool = False
    check: bool = False
    return_details: bool = False


@dataclass(frozen=True)
class Batch:
    """Checked poses in the user's order and unit. The backend converts order and unit, mirrors, centres and masks."""

    joints: np.ndarray  # (N, 14, 3) float32 or float64, C-contiguous, in the user's order and unit
    permutation: np.ndarray  # (14,) int32: the index of each canonical joint in the user's order
    mm_per_unit: float
    mirror: np.ndarray | None  # (N,) bool: True for left hands, whose x is negated before and after refinement
    visible: np.ndarray | None  # (N, 14) bool, user's order; False: missing
    confidence: np.ndarray | None  # (N, 14) float32, user's order; NaN or outside [0, 1]: unknown
    error_mm: np.ndarray | None  # (N, 14) float32, user's order; NaN: unknown

    def rows(self, start: int, stop: int) -> Batch:
        """The poses ``start`` to ``stop``, as views."""

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
    """Refined poses in the user's order and unit, and measures of each frame for the checks."""

    joints: np.ndarray  # (N, 14, 3), dtype of the input
    sigma: np.ndarray  # (N, 14) float32: expected Euclidean error, user's unit; NaN if the frame was not refined
    status: np.ndarray  # (N,) uint8: Status
    size_mm: np.ndarray  # (N,) float32: root mean square distance of the observed joints from their mean; NaN: none
    chirality: np.ndarray  # (N,) float32, mm: see jointbert.runtimes.torch.chirality; negative: right hand, NaN: unknown

    @classmethod
    def joined(cls, parts: Sequence[Result]) -> Result:
        """Concatenates the results of consecutive poses."""
        return cls(**{f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(cls)})


class Refinement(NamedTuple):
    """The result for an array on a GPU, as arrays of the same library."""

    joints: Any
    sigma: Any
    status: Any
    diagnostics: Result | None  # the input of the checks, if the call asked for them; its joints are empty
    mirror: np.ndarray | None  # (N,) bool: left hands


class Backend(Protocol):
    """A loaded runtime of the refiner."""

    name: str
    """The runtime's name in the registry."""
    precision: str
    """Of the network's products: ``f32``, ``f16`` or ``bf16``; ``file`` if the model file fixes it."""
    detail: str
    """A remark for users, such as the CPU's instruction set; may be empty."""

    def run(self, batch: Batch) -> Result:
        """Refines poses. The result of a pose does not depend on the rest of the batch. The input is never modified."""


class SequentialBackend(Backend, Protocol):
    """A backend with a second stage, which refines sequences, calibrates persons and, if the registry says so, refines
    online."""

    def sequence(self, weights: Weights) -> SequenceBackend:
        """A second stage with these weights, on top of this refiner."""


class ArrayBackend(Backend, Protocol):
    """A backend that also takes GPU arrays of any library."""

    def refine_arrays(self, joints: Any, options: RefineOptions) -> Refinement:
        """Refines ``joints``; ``options`` are the call's."""


class OnlineSequence(Protocol):
    """Online refinement of a sequence whose frames are given one at a time."""

    def push(
        self, joints: np.ndarray, visible: np.ndarray | None, confidence: np.ndarray | None, error_mm: np.ndarray | None
    ) -> tuple[Any, ...] | None:
        """Takes the next frame: ``(14, 3)`` joints and optional ``(14,)`` arrays as in :class:`Batch`.

        Returns the fields of :class:`Result` for the frame ``look_ahead`` frames earlier; None if there is no such frame yet.
        """

    def flush(self) -> list[tuple[Any, ...]]:
        """Returns the results of all pending frames, and starts a new sequence."""

    def reset(self) -> None:
        """Discards all frames and starts a new sequence."""


class SequenceBackend(Protocol):
    """The second stage of a runtime: sequences, online refinement, calibrated persons.

    ``lengths_mm`` are the ``(9,)`` float64 lengths of a calibrated person's rigid bones, NaN where unknown; None: no
    calibration.
    """

    def run(self, batch: Batch, lengths_mm: np.ndarray | None, alone: bool) -> Result:
        """Refines one sequence, or unrelated single frames if ``alone``."""

    def calibrate(self, batch: Batch) -> tuple[np.ndarray, np.ndarray, Result]:
        """Measures rigid bones: ``(9,)`` median lengths in mm, the ``(9,)`` numbers of frames they are from, and the frames'
        result."""

    def stream(
        self, permutation: np.ndarray, mm_per_unit: float, mirror: bool, lengths_mm: np.ndarray | None, look_ahead: int
    ) -> OnlineSequence:
        """Starts online refinement; the arguments are those of :class:`Batch` and of :meth:`jointbert.Refiner.stream`."""
