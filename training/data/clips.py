"""Clips of moving hands and of their predictions, which train the sequence refiner.

The motion is subject 1's at other speeds, with each finger from another moment, or Leap recordings and interpolated procedural
articulations on recorded palm motion. Errors are those of the published methods in their order of time, and noise of many sizes
and correlation times. Glitches, missing joints and frames, and cuts are added.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.utils.data import Dataset

from jointbert.models.sequence import REACH
from training.data import corruption as c
from training.data.bank import FINGER_OF_JOINT, PoseBank, articulate, resize
from training.data.corruption import Corruption
from training.data.hand import Directions, build, log_uniform, rand, sample_directions
from training.data.leap import read_recordings
from training.data.nyu import TRAINING, read_published
from training.data.sampler import DataConfig


@dataclass(frozen=True)
class ClipConfig:
    """Motion and errors of clips. Probabilities are per clip unless stated otherwise."""

    length: int = 64
    """Number of frames of a clip."""
    recorded: float = 0.7
    """Share of clips with subject 1's articulation; the others have that of the Leap recordings or a procedural one."""
    leap: float = 0.5
    """Share of the Leap recordings among the others."""
    speed: tuple[float, float] = (0.5, 2.5)
    """Factor of the recorded speed."""
    recombine: float = 1.0
    """Probability of each finger to come from another moment."""
    transplant: float = 0.9
    """Probability that a clip's errors come from another moment than its motion."""
    predictions: float = 0.12
    """Share of clips that are a method's own consecutive predictions, with their true poses moved further away (see
    :class:`training.data.sampler.DataConfig`); they train sigma alone."""
    jitter: float = 0.4
    """Probability of noise that is independent from frame to frame, its size log-uniform in ``jitter_mm``."""
    jitter_mm: tuple[float, float] = (0.3, 6.0)
    drift: float = 0.3
    """Probability of noise that is correlated in time, its size log-uniform in ``drift_mm``."""
    drift_mm: tuple[float, float] = (1.0, 10.0)
    drift_frames: tuple[float, float] = (3.0, 60.0)
    glitch: float = 0.25
    """Probability that a joint or a finger is elsewhere in single frames of the clip."""
    missing: float = 0.3
    """Probability that joints or fingers are missing for a while, and of missing frames."""
    cut: float = 0.15
    """Probability that the clip's later part is another clip's."""
    corruption: Corruption = field(default_factory=lambda: Corruption(error_gain_median=1.5))


class Clips(NamedTuple):
    """Moving hands in the camera frame, millimetres, and the refiner's other inputs."""

    true: Tensor  # [B, T, 14, 3]
    predicted: Tensor  # [B, T, 14, 3]
    observed: Tensor  # [B, T, 14] bool
    confidence: Tensor  # [B, T, 14]; NaN: unknown
    error_mm: Tensor  # [B, T, 14]; NaN: unknown
    look_behind: Tensor  # [B]: frames
    look_ahead: Tensor  # [B]: frames
    seen_frames: Tensor  # [B]: number of frames from which bone lengths and roughness are estimated
    counted: Tensor  # [B] bool: the clip trains joints and sigma; where False, sigma alone


class ClipSampler(Dataset):
    """Batches of clips by number; a batch depends on seed, offset and number alone."""

    def __init__(self, data: DataConfig, clips: ClipConfig, batch_size: int, length: int, seed: int, offset: int = 0) -> None:
        self.data, self.config, self.batch_size, self.length = data, clips, batch_size, length
        self.seed, self.offset = seed, offset
        self.bank = PoseBank(read_published(data.nyu).frames(TRAINING))
        self.recordings = [r for r in read_recordings(data.leap) if len(r.thumb) > 3]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Clips:
        if not 0 <= index < self.length:
            raise IndexError(index)
        return self.draw(Generator().manual_seed((self.seed << 32) + self.offset + index))

    def draw(self, g: Generator) -> Clips:
        """One batch."""
        config, b, t = self.config, self.batch_size, self.config.length
        rule = config.corruption
        counted = torch.arange(b) < b - round(b * config.predictions)
        time, step = self._times(counted, g)  # [B, 6, T]: moment of each finger and, last, of the palm
        rotation, position = self._palm(time[:, 5])
        true = articulate(self._recorded(time), torch.where(counted, self.data.articulate, 0.0), g)
        others = b - round(b * config.recorded)
        if others:
            true[:others] = self._articulations(others, g)
        error, size = self._errors(time, step, counted, g)
        gain = rule.error_gain_median * (rule.error_gain_sigma * torch.randn(b, generator=g)).exp()
        gain = torch.where(counted, gain, 1.0)
        error, size = error * gain.view(-1, 1, 1, 1), size * gain
        data = self.data
        true, error = resize(true, error, rand((b,), *data.scale, g), data.variation, data.root_shift_mm, g)
        predicted = c.misjudge_size(true + error, rule, g)
        predicted = self._glitches(predicted, g)
        turn = c.random_view(b, data.upright, g) if data.turn else torch.eye(3).expand(b, 3, 3)
        back = (turn.unsqueeze(1) @ rotation).transpose(-1, -2)
        moved = (position @ turn.transpose(-1, -2)).unsqueeze(2)
        true, predicted = true @ back + moved, predicted @ back + moved
        predicted = predicted + self._noise(g)
        observed = self._observed(g)
        further = rule.plausible_gain_median * (rule.plausible_gain_sigma * torch.randn(b, generator=g)).exp()
        further = torch.where(counted, 1.0, further)
        true, size = predicted + further.view(-1, 1, 1, 1) * (true - predicted), size * further
        # After a cut the clip continues with another clip's later part.
        cut = torch.randint(4, t - 4, (b, 1), generator=g)
        later = (torch.arange(t) >= cut) & (torch.rand(b, 1, generator=g) < config.cut)
        later = later & (counted == counted.roll(1)).unsqueeze(1)

        def splice(x: Tensor) -> Tensor:
            return torch.where(later.view(b, t, *[1] * (x.ndim - 2)), x.roll(1, 0), x)

        true, predicted, observed = splice(true), splice(predicted), splice(observed)
        confidence = c.simulate_confidence((predicted - true).norm(dim=-1).flatten(0, 1), rule, g).view(b, t, 14)
        stated = c.simulate_error_size(size.unsqueeze(1), rule, g).unsqueeze(1).expand(b, t, 14)
        # Streams without and with some look-ahead, single frames of a calibrated person, whole sequences.
        kind = torch.rand(b, generator=g)
        some = torch.randint(1, 11, (b,), generator=g)
        look_ahead = torch.where(kind < 0.35, 0, torch.where(kind < 0.5, some, REACH))
        look_behind = torch.where(kind < 0.12, 0, REACH)
        seen = torch.where(look_ahead == REACH, t, torch.randint(0, t + 1, (b,), generator=g))
        return Clips(true, predicted, observed, confidence, stated, look_behind, look_ahead, seen, counted)

    def _times(self, counted: Tensor, g: Generator) -> tuple[Tensor, Tensor]:
        """``(B, 6, T)`` moments of the recording, in frames, and the ``(B,)`` step of the errors between frames."""
        b, t, frames = self.batch_size, self.config.length, len(self.bank.local)
        speed = log_uniform((b,), *self.config.speed, g)
        speed = torch.where(torch.rand(b, generator=g) < 0.5, -speed, speed)
        half = speed.abs() * (t - 1) / 2
        centre = half.unsqueeze(1) + 1 + torch.rand(b, 17, generator=g) * (frames - 3 - 2 * half).unsqueeze(1)
        # Of six candidates the moment with the most similar view is taken: a finger's motion depends on its hand's.
        candidates, base = centre[:, :16].round().long(), centre[:, 16].round().long()
        pick = torch.randint(16, (b, 5, 6), generator=g)
        rotations = self.bank.rotation[candidates].flatten(-2)
        similarity = (rotations * self.bank.rotation[base].flatten(-2).unsqueeze(1)).sum(-1)  # [B, 16]
        best = similarity.unsqueeze(1).expand(b, 5, 16).gather(2, pick).argmax(-1, keepdim=True)
        other = centre[:, :16].gather(1, pick.gather(2, best).squeeze(-1))
        keep = (torch.rand(b, 5, generator=g) >= self.config.recombine) | ~counted.unsqueeze(1)
        centres = torch.cat([torch.where(keep, centre[:, 16:], other), centre[:, 16:]], 1)  # [B, 6]
        steps = torch.arange(t) - (t - 1) / 2
        return centres.unsqueeze(-1) + speed.view(-1, 1, 1) * steps, speed.sign() * speed.abs().clamp(min=1)

    def _recorded(self, time: Tensor) -> Tensor:
        """Joints in the palm's frame ``(B, T, 14, 3)`` at the moments of their fingers."""
        at = time[:, FINGER_OF_JOINT].transpose(1, 2)  # [B, T, 14]
        joint = torch.arange(14)
        return catmull_rom(lambda frame: self.bank.local[frame, joint], at, len(self.bank.local))

    def _palm(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """The palm's rotations ``(B, T, 3, 3)`` and positions ``(B, T, 3)``."""
        frames = len(self.bank.position)
        position = catmull_rom(lambda frame: self.bank.position[frame], time, frames)
        columns = catmull_rom(lambda frame: self.bank.rotation[frame].flatten(-2), time, frames).unflatten(-1, (3, 3))
        normalise = torch.nn.functional.normalize
        x = normalise(columns[..., 0], dim=-1)
        y = columns[..., 1] - (columns[..., 1] * x).sum(-1, keepdim=True) * x
        y = normalise(y, dim=-1)
        return torch.stack([x, y, torch.linalg.cross(x, y)], -1), position

    def _articulations(self, n: int, g: Generator) -> Tensor:
        """``(n, T, 14, 3)`` moving procedural hands of one set of proportions each, in the palm's frame."""
        t = self.config.length
        fingers, thumb = [], []
        for _ in range(n):
            if torch.rand((), generator=g) < self.config.leap:
                recording = self.recordings[int(torch.randint(len(self.recordings), (), generator=g))]
                # Every third frame of most recordings gives 25 frames per second; short recordings run forwards and backwards.
                speed = 3 * float(log_uniform((1,), *self.config.speed, g))
                phase = torch.rand((), generator=g) * len(recording.thumb) + speed * torch.arange(t)
                last = len(recording.thumb) - 1
                at = last - (phase % (2 * last) - last).abs()
                low = at.floor().long().clamp(max=last - 1)
                keys, share = recording, (at - low).view(-1, 1, 1)
            else:
                spacing = float(log_uniform((1,), 5, 40, g))
                phase = torch.arange(t) / spacing
                low = phase.floor().long()
                keys = sample_directions(int(low.max()) + 2, g)
                share = phase - low
                share = (share * share * (3 - 2 * share)).view(-1, 1, 1)  # the hand stops at each key pose
            between = [a[low] + (a[low + 1] - a[low]) * share.view(-1, *[1] * (a.ndim - 1)) for a in (keys.fingers, keys.thumb)]
            fingers.append(torch.nn.functional.normalize(between[0], dim=-1))
            thumb.append(torch.nn.functional.normalize(between[1], dim=-1))
        # A clip shows one person: proportions are the same in all frames.
        directions = Directions(torch.cat(fingers), torch.cat(thumb))
        return build(directions, g, self.data.variation, people=n).unflatten(0, (n, t))

    def _errors(self, time: Tensor, step: Tensor, counted: Tensor, g: Generator) -> tuple[Tensor, Tensor]:
        """Errors ``(B, T, 14, 3)`` in the palm's frame, of one method or the mean of two for each clip, and their mean size
        ``(B,)``."""
        b, t, frames = self.batch_size, self.config.length, len(self.bank.local)
        centre = time.mean(-1, keepdim=True)  # [B, 6, 1]
        span = (step.abs() * (t - 1) / 2).view(-1, 1, 1)
        elsewhere = span + torch.rand(b, 1, 1, generator=g) * (frames - 1 - 2 * span)
        moved = (torch.rand(b, 1, 1, generator=g) < self.config.transplant) & counted.view(-1, 1, 1)
        centre = torch.where(moved, elsewhere, centre)
        at = centre + step.view(-1, 1, 1) * (torch.arange(t) - (t - 1) / 2)
        at = at.round().long().clamp(0, frames - 1)[:, FINGER_OF_JOINT].transpose(1, 2)  # [B, T, 14]
        palm, joint = at[..., 13], torch.arange(14)
        methods, size = self.bank.error, self.bank.method_mm
        offset = methods.mean(2)

        def of(method: Tensor) -> Tensor:
            m = method.view(-1, 1, 1)
            return methods[m, at, joint] - offset[m, at] + offset[method.unsqueeze(1), palm].unsqueeze(2)

        first, second = torch.randint(len(methods), (2, b), generator=g)
        share = torch.rand(b, generator=g) * (torch.rand(b, generator=g) < self.data.blend)
        error = of(first)
        error = error + share.view(-1, 1, 1, 1) * (of(second) - error)
        return error, size[first] + share * (size[second] - size[first])

    def _noise(self, g: Generator) -> Tensor:
        """Jitter and drift ``(B, T, 14, 3)``, partly shared by a finger's joints, in the camera frame."""
        config, b, t = self.config, self.batch_size, self.config.length

        def white() -> Tensor:
            share = 0.6 * torch.rand(b, 1, 1, 1, generator=g)
            joint = torch.randn(b, t, 14, 3, generator=g)
            finger = torch.randn(b, t, 6, 3, generator=g)[:, :, FINGER_OF_JOINT]
            return share.sqrt() * finger + (1 - share).sqrt() * joint

        def size(probability: float, bounds: tuple[float, float]) -> Tensor:
            on = torch.rand(b, 1, 1, 1, generator=g) < probability
            return on * log_uniform((b, 1, 1, 1), *bounds, g)

        jitter = size(config.jitter, config.jitter_mm) * white()
        keep = (-1 / log_uniform((b, 1, 1), *config.drift_frames, g)).exp()
        innovation = white() * (1 - keep.unsqueeze(-1) ** 2).sqrt()
        drift = [torch.randn(b, 14, 3, generator=g)]
        for k in range(1, t):
            drift.append(keep * drift[-1] + innovation[:, k])
        noise = jitter + size(config.drift, config.drift_mm) * torch.stack(drift, 1)
        noise[..., 2] *= log_uniform((b, 1, 1), *config.corruption.gaussian_depth, g)
        return noise

    def _glitches(self, predicted: Tensor, g: Generator) -> Tensor:
        """``predicted`` with joints or fingers that are elsewhere in one or two consecutive frames."""
        b, t = predicted.shape[:2]
        on = (torch.rand(b, 1, 1, generator=g) < self.config.glitch) & (torch.rand(b, t, 1, generator=g) < 0.04)
        on = on | (on.roll(1, 1) & (torch.rand(b, t, 1, generator=g) < 0.5))
        finger = (torch.rand(b, t, 6, generator=g) < 0.2)[:, :, FINGER_OF_JOINT]
        joint = torch.rand(b, t, 14, generator=g) < 0.1
        away = log_uniform((b, t, 1, 1), 8, 60, g) * torch.randn(b, t, 6, 3, generator=g)[:, :, FINGER_OF_JOINT]
        return predicted + away * (on & (finger | joint)).unsqueeze(-1)

    def _observed(self, g: Generator) -> Tensor:
        """``(B, T, 14)`` bool: joints or fingers missing for a while, whole frames missing."""
        b, t = self.batch_size, self.config.length
        frame = torch.arange(t)

        def bursts(n: int, longest: int) -> Tensor:  # [B, T, n] bool
            start = torch.randint(t, (b, 1, n), generator=g)
            span = torch.randint(1, longest + 1, (b, 1, n), generator=g)
            return (frame.view(1, -1, 1) >= start) & (frame.view(1, -1, 1) < start + span)

        def some(probability: float, *shape: int) -> Tensor:
            return torch.rand(b, *shape, generator=g) < probability

        fingers = (bursts(6, 20) & some(self.config.missing, 1, 1) & some(0.3, 1, 6))[:, :, FINGER_OF_JOINT]
        fingers[..., 11:] = False
        joints = bursts(14, 20) & some(self.config.missing, 1, 1) & some(0.2, 1, 14)
        frames = (bursts(2, 8) & some(self.config.missing, 1, 1)).any(-1, keepdim=True)
        return ~(fingers | joints | frames)


def catmull_rom(values: object, at: Tensor, count: int) -> Tensor:
    """Catmull-Rom interpolation of ``values(frame)`` at fractional frames ``at``; the end values repeat."""
    low = at.floor().clamp(0, count - 2)
    s = (at - low).clamp(0, 1).unsqueeze(-1)
    low = low.long()
    p0, p1, p2, p3 = (values((low + k).clamp(0, count - 1)) for k in (-1, 0, 1, 2))  # type: ignore[operator]
    result: Tensor = p1 + 0.5 * s * (p2 - p0 + s * (2 * p0 - 5 * p1 + 4 * p2 - p3 + s * (3 * (p1 - p2) + p3 - p0)))
    return result
