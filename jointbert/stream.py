"""Online refinement: frames come one by one."""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

import numpy as np

from jointbert.contract import OnlineSequence, Result, Status
from jointbert.contract.layout import NUM_JOINTS
from jointbert.inputs.arguments import check_confidence, check_error, check_joints, check_visible
from jointbert.inputs.arrays import Restore, to_numpy
from jointbert.inputs.report import report

_JUDGED_FRAMES = 25
"""One frame may look mirrored or large by accident: units and side are judged once, by the first so many."""


class Refined(NamedTuple):
    """What ``return_details=True`` gives; arrays of the input's library."""

    joints: Any
    """``(..., 14, 3)``, as the input."""
    sigma: Any
    """``(..., 14)`` expected Euclidean error of each refined joint, in the input's unit; NaN where a frame was not refined."""
    status: Any
    """``(...)`` uint8, see :class:`Status`."""


class Stream:
    """A sequence in the making, from :meth:`jointbert.Refiner.stream`: call it with each frame's pose in turn.

    A cut is found and not smeared. A frame that can't be refined (fewer than 4 joints, no hand) comes back as it was, with its
    status; it is no error here, since a video goes on. Use each stream from one thread.
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
        self._sigma_tells = predicts_sigma  # while nothing is stated of the error
        self._details = details
        self._pending: deque[tuple[np.ndarray, Restore]] = deque()
        self._first: list[tuple[Any, ...]] | None = []

    def __call__(self, joints: Any, *, confidence: Any = None, visible: Any = None, error_mm: Any = None) -> Any:
        """Takes the next frame.

        Args:
            joints: ``(14, 3)``; confidence, visible, error_mm: ``(14,)`` or a number, as in :func:`jointbert.refine`. A frame
                without any joint (all NaN) stands for one that was lost.

        Returns:
            The refined frame of ``look_ahead`` frames before, of the type, dtype, unit and order in which it came
            (:class:`Refined` with ``return_details``); ``None`` until it is there.

        Raises:
            ValueError: a wrong shape, a confidence or error out of range. TypeError: no array. The state stays as it was.
        """
        given, restore = to_numpy(joints, "joints")
        pose = check_joints(given)
        if pose.shape != (NUM_JOINTS, 3):
            raise ValueError(f"joints: got the shape {pose.shape}; a stream takes one frame at a time, (14, 3)")
        shape = (NUM_JOINTS,)
        seen = None if visible is None else check_visible(visible, shape)[0]
        sure = None if confidence is None else check_confidence(confidence, shape)[0]
        size = None if error_mm is None else check_error(error_mm, shape)[0]
        self._sigma_tells = self._sigma_tells and sure is None and size is None
        result = self._core.push(pose, seen, sure, size)
        self._pending.append((given, restore))
        return None if result is None else self._finish(result)

    def flush(self) -> list[Any]:
        """The frames that were still waiting for those after them; the stream begins anew."""
        rest = [self._finish(result) for result in self._core.flush()]
        self.reset()
        return rest

    def reset(self) -> None:
        """Forgets all frames, those that wait, too."""
        self._core.reset()
        self._pending.clear()

    def _finish(self, result: tuple[Any, ...]) -> Any:
        out, sigma, status = result[:3]
        given, restore = self._pending.popleft()
        self._judge(result)
        if given.dtype.kind == "f" and out.dtype != given.dtype:
            with np.errstate(over="ignore"):
                out = out.astype(given.dtype) if status == Status.REFINED else given.copy()
        if not self._details:
            return restore(out)
        return Refined(restore(out), restore(sigma.astype(out.dtype, copy=False)), restore(np.asarray(status, dtype=np.uint8)))

    def _judge(self, frame: tuple[Any, ...]) -> None:
        """One warning, where the first frames' unit or side looks wrong."""
        if self._first is None:
            return
        if frame[2] == Status.REFINED:
            self._first.append(frame)
        if len(self._first) == _JUDGED_FRAMES:
            rows = [np.stack([np.asarray(r[i]) for r in self._first]) for i in range(5)]
            self._first = None
            result = Result(rows[0], rows[1], rows[2].astype(np.uint8), rows[3], rows[4])
            report(result, self._units, self._mirror, self._sigma_tells, 5)
