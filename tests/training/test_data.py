from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from jointbert.backends.torch import chirality  # noqa: E402
from jointbert.skeleton import JOINT_NAMES  # noqa: E402
from training.data import corruption as c  # noqa: E402
from training.data import hand  # noqa: E402
from training.data.bank import FINGER_OF_JOINT, PairBank, resize  # noqa: E402
from training.data.error_model import ErrorModel  # noqa: E402
from training.data.leap import read_leap  # noqa: E402
from training.data.nyu import TRAINING, VALIDATION, read_published  # noqa: E402
from training.data.stream import DataConfig, PoseStream  # noqa: E402


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


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


def test_pairs_are_recorded_frames_when_nothing_is_recombined(small_folder: Path) -> None:
    data = read_published(small_folder).frames(TRAINING)
    bank = PairBank(data)
    true, error, rotation, level = bank.sample(32, 0.0, generator(3))
    predictions = np.stack(list(data.predictions.values()))
    for i in range(32):
        pose = (true[i] @ rotation[i].T).numpy()
        relative = data.groundtruth - data.groundtruth[:, 13:]
        frame = np.abs(relative - pose).max((1, 2)).argmin()
        np.testing.assert_allclose(relative[frame], pose, atol=1e-2)
        differences = predictions[:, frame] - data.groundtruth[frame] - (error[i] @ rotation[i].T).numpy()
        method = np.abs(differences).max((1, 2)).argmin()
        np.testing.assert_allclose(differences[method], 0, atol=1e-2)
        assert level[i] == pytest.approx(float(bank.method_mm[method]))


def test_recombined_fingers_are_recorded_fingers(small_folder: Path) -> None:
    bank = PairBank(read_published(small_folder).frames(TRAINING))
    true, *_ = bank.sample(16, 1.0, generator(4))
    for finger in range(5):
        joints = (finger == FINGER_OF_JOINT).nonzero().flatten()
        distance = (bank.local[:, joints].unsqueeze(0) - true[:, joints].unsqueeze(1)).abs().amax((-1, -2))
        assert distance.min(1).values.max() < 1e-3
    whole = (bank.local.unsqueeze(0) - true.unsqueeze(1)).abs().amax((-1, -2)).min(1).values
    assert (whole > 1).all()  # but no pose as a whole is


def test_resize_scales_pose_and_error() -> None:
    true, error = torch.randn(8, 14, 3), torch.randn(8, 14, 3)
    scaled, scaled_error = resize(true, error, torch.full((8,), 0.5), 0.0, 0.0, generator())
    torch.testing.assert_close(scaled, true / 2)
    torch.testing.assert_close(scaled_error, error / 2)


def test_masks_leave_enough() -> None:
    observed = c.mask(20000, c.Corruption(), generator(5))
    assert observed.sum(1).min() >= 4
    whole = (observed.sum(1) == 14).double().mean()
    assert whole == pytest.approx(1 - c.Corruption().mask_some, abs=0.02)
    thumb = observed[:, [8, 9, 10]]
    assert (~thumb).all(1).double().mean() > 0.02  # whole fingers are hidden


def test_confidence_falls_with_the_error() -> None:
    error = torch.cat([torch.full((20000, 7), 2.0), torch.full((20000, 7), 40.0)], 1)
    confidence = c.simulate_confidence(error, c.Corruption(), generator(6))
    known = confidence.isfinite()
    assert (known.all(1) | ~known.any(1)).all()
    assert known.double().mean() == pytest.approx(0.5, abs=0.02)
    values = confidence[known.all(1)]
    assert values.min() >= 0
    assert values.max() <= 1
    assert values[:, :7].mean() > values[:, 7:].mean() + 0.2


def test_noise_has_the_stated_sizes() -> None:
    config = c.Corruption(gaussian=1.0, gaussian_mm=(10.0, 10.0), gaussian_finger=0.0, gaussian_depth=(2.0, 2.0))
    drawn = c.noise(torch.zeros(20000, 14, 3), config, generator(7))
    torch.testing.assert_close(drawn.std((0, 1)), torch.tensor([10.0, 10, 20]), rtol=0.02, atol=0)
    assert (c.noise(torch.zeros(100, 14, 3), c.Corruption(gaussian=0.0), generator()) == 0).all()


def test_replacement_rates() -> None:
    poses = torch.arange(20000.0).view(-1, 1, 1).expand(20000, 14, 3)
    config = c.Corruption(replace_finger=0.2, replace_joint=0.0)
    changed = (c.replace(poses, config, generator(8)) != poses).any(-1)
    assert changed[:, :11].double().mean() == pytest.approx(0.2, abs=0.01)
    assert not changed[:, 11:].any()
    assert (changed[:, 0] == changed[:, 1]).all()


def test_error_model_has_the_recorded_moments(small_folder: Path) -> None:
    bank = PairBank(read_published(small_folder).frames(TRAINING))
    model = ErrorModel.fit(bank)
    drawn = model.sample(20000, generator(9)).norm(dim=-1).mean(1)
    recorded = bank.error.flatten(0, 1).norm(dim=-1).mean(1)
    assert drawn.log().mean() == pytest.approx(float(recorded.log().mean()), abs=0.1)
    assert drawn.log().std() == pytest.approx(float(recorded.log().std()), rel=0.1)


@pytest.fixture(scope="module")
def stream(small_folder: Path, small_leap: Path) -> PoseStream:
    return PoseStream(DataConfig(nyu=str(small_folder), leap=str(small_leap)), 64, 4, seed=3)


def test_stream_is_reproducible_and_goes_on(stream: PoseStream) -> None:
    assert sum(stream.counts.values()) == 64
    first, again = stream[2], stream[2]
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(stream[1].features, first.features)
    stream.offset = 1
    assert torch.equal(stream[1].features, first.features)
    stream.offset = 0
    with pytest.raises(IndexError):
        stream[4]


def test_targets_lead_back_to_the_true_pose(stream: PoseStream) -> None:
    true, predicted, _ = stream.draw(torch.Generator().manual_seed((3 << 32) + 1))
    batch = stream[1]
    assert batch.features.isfinite().all()
    error = (true - predicted) / 100
    torch.testing.assert_close(batch.target[batch.observed], error[batch.observed], atol=1e-5, rtol=0)
    # A masked joint starts from the mean of the observed ones.
    row = int((~batch.observed).any(1).nonzero()[0])
    mean = predicted[row][batch.observed[row]].mean(0)
    hidden = ~batch.observed[row]
    torch.testing.assert_close(100 * batch.target[row][hidden] + mean, true[row][hidden], atol=1e-3, rtol=0)


def test_only_training_frames_are_drawn(small_folder: Path, small_leap: Path, tmp_path: Path) -> None:
    """The stream is the same whatever the frames behind subject 1's are."""
    (tmp_path / "predictions").mkdir()
    for file in ("groundtruth.txt", "predictions/strong.txt", "predictions/weak.txt"):
        lines = (small_folder / file).read_text().splitlines()
        (tmp_path / file).write_text("\n".join(lines[:2440] + lines[:1936]) + "\n")
    config = DataConfig(nyu=str(tmp_path), leap=str(small_leap))
    other = PoseStream(config, 64, 4, seed=3)
    original = PoseStream(DataConfig(nyu=str(small_folder), leap=str(small_leap)), 64, 4, seed=3)
    assert torch.equal(other[0].features, original[0].features)


def test_unknown_sources() -> None:
    with pytest.raises(ValueError, match=r"sources: \['mano'\] unknown"):
        PoseStream(DataConfig(sources={"mano": 1.0}), 8, 1, 0)


def test_names_of_fingers_and_joints_agree() -> None:
    fingers = ("pinky", "ring", "middle", "index", "thumb")
    for joint, finger in enumerate(FINGER_OF_JOINT.tolist()):
        assert JOINT_NAMES[joint].startswith(fingers[finger] if finger < 5 else ("wrist", "palm"))
