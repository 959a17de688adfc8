"""Corruption of poses, and the samplers of training batches of poses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tests.support.training import generator  # noqa: E402
from training.data import corruption as c  # noqa: E402
from training.data.nyu import TRAINING, read_published  # noqa: E402
from training.data.sampler import DataConfig, PoseSampler, TrainingBatch, again  # noqa: E402


def test_masks_leave_enough() -> None:
    observed = c.mask(20000, c.Corruption(), generator(5))
    assert observed.sum(1).min() >= 4
    whole = (observed.sum(1) == 14).double().mean()
    assert whole == pytest.approx(1 - c.Corruption().mask_some, abs=0.02)
    thumb = observed[:, [8, 9, 10]]
    assert (~thumb).all(1).double().mean() > 0.02  # whole fingers are masked


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
    observed = c.mask(64, sampler.config.corruption, g)  # drawn first, because masked poses are made differently
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
    """Frames after subject 1's do not change the batches."""
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
