"""Pre-training of the joint refinement module with Lightning (thesis, section 4.3.2)."""

from __future__ import annotations

import math
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from jointbert.models.refiner import JointRefiner, RefinerConfig
from training import losses
from training.config import Experiment, OptimConfig
from training.data.nyu import TRAINING, VALIDATION, read_published
from training.data.stream import PoseStream, TrainingBatch
from training.validation import GAINS, fill_error, gains, gaussian_fill_error, hidden_patterns


def learning_rate(step: int, optim: OptimConfig, steps: int) -> float:
    """Factor of the learning rate: linear warm-up, then a cosine to ``final_lr`` or a constant."""
    if step < optim.warmup_steps:
        return (step + 1) / optim.warmup_steps
    if optim.decay == "constant":
        return 1.0
    progress = min(1.0, (step - optim.warmup_steps) / max(1, steps - optim.warmup_steps))
    return optim.final_lr + (1 - optim.final_lr) * (1 + math.cos(math.pi * progress)) / 2


class RefinerTraining(L.LightningModule):
    """Trains a :class:`JointRefiner`; validation and export use the averaged weights where there are any."""

    def __init__(self, experiment: Experiment) -> None:
        super().__init__()
        self.experiment = experiment
        self.save_hyperparameters({"experiment": asdict(experiment)})
        self.model = JointRefiner(experiment.model)
        decay = experiment.optim.ema
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(decay)) if decay else None
        if experiment.trainer.compile:
            self.model.compile()

    @property
    def best_model(self) -> JointRefiner:
        """The weights to use: the average, or the model itself."""
        return self.model if self.average is None else self.average.module

    def training_step(self, batch: TrainingBatch, _: int) -> Tensor:
        output = self.model(batch.features)
        if self.experiment.optim.loss == "l2":
            loss = losses.l2(output, batch.target)
        else:
            loss = losses.likelihood(output, batch.target, batch.observed)
        self.log("train/loss", loss, prog_bar=True)
        with torch.no_grad():
            error = 100 * (output[..., :3].float() - batch.target).norm(dim=-1)
            self.log("train/error_mm", error[batch.observed].mean(), prog_bar=True)
            before = 100 * batch.target.norm(dim=-1)
            self.log("train/gain", 1 - error[batch.observed].mean() / before[batch.observed].mean())
            self.log("train/hidden_mm", error[~batch.observed].mean())
        return loss

    def on_train_batch_end(self, *_: Any) -> None:
        if self.average is not None:
            self.average.update_parameters(self.model)

    def configure_optimizers(self) -> Any:
        optim, trainer = self.experiment.optim, self.experiment.trainer
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[optim.optimizer]
        matrices = [p for p in self.model.parameters() if p.ndim > 1]
        vectors = [p for p in self.model.parameters() if p.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": optim.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        optimizer = kind(groups, lr=optim.lr, betas=optim.betas)
        steps = trainer.epochs * trainer.steps_per_epoch
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(learning_rate, optim=optim, steps=steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def setup(self, stage: str) -> None:
        config = self.experiment
        published = read_published(config.data.nyu)
        stride = config.trainer.validation_stride
        self.subject1 = published.frames(slice(TRAINING.start, TRAINING.stop, 4 * stride))
        self.subject2 = published.frames(slice(VALIDATION.start, VALIDATION.stop, stride))
        self.hidden = hidden_patterns(len(self.subject2.groundtruth), 4)
        self.gaussian_mm = gaussian_fill_error(published.groundtruth[TRAINING], self.subject2.groundtruth, self.hidden)

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
        self.log("val/hidden4_mm", fill_error(model, self.subject2.groundtruth, self.hidden), prog_bar=True)
        self.log("val/hidden4_gaussian_mm", self.gaussian_mm)
        model.observed_gain.fill_(factor)  # for the checkpoint, which is written next


class PoseData(L.LightningDataModule):
    """The pose stream, a new stretch of it each epoch."""

    def __init__(self, experiment: Experiment) -> None:
        super().__init__()
        self.experiment = experiment

    def setup(self, stage: str) -> None:
        config = self.experiment
        self.stream = PoseStream(config.data, config.trainer.batch_size, config.trainer.steps_per_epoch, config.seed)

    def train_dataloader(self) -> DataLoader[Any]:
        assert self.trainer is not None
        self.stream.offset = self.trainer.current_epoch * self.stream.length
        return DataLoader(self.stream, batch_size=None, shuffle=False)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(torch.zeros(1, 1))  # one step: the whole validation set


def pretrain(experiment: Experiment, out: Path, resume: bool, threads: int) -> Path:
    """Trains, or goes on with, an experiment; returns the best checkpoint by validation score.

    Checkpoints: ``out/last.ckpt`` after each epoch, ``out/best-*.ckpt``; logs: ``out/csv`` and ``out/tensorboard``.
    """
    torch.set_num_threads(threads)
    L.seed_everything(experiment.seed)
    module = RefinerTraining(experiment)
    checkpoint_callback = partial(L.pytorch.callbacks.ModelCheckpoint, out, auto_insert_metric_name=False)
    best = checkpoint_callback(monitor="val/score", mode="max", save_top_k=3, filename="best-{epoch}")
    latest = checkpoint_callback(filename="last", enable_version_counter=False)
    trainer = L.Trainer(
        default_root_dir=out,
        max_epochs=experiment.trainer.epochs,
        accelerator="auto",
        devices=1,
        precision=experiment.trainer.precision,  # type: ignore[arg-type]
        gradient_clip_val=experiment.optim.clip or None,
        reload_dataloaders_every_n_epochs=1,
        callbacks=[best, latest, L.pytorch.callbacks.LearningRateMonitor()],
        logger=[L.pytorch.loggers.CSVLogger(out, "csv", ""), L.pytorch.loggers.TensorBoardLogger(out, "tensorboard", "")],
        log_every_n_steps=50,
        num_sanity_val_steps=0,
    )
    last = out / "last.ckpt"
    checkpoint = last if resume and last.is_file() else None
    # The checkpoint is our own, with plain numbers and tensors only.
    trainer.fit(module, PoseData(experiment), ckpt_path=str(checkpoint) if checkpoint else None, weights_only=True)
    return Path(best.best_model_path or last)


def load_checkpoint(checkpoint: Path) -> tuple[JointRefiner, dict[str, Any]]:
    """The refiner to use (averaged where there is an average) and what the checkpoint says of its run.

    Raises:
        ValueError: not a checkpoint of :func:`pretrain`.
    """
    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    try:
        experiment, state = content["hyper_parameters"]["experiment"], content["state_dict"]
    except (KeyError, TypeError):
        raise ValueError(f"{checkpoint}: not a checkpoint of pretrain-refiner") from None
    prefix = "average.module." if experiment["optim"]["ema"] else "model."
    model = JointRefiner(RefinerConfig(**experiment["model"]))
    model.load_state_dict({key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)})
    return model.eval(), {"experiment": experiment, "steps": content["global_step"]}


def export(checkpoint: Path, out: Path, gain: float | None = None) -> None:
    """Writes the refiner of a checkpoint as safetensors; ``gain`` replaces the factor that validation chose."""
    model, run = load_checkpoint(checkpoint)
    if gain is not None:
        model.observed_gain.fill_(gain)
    experiment = run["experiment"]
    model.save(
        out,
        {
            "name": experiment["name"],
            "seed": str(experiment["seed"]),
            "steps": str(run["steps"]),
            "batch_size": str(experiment["trainer"]["batch_size"]),
            "observed_gain": f"{model.observed_gain.item():g}",
            "license": "Apache-2.0",
            "trained_on": "NYU test frames 0-2439 (subject 1) with published predictions; Leap recordings; procedural hands",
            "selected_on": "NYU test frames 2440-4375 (subject 2)",
        },
    )
