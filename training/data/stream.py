"""The endless stream of training poses: drawn, corrupted and encoded a batch at a time, reproducible from seed and step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.utils.data import Dataset

from jointbert.backends.layout import ERROR_RANGE_MM, ERROR_UNIT_MM, LOG_SIGMA_RANGE, SCALE_MM
from jointbert.models.refiner import encode
from training.data import corruption as c
from training.data.bank import PoseBank, articulate, resize
from training.data.corruption import Corruption
from training.data.hand import build, rand, rotations, sample_directions
from training.data.leap import read_leap
from training.data.nyu import TRAINING, read_published

SOURCES = ("recombined", "procedural", "leap")


@dataclass(frozen=True)
class DataConfig:
    """Where poses come from and what is done to them."""

    nyu: str = "../shared/data/nyu"
    leap: str = "../shared/data/leap/leap_hands.npz"
    sources: dict[str, float] = field(default_factory=lambda: {"recombined": 0.7, "procedural": 0.15, "leap": 0.15})
    """Share of each source. ``recombined``: subject 1's palms and fingers; ``procedural``, ``leap``: the procedural hand with
    sampled or recorded articulation."""
    own_error: bool = False
    """Recombined poses keep the error that a method made on the palm's very frame: with ``recombine`` 0 and recorded views that
    is training on a method's predictions themselves, without pre-training."""
    recombine: float = 1.0
    """Probability, per finger of a recombined pose, that it comes from another frame than the palm."""
    articulate: float = 0.12
    """Standard deviation of the angles by which recombined fingers are turned, radians about each axis."""
    blend: float = 0.7
    """Probability that an error is a random mean of two methods' on one frame."""
    scale: tuple[float, float] = (0.55, 1.3)
    """Hand size relative to subject 1 (palm to wrist 81 mm)."""
    variation: float = 0.07
    """Standard deviation of one person's proportions, a fraction."""
    root_shift_mm: float = 4.0
    """Standard deviation of the places of one person's finger roots."""
    any_view: float = 0.5
    """Probability that a pose without a recorded error is turned by any rotation; otherwise it keeps a recorded view."""
    turn: bool = True
    """Turn poses in the image plane, and a little out of it."""
    upright: float = 0.7
    """Probability that this turn is a small one."""
    corruption: Corruption = field(default_factory=Corruption)


class TrainingBatch(NamedTuple):
    """Features of :func:`jointbert.models.refiner.encode` and what the refiner must answer."""

    features: Tensor  # [B, 14, 8]
    target: Tensor  # [B, 14, 3]: true joints minus the mean of the observed ones (missing) or minus the joint, over 100 mm
    observed: Tensor  # [B, 14] bool


def again(batch: TrainingBatch, output: Tensor) -> TrainingBatch:
    """The batch after one pass: refined poses with every joint there, and their sigma as the expected error.

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
    return TrainingBatch(features, batch.target - output[..., :3], torch.ones_like(batch.observed))


class PoseStream(Dataset):
    """Batches by index: ``stream[k]`` depends on the seed and on ``offset + k`` alone, so a resumed run goes on exactly."""

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
        true, predicted, expected = self.draw(g)
        error = (predicted - true).norm(dim=-1)
        observed = c.mask(len(true), self.config.corruption, g)
        confidence = c.simulate_confidence(error, self.config.corruption, g)
        stated = c.simulate_error_size(expected, self.config.corruption, g)
        features, mean = encode(predicted, observed, confidence, stated)
        start = torch.where(observed.unsqueeze(-1), predicted, mean)
        return TrainingBatch(features, (true - start) / 100, observed)

    def draw(self, g: Generator) -> tuple[Tensor, Tensor, Tensor]:
        """True and predicted poses ``(B, 14, 3)`` in the camera frame, and the predictor's mean error ``(B, 1)``, mm."""
        config, rule, n = self.config, self.config.corruption, self.batch_size
        clean, view, frame = self._clean(g)
        view = torch.where(torch.rand(n, 1, 1, generator=g) < config.any_view, rotations(n, g), view)
        moved = c.misjudge_size(c.replace(clean, rule, g), rule, g)
        back = view.transpose(-1, -2)
        true, predicted = clean @ back, moved @ back
        predicted = predicted + c.noise(predicted, rule, g) + rule.offset_mm * torch.randn(n, 1, 3, generator=g)
        extra_mm = (predicted - true).norm(dim=-1).mean(1)
        recorded, method_mm = self.bank.sample_errors(n, config.blend, g, frame)
        gain = (torch.randn(n, generator=g) * rule.error_gain_sigma).exp() * rule.error_gain_median
        gain = gain * (torch.rand(n, generator=g) < rule.transplant)
        predicted = predicted + gain.view(-1, 1, 1) * recorded
        # What a user would state is the method's mean error over its data, not that of this pose.
        size = torch.hypot(method_mm * gain, extra_mm).clamp(0.3, 100).unsqueeze(1)
        if config.turn:
            turn = c.random_view(n, config.upright, g).transpose(-1, -2)
            true, predicted = true @ turn, predicted @ turn
        return true, predicted, size

    def _clean(self, g: Generator) -> tuple[Tensor, Tensor, Tensor | None]:
        """True poses ``(B, 14, 3)`` in the palm's frame, recorded views ``(B, 3, 3)`` for them, and ``(B,)`` the frames whose
        errors they get; None: any."""
        config = self.config
        recombined, procedural, leap = (self.counts[s] for s in SOURCES)
        pose, view, frame = self.bank.sample_poses(recombined, config.recombine, g)
        nothing = torch.zeros_like(pose)
        pose = articulate(pose, config.articulate, g)
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
