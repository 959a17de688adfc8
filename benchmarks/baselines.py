"""Simple filters that a user would try first on a sequence of poses. Each takes and returns ``(frames, 14, 3)`` millimetres."""

from __future__ import annotations

import numpy as np

from jointbert.skeletons import NYU14
from jointbert.skeletons.nyu14 import PALM_TO_MID

PROJECTION_BONES = NYU14.rigid_bones + PALM_TO_MID


def bone_projection(poses: np.ndarray, iterations: int = 3, stiffness: float = 0.3) -> np.ndarray:
    """Soft projection to the sequence's own median bone lengths.

    The bones are the fingertips', the thumb's, the palm's sides and palm to mid joints, one after the other. Both ends of a
    bone move along it by half of ``stiffness`` times the difference between its length and the median.
    """
    poses = poses.astype(np.float64)
    lengths = {bone: np.median(np.linalg.norm(poses[:, bone[0]] - poses[:, bone[1]], axis=-1)) for bone in PROJECTION_BONES}
    for _ in range(iterations):
        for (a, b), rest in lengths.items():
            bone = poses[:, b] - poses[:, a]
            length = np.maximum(np.linalg.norm(bone, axis=-1, keepdims=True), 1e-9)
            move = 0.5 * stiffness * (length - rest) / length * bone
            poses[:, a] += move
            poses[:, b] -= move
    return poses


def median_filter(poses: np.ndarray, frames: int = 7) -> np.ndarray:
    """Median of each coordinate over a window of ``frames`` frames, which is cut off at the ends of the sequence."""
    half = frames // 2
    padded = np.pad(poses.astype(np.float64), ((half, half), (0, 0), (0, 0)), constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, frames, axis=0)
    return np.nanmedian(windows, axis=-1)


def one_euro(
    poses: np.ndarray, fps: float = 25.0, min_cutoff_hz: float = 4.0, beta: float = 0.05, derivative_cutoff_hz: float = 1.0
) -> np.ndarray:
    """The causal One-Euro filter (Casiez et al., CHI 2012) on each coordinate."""

    def smoothing(cutoff: np.ndarray | float) -> np.ndarray | float:
        rate = 2 * np.pi * cutoff / fps
        return rate / (rate + 1)

    poses = poses.astype(np.float64)
    out = poses.copy()
    velocity = np.zeros_like(poses[0])
    for t in range(1, len(poses)):
        alpha = smoothing(derivative_cutoff_hz)
        velocity = alpha * (poses[t] - poses[t - 1]) * fps + (1 - alpha) * velocity
        alpha = smoothing(min_cutoff_hz + beta * np.abs(velocity))
        out[t] = alpha * poses[t] + (1 - alpha) * out[t - 1]
    return out


def median_then_bones(poses: np.ndarray) -> np.ndarray:
    """The median filter, then the bone projection."""
    return bone_projection(median_filter(poses))


BASELINES = {"bones": bone_projection, "median-7": median_filter, "med+bones": median_then_bones, "One-Euro": one_euro}
