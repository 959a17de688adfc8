from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from jointbert.camera import NYU
from jointbert.inputs.textformat import write_joints
from training.data.hand import build, rotations, sample_directions


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """One thread: on a busy machine several threads slow such small networks down many times."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def one_figure(monkeypatch: pytest.MonkeyPatch, full: bool) -> None:
    """Each validation draws one image instead of four, since drawing is the longest part of a small run."""
    if not full and "training.estimator" in sys.modules:
        monkeypatch.setattr("training.estimator.DRAWN_IMAGES", 1)


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like that of the published predictions: 4,376 frames of generated hands, two methods."""
    folder = tmp_path_factory.mktemp("published")
    (folder / "predictions").mkdir()
    g = torch.Generator().manual_seed(0)
    frames = 4376
    local = build(sample_directions(frames, g), g)
    truth = (local @ rotations(frames, g) + torch.tensor([0, 0, 800.0])).numpy()
    rng = np.random.default_rng(0)
    write_joints(folder / "groundtruth.txt", truth, "uvd", NYU)
    for name, size in (("strong", 3.0), ("weak", 12.0)):
        write_joints(folder / "predictions" / f"{name}.txt", truth + size * rng.normal(size=truth.shape), "uvd", NYU)
    return folder


@pytest.fixture(scope="session")
def small_leap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two recordings in the Leap layout, one of them of left hands."""
    rng = np.random.default_rng(1)
    path = tmp_path_factory.mktemp("leap") / "leap.npz"
    rest = np.full((26, 3), np.nan)
    rest[0] = 0
    for finger, x in enumerate((60.0, 25, 5, -15, -35)):  # thumb, index, middle, ring, pinky of a right hand
        rest[1 + 5 * finger : 6 + 5 * finger] = np.array([[x, y, 0.0] for y in (-20, 30, 60, 85, 105)])
    right = rest + rng.normal(0, 2, (60, 26, 3))
    np.savez(path, one=right, one__type=np.full(60, "right"), two=right * [-1, 1, 1], two__type=np.full(60, "left"))
    return path
