"""Pre-training of the joint refinement module with Lightning (thesis, section 4.3.2)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor

from jointbert.contract.layout import SCALE_MM
from jointbert.models.refiner import JointRefiner, RefinerConfig, decode, encode
from training import losses
from training.config import Experiment
from training.data.nyu import TRAINING, VALIDATION, Published, read_published
from training.data.sampler import PoseSampler, TrainingBatch, again
from training.fit import Training, describe, fit, read_checkpoint
from training.validation import GAINS, fill_error, gains, gaussian_fill_error, masked_patterns


class RefinerTraining(Training[JointRefiner]):
    """Trains a :class:`JointRefiner`."""

    experiment: Experiment

    def __init__(self, experiment: Experiment) -> None:
        super().__init__(experiment, JointRefiner(experiment.model))

    def training_step(self, batch: TrainingBatch, _: int) -> Tensor:
        if self.experiment.optim.second_pass:
            rows = slice(None, None, round(1 / self.experiment.optim.second_pass))  # these rows have a part of every source
            once = TrainingBatch(*(x[rows] for x in batch))
            with torch.no_grad():
                twice = again(once, self.model(once.features).float(), self.experiment.optim.rest)
            for all_rows, new in zip(batch, twice, strict=True):
                all_rows[rows] = new
        output = self.model(batch.features)
        if self.experiment.optim.loss == "l2":
            loss = losses.l2(output, batch.target)
        else:
            loss = losses.likelihood(output, batch.target, batch.observed, batch.counted, batch.still)
        self.log("train/loss", loss, prog_bar=True)
        with torch.no_grad():
            error = 100 * (output[..., :3].float() - batch.target).norm(dim=-1)[batch.counted]
            before = 100 * batch.target.norm(dim=-1)[batch.counted]
            observed = batch.observed[batch.counted]
            self.log("train/error_mm", error[observed].mean(), prog_bar=True)
            self.log("train/gain", 1 - error[observed].mean() / before[observed].mean())
            self.log("train/masked_mm", error[~observed].mean())
        return loss

    def setup(self, stage: str) -> None:
        config = self.experiment
        published = read_published(config.data.nyu)
        stride = config.trainer.validation_stride
        self.subject1 = published.frames(slice(TRAINING.start, TRAINING.stop, 4 * stride))
        self.subject2 = published.frames(slice(VALIDATION.start, VALIDATION.stop, stride))
        self.masked = masked_patterns(len(self.subject2.groundtruth), 4)
        self.gaussian_mm = gaussian_fill_error(published.groundtruth[TRAINING], self.subject2.groundtruth, self.masked)

    def on_train_epoch_start(self) -> None:
        self.best_model.observed_gain.fill_(1.0)

    def validation_step(self, _: Any, __: int) -> None:
        model = self.best_model.eval()
        by_factor = gains(model, self.subject2, GAINS)
        factor, after = max(by_factor.items(), key=lambda item: item[1].score)
        training = gains(model, self.subject1, (factor,))[factor]
        self.log("val/score", after.score, prog_bar=True)
        self.log("val/observed_gain", factor)
        self.log("val/gain", after.mean, prog_bar=True)
        self.log("val/improved", float(after.improved), prog_bar=True)
        self.log("val/worst", after.worst, prog_bar=True)
        self.log("val/subject1_gain", training.mean, prog_bar=True)
        self.log("val/subject1_worst", training.worst)
        self.log("val/masked4_mm", fill_error(model, self.subject2.groundtruth, self.masked), prog_bar=True)
        self.log("val/masked4_gaussian_mm", self.gaussian_mm)
        model.observed_gain.fill_(factor)  # the checkpoint is written next


def pretrain(experiment: Experiment, out: Path, resume: bool, threads: int) -> Path:
    """Trains an experiment, or resumes it; returns the best checkpoint by validation score."""
    torch.set_num_threads(threads)
    L.seed_everything(experiment.seed)
    trainer = experiment.trainer
    sampler = PoseSampler(experiment.data, trainer.batch_size, trainer.steps_per_epoch, experiment.seed)
    return fit(RefinerTraining(experiment), sampler, out, resume)


def load_checkpoint(checkpoint: Path) -> tuple[JointRefiner, dict[str, Any]]:
    """The refiner of a checkpoint, and the description of its run.

    Raises:
        ValueError: not a checkpoint of :func:`pretrain`.
    """
    weights, run = read_checkpoint(checkpoint, "pretrain-refiner")
    model = JointRefiner(RefinerConfig(**run["experiment"]["model"]))
    model.load_state_dict(weights)
    return model.eval(), run


@torch.no_grad()
def calibrate_sigma(model: JointRefiner, published: Published, power: float, stride: int = 4) -> float:
    """Changes the head so that sigma becomes ``scale * sigma ** power`` in millimetres, and returns the scale.

    With this scale the mean sigma is the mean error, over methods and joints, with each method's MPJPE stated. A power below 1
    reduces the spread of sigma.

    Raises:
        ValueError: the power is not positive.
    """
    if not power > 0:
        raise ValueError(f"power: got {power}; expected a positive number")
    frames = published.frames(slice(None, None, stride))
    total = np.zeros(2)  # sums of mean errors and of mean powers of sigma
    for poses in frames.predictions.values():
        stated = float(np.linalg.norm(poses - frames.groundtruth, axis=-1).mean())
        joints, truth = torch.from_numpy(poses).float(), torch.from_numpy(frames.groundtruth).float()
        observed, unknown = torch.ones(joints.shape[:2], dtype=torch.bool), torch.full(joints.shape[:2], torch.nan)
        features, mean = encode(joints, observed, unknown, torch.full_like(unknown, stated))
        refined, sigma = decode(joints, observed, mean, model(features))
        total += (refined - truth).norm(dim=-1).mean().item(), sigma.pow(power).mean().item()
    scale = float(total[0] / total[1])
    model.head.weight[3] *= power
    model.head.bias[3] = power * model.head.bias[3] + math.log(scale) + (power - 1) * math.log(SCALE_MM)
    return scale


def export(
    checkpoint: Path, out: Path, gain: float | None = None, sigma_power: float | None = None, nyu: Path | None = None
) -> None:
    """Writes the refiner of a checkpoint as safetensors; ``gain`` replaces the factor that validation chose. With
    ``sigma_power``, sigma is calibrated (:func:`calibrate_sigma`) on subject 1's frames, of ``nyu`` or where it was trained.

    Raises:
        ValueError: not a checkpoint of :func:`pretrain`, one whose sigma was not trained, ``nyu`` without ``sigma_power``.
    """
    model, run = load_checkpoint(checkpoint)
    if sigma_power is None and nyu is not None:
        raise ValueError("--nyu: the predictions are read for --sigma-power alone")
    if sigma_power is not None and run["experiment"]["optim"]["loss"] != "likelihood":
        raise ValueError(f"--sigma-power: {checkpoint} was trained with the loss 'l2', which teaches no sigma")
    if gain is not None:
        model.observed_gain.fill_(gain)
    about = describe(run) | {"observed_gain": f"{model.observed_gain.item():g}"}
    if sigma_power is not None:
        published = read_published(nyu or run["experiment"]["data"]["nyu"]).frames(TRAINING)
        about["sigma"] = f"{calibrate_sigma(model, published, sigma_power):.4g} * sigma^{sigma_power:g}"
    model.save(out, about)
