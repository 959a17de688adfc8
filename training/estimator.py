"""Training of the estimator with Lightning in three stages: its encoder where there are no ImageNet weights, its hourglass
(thesis, table 4.1), and all parts end to end (table 4.3)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NamedTuple

import lightning as L
import torch
from torch import Tensor, nn

from jointbert.models.encoder import STRIDE
from jointbert.models.estimator import EstimatorConfig, HandPoseEstimator
from jointbert.models.regression import AdaptiveWeighting
from training import losses
from training.config import EstimatorExperiment, ImageDataConfig
from training.data.batches import Endless, ImageBatch, ImageSet, OneByOne, Shuffled, rendered_set
from training.data.feature_cache import FeatureCache
from training.data.images import HandImages, RenderedHands
from training.data.nyu_images import NyuImages
from training.fit import Training, fit, read_checkpoint

Stage = Literal["encoder", "hourglass", "estimator"]
COMMANDS: dict[Stage, str] = {"encoder": "pretrain-encoder", "hourglass": "pretrain-hourglass", "estimator": "train"}
VALIDATION_SEED, TEST_SEED = 900_001, 800_001
TEST_IMAGES = 4
"""Number of rendered test images, relative to the validation images."""
VALIDATION_BATCH = 32
DRAWN_IMAGES = 4
"""Validation images that each validation draws for TensorBoard."""
SETTLING_BATCHES = 32
"""Batches for batch norm's statistics before each validation."""


class Errors(NamedTuple):
    """Errors of all images of a set."""

    before: Tensor  # [N, 14]: mm
    after: Tensor  # [N, 14]: mm
    confidence: Tensor  # [N, 14]
    visible: Tensor  # [N, 14]
    heatmaps: Tensor  # []: eq. 4.1; meaningless for an AWR head, which has closeness instead


class EstimatorTraining(Training[HandPoseEstimator]):
    """One stage of training a :class:`HandPoseEstimator`."""

    experiment: EstimatorExperiment

    def __init__(self, experiment: EstimatorExperiment, model: HandPoseEstimator, stage: Stage, validation: ImageSet) -> None:
        prepare(model, stage)
        super().__init__(experiment, model)
        self.save_hyperparameters({"experiment": asdict(experiment), "stage": stage})
        self.stage = stage
        self.validation = validation

    def compile_model(self) -> None:
        self.model.neck.compile()
        self.model.hourglass.compile()

    def training_step(self, batch: ImageBatch, _: int) -> Tensor:
        terms = self.terms(batch)
        for name, value in terms.items():
            self.log(f"train/{name}", value, prog_bar=name == "loss")
        return terms["loss"]

    def terms(self, batch: ImageBatch) -> dict[str, Tensor]:
        """The losses of a batch by name; ``loss`` is their weighted sum (eq. 4.5)."""
        config, images, model = self.experiment.loss, batch.images, self.model
        maps = model.encode(images.crops) if batch.maps is None else list(batch.maps)
        dense = model.dense_from_maps(maps, images.crops)
        crop = images.crop
        uv, depth = crop.from_xyz(images.joints)
        if dense.directions is None:
            small = (uv + 0.5) / STRIDE - 0.5
            true = losses.blobs(small, model.config.heatmap_size, config.blob)
            heatmaps = losses.heatmap_loss(dense.heatmaps, true)
        else:
            assert isinstance(model.regression, AdaptiveWeighting)
            points = torch.cat([(uv + 0.5) * 2 / crop.size - 1, depth.unsqueeze(-1)], -1)
            closeness, directions, near = model.regression.targets(points, model.surface(images.crops))
            heatmaps = losses.adaptive_weighting_loss(dense.heatmaps, dense.directions, closeness, directions, near)
        terms = {"heatmaps": heatmaps, "loss": config.heatmaps * heatmaps}
        if self.stage != "estimator":
            return terms
        joints = model.to_xyz(dense.joints, crop)
        terms["joints"] = losses.joint_loss(joints, images.joints)
        terms["loss"] = terms["loss"] + config.joints * terms["joints"]
        if model.refiner is not None:
            confidence = dense.joints.confidence.float()
            refined, _ = model.refine(joints, confidence)
            terms["refined"] = losses.refinement_loss(refined, images.joints, confidence, config.floor)
            terms["loss"] = terms["loss"] + config.refined * terms["refined"]
            if config.sigma:  # the joints are detached: sigma's loss must not move them
                refined, sigma = model.refine(joints.detach(), confidence.detach())
                terms["sigma"] = losses.sigma_loss(refined, images.joints, sigma)
                terms["loss"] = terms["loss"] + config.sigma * terms["sigma"]
        return terms

    def validation_step(self, _: Any, __: int) -> None:
        self.settle()
        found = measure(self.best_model, self.validation, self.experiment.loss.blob, self.device)
        linear = self.experiment.model.head == "linear"
        if linear:
            self.log("val/heatmaps", found.heatmaps, sync_dist=True)
        if self.stage == "estimator" or not linear:
            for name, errors in (("before", found.before), ("after", found.after)):
                self.log(f"val/{name}_mm", errors.mean(), prog_bar=True, sync_dist=True)
                if not found.visible.all():
                    self.log(f"val/{name}_visible_mm", errors[found.visible].mean(), sync_dist=True)
                    self.log(f"val/{name}_occluded_mm", errors[~found.visible].mean(), sync_dist=True)
            score = -found.after.mean()
        else:
            score = -found.heatmaps
        self.log("val/score", score, prog_bar=True, sync_dist=True)
        if self.trainer.is_global_zero:
            self.draw()

    def settle(self) -> None:
        """Estimates batch norm's statistics with the weights that are validated.

        The running statistics belong to earlier weights, which differ while weights change fast or are averaged. All processes
        use the same batches."""
        sampler = self.trainer.datamodule.sampler  # type: ignore[attr-defined]
        own, sampler.offset = sampler.offset, self.trainer.current_epoch * self.trainer.world_size * sampler.length
        try:
            batches = (sampler[i] for i in range(min(SETTLING_BATCHES, sampler.length)))
            estimate_statistics(self.best_model, (self.transfer_batch_to_device(b, self.device, 0) for b in batches))
        finally:
            sampler.offset = own

    @torch.inference_mode()
    def draw(self) -> None:
        """Logs the first validation images with their heatmaps and poses to TensorBoard."""
        from jointbert.evaluation.figures import estimate_figure

        model = self.best_model
        images = self.validation.take(list(range(min(DRAWN_IMAGES, len(self.validation))))).images
        images = HandImages(*(x.to(self.device) for x in images))
        dense = model.dense(images.crops)
        joints = model.to_xyz(dense.joints, images.crop)
        refined, _ = model.refine(joints, dense.joints.confidence.float())
        for logger in self.loggers:
            if isinstance(logger, L.pytorch.loggers.TensorBoardLogger):
                for i in range(len(joints)):
                    uv, _ = images.crop.from_xyz(refined)
                    parts = (images.crops[i, 0], dense.heatmaps[i], uv[i], refined[i], images.joints[i])
                    figure = estimate_figure(*(x.float().cpu().numpy() for x in parts))
                    logger.experiment.add_figure(f"validation/{i}", figure, self.global_step)


def prepare(model: HandPoseEstimator, stage: Stage) -> None:
    """Sets ``requires_grad`` of the parameters that a stage trains, and of no others; a thawed encoder stays trainable.

    Raises:
        ValueError: the encoder is frozen and was not trained.
    """
    thawed = any(p.requires_grad for p in model.encoder.parameters())
    model.requires_grad_(False)
    if stage == "encoder" or thawed:
        model.encoder.thaw()
    elif not model.encoder.trained:
        raise ValueError(
            "the encoder's weights are random, and it is frozen: name ImageNet weights (--encoder imagenet, or a file), or "
            "pre-train it on rendered hands first (pretrain-encoder)"
        )
    model.neck.requires_grad_(True)
    model.hourglass.requires_grad_(True)
    if isinstance(model.regression, AdaptiveWeighting):
        model.regression.requires_grad_(True)
    if stage == "estimator":
        model.regression.requires_grad_(True)
        if model.refiner is not None:
            model.refiner.requires_grad_(True)
            model.refiner.mask.requires_grad_(False)  # the estimator sees every joint


@torch.no_grad()
def estimate_statistics(model: HandPoseEstimator, batches: Iterable[ImageBatch]) -> None:
    """Sets mean and variance of every batch norm layer that is not frozen to their means over at least one batch."""
    was_training = model.training
    model.train()
    layers = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d) and m.training]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a plain mean
    try:
        for batch in batches if layers else ():
            crops = batch.images.crops
            model.dense_from_maps(model.encode(crops) if batch.maps is None else list(batch.maps), crops)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        model.train(was_training)
    if any(layer.num_batches_tracked == 0 for layer in layers):
        raise ValueError("batches: there are none to take statistics of")


@torch.inference_mode()
def measure(model: HandPoseEstimator, images: ImageSet, blob: float, device: torch.device | str = "cpu") -> Errors:
    """Errors on all images of a set."""
    was_training = model.training
    model.eval()
    parts = []
    for first in range(0, len(images), VALIDATION_BATCH):
        batch = images.take(list(range(first, min(first + VALIDATION_BATCH, len(images)))))
        seen = HandImages(*(x.to(device) for x in batch.images))
        maps = model.encode(seen.crops) if batch.maps is None else [m.to(device) for m in batch.maps]
        dense = model.dense_from_maps(maps, seen.crops)
        joints = model.to_xyz(dense.joints, seen.crop)
        refined, _ = model.refine(joints, dense.joints.confidence.float())
        uv, _ = seen.crop.from_xyz(seen.joints)
        true = losses.blobs((uv + 0.5) / STRIDE - 0.5, model.config.heatmap_size, blob)
        heatmaps = (dense.heatmaps.float() - true).square().sum((-2, -1)).mean(1)
        errors = ((x - seen.joints).norm(dim=-1) for x in (joints, refined))
        parts.append((*errors, dense.joints.confidence.float(), seen.visible, heatmaps))
    model.train(was_training)
    before, after, confidence, visible, heatmaps = (torch.cat(column) for column in zip(*parts, strict=True))
    return Errors(before, after, confidence, visible, heatmaps.mean())


def training_set(config: ImageDataConfig, model: EstimatorConfig) -> tuple[ImageSet | None, str]:
    """The fixed set of training images, or None where they are rendered anew; and a text that identifies the set."""
    if config.source == "nyu":
        items = _nyu(config, model, "train", config.augmentation, config.variants, config.seed)
        rows = range(_training_frames(items, config) * config.variants)
        images = OneByOne(torch.utils.data.Subset(items, rows))
    elif config.images:
        images = rendered_set(config.render, model.size, model.cube_mm, config.images, config.seed)
    else:
        return None, ""
    described = {
        "source": config.source,
        "count": len(images),
        "size": model.size,
        "cube_mm": model.cube_mm,
        "seed": config.seed,
    }
    if config.source == "rendered":
        described["render"] = asdict(config.render)
    else:
        described |= {"augmentation": asdict(config.augmentation), "variants": config.variants, "annotations": items.digest()}
    return images, json.dumps(described, sort_keys=True)


def _nyu(config: ImageDataConfig, model: EstimatorConfig, split: str, *changes: Any) -> NyuImages:
    centres = config.centres.replace("{split}", split) or None
    folder = Path(config.nyu) / split
    return NyuImages(folder, model.size, centres, config.centre_format, *changes, test=split == "test", cube_mm=model.cube_mm)


def validation_set(config: ImageDataConfig, model: EstimatorConfig) -> ImageSet:
    """Images that are not used for training: rendered with another seed, or the last of NYU's training frames, as recorded."""
    if config.source == "rendered":
        return rendered_set(config.render, model.size, model.cube_mm, config.validation_images, VALIDATION_SEED)
    items = _nyu(config, model, "train")
    return OneByOne(torch.utils.data.Subset(items, range(_training_frames(items, config), len(items))))


def test_set(config: ImageDataConfig, model: EstimatorConfig) -> ImageSet:
    """Images that are used neither for training nor for model selection: rendered with a third seed, or NYU's test split."""
    if config.source == "nyu":
        return OneByOne(_nyu(config, model, "test"))
    return rendered_set(config.render, model.size, model.cube_mm, TEST_IMAGES * config.validation_images, TEST_SEED)


def _training_frames(items: NyuImages, config: ImageDataConfig) -> int:
    frames = len(items.joints) - config.validation_images
    if frames < 1:
        raise ValueError(f"{items.folder}: {len(items.joints)} frames, of which {config.validation_images} are for validation")
    return frames


def train(
    experiment: EstimatorExperiment,
    stage: Stage,
    model: HandPoseEstimator,
    out: Path,
    resume: bool = True,
    threads: int = 2,
    processes: int = 1,
    cache: Path | None = None,
) -> Path:
    """Trains, or resumes a run; returns the best checkpoint by validation score and writes its estimator beside it.

    Args:
        cache: folder of a feature cache of the training images (command ``cache-features``).

    Raises:
        ValueError: a random frozen encoder, another experiment's cache, or a set smaller than a batch.
    """
    if experiment.model.image != "depth":
        raise ValueError(f"model: image: got {experiment.model.image!r}; rendered and NYU's images are depth")
    torch.set_num_threads(threads)
    L.seed_everything(experiment.seed)
    validation = validation_set(experiment.data, experiment.model)
    module = EstimatorTraining(experiment, model, stage, validation)
    trainer = experiment.trainer
    images, images_id = training_set(experiment.data, experiment.model)
    if cache is not None:
        if any(p.requires_grad for p in model.encoder.parameters()):
            raise ValueError("--cache: the encoder learns in this stage; its features change with every step")
        images = FeatureCache(cache, model, images_id)
    if images is None:
        options = (experiment.model.size, experiment.model.cube_mm, trainer.batch_size, trainer.steps_per_epoch)
        sampler: Endless | Shuffled = Endless(RenderedHands(experiment.data.render, *options, experiment.seed))
    else:
        sampler = Shuffled(images, trainer.batch_size, trainer.steps_per_epoch, experiment.seed)
    best = fit(module, sampler, out, resume, processes)
    if module.global_rank == 0:
        export_estimator(best, out / "estimator.safetensors")
    return best


def export_estimator(checkpoint: Path, out: Path) -> None:
    """Writes a checkpoint's estimator (the averaged weights, where it has them) as safetensors.

    Raises:
        ValueError: the file is not a checkpoint of an estimator.
    """
    weights, run = read_checkpoint(checkpoint, "train")
    experiment = run["experiment"]
    if "loss" not in experiment or "blob" not in experiment["loss"]:
        raise ValueError(
            f"{checkpoint}: a checkpoint of a refiner; expected one of pretrain-encoder, pretrain-hourglass or train"
        )
    model = HandPoseEstimator(EstimatorConfig.of(experiment["model"]))
    model.load_state_dict(weights)
    model.encoder.freeze()
    source = experiment["data"]["source"]
    about = {"name": experiment["name"], "seed": experiment["seed"], "steps": run["steps"], "trained_on": f"{source} hands"}
    model.save(out, {key: str(value) for key, value in about.items()})


def hourglass_parts(model: HandPoseEstimator) -> tuple[str, ...]:
    """Names of the parts that the hourglass's pre-training trains; with an AWR head its directions are among them."""
    awr = isinstance(model.regression, AdaptiveWeighting)
    return ("neck", "hourglass", "regression") if awr else ("neck", "hourglass")


def load_parts(model: HandPoseEstimator, path: Path, parts: tuple[str, ...]) -> None:
    """Copies the weights of some modules from another estimator's file.

    Raises:
        ValueError: the other estimator has another architecture. OSError: it can't be read.
    """
    other = HandPoseEstimator.load(path)
    for part in parts:
        try:
            getattr(model, part).load_state_dict(getattr(other, part).state_dict())
        except RuntimeError:
            raise ValueError(f"{path}: its {part} is of another architecture: {other.config}; this is {model.config}") from None
