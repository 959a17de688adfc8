from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from jointbert.backends.torch import chirality  # noqa: E402
from jointbert.skeleton import JOINT_NAMES  # noqa: E402
from training.data import corruption as c  # noqa: E402
from training.data import hand  # noqa: E402
from training.data.bank import FINGER_OF_JOINT, PoseBank, articulate, resize  # noqa: E402
from training.data.clips import ClipConfig, Clips, ClipSampler, catmull_rom  # noqa: E402
from training.data.error_model import ErrorModel  # noqa: E402
from training.data.leap import read_leap  # noqa: E402
from training.data.nyu import TRAINING, VALIDATION, read_published  # noqa: E402
from training.data.sampler import DataConfig, PoseSampler, TrainingBatch, again  # noqa: E402


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


AS_RECORDED: dict[str, Any] = {"scale": (1.0, 1.0), "variation": 0.0, "root_shift_mm": 0.0, "any_view": 0.0, "turn": False}
"""Hands of the recorded size, proportions and view."""


def test_poses_with_masked_joints_keep_their_fingers_together(small_folder: Path) -> None:
    config = DataConfig(
        nyu=str(small_folder),
        sources={"recombined": 1.0},
        masked_recombine=0.0,
        masked_articulate=0.0,
        **AS_RECORDED,
    )
    sampler = PoseSampler(config, 64, 1, seed=0)
    masked = torch.arange(64) < 32
    true, _, _ = sampler.draw(masked, generator(7))
    recorded = sampler.bank.local @ sampler.bank.rotation.transpose(-1, -2)
    off = (recorded.unsqueeze(0) - (true - true[:, 13:]).unsqueeze(1)).abs().amax((-1, -2)).min(1).values
    assert (off[masked] < 1e-2).all()
    assert (off[~masked] > 1).all()


def test_of_predictions_themselves_sigma_alone_learns(small_folder: Path) -> None:
    rule = c.Corruption(plausible_gain_median=3.0, plausible_gain_sigma=0.0)
    config = DataConfig(
        nyu=str(small_folder), sources={"recombined": 0.5, "predictions": 0.5}, blend=0.0, scale=(1.0, 1.0), turn=False
    )
    sampler = PoseSampler(replace(config, corruption=rule), 32, 1, seed=0)
    assert sampler[0].counted.tolist() == [True] * 16 + [False] * 16
    true, predicted, stated = sampler.draw(torch.zeros(32, dtype=torch.bool), generator(4))
    data = read_published(small_folder).frames(TRAINING)
    recorded = np.stack(list(data.predictions.values())) - data.groundtruth[:, 13:]
    for pose, palm, size in zip(predicted[16:], true[16:], stated[16:, 0].tolist(), strict=True):
        # The palm's own error moves the true palm, too: compare around the predicted one.
        off = np.abs((recorded - recorded[:, :, 13:]) - (pose - pose[13]).numpy()).max((2, 3))
        method, frame = np.unravel_index(off.argmin(), off.shape)
        assert off.min() < 1e-2
        error = list(data.predictions.values())[method][frame] - data.groundtruth[frame]
        np.testing.assert_allclose((pose - palm).numpy(), 3 * error, atol=1e-2)
        assert size == pytest.approx(3 * float(sampler.bank.method_mm[method]), rel=1e-5)


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


def test_own_errors_make_recorded_predictions(small_folder: Path) -> None:
    still = c.Corruption(
        error_gain_median=1.0,
        error_gain_sigma=0.0,
        transplant=1.0,
        gaussian=0.0,
        replace_finger=0.0,
        replace_joint=0.0,
        scale_sigma=0.0,
        offset_mm=0.0,
    )
    config = DataConfig(
        nyu=str(small_folder),
        sources={"recombined": 1.0},
        own_error=True,
        recombine=0.0,
        articulate=0.0,
        blend=0.0,
        **AS_RECORDED,
        corruption=still,
    )
    true, predicted, _ = PoseSampler(config, 16, 1, seed=0).draw(torch.zeros(16, dtype=torch.bool), generator(5))
    data = read_published(small_folder).frames(TRAINING)
    recorded = np.stack(list(data.predictions.values())) - data.groundtruth[:, 13:]  # relative to the true palm
    for pose, palm in zip(predicted.numpy(), true[:, 13:].numpy(), strict=True):
        assert np.abs(recorded - (pose - palm)).max((2, 3)).min() < 1e-2


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
    bank = PoseBank(read_published(small_folder).frames(TRAINING))
    model = ErrorModel.fit(bank)
    drawn = model.sample(20000, generator(9)).norm(dim=-1).mean(1)
    recorded = bank.error.flatten(0, 1).norm(dim=-1).mean(1)
    assert drawn.log().mean() == pytest.approx(float(recorded.log().mean()), abs=0.1)
    assert drawn.log().std() == pytest.approx(float(recorded.log().std()), rel=0.1)


@pytest.fixture(scope="module")
def sampler(small_folder: Path, small_leap: Path) -> PoseSampler:
    return PoseSampler(DataConfig(nyu=str(small_folder), leap=str(small_leap)), 64, 4, seed=3)


def test_sampler_is_reproducible_and_goes_on(sampler: PoseSampler) -> None:
    assert sum(sampler.counts.values()) == 64
    first, again = sampler[2], sampler[2]
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(sampler[1].features, first.features)
    sampler.offset = 1
    assert torch.equal(sampler[1].features, first.features)
    sampler.offset = 0
    with pytest.raises(IndexError):
        sampler[4]


def test_targets_lead_back_to_the_true_pose(sampler: PoseSampler) -> None:
    g = torch.Generator().manual_seed((3 << 32) + 1)
    observed = c.mask(64, sampler.config.corruption, g)  # comes first: what is hidden decides how a pose is made
    true, predicted, _ = sampler.draw(~observed.all(1), g)
    batch = sampler[1]
    assert torch.equal(batch.observed, observed)
    assert batch.features.isfinite().all()
    error = (true - predicted) / 100
    torch.testing.assert_close(batch.target[batch.observed], error[batch.observed], atol=1e-5, rtol=0)
    # A masked joint starts from the mean of the observed ones.
    row = int((~batch.observed).any(1).nonzero()[0])
    mean = predicted[row][batch.observed[row]].mean(0)
    masked = ~batch.observed[row]
    torch.testing.assert_close(100 * batch.target[row][masked] + mean, true[row][masked], atol=1e-3, rtol=0)


def test_a_second_pass_starts_where_the_first_ended(sampler: PoseSampler) -> None:
    batch = sampler[0]
    output = torch.randn(64, 14, 4) * 0.1
    second = again(batch, output)
    assert second.observed.all()
    # Undo the centring: refined joint + remaining correction is the true pose, up to the pose's own mean.
    start = batch.features[..., :3]
    true = start + batch.target
    torch.testing.assert_close(second.features[..., :3] + second.target, true - (start + output[..., :3]).mean(1, keepdim=True))
    torch.testing.assert_close(second.features[..., 6].exp() * 10, 100 * output[..., 3].exp())
    assert (second.features[..., [3, 7]] == 1).all()
    torch.testing.assert_close(second.features[..., 4:6], batch.features[..., 4:6])
    assert isinstance(second, TrainingBatch)
    assert not second.still.any()
    batch.counted[::2] = False
    at_rest = again(batch, output, rest=True)
    assert torch.equal(at_rest.still, ~batch.counted)
    assert torch.equal(at_rest.counted, batch.counted)
    assert torch.equal(at_rest.features, second.features)


def test_only_training_frames_are_drawn(small_folder: Path, small_leap: Path, tmp_path: Path) -> None:
    """The sampler is the same whatever the frames behind subject 1's are."""
    (tmp_path / "predictions").mkdir()
    for file in ("groundtruth.txt", "predictions/strong.txt", "predictions/weak.txt"):
        lines = (small_folder / file).read_text().splitlines()
        (tmp_path / file).write_text("\n".join(lines[:2440] + lines[:1936]) + "\n")
    config = DataConfig(nyu=str(tmp_path), leap=str(small_leap))
    other = PoseSampler(config, 64, 4, seed=3)
    original = PoseSampler(DataConfig(nyu=str(small_folder), leap=str(small_leap)), 64, 4, seed=3)
    assert torch.equal(other[0].features, original[0].features)


def test_unknown_sources() -> None:
    with pytest.raises(ValueError, match=r"sources: \['mano'\] unknown"):
        PoseSampler(DataConfig(sources={"mano": 1.0}), 8, 1, 0)


def test_names_of_fingers_and_joints_agree() -> None:
    fingers = ("pinky", "ring", "middle", "index", "thumb")
    for joint, finger in enumerate(FINGER_OF_JOINT.tolist()):
        assert JOINT_NAMES[joint].startswith(fingers[finger] if finger < 5 else ("wrist", "palm"))


@pytest.fixture(scope="module")
def clips(small_folder: Path, small_leap: Path) -> ClipSampler:
    return ClipSampler(DataConfig(nyu=str(small_folder), leap=str(small_leap)), ClipConfig(length=32), 16, 4, seed=5)


def test_clips_are_reproducible_and_go_on(clips: ClipSampler) -> None:
    first = clips[1]
    for a, b in zip(first, clips[1], strict=True):
        torch.testing.assert_close(a, b, equal_nan=True, rtol=0, atol=0)
    clips.offset = 1
    assert torch.equal(clips[0].true, first.true)
    clips.offset = 0
    with pytest.raises(IndexError):
        clips[4]


def test_a_clip_is_one_person(small_folder: Path, small_leap: Path) -> None:
    data = DataConfig(nyu=str(small_folder), leap=str(small_leap))
    drawn = ClipSampler(data, ClipConfig(predictions=0.0, length=32, recorded=0.0, cut=0.0), 16, 1, seed=5)[0]
    assert drawn.true.shape == drawn.predicted.shape == (16, 32, 14, 3)
    assert drawn.true.isfinite().all()
    for a, b in ((0, 1), (4, 5), (8, 9), (11, 12)):
        length = (drawn.true[:, :, a] - drawn.true[:, :, b]).norm(dim=-1)
        assert (length - length[:, :1]).abs().max() < 0.5
        assert length[:, 0].std() > 1  # and another clip another one


def test_of_clips_of_predictions_sigma_alone_learns(small_folder: Path, small_leap: Path) -> None:
    def clips(gain: float) -> Clips:
        rule = c.Corruption(plausible_gain_median=gain, plausible_gain_sigma=0.0)
        config = ClipConfig(length=24, predictions=0.25, recorded=1.0, cut=1.0, corruption=rule)
        return ClipSampler(DataConfig(nyu=str(small_folder), leap=str(small_leap)), config, 8, 1, seed=3)[0]

    near, far = clips(1.0), clips(3.0)
    assert near.counted.tolist() == [True] * 6 + [False] * 2
    assert torch.equal(near.predicted, far.predicted)
    assert torch.equal(near.true[near.counted], far.true[near.counted])
    error, further = ((x.predicted - x.true)[~x.counted] for x in (near, far))
    torch.testing.assert_close(further, 3 * error, atol=2e-3, rtol=1e-4)


def test_clips_miss_joints_for_a_while_and_are_cut(small_folder: Path, small_leap: Path) -> None:
    data = DataConfig(nyu=str(small_folder), leap=str(small_leap))
    all_of_it = ClipConfig(length=32, missing=1.0, cut=1.0, corruption=c.Corruption(confidence_known=1.0, error_known=1.0))
    drawn = ClipSampler(data, all_of_it, 16, 1, seed=5)[0]
    missing = (~drawn.observed).double().mean()
    changes = (drawn.observed[:, 1:] != drawn.observed[:, :-1]).double().mean()
    assert missing > 0.05
    assert changes < missing * (1 - missing)  # in bursts: drawn frame by frame it would be twice that
    assert drawn.confidence.isfinite().all()
    assert (drawn.error_mm > 0).all()
    jump = (drawn.true[:, 1:, 13] - drawn.true[:, :-1, 13]).norm(dim=-1)
    assert (jump.max(1).values > 5 * jump.median(1).values).double().mean() > 0.5


def test_cubic_interpolation_is_exact_on_lines_and_knots() -> None:
    values = torch.arange(10.0).unsqueeze(-1) * 3 + 1
    at = torch.tensor([[0.0, 1.5, 4.25, 8.0, 9.0]])
    found = catmull_rom(lambda frame: values[frame], at, 10)
    torch.testing.assert_close(found[0, 1:3, 0], 3 * at[0, 1:3] + 1)
    squares = torch.arange(10.0).square().unsqueeze(-1)
    torch.testing.assert_close(
        catmull_rom(lambda frame: squares[frame], torch.tensor([[3.0, 9.0]]), 10)[0, :, 0], torch.tensor([9.0, 81])
    )
