"""Helpers for tests of training: the smallest experiment of the estimator, and the command line."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
import typer
import yaml
from typer.testing import CliRunner

from jointbert.models.estimator import EstimatorConfig, HandPoseEstimator
from training.config import EstimatorExperiment, ImageDataConfig, OptimConfig, TrainerConfig

ROOT = Path(__file__).resolve().parents[2]
TINY: dict[str, Any] = {"size": 64, "backbone": "resnet18", "width": 8, "depth": 2, "beta": 20.0, "window": 3}
TINY["refiner"] = {"layers": 1, "heads": 2, "width": 16, "ffn": 16}
"""Sizes of a small estimator, for :meth:`EstimatorConfig.of`."""


def generator(seed: int = 0) -> torch.Generator:
    """A seeded generator."""
    return torch.Generator().manual_seed(seed)


def experiment(**changes: Any) -> EstimatorExperiment:
    """Two epochs of two steps of four rendered images; ``changes`` are those of the model's sizes."""
    return EstimatorExperiment(
        "tiny",
        seed=1,
        model=EstimatorConfig.of({**TINY, **changes}),
        data=ImageDataConfig(images=8, validation_images=4),
        optim=OptimConfig(lr=1e-3, warmup_steps=1, ema=0.5),
        trainer=TrainerConfig(epochs=2, steps_per_epoch=2, batch_size=4, precision="32-true", compile=False),
    )


def model_of(run: EstimatorExperiment, trained: bool = True) -> HandPoseEstimator:
    """The experiment's model with random weights; ``trained``: its encoder counts as trained and is frozen."""
    torch.manual_seed(0)
    model = HandPoseEstimator(run.model)
    if trained:
        model.encoder.freeze()
    return model


def write_config(path: Path, **changes: Any) -> Path:
    """Writes :func:`experiment` as a yaml file whose keys ``changes`` replace."""
    run = experiment()
    content = {
        "name": "tiny",
        "model": TINY,
        "data": {"images": 8, "validation_images": 4},
        "optim": {"lr": 1e-3, "warmup_steps": 1, "ema": 0.5},
        "trainer": {k: v for k, v in dataclasses.asdict(run.trainer).items() if k != "validation_stride"},
        **changes,
    }
    path.write_text(yaml.safe_dump(content))
    return path


def invoke(app: typer.Typer, *arguments: object) -> tuple[int, str]:
    """Exit code and output of a command; exceptions other than SystemExit fail the test."""
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def app_of(main: Any) -> typer.Typer:
    """A command line with one command."""
    app = typer.Typer()
    app.command()(main)
    return app
