"""Generates the demo's sample of the package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from training.data.bank import PoseBank
from training.data.corruption import Corruption, simulate_confidence
from training.data.error_model import ErrorModel
from training.data.hand import axis_rotations, build, palm_frame, rand, sample_directions
from training.data.nyu import TRAINING, read_published


def make_demo(nyu: Path, out: Path, frames: int = 256, seed: int = 14) -> None:
    """Writes ``frames`` procedural hands half a metre to a metre away, with the palm within about 40 degrees of the camera."""
    g = torch.Generator().manual_seed(seed)
    errors = ErrorModel.fit(PoseBank(read_published(nyu).frames(TRAINING)))
    local = build(sample_directions(frames, g), g) * rand((frames, 1, 1), 0.7, 1.05, g)
    predicted = local + 1.5 * errors.sample(frames, g)  # errors on unseen subjects are about half as large again

    # Fingers up in the image (y down), the palm's side (z of its frame) toward the camera.
    facing = torch.tensor([[1.0, 0, 0], [0, -1, 0], [0, 0, -1]])
    axis = torch.nn.functional.normalize(torch.randn(frames, 3, generator=g), dim=-1)
    view = axis_rotations(axis, 0.7 * torch.randn(frames, generator=g)) @ facing
    place = torch.stack([rand((frames,), -150, 150, g), rand((frames,), -100, 100, g), rand((frames,), 500, 1000, g)], -1)
    back = view.transpose(-1, -2)
    truth, prediction = local @ back + place.unsqueeze(1), predicted @ back + place.unsqueeze(1)
    assert torch.allclose(palm_frame(truth), view, atol=1e-3)

    known = Corruption(confidence_known=1.0)
    confidence = simulate_confidence((prediction - truth).norm(dim=-1), known, g)
    arrays = {"groundtruth": truth, "predictions": prediction, "confidence": confidence}
    np.savez_compressed(out, **{name: array.numpy().astype(np.float32) for name, array in arrays.items()})
