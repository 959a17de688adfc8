"""How well are hidden joints filled in from the others?

    python benchmarks/hidden_joints.py --data DIR

On the ground truth of the validation frames (2440-4375) of a folder of published predictions, every fourth: one, two or four
random joints, or a whole finger of each frame are hidden. Against the conditional mean of a Gaussian fitted to subject 1's
root-centred poses, and the nearest of subject 1's poses, moved, turned and scaled onto the joints that are seen.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jointbert
from jointbert.skeletons import NYU14


def nearest_fill(train: np.ndarray, pose: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """The hidden joints ``(H, 3)`` of the pose among ``train`` ``(N, 14, 3)`` that fits the ``seen`` ones best.

    Each is fitted by a similarity (Umeyama, PAMI 1991).
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
    hidden = scale[best] * (train[best, ~seen] - centre[best]) @ rotation[best] + pose[seen].mean(0)
    return np.asarray(hidden)


def finger_patterns(frames: int, seed: int) -> np.ndarray:
    """``(frames, 14)`` bool with one random finger of each frame hidden (False)."""
    seen = np.ones((frames, 14), dtype=bool)
    fingers = list(NYU14.fingers.values())
    for row, finger in zip(seen, np.random.default_rng(seed).integers(len(fingers), size=frames), strict=True):
        row[list(fingers[finger])] = False
    return seen


def main(
    data: Annotated[Path, typer.Option(help="Folder with groundtruth.txt and predictions/*.txt.")],
    weights: Annotated[str, typer.Option(help="Shipped weights' name or a .safetensors file.")] = "nyu14",
    stride: Annotated[int, typer.Option(help="Every so-manieth frame.", min=1)] = 4,
) -> None:
    """Error of hidden joints, filled in."""
    import torch

    from training.data.nyu import TRAINING, VALIDATION, read_published
    from training.validation import gaussian_fill_error, hidden_patterns

    published = read_published(data)
    train, truth = published.groundtruth[TRAINING], published.groundtruth[VALIDATION][::stride]
    refiner = jointbert.Refiner(weights)
    patterns = {str(count): hidden_patterns(len(truth), count).numpy() for count in (1, 2, 4)}
    patterns["a finger"] = finger_patterns(len(truth), 0)
    print(f"{'hidden joints':>14s}{'refine() mm':>14s}{'Gaussian mm':>14s}{'nearest mm':>14s}{'over the better':>18s}")
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
