"""What the shipped weights promise, on the validation frames (subject 2) of the published predictions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import jointbert
from jointbert.evaluation.metrics import relative_gain
from jointbert.weights import load_weights, shipped

pytest.importorskip("torch")

from training.data.nyu import TRAINING, VALIDATION, Published, read_published
from training.validation import gaussian_fill_error, hidden_patterns


@pytest.fixture(scope="module")
def refiner() -> jointbert.Refiner:
    return jointbert.Refiner(threads=2)


@pytest.fixture(scope="module")
def published(nyu_folder: Path) -> Published:
    return read_published(nyu_folder)


def gains(refiner: jointbert.Refiner, published: Published, **options: object) -> np.ndarray:
    def error(poses: np.ndarray) -> float:
        return float(np.linalg.norm(poses - published.groundtruth, axis=-1).mean())

    return np.array([relative_gain(error(p), error(refiner(p, **options))) for p in published.predictions.values()])


def test_what_ships() -> None:
    assert shipped() == ["nyu14"]
    weights = load_weights("nyu14")
    assert sum(tensor.size for tensor in weights.tensors.values()) == pytest.approx(1.6e6, rel=0.01)
    assert {"seed", "steps", "license"} <= set(weights.metadata)


def test_refinement_helps_and_does_no_harm(refiner: jointbert.Refiner, published: Published) -> None:
    after = gains(refiner, published.frames(VALIDATION))
    assert (after > 0).sum() >= 13
    assert after.mean() >= 0.01
    assert after.min() > -0.02
    assert gains(refiner, published.frames(slice(0, 2440, 5))).mean() > 0


def test_hidden_joints_beat_a_gaussian(refiner: jointbert.Refiner, published: Published) -> None:
    truth = published.groundtruth[VALIDATION]
    seen = hidden_patterns(len(truth), 4, seed=11)
    filled = refiner(truth, visible=seen.numpy())
    error = np.linalg.norm(filled - truth, axis=-1)[~seen.numpy()].mean()
    assert error < gaussian_fill_error(published.groundtruth[TRAINING], truth, seen)


def test_low_confidence_moves_a_joint_more(refiner: jointbert.Refiner, published: Published) -> None:
    poses = np.concatenate([p[VALIDATION][::60] for p in published.predictions.values()])
    moved = []
    for level in (0.9, 0.5, 0.1):
        total = 0.0
        for joint in range(14):
            confidence = np.full(14, 0.9)
            confidence[joint] = level
            total += np.linalg.norm(refiner(poses, confidence=confidence)[:, joint] - poses[:, joint], axis=-1).mean()
        moved.append(total / 14)
    assert moved == sorted(moved)


def test_confidence_helps(refiner: jointbert.Refiner, published: Published) -> None:
    """A confidence that falls with the error, by a formula of its own: training simulates another."""
    some = published.frames(slice(VALIDATION.start, VALIDATION.stop, 4))
    rng = np.random.default_rng(0)
    without, known = gains(refiner, some), []
    for prediction in some.predictions.values():
        error = np.linalg.norm(prediction - some.groundtruth, axis=-1)
        confidence = np.clip(0.9 / (1 + (error / 25) ** 2) + 0.1 * rng.normal(size=error.shape), 0, 1)
        after = np.linalg.norm(refiner(prediction, confidence=confidence) - some.groundtruth, axis=-1)
        known.append(relative_gain(float(error.mean()), float(after.mean())))
    assert np.mean(known) > without.mean()
