"""Accuracy of 3D hand poses: MPJPE (mean per-joint position error) and the share of frames within a distance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jointbert.skeletons import NYU14, Skeleton

THRESHOLDS_MM = (5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0)

NYU_TEST_FRAMES = 8252
FITTED = "0-2439 (subject 1, trained on)"
SELECTED = "2440-4375 (subject 2, selected on)"
NYU_RANGES: dict[str, slice] = {
    FITTED: slice(0, 2440),
    SELECTED: slice(2440, 4376),
    "4376-8251 (subject 2, never seen)": slice(4376, NYU_TEST_FRAMES),
}
"""Ranges of the NYU test frames, by their use for the shipped weights."""


def joint_errors(prediction: np.ndarray, groundtruth: np.ndarray, skeleton: Skeleton = NYU14) -> np.ndarray:
    """Euclidean distances ``(frames, J)`` of the joints of two ``(frames, J, 3)`` arrays, in their unit.

    Raises:
        ValueError: the shapes differ, or are not those of poses.
    """
    prediction, groundtruth = np.asarray(prediction, np.float64), np.asarray(groundtruth, np.float64)
    if prediction.shape != groundtruth.shape or prediction.shape[-2:] != (skeleton.num_joints, 3):
        raise ValueError(
            f"got the shapes {prediction.shape} and {groundtruth.shape}; expected the same (frames, {skeleton.num_joints}, 3)"
        )
    return np.asarray(np.linalg.norm(prediction - groundtruth, axis=-1))


@dataclass(frozen=True)
class Accuracy:
    """Accuracy of one prediction, over the joints that are finite in the prediction and in the ground truth."""

    frames: int
    mean_mm: float
    """MPJPE."""
    by_joint_mm: dict[str, float]
    mean_within: dict[float, float]
    """Share of frames whose MPJPE is at most D mm, by D."""
    max_within: dict[float, float]
    """Share of frames whose largest joint error is at most D mm, by D (Taylor et al., CVPR 2012)."""
    joints_missing: int

    def as_dict(self) -> dict[str, object]:
        """The fields for JSON; figures without data become null."""

        def number(value: float) -> float | None:
            return value if np.isfinite(value) else None

        return {
            "frames": self.frames,
            "mean_mm": number(self.mean_mm),
            "by_joint_mm": {k: number(v) for k, v in self.by_joint_mm.items()},
            "mean_within": {f"{k:g}": number(v) for k, v in self.mean_within.items()},
            "max_within": {f"{k:g}": number(v) for k, v in self.max_within.items()},
            "joints_missing": self.joints_missing,
        }


def accuracy(
    prediction: np.ndarray,
    groundtruth: np.ndarray,
    thresholds: tuple[float, ...] = THRESHOLDS_MM,
    skeleton: Skeleton = NYU14,
) -> Accuracy:
    """Accuracy of ``(frames, J, 3)`` predictions against the ground truth, both in millimetres, canonical order.

    Joints that are missing on either side are left out of the means and counted in ``joints_missing``. A frame with a missing
    joint does not count as within any distance.
    """
    errors = joint_errors(prediction, groundtruth, skeleton)
    known = np.isfinite(errors)
    total, count = np.where(known, errors, 0).sum(0), known.sum(0)
    with np.errstate(invalid="ignore"):
        by_joint = np.where(count > 0, total / count, np.nan)
        mean = total.sum() / count.sum() if count.any() else np.nan
    worst = np.where(known, errors, np.inf).max(1)
    average = np.where(known, errors, np.inf).mean(1)
    frames = len(errors)
    return Accuracy(
        frames=frames,
        mean_mm=float(mean),
        by_joint_mm={name: float(v) for name, v in zip(skeleton.names, by_joint, strict=True)},
        mean_within={d: float((average <= d).mean()) if frames else np.nan for d in thresholds},
        max_within={d: float((worst <= d).mean()) if frames else np.nan for d in thresholds},
        joints_missing=int((~known).sum()),
    )


def relative_gain(before_mm: float, after_mm: float) -> float:
    """The relative reduction of an error; negative if the error grew, minus infinity if it grew from 0."""
    if before_mm == 0:
        return 0.0 if after_mm == 0 else -np.inf
    return (before_mm - after_mm) / before_mm


def acceleration_error(prediction: np.ndarray, groundtruth: np.ndarray) -> float:
    """Mean distance of predicted and true accelerations, in the unit of the positions per frame squared.

    Accelerations are second differences of a ``(frames, 14, 3)`` sequence. A small error means a realistic motion; the
    positions may be wrong nevertheless.
    """
    wrong = np.asarray(prediction, np.float64) - np.asarray(groundtruth, np.float64)
    return float(np.linalg.norm(np.diff(wrong, 2, axis=0), axis=-1).mean())


def area_under_roc(scores: np.ndarray, positive: np.ndarray) -> float:
    """The probability that a positive has a higher score than a negative; equal scores count half (Mann and Whitney, 1947).

    Args:
        scores: ``(N,)``. positive: ``(N,)`` bool.

    Raises:
        ValueError: the shapes differ, or there are no positives or no negatives.
    """
    scores, positive = np.asarray(scores), np.asarray(positive, dtype=bool)
    if scores.ndim != 1 or scores.shape != positive.shape:
        raise ValueError(f"scores: got the shape {scores.shape} for {positive.shape}; expected two of (N,)")
    count = int(positive.sum())
    if count in (0, len(positive)):
        raise ValueError(f"positive: got {count} of {len(positive)}; expected some of either kind")
    _, group, sizes = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (sizes.cumsum() - (sizes - 1) / 2)[group]
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * (len(positive) - count)))
