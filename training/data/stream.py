"""The endless stream of training poses: drawn, corrupted and encoded a batch at a time, reproducible from seed and step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.utils.data import Dataset

from jointbert.models.refiner import encode
from training.data import corruption as c
from training.data.bank import PairBank, resize
from training.data.corruption import Corruption
from training.data.hand import build, rand, rotations, sample_directions
from training.data.leap import read_leap
from training.data.nyu import TRAINING, read_published

SOURCES = ("pairs", "recombined", "procedural", "leap")


@dataclass(frozen=True)
class DataConfig:
    """Where poses come from and what is done to them."""

    nyu: str = "../shared/data/nyu"
    leap: str = "../shared/data/leap/leap_hands.npz"
    sources: dict[str, float] = field(
        default_factory=lambda: {"pairs": 0.45, "recombined": 0.25, "procedural": 0.15, "leap": 0.15}
    )
    """Share of each source. ``pairs``: a true pose with a method's error on it; ``recombined``: subject 1's fingers;
    ``procedural``, ``leap``: the procedural hand with sampled or recorded articulation."""
    recombine: float = 0.5
    """Probability, per finger of a pair, that it comes from another frame."""
    recombine_clean: float = 1.0
    """The same for the source ``recombined``."""
    scale: tuple[float, float] = (0.68, 1.12)
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


class PoseStream(Dataset):
    """Batches by index: ``stream[k]`` depends on the seed and on ``offset + k`` alone, so a resumed run goes on exactly."""

    def __init__(self, config: DataConfig, batch_size: int, length: int, seed: int, offset: int = 0) -> None:
        unknown = set(config.sources) - set(SOURCES)
        if unknown:
            raise ValueError(f"sources: {sorted(unknown)} unknown; expected some of {SOURCES}")
        self.config, self.batch_size, self.length, self.seed, self.offset = config, batch_size, length, seed, offset
        self.bank = PairBank(read_published(config.nyu).frames(TRAINING))
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
        config, rule = self.config, self.config.corruption
        pairs, others = self.counts["pairs"], self.batch_size - self.counts["pairs"]

        true, error, rotation, expected = self.bank.sample(pairs, config.recombine, g)
        true, error = resize(true, error, rand((pairs,), *config.scale, g), config.variation, config.root_shift_mm, g)
        gain = (torch.randn(pairs, generator=g) * rule.error_gain_sigma).exp() * rule.error_gain_median
        error = error * gain.view(-1, 1, 1)

        clean, view = self._clean(others, g)
        recorded, level = self.bank.sample_errors(others, g)
        gain2 = (torch.randn(others, generator=g) * rule.error_gain_sigma).exp() * rule.error_gain_median
        on = torch.rand(others, generator=g) < rule.transplant
        anyhow = torch.rand(others, 1, 1, generator=g) < config.any_view
        view = torch.where(anyhow, rotations(others, g), view)
        moved = c.replace(clean, rule, g)
        gain2 = gain2 * on

        rotation = torch.cat([rotation, view])
        true, local = torch.cat([true, clean]), torch.cat([true + error, moved])
        local = c.misjudge_size(local, rule, g)
        back = rotation.transpose(-1, -2)
        true, predicted = true @ back, local @ back
        extra = c.noise(predicted, rule, g)
        extra[:pairs] *= (torch.rand(pairs, 1, 1, generator=g) < 0.3).float()  # pairs have an error already
        offset = rule.offset_mm * torch.randn(len(true), 1, 3, generator=g)
        offset[:pairs] *= 0  # and an offset
        predicted = predicted + extra + offset
        predicted[pairs:] += recorded * gain2.view(-1, 1, 1)
        # What a user would state is the method's mean error over its data: of known origin where the error is a method's, else
        # of the noise's own size.
        noise_mm = (predicted - true).norm(dim=-1).mean(1)
        size = torch.cat([expected * gain, torch.where(on, level * gain2, noise_mm[pairs:])])
        size = torch.sqrt(size * noise_mm).clamp(0.3, 100).unsqueeze(1)
        if config.turn:
            turn = c.random_view(len(true), config.upright, g).transpose(-1, -2)
            true, predicted = true @ turn, predicted @ turn
        return true, predicted, size

    def _clean(self, n: int, g: Generator) -> tuple[Tensor, Tensor]:
        """Poses without a recorded error, ``(n, 14, 3)`` in the palm's frame, and recorded views ``(n, 3, 3)`` for them."""
        config = self.config
        recombined, procedural, leap = (self.counts[s] for s in ("recombined", "procedural", "leap"))
        parts = [torch.zeros(0, 14, 3)]
        views = [self.bank.rotation[torch.randint(len(self.bank.rotation), (procedural + leap,), generator=g)]]
        if recombined:
            pose, error, view, _ = self.bank.sample(recombined, config.recombine_clean, g)
            size = rand((recombined,), *config.scale, g)
            parts.append(resize(pose, torch.zeros_like(error), size, config.variation, config.root_shift_mm, g)[0])
            views.insert(0, view)
        if procedural:
            parts.append(
                build(sample_directions(procedural, g), g, config.variation) * rand((procedural, 1, 1), *config.scale, g)
            )
        if leap and self.leap is not None:
            rows = torch.randint(len(self.leap.fingers), (leap,), generator=g)
            parts.append(build(self.leap[rows], g, config.variation) * rand((leap, 1, 1), *config.scale, g))
        return torch.cat(parts), torch.cat(views)
