"""Samplers of clips of moving hands."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from training.data import corruption as c  # noqa: E402
from training.data.clips import ClipConfig, Clips, ClipSampler, catmull_rom  # noqa: E402
from training.data.sampler import DataConfig  # noqa: E402


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
