"""What the shipped weights promise, on the validation frames (subject 2) of the published predictions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import jointbert
from jointbert.evaluation.metrics import acceleration_error, relative_gain
from jointbert.weights import load_weights, shipped

pytest.importorskip("torch")

from training.data.nyu import TRAINING, VALIDATION, Published, read_published
from training.validation import gaussian_fill_error, masked_patterns


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


def test_refinement_helps_and_does_no_harm(refiner: jointbert.Refiner, published: Published, full: bool) -> None:
    after = gains(refiner, published.frames(slice(VALIDATION.start, VALIDATION.stop, 1 if full else 4)))
    assert (after > 0).sum() >= 17
    assert after.mean() >= 0.014
    assert after.min() > -0.003
    assert gains(refiner, published.frames(slice(0, 2440, 5 if full else 10))).min() > -0.01


def test_sequences_help_more(refiner: jointbert.Refiner, published: Published) -> None:
    frames = published.frames(slice(3136, 3736))
    alone, together = gains(refiner, frames), gains(refiner, frames, sequence=True)
    assert (together > 0).sum() >= 17
    assert together.mean() > alone.mean() + 0.015
    truth = frames.groundtruth
    for prediction in list(frames.predictions.values())[::6]:
        refined = refiner(prediction, sequence=True)
        assert acceleration_error(refined, truth) < 0.5 * acceleration_error(prediction, truth)


def test_a_second_pass_changes_little_and_harms_nothing(refiner: jointbert.Refiner, published: Published, full: bool) -> None:
    frames = published.frames(slice(VALIDATION.start, VALIDATION.stop, 4 if full else 16))
    again, told, harm = [], [], []
    for prediction in frames.predictions.values():
        once = refiner(prediction, return_details=True)
        moved = np.linalg.norm(once.joints - prediction, axis=-1).mean()
        before = float(np.linalg.norm(once.joints - frames.groundtruth, axis=-1).mean())
        for ratios, said in ((again, None), (told, once.sigma)):
            twice = refiner(once.joints, error_mm=said)
            ratios.append(np.linalg.norm(twice - once.joints, axis=-1).mean() / moved)
            after = float(np.linalg.norm(twice - frames.groundtruth, axis=-1).mean())
            harm.append(-relative_gain(before, after))
    assert np.mean(again) < 1 / 2
    assert np.mean(told) < 1 / 3
    assert max(harm) < 0.003


def test_sigma_is_the_error_to_expect(refiner: jointbert.Refiner, published: Published) -> None:
    """Where a method's mean error is stated; the scale is subject 1's."""
    ratios = []
    for rows in (slice(0, 2440, 16), slice(2440, 4376, 8)):
        frames = published.frames(rows)
        sigma, error = [], []
        for prediction in frames.predictions.values():
            stated = float(np.linalg.norm(prediction - frames.groundtruth, axis=-1).mean())
            refined = refiner(prediction, error_mm=stated, return_details=True)
            sigma.append(refined.sigma)
            error.append(np.linalg.norm(refined.joints - frames.groundtruth, axis=-1))
        ratios.append((np.stack(sigma), np.stack(error)))
    (fitted, its_error), (sigma, error) = ratios
    sigma = sigma * its_error.mean() / fitted.mean()
    groups = np.array_split(np.argsort(sigma, axis=None), 10)
    deciles = np.array([sigma.flat[g].mean() / error.flat[g].mean() for g in groups])
    assert np.abs(deciles - 1).max() < 0.15
    assert (np.abs(sigma.mean((1, 2)) / error.mean((1, 2)) - 1) < 0.3).all()


def test_another_scale_or_view_does_no_harm(refiner: jointbert.Refiner, published: Published) -> None:
    frames = published.frames(slice(VALIDATION.start, VALIDATION.stop, 8))
    prediction, truth = frames.predictions["TMM21_NYU_SRNet"], frames.groundtruth
    centre = prediction.mean(1, keepdims=True)
    for change in (0.6, 1.6, np.array([-1, -1, 1]), np.array([-1, 1, -1])):  # sizes; half a turn about z and about y
        seen, true = centre + (prediction - centre) * change, centre + (truth - centre) * change
        before, after = (np.linalg.norm(p - true, axis=-1).mean() for p in (seen, refiner(seen)))
        assert after < before * 1.003


def test_masked_joints_beat_a_gaussian(refiner: jointbert.Refiner, published: Published) -> None:
    truth = published.groundtruth[VALIDATION]
    seen = masked_patterns(len(truth), 4, seed=11)
    filled = refiner(truth, visible=seen.numpy())
    error = np.linalg.norm(filled - truth, axis=-1)[~seen.numpy()].mean()
    assert error < 0.7 * gaussian_fill_error(published.groundtruth[TRAINING], truth, seen)


def test_low_confidence_moves_a_joint_more(refiner: jointbert.Refiner, published: Published, full: bool) -> None:
    poses = np.concatenate([p[VALIDATION][:: 60 if full else 240] for p in published.predictions.values()])
    moved = []
    for level in (0.9, 0.5, 0.1):
        total = 0.0
        for joint in range(14):
            confidence = np.full(14, 0.9)
            confidence[joint] = level
            total += np.linalg.norm(refiner(poses, confidence=confidence)[:, joint] - poses[:, joint], axis=-1).mean()
        moved.append(total / 14)
    assert moved == sorted(moved)


def test_confidence_helps(refiner: jointbert.Refiner, published: Published, full: bool) -> None:
    """A confidence that falls with the error, by a formula of its own: training simulates another."""
    some = published.frames(slice(VALIDATION.start, VALIDATION.stop, 4 if full else 16))
    rng = np.random.default_rng(0)
    without, known = gains(refiner, some), []
    for prediction in some.predictions.values():
        error = np.linalg.norm(prediction - some.groundtruth, axis=-1)
        confidence = np.clip(0.9 / (1 + (error / 25) ** 2) + 0.1 * rng.normal(size=error.shape), 0, 1)
        after = np.linalg.norm(refiner(prediction, confidence=confidence) - some.groundtruth, axis=-1)
        known.append(relative_gain(float(error.mean()), float(after.mean())))
    assert np.mean(known) > without.mean()


@pytest.mark.parametrize("units", ["mm", "m"])
def test_points_that_are_no_hand_are_suspected(refiner: jointbert.Refiner, units: str) -> None:
    scale = {"mm": 1.0, "m": 1e-3}[units]
    poses = jointbert.load_demo().predictions
    points = np.random.default_rng(0).normal(0, 40, poses.shape)
    suspicion = pytest.warns(jointbert.JointbertWarning, match="don't look like a hand.*: check order=")
    for strange in (points, points[0], poses[:, ::-1]):  # the last: joints in another order than stated
        with suspicion:
            refiner(strange * scale, units=units)
    stream = refiner.stream(units=units)
    with suspicion:
        for frame in points:
            stream(frame * scale)
    some = np.zeros((len(poses), 14), dtype=bool)
    some[:, [0, 4, 6, 8, 10, 13]] = True
    for usual in (poses, poses[0]):  # warnings are errors in this suite
        refiner(usual * scale, units=units)
    refiner(poses * scale, units=units, visible=some)  # much unknown, nothing strange
    for said in ({"error_mm": 60.0}, {"confidence": 0.05 + np.zeros(14)}):  # then a large sigma is no surprise
        refiner(poses * scale, units=units, **said)
        refiner(points * scale, units=units, **said)
