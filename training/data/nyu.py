"""Published predictions on the NYU test set: a folder with ``groundtruth.txt`` and ``predictions/*.txt``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jointbert.camera import NYU
from jointbert.inputs.textformat import read_joints

TRAINING = slice(0, 2440)
"""Subject 1: the only frames that are used for training."""
VALIDATION = slice(2440, 4376)
"""Subject 2: used for model selection, never for training."""


@dataclass(frozen=True)
class Published:
    """Ground truth and predictions, x y z in millimetres, canonical order."""

    groundtruth: np.ndarray  # (frames, 14, 3)
    predictions: dict[str, np.ndarray]  # method -> (frames, 14, 3)

    def frames(self, rows: slice) -> Published:
        """The same methods on some of the frames."""
        return Published(self.groundtruth[rows], {name: joints[rows] for name, joints in self.predictions.items()})


def read_published(folder: str | Path) -> Published:
    """Reads a folder of u v d files taken with the NYU camera.

    Raises:
        ValueError: no ground truth, no predictions, or files of different length.
    """
    folder = Path(folder)
    if not (folder / "groundtruth.txt").is_file():
        raise ValueError(f"{folder}: no groundtruth.txt there")
    groundtruth = read_joints(folder / "groundtruth.txt", "uvd", NYU)
    predictions = {path.stem: read_joints(path, "uvd", NYU) for path in sorted((folder / "predictions").glob("*.txt"))}
    if not predictions:
        raise ValueError(f"{folder}: no predictions/*.txt there")
    for name, joints in predictions.items():
        if joints.shape != groundtruth.shape:
            raise ValueError(f"{folder}: {name} has {len(joints)} frames; the ground truth has {len(groundtruth)}")
    return Published(groundtruth, predictions)
