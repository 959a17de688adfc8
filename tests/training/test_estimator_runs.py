"""Whole runs of the estimator's training: resuming, exporting, what a folder refuses."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("torchvision")

from jointbert.models.estimator import EstimatorConfig, HandPoseEstimator
from tests.support.training import TINY, experiment, model_of
from training.config import EstimatorExperiment
from training.data.batches import ImageBatch, Shuffled
from training.estimator import (
    EstimatorTraining,
    estimate_statistics,
    export_estimator,
    hourglass_parts,
    load_parts,
    train,
    training_set,
)

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice on workers and its own deprecations


def weights_of(run: EstimatorExperiment, out: Path, **options: Any) -> dict[str, torch.Tensor]:
    checkpoint = train(run, "estimator", model_of(run), out, threads=1, **options)
    state: dict[str, torch.Tensor] = torch.load(checkpoint.parent / "last.ckpt", weights_only=True)["state_dict"]
    return state


def test_averaged_weights_have_statistics_of_their_own(tmp_path: Path) -> None:
    """The exported batch norm statistics are those of the averaged weights on the best epoch's batches."""
    run = experiment()
    module_best = train(run, "hourglass", model_of(run), tmp_path, threads=1)
    epoch = 1 if module_best.name == "best-1.ckpt" else 0
    model = HandPoseEstimator.load(tmp_path / "estimator.safetensors")
    kept = model.hourglass.linear[1].running_var.clone()
    images, _ = training_set(run.data, run.model)
    assert images is not None
    sampler = Shuffled(images, 4, 2, run.seed)
    sampler.offset = 2 * epoch
    estimate_statistics(model, [sampler[0], sampler[1]])
    torch.testing.assert_close(model.hourglass.linear[1].running_var, kept, rtol=1e-4, atol=1e-7)


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    step = EstimatorTraining.training_step

    def counted(module: EstimatorTraining, batch: ImageBatch, index: int) -> torch.Tensor:
        steps.append(module.current_epoch)
        return step(module, batch, index)

    monkeypatch.setattr(EstimatorTraining, "training_step", counted)
    # With a constant learning rate, a run of one epoch is the first half of a run of two.
    run = dataclasses.replace(experiment(), optim=dataclasses.replace(experiment().optim, decay="constant"))
    half = dataclasses.replace(run, trainer=dataclasses.replace(run.trainer, epochs=1))
    expected = weights_of(run, tmp_path / "whole")
    stopped = weights_of(half, tmp_path / "resumed")
    steps.clear()
    resumed = weights_of(run, tmp_path / "resumed")
    assert steps == [1, 1]
    assert all(torch.equal(resumed[key], value) for key, value in expected.items())
    assert any(not torch.equal(stopped[key], value) for key, value in expected.items())


def test_exported_and_taken_over(tmp_path: Path) -> None:
    run = experiment()
    checkpoint = train(run, "encoder", model_of(run, trained=False), tmp_path / "run", threads=1)
    export_estimator(checkpoint, tmp_path / "encoder.safetensors")
    exported = HandPoseEstimator.load(tmp_path / "encoder.safetensors")
    assert exported.encoder.trained
    model = HandPoseEstimator.from_config(run.model, tmp_path / "encoder.safetensors")
    assert torch.equal(model.encoder.stem[0].weight, exported.encoder.stem[0].weight)
    load_parts(model, tmp_path / "encoder.safetensors", ("neck", "hourglass"))
    assert torch.equal(model.hourglass.heatmaps.weight, exported.hourglass.heatmaps.weight)
    wide = HandPoseEstimator(EstimatorConfig.of({**TINY, "width": 16}))
    with pytest.raises(ValueError, match=r"its hourglass is of another architecture: EstimatorConfig\(.*width=8"):
        load_parts(wide, tmp_path / "encoder.safetensors", ("hourglass",))


def test_another_run_s_folder_is_refused(tmp_path: Path) -> None:
    run = experiment()
    train(run, "hourglass", model_of(run), tmp_path / "run", threads=1)
    with pytest.raises(
        ValueError, match=r"there is a run of another stage \(hourglass; this is estimator\); choose another --out"
    ):
        train(run, "estimator", model_of(run), tmp_path / "run", threads=1)
    wide = experiment(width=16)
    with pytest.raises(ValueError, match=r"there is a run of another model \(.*'width': 8"):
        train(wide, "hourglass", model_of(wide), tmp_path / "run", threads=1)
    (tmp_path / "run" / "last.ckpt").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"last.ckpt: no readable checkpoint"):
        train(run, "hourglass", model_of(run), tmp_path / "run", threads=1)


def test_awr_keeps_what_its_hourglass_stage_learned(tmp_path: Path) -> None:
    run = experiment(head="awr")
    train(run, "hourglass", model_of(run), tmp_path / "run", threads=1)
    model = model_of(run)
    load_parts(model, tmp_path / "run" / "estimator.safetensors", hourglass_parts(model))
    trained = HandPoseEstimator.load(tmp_path / "run" / "estimator.safetensors")
    assert torch.equal(model.regression.directions.weight, trained.regression.directions.weight)
    assert hourglass_parts(model_of(experiment())) == ("neck", "hourglass")


def test_rgb_is_refused(tmp_path: Path) -> None:
    run = experiment(image="rgb")
    with pytest.raises(ValueError, match="model: image: got 'rgb'; rendered and NYU's images are depth"):
        train(run, "estimator", model_of(run), tmp_path)


def test_validation_images_are_drawn(tmp_path: Path, full: bool) -> None:
    """TensorBoard's log holds a figure of each of the first validation images."""
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = dataclasses.replace(experiment(), trainer=dataclasses.replace(experiment().trainer, epochs=1))
    weights_of(run, tmp_path)
    log = events.EventAccumulator(str(tmp_path / "tensorboard"), {"images": 0}).Reload()
    assert log.Tags()["images"] == [f"validation/{i}" for i in range(4 if full else 1)]


def test_torchrun_s_processes_are_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under torchrun the trainer gets the numbers of processes and nodes from the environment."""
    asked: dict[str, Any] = {}

    class Stopped(Exception):
        pass

    def trainer(**options: Any) -> None:
        asked.update(options)
        raise Stopped

    monkeypatch.setattr("training.fit.L.Trainer", trainer)
    for environment, expected in (
        ({}, (1, 1, "auto")),
        ({"TORCHELASTIC_RUN_ID": "1", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "6"}, (2, 3, "ddp")),
    ):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(Stopped):
            weights_of(experiment(), tmp_path)
        assert (asked["devices"], asked["num_nodes"], asked["strategy"]) == expected
