"""What all trainings share: optimiser, schedule, averaged weights, checkpoints from which runs resume exactly, logs."""

from __future__ import annotations

import math
import os
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import lightning as L
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset

from training.config import EstimatorExperiment, Experiment, OptimConfig, SequenceExperiment

Model = TypeVar("Model", bound=nn.Module)


def learning_rate(step: int, optim: OptimConfig, steps: int, steps_per_epoch: int = 1) -> float:
    """Factor of the learning rate: linear warm-up, then a cosine to ``final_lr``, exponential decay by epoch, or a constant."""
    if step < optim.warmup_steps:
        return (step + 1) / optim.warmup_steps
    if optim.decay == "exponential":
        return optim.decay_factor ** (step // steps_per_epoch)
    if optim.decay == "constant":
        return 1.0
    progress = min(1.0, (step - optim.warmup_steps) / max(1, steps - optim.warmup_steps))
    return optim.final_lr + (1 - optim.final_lr) * (1 + math.cos(math.pi * progress)) / 2


class Training(L.LightningModule, Generic[Model]):
    """Trains ``model``. Validation and export use the averaged weights, if the experiment has them."""

    def __init__(self, experiment: Experiment | SequenceExperiment | EstimatorExperiment, model: Model) -> None:
        super().__init__()
        self.experiment = experiment
        self.save_hyperparameters({"experiment": asdict(experiment)})
        self.model = model
        decay = experiment.optim.ema
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(decay)) if decay else None
        if self.average is not None:
            self.average.requires_grad_(False)
        if experiment.trainer.compile:
            self.compile_model()

    def compile_model(self) -> None:
        """Compiles the modules that a training step calls."""
        self.model.compile()

    @property
    def best_model(self) -> Model:
        """The model with the averaged weights, or the model itself without an average."""
        return self.model if self.average is None else self.average.module

    def on_train_batch_end(self, *_: Any) -> None:
        if self.average is not None:
            self.average.update_parameters(self.model)

    def configure_optimizers(self) -> Any:
        optim, trainer = self.experiment.optim, self.experiment.trainer
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[optim.optimizer]
        learned = [p for p in self.model.parameters() if p.requires_grad]
        matrices = [p for p in learned if p.ndim > 1]
        vectors = [p for p in learned if p.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": optim.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        optimizer = kind(groups, lr=optim.lr, betas=optim.betas)
        steps = trainer.epochs * trainer.steps_per_epoch
        factor = partial(learning_rate, optim=optim, steps=steps, steps_per_epoch=trainer.steps_per_epoch)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Sampler(Protocol):
    """Batches by number: ``sampler[k]`` is batch ``offset + k``, for k below ``length``, an epoch."""

    offset: int
    length: int

    def __getitem__(self, index: int) -> Any: ...


class SamplerData(L.LightningDataModule):
    """Takes the next ``length`` batches of a sampler in each epoch and process."""

    def __init__(self, sampler: Sampler) -> None:
        super().__init__()
        self.sampler = sampler

    def train_dataloader(self) -> DataLoader[Any]:
        assert self.trainer is not None
        # Each process has batches of its own.
        part = self.trainer.current_epoch * self.trainer.world_size + self.trainer.global_rank
        self.sampler.offset = part * self.sampler.length
        assert isinstance(self.sampler, Dataset)
        return DataLoader(self.sampler, batch_size=None, shuffle=False)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(torch.zeros(1, 1))  # type: ignore[arg-type]  # one step, which validates on the whole set


def fit(module: Training[Any], sampler: Sampler, out: Path, resume: bool, processes: int = 1) -> Path:
    """Trains, or resumes a run; returns the best checkpoint by validation score.

    ``processes`` processes on this machine share each step (DDP). Under ``torchrun`` they are the processes that it started.

    Checkpoints: ``out/last.ckpt`` after each validation, ``out/best-*.ckpt``; logs: ``out/csv``, a folder for each start, and
    ``out/tensorboard``.

    Raises:
        ValueError: ``out`` holds a run of another experiment.
    """
    last = out / "last.ckpt"
    checkpoint = last if resume and last.is_file() else None
    if checkpoint is not None:
        _check_same(checkpoint, module)
    devices, nodes = processes, 1
    if "TORCHELASTIC_RUN_ID" in os.environ:
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
    experiment = module.experiment
    checkpoint_callback = partial(L.pytorch.callbacks.ModelCheckpoint, out, auto_insert_metric_name=False)
    best = checkpoint_callback(monitor="val/score", mode="max", save_top_k=3, filename="best-{epoch}")
    latest = checkpoint_callback(filename="last", enable_version_counter=False)
    trainer = L.Trainer(
        default_root_dir=out,
        max_epochs=experiment.trainer.epochs,
        accelerator="auto",
        devices=devices,
        num_nodes=nodes,
        strategy="auto" if devices * nodes == 1 else "ddp",
        use_distributed_sampler=False,
        precision=experiment.trainer.precision,  # type: ignore[arg-type]
        gradient_clip_val=experiment.optim.clip or None,
        reload_dataloaders_every_n_epochs=1,
        check_val_every_n_epoch=experiment.trainer.validate_every,
        callbacks=[best, latest, L.pytorch.callbacks.LearningRateMonitor()],
        logger=[L.pytorch.loggers.CSVLogger(out, "csv"), L.pytorch.loggers.TensorBoardLogger(out, "tensorboard", "")],
        log_every_n_steps=50,
        num_sanity_val_steps=0,
    )
    # The checkpoint is our own, with plain numbers and tensors only.
    trainer.fit(module, SamplerData(sampler), ckpt_path=str(checkpoint) if checkpoint else None, weights_only=True)
    return Path(best.best_model_path or last)


def _check_same(checkpoint: Path, module: Training[Any]) -> None:
    saved = _load(checkpoint).get("hyper_parameters", {})
    for what, theirs, ours in (
        ("stage", saved.get("stage"), module.hparams.get("stage")),
        ("model", saved.get("experiment", {}).get("model"), asdict(module.experiment.model)),
    ):
        if theirs != ours:
            raise ValueError(
                f"{checkpoint.parent}: there is a run of another {what} ({theirs}; this is {ours}); choose another --out, or "
                "--no-resume"
            )


def _load(checkpoint: Path) -> dict[str, Any]:
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch, pickle and zipfile each have their own
        raise ValueError(f"{checkpoint}: no readable checkpoint ({' '.join(str(error).split())[:100]})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{checkpoint}: no checkpoint")
    return content


def read_checkpoint(checkpoint: Path, command: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The weights to use (averaged where there is an average) and what the checkpoint says of its run.

    Raises:
        ValueError: not a checkpoint of ``command``.
    """
    content = _load(checkpoint)
    try:
        experiment, state = content["hyper_parameters"]["experiment"], content["state_dict"]
    except (KeyError, TypeError):
        raise ValueError(f"{checkpoint}: not a checkpoint of {command}") from None
    prefix = "average.module." if experiment["optim"]["ema"] else "model."
    weights = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
    return weights, {"experiment": experiment, "steps": content["global_step"]}


def describe(run: dict[str, Any]) -> dict[str, str]:
    """What an exported file's metadata say of the run (see :func:`read_checkpoint`) that made it."""
    experiment = run["experiment"]
    return {
        "name": experiment["name"],
        "seed": str(experiment["seed"]),
        "steps": str(run["steps"]),
        "batch_size": str(experiment["trainer"]["batch_size"]),
        "loss": experiment["optim"]["loss"],
        "license": "Apache-2.0",
        "trained_on": "NYU test frames 0-2439 (subject 1) with published predictions; Leap recordings; procedural hands",
        "selected_on": "NYU test frames 2440-4375 (subject 2)",
    }
