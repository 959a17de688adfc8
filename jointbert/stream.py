"""Online refinement: :class:`Stream`, which takes the frames of a sequence one at a time."""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

import numpy as np

from jointbert.contract import OnlineSequence, Result, Status
from jointbert.contract.layout import NUM_JOINTS
from jointbert.inputs.arguments import check_confidence, check_error, check_joints, check_visible
from jointbert.inputs.arrays import Restore, to_numpy
from jointbert.inputs.report import report

_CHECKED_FRAMES = 25
"""Unit and side are checked once, on this number of first frames, since a single frame may look mirrored or large by
accident."""


class Refined(NamedTuple):
    """The result with ``return_details=True``; its arrays are of the input's library."""

    joints: Any
    """``(..., 14, 3)``, as the input."""
    sigma: Any
    """``(..., 14)`` expected Euclidean error of each refined joint, in the input's unit; NaN if the frame was not refined."""
    status: Any
    """``(...)`` uint8, see :class:`Status`."""


class Stream:
    """Online refinement of one sequence, made by :meth:`jointbert.Refiner.stream`: call it with each frame's pose in turn.

    Cuts are detected, and frames before a cut do not influence those after it. A frame that can't be refined (fewer than 4
    joints, no hand) is returned unchanged with its status, without an error, so that a video can go on. A stream is not
    thread-safe.
    """

    def __init__(
        self,
        core: OnlineSequence,
        units: str,
        mirror: np.ndarray | None,
        predicts_sigma: bool,
        details: bool,
    ) -> None:
        self._core = core
        self._units = units
        self._mirror = mirror
        self._sigma_is_informative = predicts_sigma  # until an argument states a confidence or an error
        self._details = details
        self._pending: deque[tuple[np.ndarray, Restore]] = deque()
        self._first: list[tuple[Any, ...]] | None = []

    def __call__(self, joints: Any, *, confidence: Any = None, visible: Any = None, error_mm: Any = None) -> Any:
        """Takes the next frame.

        Args:
            joints: ``(14, 3)``; all NaN for a frame that was lost.
            confidence, visible, error_mm: ``(14,)``, as in :func:`jointbert.refine`; ``error_mm`` may be a number.

        Returns:
            The refined frame of ``look_ahead`` frames earlier, in that frame's type, dtype, unit and order (:class:`Refined`
            with ``return_details``); ``None`` for the first ``look_ahead`` frames.

        Raises:
            ValueError: a wrong shape, a confidence or error out of range. TypeError: not an array. An error leaves the state as
            it was.
        """
        given, restore = to_numpy(joints, "joints")
        pose = check_joints(given)
        if pose.shape != (NUM_JOINTS, 3):
            raise ValueError(f"joints: got the shape {pose.shape}; a stream takes one frame at a time, (14, 3)")
        shape = (NUM_JOINTS,)
        visible = None if visible is None else check_visible(visible, shape)[0]
        confidence = None if confidence is None else check_confidence(confidence, shape)[0]
        error_mm = None if error_mm is None else check_error(error_mm, shape)[0]
        self._sigma_is_informative = self._sigma_is_informative and confidence is None and error_mm is None
        result = self._core.push(pose, visible, confidence, error_mm)
        self._pending.append((given, restore))
        return None if result is None else self._restore_frame(result)

    def flush(self) -> list[Any]:
        """Returns the results of all pending frames, and starts a new sequence."""
        pending = [self._restore_frame(result) for result in self._core.flush()]
        self.reset()
        return pending

    def reset(self) -> None:
        """Discards all frames, including pending ones, and starts a new sequence."""
        self._core.reset()
        self._pending.clear()

    def _restore_frame(self, result: tuple[Any, ...]) -> Any:
        out, sigma, status = result[:3]
        given, restore = self._pending.popleft()
        self._check_first_frames(result)
        if given.dtype.kind == "f" and out.dtype != given.dtype:
            with np.errstate(over="ignore"):
                out = out.astype(given.dtype) if status == Status.REFINED else given.copy()
        if not self._details:
            return restore(out)
        return Refined(restore(out), restore(sigma.astype(out.dtype, copy=False)), restore(np.asarray(status, dtype=np.uint8)))

    def _check_first_frames(self, frame: tuple[Any, ...]) -> None:
        """Warns once if the unit or side of the first refined frames looks wrong."""
        if self._first is None:
            return
        if frame[2] == Status.REFINED:
            self._first.append(frame)
        if len(self._first) == _CHECKED_FRAMES:
            rows = [np.stack([np.asarray(r[i]) for r in self._first]) for i in range(5)]
            self._first = None
            result = Result(rows[0], rows[1], rows[2].astype(np.uint8), rows[3], rows[4])
            report(result, self._units, self._mirror, self._sigma_is_informative, 5)
