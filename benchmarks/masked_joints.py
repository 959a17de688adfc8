"""How well are masked joints filled in from the others?

    python -m benchmarks.masked_joints --data DIR

The poses are the ground truth of the validation frames (2440-4375) of published predictions, by default every fourth. Of each
frame one, two or four random joints or a whole finger are masked. refine() is compared with two references: the conditional
mean of a Gaussian fitted to subject 1's root-centred poses, and the nearest of subject 1's poses after a similarity transform
onto the observed joints.
"""

from __future__ import annotations

import numpy as np
import typer

import jointbert
from benchmarks.common import Data, Stride, Weights
from jointbert.skeletons import NYU14


def nearest_fill(train: np.ndarray, pose: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """The masked joints ``(M, 3)`` as the nearest of the poses ``train`` ``(N, 14, 3)`` places them.

    Each pose of ``train`` is transformed by the similarity that fits its ``seen`` joints to those of ``pose`` best (Umeyama,
    PAMI 1991); the nearest pose is the one with the smallest remaining distance.
    """
    target = pose[seen] - pose[seen].mean(0)
    centre = train[:, seen].mean(1, keepdims=True)
    points = train[:, seen] - centre
    u, s, vt = np.linalg.svd(np.einsum("nki,kj->nij", points, target))
    sign = np.ones_like(s)
    sign[:, 2] = np.sign(np.linalg.det(u @ vt))
    rotation = np.einsum("nij,nj,njk->nik", u, sign, vt)  # points @ rotation ~ target
    scale = (s * sign).sum(1) / (points**2).sum((1, 2))
    fitted = scale[:, None, None] * points @ rotation
    best = int(((fitted - target) ** 2).sum((1, 2)).argmin())
    masked = scale[best] * (train[best, ~seen] - centre[best]) @ rotation[best] + pose[seen].mean(0)
    return np.asarray(masked)


def finger_patterns(frames: int, seed: int) -> np.ndarray:
    """``(frames, 14)`` bool with one random finger of each frame masked (False)."""
    seen = np.ones((frames, 14), dtype=bool)
    fingers = list(NYU14.fingers.values())
    for row, finger in zip(seen, np.random.default_rng(seed).integers(len(fingers), size=frames), strict=True):
        row[list(fingers[finger])] = False
    return seen


def main(
    data: Data,
    weights: Weights = "nyu14",
    stride: Stride = 4,
) -> None:
    """Print the error of masked joints."""
    import torch

    from training.data.nyu import TRAINING, VALIDATION, read_published
    from training.validation import gaussian_fill_error, masked_patterns

    published = read_published(data)
    train, truth = published.groundtruth[TRAINING], published.groundtruth[VALIDATION][::stride]
    refiner = jointbert.Refiner(weights)
    patterns = {str(count): masked_patterns(len(truth), count).numpy() for count in (1, 2, 4)}
    patterns["a finger"] = finger_patterns(len(truth), 0)
    print(f"{'masked joints':>14s}{'refine() mm':>14s}{'Gaussian mm':>14s}{'nearest mm':>14s}{'over the better':>18s}")
    for name, seen in patterns.items():
        filled = refiner(truth, visible=seen)
        ours = np.linalg.norm(filled - truth, axis=-1)[~seen].mean()
        gaussian = gaussian_fill_error(train, truth, torch.from_numpy(seen))
        errors = [
            np.linalg.norm(nearest_fill(train, pose, mask) - pose[~mask], axis=-1)
            for pose, mask in zip(truth, seen, strict=True)
        ]
        nearest = np.concatenate(errors).mean()
        better = min(gaussian, nearest)
        print(f"{name:>14s}{ours:14.2f}{gaussian:14.2f}{nearest:14.2f}{100 * (ours - better) / better:+16.1f} %")


if __name__ == "__main__":
    typer.run(main)
