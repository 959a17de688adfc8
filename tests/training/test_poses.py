"""Recorded and procedural poses: the published folder, the Leap recordings, the procedural hand, the bank of poses."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from jointbert import JOINT_NAMES  # noqa: E402
from jointbert.runtimes.torch import chirality  # noqa: E402
from tests.support.training import generator  # noqa: E402
from training.data import hand  # noqa: E402
from training.data.bank import FINGER_OF_JOINT, PoseBank, articulate, resize  # noqa: E402
from training.data.error_model import ErrorModel  # noqa: E402
from training.data.leap import read_leap  # noqa: E402
from training.data.nyu import TRAINING, VALIDATION, read_published  # noqa: E402


def lengths(joints: torch.Tensor, a: int, b: int) -> torch.Tensor:
    return (joints[:, a] - joints[:, b]).norm(dim=-1)


def test_published_folder(nyu_folder: Path) -> None:
    data = read_published(nyu_folder)
    assert data.groundtruth.shape == (4376, 14, 3)
    assert len(data.predictions) == 18
    # The data's README: palm to wrist 81 mm for subject 1, 71 then 67 mm for subject 2.
    palm = np.linalg.norm(data.groundtruth[:, 13] - data.groundtruth[:, 11], axis=-1)
    assert palm[TRAINING].mean() == pytest.approx(81, abs=0.5)
    assert palm[2440:3136].mean() == pytest.approx(71, abs=0.5)
    assert palm[3136:].mean() == pytest.approx(67, abs=0.5)
    assert data.frames(VALIDATION).groundtruth.shape == (1936, 14, 3)


def test_bad_folders(tmp_path: Path, small_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"no groundtruth\.txt"):
        read_published(tmp_path)
    (tmp_path / "groundtruth.txt").write_bytes((small_folder / "groundtruth.txt").read_bytes())
    with pytest.raises(ValueError, match="no predictions"):
        read_published(tmp_path)
    (tmp_path / "predictions").mkdir()
    (tmp_path / "predictions" / "short.txt").write_text("1 " * 42)
    with pytest.raises(ValueError, match="short has 1 frames; the ground truth has 4376"):
        read_published(tmp_path)


def test_procedural_hands_are_right_hands_of_the_stated_sizes() -> None:
    g = generator()
    joints = hand.build(hand.sample_directions(2000, g), g, variation=0.0)
    torch.testing.assert_close(lengths(joints, 4, 5), torch.full((2000,), 56.5))
    torch.testing.assert_close(lengths(joints, 8, 9), torch.full((2000,), 24.6))
    assert lengths(joints, 11, 13).mean() == pytest.approx(hand.PALM_LENGTH_MM, abs=0.1)
    side = chirality(joints.double(), torch.ones(2000, 14, dtype=torch.bool))
    assert (side < 0).double().mean() > 0.94
    mirrored = joints.double() * torch.tensor([-1.0, 1, 1])
    torch.testing.assert_close(chirality(mirrored, torch.ones(2000, 14, dtype=torch.bool)), -side)


def test_knuckles_stay_within_their_limits() -> None:
    g = generator(1)
    directions = hand.sample_directions(5000, g).fingers[:, :, 0]
    flexion = torch.atan2(directions[..., 2], directions[..., :2].norm(dim=-1)) * 180 / math.pi
    assert flexion.min() >= -25.1
    assert flexion.max() <= 90.1
    assert flexion.std() > 20  # and they use them


def test_palm_frame_undoes_a_rotation() -> None:
    g = generator(2)
    joints = hand.build(hand.sample_directions(50, g), g)
    turn = hand.rotations(50, g)
    torch.testing.assert_close(turn @ turn.transpose(1, 2), torch.eye(3).expand(50, 3, 3), atol=1e-5, rtol=0)
    assert (torch.linalg.det(turn) > 0).all()
    moved = joints @ turn.transpose(1, 2) + torch.tensor([1.0, 2, 3])
    torch.testing.assert_close(hand.palm_frame(moved), turn, atol=1e-4, rtol=0)


def test_axis_rotation_by_90_degrees() -> None:
    turn = hand.axis_rotations(torch.tensor([[0.0, 0, 1]]), torch.tensor([math.pi / 2]))
    torch.testing.assert_close(turn @ torch.tensor([1.0, 0, 0]), torch.tensor([[0.0, 1, 0]]))


def test_leap_directions(small_leap: Path) -> None:
    directions = read_leap(small_leap, stride=1)
    assert directions.fingers.shape == (120, 4, 2, 3)  # both recordings
    torch.testing.assert_close(directions.fingers.norm(dim=-1), torch.ones(120, 4, 2))
    assert (directions.fingers[..., 1] > 0.75).all()  # straight fingers point away from the wrist
    torch.testing.assert_close(directions.fingers[:60], directions.fingers[60:], atol=1e-4, rtol=0)  # left hands mirrored


def test_leap_recordings(leap_file: Path) -> None:
    directions = read_leap(leap_file)
    joints = hand.build(directions, generator(), variation=0.0)
    side = chirality(joints.double(), torch.ones(len(joints), 14, dtype=torch.bool))
    assert len(joints) > 4000
    assert (side < 0).double().mean() > 0.97


def test_names_of_fingers_and_joints_agree() -> None:
    fingers = ("pinky", "ring", "middle", "index", "thumb")
    for joint, finger in enumerate(FINGER_OF_JOINT.tolist()):
        assert JOINT_NAMES[joint].startswith(fingers[finger] if finger < 5 else ("wrist", "palm"))


def test_poses_are_recorded_frames_when_nothing_is_recombined(small_folder: Path) -> None:
    data = read_published(small_folder).frames(TRAINING)
    local, rotation, frames = PoseBank(data).sample_poses(torch.zeros(32), generator(3))
    recorded = data.groundtruth[frames]
    back = (local @ rotation.transpose(1, 2)).numpy()
    np.testing.assert_allclose(back, recorded - recorded[:, 13:], atol=1e-2)


def test_recombined_fingers_are_recorded_fingers(small_folder: Path) -> None:
    bank = PoseBank(read_published(small_folder).frames(TRAINING))
    true, *_ = bank.sample_poses(torch.ones(16), generator(4))
    for finger in range(5):
        joints = (finger == FINGER_OF_JOINT).nonzero().flatten()
        distance = (bank.local[:, joints].unsqueeze(0) - true[:, joints].unsqueeze(1)).abs().amax((-1, -2))
        assert distance.min(1).values.max() < 1e-3
    whole = (bank.local.unsqueeze(0) - true.unsqueeze(1)).abs().amax((-1, -2)).min(1).values
    assert (whole > 1).all()  # but no pose as a whole is


def test_errors_are_a_method_s_or_between_two(small_folder: Path) -> None:
    data = read_published(small_folder).frames(TRAINING)
    bank = PoseBank(data)
    differences = np.stack(list(data.predictions.values())) - data.groundtruth  # [2, N, 14, 3]
    errors, level = bank.sample_errors(32, 0.0, generator(3))
    for error, size in zip(errors.numpy(), level.tolist(), strict=True):
        off = np.abs(differences - error).max((2, 3))
        method, _ = np.unravel_index(off.argmin(), off.shape)
        assert off.min() < 1e-2
        assert size == pytest.approx(float(bank.method_mm[method]))
    errors, level = bank.sample_errors(32, 1.0, generator(3))
    first, second = differences
    for error, size in zip(errors.numpy(), level.tolist(), strict=True):
        span = (second - first).reshape(len(first), -1)
        share = ((error - first).reshape(len(first), -1) * span).sum(1) / (span**2).sum(1)  # least squares, frame by frame
        off = np.abs(first + share[:, None, None] * (second - first) - error).max((1, 2))
        assert off.min() < 1e-2
        assert -1e-3 < share[off.argmin()] < 1 + 1e-3
        assert bank.method_mm.min() <= size <= bank.method_mm.max()


def test_articulated_fingers_keep_their_lengths_and_roots() -> None:
    poses = hand.build(hand.sample_directions(500, generator(1)), generator(2), variation=0.0)
    poses = poses.unsqueeze(1).repeat(1, 3, 1, 1)
    sigma = torch.tensor(0.3)
    turned = articulate(poses, sigma, generator(3))
    assert torch.equal(turned[:, 0], turned[:, 2])  # all frames of a person alike
    assert torch.equal(articulate(poses[:, 0], sigma, generator(3)), turned[:, 0])
    assert torch.equal(turned[..., 11:, :], poses[..., 11:, :])
    for a, b in ((0, 1), (4, 5), (8, 9), (9, 10)):
        torch.testing.assert_close(lengths(turned[:, 0], a, b), lengths(poses[:, 0], a, b), atol=1e-3, rtol=0)
    for finger, mid in enumerate((1, 3, 5, 7, 10)):
        before, after = ((p[:, 0, mid] - hand.ROOTS_MM[finger]).norm(dim=-1) for p in (poses, turned))
        torch.testing.assert_close(before, after, atol=1e-3, rtol=0)
    # A rotation by angles of 0.3 rad about three axes moves a point across its axis by the angle times its distance.
    assert (turned - poses)[:, 0, 5].norm(dim=-1).square().mean().sqrt() == pytest.approx(0.3 * 2**0.5 * 49, rel=0.15)


def test_resize_scales_pose_and_error() -> None:
    true, error = torch.randn(8, 14, 3), torch.randn(8, 14, 3)
    scaled, scaled_error = resize(true, error, torch.full((8,), 0.5), 0.0, 0.0, generator())
    torch.testing.assert_close(scaled, true / 2)
    torch.testing.assert_close(scaled_error, error / 2)
    # One person's frames keep one person's proportions.
    frames = true.unsqueeze(1).repeat(1, 4, 1, 1)
    person, _ = resize(frames, torch.zeros_like(frames), torch.ones(8), 0.1, 5.0, generator(1))
    torch.testing.assert_close(person, person[:, :1].expand_as(person))
    assert (person - frames).abs().max() > 1


def test_error_model_has_the_recorded_moments(small_folder: Path) -> None:
    bank = PoseBank(read_published(small_folder).frames(TRAINING))
    model = ErrorModel.fit(bank)
    drawn = model.sample(20000, generator(9)).norm(dim=-1).mean(1)
    recorded = bank.error.flatten(0, 1).norm(dim=-1).mean(1)
    assert drawn.log().mean() == pytest.approx(float(recorded.log().mean()), abs=0.1)
    assert drawn.log().std() == pytest.approx(float(recorded.log().std()), rel=0.1)
