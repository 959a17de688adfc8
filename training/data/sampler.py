"""Batches of training poses: drawn, corrupted and encoded; each batch is determined by the seed and its number."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.utils.data import Dataset

from jointbert.contract.layout import ERROR_RANGE_MM, ERROR_UNIT_MM, LOG_SIGMA_RANGE, SCALE_MM
from jointbert.models.refiner import encode
from training.data import corruption as c
from training.data.bank import PoseBank, articulate, resize
from training.data.corruption import Corruption
from training.data.hand import build, rand, rotations, sample_directions
from training.data.leap import read_leap
from training.data.nyu import TRAINING, read_published

SOURCES = ("recombined", "procedural", "leap", "predictions")


@dataclass(frozen=True)
class DataConfig:
    """Sources of the poses and their changes."""

    nyu: str = "../shared/data/nyu"
    leap: str = "../shared/data/leap/leap_hands.npz"
    sources: dict[str, float] = field(
        default_factory=lambda: {"recombined": 0.57, "procedural": 0.13, "leap": 0.13, "predictions": 0.17}
    )
    """Share of each source. ``recombined``: subject 1's palms and fingers; ``procedural``, ``leap``: the procedural hand with
    sampled or recorded articulation. ``predictions``: the methods' own predictions, with their true poses moved further away;
    these train sigma alone, which learns that a plausible hand may have an error of any size."""
    own_error: bool = False
    """Recombined poses get the error that a method made on the palm's frame. With ``recombine`` 0 and recorded views this is
    training on the methods' predictions themselves, without pre-training."""
    recombine: float = 1.0
    """Probability of each finger of a recombined pose to come from another frame than the palm."""
    articulate: float = 0.12
    """Standard deviation of the angles by which recombined fingers are turned, radians about each axis."""
    masked_recombine: float = 0.0
    """``recombine`` of poses with masked joints. The other fingers determine where a masked one is only if they are of one
    hand. The refiner does not apply to whole hands what it learns of subject 1's habits from poses with masked joints."""
    masked_articulate: float = 0.02
    """``articulate`` of poses with masked joints."""
    blend: float = 0.7
    """Probability that an error is a random mean of the errors of two methods on one frame."""
    scale: tuple[float, float] = (0.55, 1.3)
    """Hand size relative to subject 1 (palm to wrist 81 mm)."""
    variation: float = 0.07
    """Standard deviation of a person's proportions, as a fraction."""
    root_shift_mm: float = 4.0
    """Standard deviation of the positions of a person's finger roots."""
    any_view: float = 0.5
    """Probability of a random rotation; otherwise the pose keeps a recorded view."""
    turn: bool = True
    """Rotate poses in the image plane, and slightly out of it."""
    upright: float = 0.7
    """Probability that the rotation in the image plane is small."""
    corruption: Corruption = field(default_factory=Corruption)


class TrainingBatch(NamedTuple):
    """Features of :func:`jointbert.models.refiner.encode` and the refiner's targets."""

    features: Tensor  # [B, 14, 8]
    target: Tensor  # [B, 14, 3]: true joints minus the mean of the observed ones (missing) or minus the joint, over 100 mm
    observed: Tensor  # [B, 14] bool
    counted: Tensor  # [B] bool: the pose trains joints and sigma; where False, sigma alone
    still: Tensor  # [B] bool: joints are trained to stay where they are; the target is sigma's alone


def again(batch: TrainingBatch, output: Tensor, rest: bool = False) -> TrainingBatch:
    """The batch after one pass: refined poses, in which every joint is observed, with sigma as the expected error.

    Joints of synthetic predictions are trained towards their true poses. Predictions of the published methods (``counted`` is
    False) must not train joints towards their true poses, but refined they are typical inputs of a second pass: with ``rest``
    their joints are trained to stay.

    Args:
        output: ``(B, 14, 4)`` of the refiner for ``batch``.
    """
    features = batch.features.clone()
    refined = features[..., :3] + output[..., :3]
    features[..., :3] = refined - refined.mean(1, keepdim=True)
    features[..., 3] = 1
    sigma_mm = SCALE_MM * output[..., 3].clamp(*LOG_SIGMA_RANGE).exp()
    features[..., 6] = torch.log(sigma_mm.clamp(*ERROR_RANGE_MM) / ERROR_UNIT_MM)
    features[..., 7] = 1
    still = ~batch.counted if rest else batch.still
    return TrainingBatch(features, batch.target - output[..., :3], torch.ones_like(batch.observed), batch.counted, still)


class PoseSampler(Dataset):
    """Batches by number: ``sampler[k]`` depends on the seed and ``offset + k`` alone, so that a resumed run sees the same
    batches."""

    def __init__(self, config: DataConfig, batch_size: int, length: int, seed: int, offset: int = 0) -> None:
        unknown = set(config.sources) - set(SOURCES)
        if unknown:
            raise ValueError(f"sources: {sorted(unknown)} unknown; expected some of {SOURCES}")
        self.config, self.batch_size, self.length, self.seed, self.offset = config, batch_size, length, seed, offset
        self.bank = PoseBank(read_published(config.nyu).frames(TRAINING))
        self.leap = read_leap(config.leap) if config.sources.get("leap") else None
        total = sum(config.sources.values())
        bounds = [0]
        for name in SOURCES:
            bounds.append(bounds[-1] + config.sources.get(name, 0) / total)
        self.counts = {s: round(batch_size * bounds[i + 1]) - round(batch_size * bounds[i]) for i, s in enumerate(SOURCES)}

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> TrainingBatch:
        if not 0 <= index < self.length:
            raise IndexError(index)
        g = Generator().manual_seed((self.seed << 32) + self.offset + index)
        observed = c.mask(self.batch_size, self.config.corruption, g)
        true, predicted, expected = self.draw(~observed.all(1), g)
        error = (predicted - true).norm(dim=-1)
        confidence = c.simulate_confidence(error, self.config.corruption, g)
        stated = c.simulate_error_size(expected, self.config.corruption, g)
        features, mean = encode(predicted, observed, confidence, stated)
        start = torch.where(observed.unsqueeze(-1), predicted, mean)
        counted = torch.arange(self.batch_size) < self.batch_size - self.counts["predictions"]
        return TrainingBatch(features, (true - start) / 100, observed, counted, torch.zeros_like(counted))

    def draw(self, masked: Tensor, g: Generator) -> tuple[Tensor, Tensor, Tensor]:
        """True and predicted poses ``(B, 14, 3)`` in the camera frame, and the predictor's mean error ``(B, 1)``, mm.

        Args:
            masked: ``(B,)`` bool, True for poses that will have masked joints.
        """
        config, rule = self.config, self.config.corruption
        n = self.batch_size - self.counts["predictions"]
        masked = masked[:n]
        clean, view, frame = self._clean(masked, g)
        view = torch.where(torch.rand(n, 1, 1, generator=g) < config.any_view, rotations(n, g), view)
        moved = c.misjudge_size(c.replace(clean, rule, g), rule, g)
        back = view.transpose(-1, -2)
        true, predicted = clean @ back, moved @ back
        predicted = predicted + c.noise(predicted, rule, g) + rule.offset_mm * torch.randn(n, 1, 3, generator=g)
        extra_mm = (predicted - true).norm(dim=-1).mean(1)
        recorded, method_mm = self.bank.sample_errors(n, config.blend, g, frame)
        gain = (torch.randn(n, generator=g) * rule.error_gain_sigma).exp() * rule.error_gain_median
        gain = gain * (torch.rand(n, generator=g) < torch.where(masked, rule.masked_transplant, rule.transplant))
        predicted = predicted + gain.view(-1, 1, 1) * recorded
        # A user states the method's mean error over its data, not that of this pose.
        size = torch.hypot(method_mm * gain, extra_mm)
        parts = zip((true, predicted, size), self._predictions(g), strict=True)
        true, predicted, size = (torch.cat(part) for part in parts)
        if config.turn:
            turn = c.random_view(self.batch_size, config.upright, g).transpose(-1, -2)
            true, predicted = true @ turn, predicted @ turn
        return true, predicted, size.clamp(0.3, 100).unsqueeze(1)

    def _predictions(self, g: Generator) -> tuple[Tensor, Tensor, Tensor]:
        """The results of :meth:`draw` for the source ``predictions``: the true poses are moved further away."""
        config, rule, n = self.config, self.config.corruption, self.counts["predictions"]
        frame = torch.randint(len(self.bank.local), (n,), generator=g)
        error, method_mm = self.bank.sample_errors(n, config.blend, g, frame)
        scale = rand((n,), *config.scale, g)
        gain = (torch.randn(n, generator=g) * rule.plausible_gain_sigma).exp() * rule.plausible_gain_median
        recorded = self.bank.local[frame] @ self.bank.rotation[frame].transpose(-1, -2)
        predicted = scale.view(-1, 1, 1) * (recorded + error)
        return predicted - (scale * gain).view(-1, 1, 1) * error, predicted, method_mm * scale * gain

    def _clean(self, masked: Tensor, g: Generator) -> tuple[Tensor, Tensor, Tensor | None]:
        """True poses ``(B, 14, 3)`` in the palm's frame, recorded views ``(B, 3, 3)``, and the frames ``(B,)`` whose errors the
        poses get; None: random frames."""
        config = self.config
        recombined, procedural, leap, _ = (self.counts[s] for s in SOURCES)
        has_mask = masked[:recombined]
        each = torch.where(has_mask, config.masked_recombine, config.recombine)
        pose, view, frame = self.bank.sample_poses(each, g)
        nothing = torch.zeros_like(pose)
        pose = articulate(pose, torch.where(has_mask, config.masked_articulate, config.articulate), g)
        parts = [resize(pose, nothing, torch.ones(recombined), config.variation, config.root_shift_mm, g)[0]]
        others = torch.randint(len(self.bank.rotation), (procedural + leap,), generator=g)
        if procedural:
            parts.append(build(sample_directions(procedural, g), g, config.variation))
        if leap and self.leap is not None:
            rows = torch.randint(len(self.leap.fingers), (leap,), generator=g)
            parts.append(build(self.leap[rows], g, config.variation))
        poses = torch.cat(parts)
        poses = poses * rand((len(poses), 1, 1), *config.scale, g)
        return poses, torch.cat([view, self.bank.rotation[others]]), torch.cat([frame, others]) if config.own_error else None
