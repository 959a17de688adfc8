from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")

from jointbert import Refiner  # noqa: E402
from jointbert.models import JointRefiner, RefinerConfig  # noqa: E402
from jointbert.models.sequence import REACH, SequenceRefiner, first_stage, refine_sequences  # noqa: E402
from training.config import OptimConfig, SequenceExperiment, TrainerConfig, read_experiment  # noqa: E402
from training.data.clips import ClipConfig, Clips, ClipSampler  # noqa: E402
from training.data.nyu import read_published  # noqa: E402
from training.data.sampler import DataConfig  # noqa: E402
from training.sequence import (  # noqa: E402
    CachedSequences,
    export_sequence,
    load_checkpoint,
    second_stage,
    sequence_gains,
    sequence_loss,
    train_sequence,
)

CONFIGS = Path(__file__).resolve().parents[2] / "training" / "configs" / "sequence"


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small single-frame refiner that corrects something."""
    torch.manual_seed(0)
    model = JointRefiner(RefinerConfig(layers=1))
    torch.nn.init.normal_(model.head.weight, std=0.02)
    path = tmp_path_factory.mktemp("first") / "first.safetensors"
    model.save(path)
    return path


@pytest.fixture
def experiment(small_folder: Path, small_leap: Path, first: Path) -> SequenceExperiment:
    return SequenceExperiment(
        "tiny",
        first=str(first),
        data=DataConfig(nyu=str(small_folder), leap=str(small_leap)),
        clips=ClipConfig(length=24),
        optim=OptimConfig(lr=1e-3, warmup_steps=2, ema=0.9),
        trainer=TrainerConfig(
            epochs=2, steps_per_epoch=3, batch_size=4, precision="32-true", compile=False, validation_stride=30
        ),
    )


def random_second() -> SequenceRefiner:
    torch.manual_seed(1)
    model = SequenceRefiner().eval()
    torch.nn.init.normal_(model.head.weight, std=0.02)
    return model


def clips_of(experiment: SequenceExperiment) -> Clips:
    return ClipSampler(experiment.data, experiment.clips, 4, 1, seed=2)[0]


def test_the_second_stage_adds_at_most_0_4_million_parameters() -> None:
    parameters = sum(p.numel() for p in SequenceRefiner().parameters())
    d, f = 128, 256
    layer = 4 * d * d + 4 * d + 2 * d * f + d + f + 4 * d
    assert parameters == (63 * f + f) + (f * d + d) + 2 * layer + 2 * d + (4 * d + 4)
    assert parameters < 0.4e6


def test_training_sees_what_refinement_does(experiment: SequenceExperiment, first: Path) -> None:
    """A clip that is a whole sequence gives the result of the backends' reference implementation."""
    one, two = JointRefiner.load(first), random_second()
    clips = clips_of(experiment)
    known = (clips.observed, clips.confidence, clips.error_mm)
    refined, hidden = first_stage(one, clips.predicted, *known)
    everything = torch.full((4,), REACH)
    frames = torch.full((4,), clips.true.shape[1])
    joints, _ = second_stage(two, hidden, clips.predicted, refined, clips.observed, everything, everything, frames)
    expected, _ = refine_sequences(one, two, clips.predicted, *known)
    usable = clips.observed.sum(-1) >= 4
    torch.testing.assert_close(joints[usable], expected[usable], atol=1e-3, rtol=0)


def test_the_loss_wants_places_and_accelerations(experiment: SequenceExperiment) -> None:
    clips = clips_of(experiment)
    sigma = torch.zeros(clips.observed.shape)
    perfect = sequence_loss(clips, clips.true, sigma, 1.0)
    moved = sequence_loss(clips, clips.true + torch.tensor([5.0, 0, 0]), sigma, 1.0)
    shaking = clips.true.clone()
    shaking[:, ::2] += torch.tensor([5.0, 0, 0])
    shaking[:, 1::2] -= torch.tensor([5.0, 0, 0])
    assert perfect < moved < sequence_loss(clips, shaking, sigma, 1.0)
    assert sequence_loss(clips, shaking, sigma, 0.0).item() == pytest.approx(
        sequence_loss(clips, clips.true + torch.tensor([5.0, 0, 0]), sigma, 0.0).item(), rel=1e-3
    )


def test_a_clip_that_is_not_counted_moves_nothing(experiment: SequenceExperiment) -> None:
    clips = clips_of(experiment)
    clips = clips._replace(counted=torch.tensor([True, True, True, False]))
    joints = (clips.predicted + 1.0).requires_grad_()
    log_sigma = torch.zeros(clips.observed.shape, requires_grad=True)
    moved, told = torch.autograd.grad(sequence_loss(clips, joints, log_sigma, 1.0), (joints, log_sigma))
    assert moved[:3].abs().amax((1, 2, 3)).min() > 0
    assert not moved[3].any()
    assert told[3].any()


def test_gains_of_an_untrained_second_stage_are_the_first_s(small_folder: Path, first: Path) -> None:
    published = read_published(small_folder).frames(slice(0, 40))
    one = JointRefiner.load(first)
    data = CachedSequences.of(one, published)
    found = sequence_gains(SequenceRefiner().eval(), data, REACH, (1.0,))
    before, after = found.by_factor[1.0].by_method["weak"]
    refined = Refiner(first)(published.predictions["weak"])
    assert before == pytest.approx(
        np.linalg.norm(published.predictions["weak"] - published.groundtruth, axis=-1).mean(), rel=1e-5
    )
    assert after == pytest.approx(np.linalg.norm(refined - published.groundtruth, axis=-1).mean(), rel=1e-4)


def quiet_train(*arguments: object) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice on workers and its own deprecations
        return train_sequence(*arguments)  # type: ignore[arg-type]


def test_a_run_goes_on_and_ends_in_a_file(experiment: SequenceExperiment, first: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    quiet_train(experiment, tmp_path / "whole", True, 1)
    # Stopped after an epoch: the same schedule, so that the second half is the same, too.
    half = replace(experiment, trainer=replace(experiment.trainer, epochs=1), optim=replace(experiment.optim, decay="constant"))
    whole = replace(experiment, optim=half.optim)
    quiet_train(whole, tmp_path / "at once", True, 1)
    quiet_train(half, tmp_path / "halves", True, 1)
    best = quiet_train(whole, tmp_path / "halves", True, 1)
    a, run = load_checkpoint(tmp_path / "at once" / "last.ckpt")
    b, _ = load_checkpoint(tmp_path / "halves" / "last.ckpt")
    assert run["steps"] == 6
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.equal(p, q)

    (tmp_path / "x.safetensors").write_bytes(first.read_bytes())
    export_sequence(best, first, tmp_path / "x-sequence.safetensors")
    poses = read_published(experiment.data.nyu).predictions["strong"][:30]
    assert Refiner(tmp_path / "x.safetensors")(poses, sequence=True).shape == poses.shape
    export_sequence(best, first, tmp_path / "x-sequence.safetensors", 0.25)
    assert SequenceRefiner.load(tmp_path / "x.safetensors").gain.item() == 0.25
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="not a checkpoint of train-sequence"):
        export_sequence(tmp_path / "other.ckpt", first, tmp_path / "out.safetensors")


def test_every_config_reads() -> None:
    assert {read_experiment(path, SequenceExperiment).name for path in CONFIGS.glob("*.yaml")} == {"nyu14"}
