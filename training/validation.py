"""Scores for model selection: gains on published predictions of subject 2, and errors of masked joints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor

from jointbert.evaluation.metrics import relative_gain
from jointbert.models.refiner import decode, encode
from training.data.nyu import Published

Model = Callable[[Tensor], Tensor]


@torch.inference_mode()
def refine_poses(model: Model, poses: np.ndarray, observed: Tensor | None = None, chunk: int = 512) -> np.ndarray:
    """Refined poses of ``(N, 14, 3)``, millimetres, without confidence or error size."""
    joints = torch.from_numpy(poses).float()
    seen = torch.ones(joints.shape[:2], dtype=torch.bool) if observed is None else observed
    unknown = torch.full(joints.shape[:2], torch.nan)
    parts = []
    for i in range(0, len(joints), chunk):
        rows = slice(i, i + chunk)
        features, mean = encode(joints[rows], seen[rows], unknown[rows], unknown[rows])
        parts.append(decode(joints[rows], seen[rows], mean, model(features).float())[0])
    return torch.cat(parts).numpy()


@dataclass(frozen=True)
class Gains:
    """Relative gain of each method, and the score for model selection."""

    by_method: dict[str, tuple[float, float]]
    """Mean error before and after, mm."""

    @property
    def relative(self) -> dict[str, float]:
        return {name: relative_gain(*pair) for name, pair in self.by_method.items()}

    @property
    def mean(self) -> float:
        return float(np.mean(list(self.relative.values())))

    @property
    def improved(self) -> int:
        return sum(gain > 0 for gain in self.relative.values())

    @property
    def worst(self) -> float:
        return min(self.relative.values())

    @property
    def score(self) -> float:
        """The score for model selection: the mean gain, minus the worst method's loss if a method gets worse."""
        return self.mean + min(0.0, self.worst)


GAINS = (0.25, 0.5, 0.75, 1.0)
"""Factors of the corrections of observed joints among which validation chooses."""


def gains(model: Model, published: Published, factors: Sequence[float] = (1.0,)) -> dict[float, Gains]:
    """MPJPE of every method before and after refinement, by the factor of the corrections."""
    names = list(published.predictions)
    poses = np.stack(list(published.predictions.values()))
    refined = refine_poses(model, poses.reshape(-1, 14, 3)).reshape(poses.shape)

    def errors(factor: float) -> np.ndarray:
        after = poses + factor * (refined - poses)
        return np.asarray(np.linalg.norm(after - published.groundtruth, axis=-1).mean((1, 2)))

    before = errors(0.0)
    return {
        factor: Gains({n: (float(a), float(b)) for n, a, b in zip(names, before, errors(factor), strict=True)})
        for factor in factors
    }


def masked_patterns(frames: int, count: int, seed: int = 0) -> Tensor:
    """``(frames, 14)`` bool with ``count`` random joints of each frame masked (False)."""
    g = Generator().manual_seed(seed)
    return torch.rand(frames, 14, generator=g).argsort(1).argsort(1) >= count


def fill_error(model: Model, truth: np.ndarray, observed: Tensor) -> float:
    """Mean error of masked joints that are filled in from the true other joints, mm."""
    filled = refine_poses(model, truth, observed)
    return float(np.linalg.norm(filled - truth, axis=-1)[~observed.numpy()].mean())


def gaussian_fill_error(train: np.ndarray, truth: np.ndarray, observed: Tensor) -> float:
    """The same error by the conditional mean of a Gaussian fitted to the root-centred poses ``train`` (root: the palm).

    The position of the hand is an unknown offset of the observed joints. It is estimated by generalised least squares, the
    limit of a root with a flat prior.
    """
    centred = (train - train[:, 13:]).reshape(len(train), 42)
    mean, covariance = centred.mean(0), np.cov(centred.T)
    covariance = covariance + 1e-3 * np.eye(42)  # the palm triangle is rigid, the root always at 0
    total, count = 0.0, 0
    for pose, seen in zip(truth, observed.numpy(), strict=True):
        o, h = np.repeat(seen, 3), np.repeat(~seen, 3)
        design = np.tile(np.eye(3), (seen.sum(), 1))
        gain = np.linalg.solve(covariance[np.ix_(o, o)], np.c_[design, pose.reshape(42)[o] - mean[o]])
        root = np.linalg.solve(design.T @ gain[:, :3], design.T @ gain[:, 3])
        residual = gain[:, 3] - gain[:, :3] @ root
        filled = mean[h] + np.tile(root, (~seen).sum()) + covariance[np.ix_(h, o)] @ residual
        total += np.linalg.norm(filled.reshape(-1, 3) - pose[~seen], axis=-1).sum()
        count += int((~seen).sum())
    return total / count
