"""Experiments: dataclasses that are read from yaml files. Unknown keys are errors."""

from __future__ import annotations

import types
import typing
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from jointbert.models.estimator import EstimatorConfig
from jointbert.models.refiner import RefinerConfig
from jointbert.models.sequence import SequenceConfig
from training.data.clips import ClipConfig
from training.data.images import RenderConfig
from training.data.nyu_images import Augmentation
from training.data.sampler import DataConfig

T = TypeVar("T")


@dataclass(frozen=True)
class OptimConfig:
    """Optimiser, schedule and loss."""

    optimizer: Literal["adam", "adamw"] = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    warmup_steps: int = 1000
    decay: Literal["cosine", "exponential", "constant"] = "cosine"
    final_lr: float = 0.02
    """Fraction of ``lr`` at the end of the cosine."""
    decay_factor: float = 0.99
    """Factor of the learning rate for each epoch of the exponential decay."""
    clip: float = 1.0
    ema: float = 0.999
    """Decay of the averaged weights, which are validated and exported; 0: no average."""
    second_pass: float = 0.0
    """Share of each batch that is refined once before, with the refiner's own sigma as the expected error. From these poses the
    refiner learns not to change a refined pose again."""
    rest: bool = False
    """Refined predictions of the published methods teach joints to stay; otherwise they train sigma alone."""
    loss: Literal["likelihood", "l2"] = "likelihood"
    """``l2``: the thesis's. ``likelihood``: Euclidean errors relative to the corruption's size, and a calibrated sigma."""


@dataclass(frozen=True)
class TrainerConfig:
    """Length and precision of a run; an epoch has ``steps_per_epoch`` batches."""

    epochs: int = 60
    steps_per_epoch: int = 500
    batch_size: int = 256
    """Size of each process's batch."""
    precision: str = "bf16-mixed"
    compile: bool = True
    validate_every: int = 1
    """Epochs between two validations; each validation writes a checkpoint."""
    validation_stride: int = 6
    """Validation uses every N-th frame."""


@dataclass(frozen=True)
class Experiment:
    """One pre-training run of the joint refinement module."""

    name: str
    seed: int = 0
    model: RefinerConfig = field(default_factory=RefinerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)


@dataclass(frozen=True)
class SequenceExperiment:
    """One training run of the sequence refiner on a fixed refiner."""

    name: str
    seed: int = 0
    first: str = "nyu14"
    """The refiner: shipped weights by name, or a safetensors file."""
    model: SequenceConfig = field(default_factory=SequenceConfig)
    data: DataConfig = field(default_factory=DataConfig)
    clips: ClipConfig = field(default_factory=ClipConfig)
    smoothness: float = 0.2
    """Weight of the accelerations' error in the loss."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)


@dataclass(frozen=True)
class ImageDataConfig:
    """Source of the estimator's images."""

    source: Literal["rendered", "nyu"] = "rendered"
    render: RenderConfig = field(default_factory=RenderConfig)
    nyu: str = "../nyu"
    """Folder of the NYU Hand Pose data set, with ``train`` and ``test`` in it."""
    centres: str = ""
    """Path of the hand centres of NYU's images, in which ``{split}`` stands for ``train`` or ``test``; empty: centres of
    mass."""
    centre_format: Literal["xyz", "uvd"] = "xyz"
    augmentation: Augmentation = field(default_factory=Augmentation)
    images: int = 0
    """Number of rendered images in a fixed set; 0: every batch is rendered anew."""
    variants: int = 1
    """Number of fixed augmentations of each recorded image."""
    seed: int = 0
    """Seed of a fixed set of images; the run's own seed decides their order, and images that are rendered anew."""
    validation_images: int = 512


@dataclass(frozen=True)
class EstimatorLossConfig:
    """Weights of the terms of eq. 4.5. The thesis gives neither the blobs' size nor the factors; these values are our
    choice."""

    blob: float = 2.0
    """Standard deviation of the true heatmaps' blobs, in heatmap pixels."""
    heatmaps: float = 1.0
    joints: float = 10.0
    """Lambda 1, of squared errors in units of (100 mm)^2."""
    refined: float = 1.0
    """Lambda 2, of absolute errors in units of 100 mm, weighted by 1 / C."""
    floor: float = 0.05
    """Lower bound of C in 1 / C."""
    sigma: float = 0.01
    """Weight of the term that calibrates the refiner's sigma; the thesis has no such term."""


@dataclass(frozen=True)
class EstimatorExperiment:
    """One training run of the estimator: of its encoder, its hourglass, or every part that is not frozen."""

    name: str
    model: EstimatorConfig
    seed: int = 0
    data: ImageDataConfig = field(default_factory=ImageDataConfig)
    loss: EstimatorLossConfig = field(default_factory=EstimatorLossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)


E_ = TypeVar("E_", Experiment, SequenceExperiment, EstimatorExperiment)


def read_experiment(path: str | Path, kind: type[E_] = Experiment) -> E_:  # type: ignore[assignment]
    """Reads an experiment of a kind.

    Raises:
        ValueError: no valid yaml, an unknown key or a value of the wrong kind, named by its place in the file.
    """
    with open(path, encoding="utf-8") as file:
        try:
            content = yaml.safe_load(file)
        except yaml.YAMLError as error:
            raise ValueError(f"{path}: no valid yaml ({error})") from None
    return _build(kind, content, str(path))


def _build(kind: type[T], content: object, where: str) -> T:
    if not isinstance(content, dict):
        raise ValueError(f"{where}: expected a mapping")
    hints = typing.get_type_hints(kind)
    known = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    if unknown := set(content) - known:
        raise ValueError(
            f"{where}: unknown {', '.join(map(repr, sorted(unknown)))}; expected some of {', '.join(sorted(known))}"
        )
    needed = [f.name for f in fields(kind) if f.default is f.default_factory is MISSING]  # type: ignore[arg-type]
    if missing := [name for name in needed if name not in content]:
        raise ValueError(f"{where}: {missing[0]!r} is missing")
    try:
        return kind(**{key: _value(hints[key], value, f"{where}: {key}") for key, value in content.items()})
    except TypeError as error:
        raise ValueError(f"{where}: {error}") from None


def _value(hint: Any, value: Any, where: str) -> Any:
    if is_dataclass(hint):
        return _build(typing.cast(type, hint), value, where)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    try:
        if origin is Literal:
            if value not in arguments:
                raise ValueError(f"got {value!r}; expected one of {arguments}")
            return value
        if origin is tuple:
            return tuple(_value(arguments[0], item, where) for item in value)
        if origin is dict:
            return {str(k): _value(arguments[1], v, where) for k, v in value.items()}
        if hint is float:
            return float(value)  # yaml reads 1e-4 as a string
        if isinstance(hint, types.UnionType):  # an optional value
            kinds = [kind for kind in arguments if kind is not type(None)]
            return None if value is None and len(kinds) < len(arguments) else _value(kinds[0], value, where)
        if not isinstance(value, hint):
            raise ValueError(f"got {value!r}; expected {hint.__name__}")
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from None
    return value
