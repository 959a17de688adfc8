"""Losses of the estimator by closed form, and the parameters and statistics that each stage of training changes."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

pytest.importorskip("torchvision")

from jointbert.models.estimator import EstimatorConfig
from tests.support.training import ROOT, experiment, model_of
from training import losses
from training.config import EstimatorExperiment, EstimatorLossConfig, ImageDataConfig, OptimConfig, read_experiment
from training.data.batches import ImageBatch
from training.data.images import RenderConfig, RenderedHands
from training.estimator import EstimatorTraining, estimate_statistics, measure, prepare, training_set
from training.fit import learning_rate


def test_blobs_by_hand() -> None:
    maps = losses.blobs(torch.tensor([[[3.0, 5.0]]]).expand(1, 14, 2), 16, 2.0)
    assert maps.shape == (1, 14, 16, 16)
    assert maps[0, 0, 5, 3] == 1
    assert maps[0, 0, 5, 5].item() == pytest.approx(math.exp(-0.5))
    assert maps[0, 0, 9, 6].item() == pytest.approx(math.exp(-(9 + 16) / 8))


def test_losses_by_hand() -> None:
    zero = torch.zeros(2, 14, 16, 16)
    assert losses.heatmap_loss(zero, zero + 0.5).item() == pytest.approx(64)
    joints = torch.zeros(2, 14, 3)
    true = joints + torch.tensor([30.0, -40.0, 0.0])
    assert losses.joint_loss(joints, true).item() == pytest.approx(0.25)
    confidence = torch.full((2, 14), 0.5)
    assert losses.refinement_loss(joints, true, confidence, 0.05).item() == pytest.approx(1.4)
    assert losses.refinement_loss(joints, true, torch.zeros(2, 14), 0.05).item() == pytest.approx(14)
    assert losses.sigma_loss(joints, true, torch.full((2, 14), 100.0)).item() == pytest.approx(0.5)


def test_the_confidence_is_a_weight_alone() -> None:
    confidence = torch.full((1, 14), 0.5, requires_grad=True)
    joints = torch.zeros(1, 14, 3, requires_grad=True)
    losses.refinement_loss(joints, joints.detach() + 1, confidence, 0.05).backward()
    assert confidence.grad is None


def test_table_4_1_s_schedule() -> None:
    run = read_experiment(ROOT / "training/configs/estimator/thesis-hourglass.yaml", EstimatorExperiment)
    assert run.model == EstimatorConfig()
    factor = lambda step: learning_rate(step, run.optim, 225_700, run.trainer.steps_per_epoch)  # noqa: E731
    assert [factor(0), factor(499), factor(999), factor(1000)] == [0.001, 0.5, 1.0, 1.0]
    assert factor(10 * 2257) == pytest.approx(0.99**10)
    end_to_end = read_experiment(ROOT / "training/configs/estimator/thesis.yaml", EstimatorExperiment)
    assert end_to_end.model.peak == "argmax"
    for table in (run, end_to_end):
        assert (table.optim.optimizer, table.optim.lr, table.trainer.epochs, table.trainer.batch_size) == (
            "adam",
            1e-4,
            100,
            32,
        )


@pytest.mark.parametrize("head", ["linear", "awr"])
@pytest.mark.parametrize("stage", ["encoder", "hourglass", "estimator"])
def test_gradients_reach_what_a_stage_trains(stage: str, head: str) -> None:
    run = experiment(head=head)
    images, _ = training_set(run.data, run.model)
    assert images is not None
    model = model_of(run)
    assert model.refiner is not None
    torch.nn.init.normal_(model.refiner.head.weight, std=0.1)
    training = EstimatorTraining(run, model, stage, images)  # type: ignore[arg-type]
    training.terms(images.take(list(range(4))))["loss"].backward()
    learned = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    expected = {"encoder": {"encoder", "neck", "hourglass"}, "hourglass": {"neck", "hourglass"}}
    parts = expected.get(stage, {"neck", "hourglass", "regression", "refiner"}) | ({"regression"} if head == "awr" else set())
    allowed = {name for name, _ in model.named_parameters() if name.split(".")[0] in parts} - {"refiner.mask"}
    assert learned == allowed
    assert all(p.requires_grad == (name in allowed) for name, p in model.named_parameters())


def test_sigma_moves_neither_joints_nor_confidence() -> None:
    run = dataclasses.replace(experiment(), loss=EstimatorLossConfig(heatmaps=0, joints=0, refined=0, sigma=1))
    images, _ = training_set(run.data, run.model)
    assert images is not None
    model = model_of(run)
    assert model.refiner is not None
    torch.nn.init.normal_(model.refiner.head.weight, std=0.1)
    EstimatorTraining(run, model, "estimator", images).terms(images.take([0, 1]))["loss"].backward()
    moved = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert moved == {"refiner"}


def test_batch_norm_s_statistics_are_means_over_batches() -> None:
    """Of a layer whose input is known, against its mean and variance; a frozen encoder keeps its own."""
    run = experiment()
    model = model_of(run)
    frozen = {name: value.clone() for name, value in model.encoder.state_dict().items()}
    model.hourglass.residual.change[0].running_mean.fill_(7)
    hands = RenderedHands(RenderConfig(), 64, 300.0, 4, 3, 5)
    batches = [ImageBatch(hands[i], None) for i in range(3)]
    inputs: list[torch.Tensor] = []
    layer = model.hourglass.linear[1]
    hook = layer.register_forward_pre_hook(lambda _, given: inputs.append(given[0].detach().double()))
    momentum = layer.momentum
    estimate_statistics(model, batches)
    hook.remove()
    assert len(inputs) == 3
    means = torch.stack([x.mean((0, 2, 3)) for x in inputs]).mean(0)
    variances = torch.stack([x.var((0, 2, 3)) for x in inputs]).mean(0)
    torch.testing.assert_close(layer.running_mean.double(), means, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(layer.running_var.double(), variances, rtol=1e-4, atol=1e-6)
    assert layer.momentum == momentum
    for name, value in model.encoder.state_dict().items():
        torch.testing.assert_close(value, frozen[name], rtol=0, atol=0)
    assert (model.hourglass.residual.change[0].running_mean < 7).all()
    model.eval()
    with pytest.raises(ValueError, match="there are none to take statistics of"):
        estimate_statistics(model, [])
    with pytest.raises(AttributeError):
        estimate_statistics(model, [None])  # type: ignore[list-item]
    assert (layer.momentum, model.training) == (momentum, False)


def test_a_frozen_random_encoder_is_refused() -> None:
    with pytest.raises(ValueError, match=r"random, and it is frozen: name ImageNet weights .*pretrain-encoder"):
        prepare(model_of(experiment(), trained=False), "hourglass")
    prepare(model_of(experiment(), trained=False), "encoder")


def test_a_few_images_can_be_overfitted(full: bool) -> None:
    """An MPJPE under 2 mm on the training images shows that all parts from the heatmaps to the refiner learn together."""
    count, steps = (32, 450) if full else (8, 150)
    run = dataclasses.replace(experiment(width=32, depth=3), data=ImageDataConfig(images=count, validation_images=8))
    run = dataclasses.replace(run, optim=OptimConfig(ema=0.0))
    images, _ = training_set(run.data, run.model)
    assert images is not None
    model = model_of(run)
    training = EstimatorTraining(run, model, "estimator", images)
    batch = images.take(list(range(count)))
    batch = ImageBatch(batch.images, tuple(model.encode(batch.images.crops)))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        training.terms(batch)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    found = measure(model, images, run.loss.blob)
    assert found.after.mean() < 2
    assert found.before.mean() < 4
    assert found.heatmaps < 2
