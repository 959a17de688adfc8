"""Fixtures: real-looking poses, weights with every tensor at work, the shared data where it is."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import jointbert

DATA = Path(os.environ.get("JOINTBERT_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def nyu_folder() -> Path:
    """The folder of published predictions; the test is skipped where it is missing."""
    folder = DATA / "nyu"
    if not (folder / "groundtruth.txt").is_file():
        pytest.skip(f"no published predictions at {folder} (set JOINTBERT_DATA)")
    return folder


@pytest.fixture(scope="session")
def leap_file() -> Path:
    """The Leap recordings; the test is skipped where they are missing."""
    path = DATA / "leap" / "leap_hands.npz"
    if not path.is_file():
        pytest.skip(f"no Leap recordings at {path} (set JOINTBERT_DATA)")
    return path


@pytest.fixture(scope="session")
def poses() -> np.ndarray:
    """``(256, 14, 3)`` float64 predictions of right hands in the camera frame, millimetres."""
    return jointbert.load_demo().predictions.astype(np.float64)


@pytest.fixture(scope="session")
def random_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weight file in which every tensor matters: an untrained refiner's head is zero."""
    torch = pytest.importorskip("torch")
    from jointbert.models import JointRefiner

    generator = torch.Generator().manual_seed(3)
    model = JointRefiner()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            noise = torch.randn(tensor.shape, generator=generator)
            if name.endswith(("norm1.weight", "norm2.weight")) or name == "norm.weight":
                tensor.copy_(1 + 0.1 * noise)
            elif tensor.ndim == 1:
                tensor.copy_(0.05 * noise)
            else:
                tensor.copy_(noise * tensor.shape[-1] ** -0.5)
        model.head.weight *= 0.2
        model.observed_gain.fill_(0.8)
    path = tmp_path_factory.mktemp("weights") / "random.safetensors"
    model.save(path, {"name": "random"})
    return path
