"""Training of the sequence refiner on a fixed single-frame refiner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor

from jointbert.contract.layout import LOG_SIGMA_RANGE, MIN_JOINTS, SCALE_MM
from jointbert.models.refiner import JointRefiner
from jointbert.models.sequence import (
    REACH,
    SequenceConfig,
    SequenceRefiner,
    find_segments,
    first_stage,
    sequence_features,
    statistics,
)
from training.config import SequenceExperiment
from training.data.clips import Clips, ClipSampler
from training.data.nyu import VALIDATION, Published, read_published
from training.fit import Training, describe, fit, read_checkpoint
from training.validation import GAINS, Gains


def second_stage(
    model: SequenceRefiner,
    hidden: Tensor,
    joints: Tensor,
    refined: Tensor,
    observed: Tensor,
    look_behind: Tensor,
    look_ahead: Tensor,
    seen_frames: Tensor,
) -> tuple[Tensor, Tensor]:
    """Joints ``(B, T, 14, 3)`` and log sigma ``(B, T, 14)`` after the second stage.

    Bone lengths and roughness of a segment are estimated from its frames among the first ``seen_frames`` ``(B,)``.
    """
    observed = observed & (observed.sum(-1, keepdim=True) >= MIN_JOINTS)
    segments = find_segments(joints, observed)
    t = joints.shape[1]
    early = torch.arange(t) < seen_frames.unsqueeze(1)  # [B, T]
    lengths, roughness = statistics(refined, observed, segments, early)
    features = sequence_features(
        joints,
        refined,
        observed,
        segments,
        lengths,
        roughness,
        look_behind,
        look_ahead,
    )
    output = model(hidden.flatten(0, 1), features.flatten(0, 1)).float().view(*joints.shape[:2], 14, 4)
    return refined + SCALE_MM * output[..., :3], output[..., 3].clamp(*LOG_SIGMA_RANGE)


def sequence_loss(clips: Clips, joints: Tensor, log_sigma: Tensor, smoothness: float, floor_mm: float = 8.0) -> Tensor:
    """Euclidean error relative to the clip's error before; error of accelerations; negative log likelihood of errors under
    sigma."""
    error = ((joints - clips.true).square().sum(-1) + 0.01).sqrt()  # [B, T, 14], mm
    before = ((clips.predicted - clips.true).norm(dim=-1) * clips.observed).sum((1, 2)) / clips.observed.sum((1, 2))
    usable = clips.observed.sum(-1) >= 4
    weight = torch.where(clips.observed, 1.0, 0.5) * (usable & clips.counted.unsqueeze(1)).unsqueeze(-1)
    weight = weight / (before + floor_mm).view(-1, 1, 1)
    accuracy = (weight * error).mean()
    wrong = joints - clips.true
    acceleration = ((wrong[:, 2:] - 2 * wrong[:, 1:-1] + wrong[:, :-2]).square().sum(-1) + 0.01).sqrt().clamp(max=50)
    rough = (weight[:, 1:-1] * acceleration).mean()
    error = error.detach() / SCALE_MM
    likelihood = ((error * torch.exp(-log_sigma) + log_sigma) * usable.unsqueeze(-1)).mean()
    return accuracy + smoothness * rough + 0.1 * likelihood


@dataclass(frozen=True)
class CachedSequences:
    """Predictions of every method on consecutive frames, after the first stage."""

    truth: Tensor  # [T, 14, 3]
    names: list[str]
    joints: Tensor  # [M, T, 14, 3]
    refined: Tensor
    hidden: Tensor  # [M, T, 14, 128] float16

    @classmethod
    @torch.no_grad()
    def of(cls, model: JointRefiner, published: Published) -> CachedSequences:
        joints = torch.from_numpy(np.stack(list(published.predictions.values()))).float()
        seen = torch.ones(joints.shape[:-1], dtype=torch.bool)
        unknown = torch.full(joints.shape[:-1], torch.nan)
        parts = [
            first_stage(model, joints[i : i + 1, s : s + 512], *(x[i : i + 1, s : s + 512] for x in (seen, unknown, unknown)))
            for i in range(len(joints))
            for s in range(0, joints.shape[1], 512)
        ]
        refined = torch.cat([part[0][0] for part in parts]).view(joints.shape)
        hidden = torch.empty(*joints.shape[:-1], model.config.width, dtype=torch.float16)
        for rows, part in zip(hidden.flatten(0, 1).split([len(p[1][0]) for p in parts]), parts, strict=True):
            rows.copy_(part[1][0])
        return cls(torch.from_numpy(published.groundtruth).float(), list(published.predictions), joints, refined, hidden)


@dataclass(frozen=True)
class SequenceGains:
    """Gains by the factor of the second correction, and the mean error of accelerations before and after (factor 1)."""

    by_factor: dict[float, Gains]
    acceleration: tuple[float, float]
    """Millimetres per frame squared."""


@torch.inference_mode()
def sequence_gains(
    model: SequenceRefiner, data: CachedSequences, look_ahead: int, factors: Sequence[float] = (1.0,)
) -> SequenceGains:
    """Gains of every method, with bone lengths and roughness from the whole sequence."""
    out = []
    t = data.joints.shape[1]
    windows = (torch.tensor([REACH]), torch.tensor([look_ahead]), torch.tensor([t]))
    for joints, refined, hidden in zip(data.joints, data.refined, data.hidden, strict=True):
        observed = torch.ones(1, t, 14, dtype=torch.bool)
        out.append(second_stage(model, hidden[None].float(), joints[None], refined[None], observed, *windows)[0][0])
    final = torch.stack(out)
    before = (data.joints - data.truth).norm(dim=-1).mean((1, 2))
    result = {}
    for factor in factors:
        after = (data.refined + factor * (final - data.refined) - data.truth).norm(dim=-1).mean((1, 2))
        pairs = zip(data.names, before.tolist(), after.tolist(), strict=True)
        result[factor] = Gains({name: (a, b) for name, a, b in pairs})
    return SequenceGains(result, (_acceleration_error(data.joints, data.truth), _acceleration_error(final, data.truth)))


def _acceleration_error(joints: Tensor, truth: Tensor) -> float:
    wrong = joints - truth
    return (wrong[:, 2:] - 2 * wrong[:, 1:-1] + wrong[:, :-2]).norm(dim=-1).mean().item()


class SequenceTraining(Training[SequenceRefiner]):
    """Trains a :class:`SequenceRefiner` on a fixed refiner."""

    experiment: SequenceExperiment

    def __init__(self, experiment: SequenceExperiment) -> None:
        super().__init__(experiment, SequenceRefiner(experiment.model))
        # In a list, so that the checkpoint does not contain it.
        self.first = [JointRefiner.load(experiment.first).requires_grad_(False)]

    def training_step(self, clips: Clips, _: int) -> Tensor:
        with torch.no_grad():
            refined, hidden = first_stage(self.first[0], clips.predicted, clips.observed, clips.confidence, clips.error_mm)
        windows = (clips.look_behind, clips.look_ahead, clips.seen_frames)
        joints, log_sigma = second_stage(self.model, hidden, clips.predicted, refined, clips.observed, *windows)
        loss = sequence_loss(clips, joints, log_sigma, self.experiment.smoothness)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(joints))
        return loss

    def setup(self, stage: str) -> None:
        published = read_published(self.experiment.data.nyu).frames(VALIDATION)
        stride = self.experiment.trainer.validation_stride
        # consecutive frames, because neighbours matter
        frames = published.frames(slice(0, len(published.groundtruth) // stride))
        with torch.autocast("cpu", torch.bfloat16, enabled="bf16" in self.experiment.trainer.precision):
            self.subject2 = CachedSequences.of(self.first[0], frames)

    def on_train_epoch_start(self) -> None:
        self.best_model.gain.fill_(1.0)

    def validation_step(self, _: Any, __: int) -> None:
        model = self.best_model.eval()
        whole = sequence_gains(model, self.subject2, REACH, GAINS)
        stream = sequence_gains(model, self.subject2, 0, GAINS)
        scores = {f: (whole.by_factor[f].score + stream.by_factor[f].score) / 2 for f in GAINS}
        factor = max(scores, key=lambda f: scores[f])
        self.log("val/score", scores[factor], prog_bar=True)
        self.log("val/factor", factor)
        for name, gains in (("whole", whole), ("stream", stream)):
            at = gains.by_factor[factor]
            self.log(f"val/{name}_gain", at.mean, prog_bar=True)
            self.log(f"val/{name}_worst", at.worst, prog_bar=True)
            self.log(f"val/{name}_improved", float(at.improved))
            self.log(f"val/{name}_acceleration", gains.acceleration[1] / gains.acceleration[0])
        model.gain.fill_(factor)  # the checkpoint is written next


def train_sequence(experiment: SequenceExperiment, out: Path, resume: bool, threads: int) -> Path:
    """Trains an experiment, or resumes it; returns the best checkpoint by validation score."""
    torch.set_num_threads(threads)
    L.seed_everything(experiment.seed)
    trainer = experiment.trainer
    sampler = ClipSampler(experiment.data, experiment.clips, trainer.batch_size, trainer.steps_per_epoch, experiment.seed)
    return fit(SequenceTraining(experiment), sampler, out, resume)


def load_checkpoint(checkpoint: Path) -> tuple[SequenceRefiner, dict[str, Any]]:
    """The sequence refiner of a checkpoint, and the description of its run.

    Raises:
        ValueError: not a checkpoint of :func:`train_sequence`.
    """
    weights, run = read_checkpoint(checkpoint, "train-sequence")
    config = run["experiment"]["model"]
    try:
        model = SequenceRefiner(SequenceConfig(**config))
        model.load_state_dict(weights)
    except (TypeError, RuntimeError):
        raise ValueError(f"{checkpoint}: not a checkpoint of train-sequence") from None
    return model.eval(), run


def export_sequence(checkpoint: Path, first: str | Path, out: Path, gain: float | None = None) -> None:
    """Writes the second stage of a checkpoint as safetensors, for the refiner ``first`` that it was trained on.

    ``gain`` replaces the factor of the corrections that validation chose.
    """
    model, run = load_checkpoint(checkpoint)
    if gain is not None:
        model.gain.fill_(gain)
    metadata = describe(run) | {"name": f"{run['experiment']['name']}-sequence", "gain": f"{model.gain.item():g}"}
    model.save(out, JointRefiner.load(first), metadata)
