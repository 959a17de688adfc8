"""The sequence refiner: a second stage that uses neighbouring frames and the person's bone lengths.

Its inputs are the single-frame refiner's results (refined joints and the last layer's hidden states), and features of the
neighbouring frames, of the person's bone lengths and of the prediction's roughness. Two more Transformer layers over the 14
joints give a second correction. The features of neighbours are differences of positions, so that the stage is exactly
translation invariant. Missing neighbours are marked, so that one model serves any look-ahead.
"""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jointbert.contract.layout import (
    BLOCKS,
    CUT_MM,
    HISTORY_FRAMES,
    KNOWN_FRAMES,
    LOG_SIGMA_RANGE,
    MIN_JOINTS,
    NUM_JOINTS,
    ROUGHNESS_FLOOR_MM,
    SCALE_MM,
    SEQUENCE_FEATURES,
    SEQUENCE_LAYOUT,
    STEP_UNIT_MM,
)
from jointbert.models.refiner import JointRefiner, Layer, RefinerConfig, decode, encode, float_tensors
from jointbert.skeletons import NYU14
from jointbert.weights import fingerprint, load_sequence_weights, load_weights, write_weights

RIGID_BONES = NYU14.rigid_bones

REACH = BLOCKS[-1][1]
"""Largest number of frames that are used on either side of a frame."""


@dataclass(frozen=True)
class SequenceConfig:
    """Sizes of a :class:`SequenceRefiner`."""

    layers: int = 2
    heads: int = 8
    width: int = 128
    ffn: int = 256
    features: int = SEQUENCE_FEATURES
    outputs: int = 4


class SequenceRefiner(nn.Module):
    """The second stage: hidden states ``(B, 14, 128)`` and features ``(B, 14, 63)`` to ``(B, 14, 4)``.

    The output is a correction of the first stage's joints in units of 100 mm, and the logarithm of the expected Euclidean
    error of the result in the same unit. 0.31M parameters.
    """

    def __init__(self, config: SequenceConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or SequenceConfig()
        self.embed1 = nn.Linear(config.features, config.ffn)
        self.embed2 = nn.Linear(config.ffn, config.width)
        layer = RefinerConfig(heads=config.heads, width=config.width, ffn=config.ffn)
        self.layers = nn.ModuleList(Layer(layer) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, config.outputs)
        self.gain: Tensor  # factor of the corrections, like JointRefiner.observed_gain
        self.register_buffer("gain", torch.ones(1))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.05)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.embed1.weight, std=0.2)
        nn.init.zeros_(self.head.weight)  # the corrections of an untrained second stage are 0
        with torch.no_grad():
            self.head.bias[3] = math.log(10 / SCALE_MM)

    def forward(self, hidden: Tensor, features: Tensor) -> Tensor:
        """Hidden states ``(B, 14, 128)`` and features ``(B, 14, 63)`` to the output ``(B, 14, 4)``."""
        x = hidden + self.embed2(F.gelu(self.embed1(features)))
        for layer in self.layers:
            x = layer(x)
        out: Tensor = self.head(self.norm(x))
        return torch.cat([out[..., :3] * self.gain, out[..., 3:]], -1)

    def save(self, path: str | Path, first: JointRefiner, metadata: dict[str, str] | None = None) -> None:
        """Writes the weights as safetensors; the metadata names the layout, the sizes and the refiner's fingerprint."""
        sizes = {key: str(value) for key, value in asdict(self.config).items()}
        of = fingerprint(float_tensors(first))
        stated = {"layout": SEQUENCE_LAYOUT, "first_stage": of, **sizes, **(metadata or {})}
        write_weights(path, float_tensors(self), stated)

    @classmethod
    def load(cls, weights: str | os.PathLike[str] = "nyu14") -> SequenceRefiner:
        """The second stage that belongs to shipped weights or to a safetensors file, in evaluation mode."""
        loaded = load_sequence_weights(load_weights(weights))
        model = cls(SequenceConfig(**loaded.sizes))
        model.load_state_dict({key: torch.from_numpy(value.copy()) for key, value in loaded.tensors.items()})
        return model.eval()


def find_segments(joints: Tensor, observed: Tensor) -> Tensor:
    """``(B, T)`` number of each frame's segment; each cut begins a new segment.

    A frame is compared with the last usable frame before it. A cut is assumed if the median movement of the joints that both
    observe (of an even number of joints, the lower median) exceeds :data:`CUT_MM` per frame of distance.

    Args:
        joints: ``(B, T, 14, 3)`` as predicted, millimetres. observed: ``(B, T, 14)``.
    """
    last, seen = joints[:, 0], observed[:, 0]
    age = torch.ones(len(joints))
    number = torch.zeros(len(joints), dtype=torch.long)
    segments = [number]
    for t in range(1, joints.shape[1]):
        usable = observed[:, t].sum(-1) >= MIN_JOINTS
        both = seen & observed[:, t]
        moved = (joints[:, t] - last).norm(dim=-1).masked_fill(~both, torch.nan).nanmedian(-1).values
        number = number + (usable & (both.sum(-1) >= MIN_JOINTS) & (moved > CUT_MM * age))
        segments.append(number)
        age = torch.where(usable, 1.0, age + 1)
        last = torch.where(usable[:, None, None], joints[:, t], last)
        seen = torch.where(usable[:, None], observed[:, t], seen)
    return torch.stack(segments, 1)


def bone_lengths(joints: Tensor) -> Tensor:
    """``(..., 9)`` lengths of the skeleton's rigid bones in ``joints`` ``(..., 14, 3)``."""
    a, b = torch.tensor(RIGID_BONES).T
    lengths: Tensor = (joints[..., a, :] - joints[..., b, :]).norm(dim=-1)
    return lengths


def log_roughness(refined: Tensor, observed: Tensor, segments: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithm of each joint's acceleration in mm per frame squared, and whether it is known, both ``(B, T, 14)``.

    The value of frame t is the acceleration at frame t - 1, so that it needs no look-ahead.
    """
    acceleration = torch.zeros(observed.shape, dtype=refined.dtype)
    acceleration[:, 2:] = (refined[:, 2:] - 2 * refined[:, 1:-1] + refined[:, :-2]).norm(dim=-1)
    known = torch.zeros_like(observed)
    known[:, 2:] = observed[:, 2:] & observed[:, 1:-1] & observed[:, :-2] & (segments[:, 2:] == segments[:, :-2]).unsqueeze(-1)
    return torch.log(acceleration + ROUGHNESS_FLOOR_MM).masked_fill(~known, 0), known


def statistics(refined: Tensor, observed: Tensor, segments: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """Bone lengths of the person and roughness of the prediction, for each segment.

    Args:
        refined: ``(B, T, 14, 3)`` after the first stage. observed: ``(B, T, 14)``. segments: ``(B, T)``.
        counted: ``(B, T)`` bool: the frames from which they are computed.

    Returns:
        ``(B, T, 9)`` median bone lengths of each frame's segment (of an even number the lower median), and ``(B, T, 14)``
        mean logarithm of the accelerations; NaN if fewer than :data:`KNOWN_FRAMES` frames have a value.
    """
    ends = torch.tensor(RIGID_BONES)
    both = observed[..., ends[:, 0]] & observed[..., ends[:, 1]]  # [B, T, 9]
    length = bone_lengths(refined)
    rough, known = log_roughness(refined, observed, segments)
    lengths, roughness = torch.full_like(length, torch.nan), torch.full_like(rough, torch.nan)
    for number in range(int(segments.max()) + 1 if segments.numel() else 0):
        inside = (segments == number).unsqueeze(-1)
        used = inside & counted.unsqueeze(-1)
        median = length.masked_fill(~(both & used), torch.nan).nanmedian(1, keepdim=True).values
        median = median.masked_fill((both & used).sum(1, keepdim=True) < KNOWN_FRAMES, torch.nan)
        lengths = torch.where(inside, median, lengths)
        count = (known & used).sum(1, keepdim=True)
        mean = ((rough * (known & used)).sum(1, keepdim=True) / count.clamp(min=1)).masked_fill(count < KNOWN_FRAMES, torch.nan)
        roughness = torch.where(inside, mean, roughness)
    return lengths, roughness


def sequence_features(
    joints: Tensor,
    refined: Tensor,
    observed: Tensor,
    segments: Tensor,
    lengths: Tensor,
    roughness: Tensor,
    look_behind: Tensor,
    look_ahead: Tensor,
) -> Tensor:
    """Computes the second stage's features: the reference implementation of every runtime's.

    Args:
        joints: ``(B, T, 14, 3)`` as predicted, millimetres. refined: the same after the first stage.
        observed: ``(B, T, 14)``; all False for a frame that is not usable.
        segments: ``(B, T)`` of :func:`find_segments`.
        lengths: ``(B, T, 9)`` the person's bone lengths, millimetres, as far as they are known at that frame; NaN: unknown.
        roughness: ``(B, T, 14)`` mean of :func:`log_roughness`; NaN: unknown.
        look_behind, look_ahead: ``(B,)`` int: number of frames before and after the current one that may be used.

    Returns:
        ``(B, T, 14, 63)``: for each of 12 blocks, the mean difference to the neighbours' refined joints (3, in 10 mm, large
        ones compressed by asinh) and the share of the block's frames that exist; the first stage's correction in 10 mm (3; 0 if
        the joint is missing); for two bones of the joint, the joint's movement that would give the bone its length (3, in 10
        mm, compressed likewise), that length in 100 mm, and whether it is known; the roughness, and whether it is known.
    """
    frames = observed.shape[1]
    t = torch.arange(frames)
    same = segments.unsqueeze(2) == segments.unsqueeze(1)  # [B, T, T]; numbers never decrease, so that a segment is contiguous
    first_frame = torch.maximum(same.int().argmax(2), t - look_behind.unsqueeze(1))
    last_frame = torch.minimum(frames - 1 - same.flip(2).int().argmax(2), t + look_ahead.unsqueeze(1))
    seen = observed.unsqueeze(-1)
    # A block's sum is the difference of two running sums, in float64.
    positions = _running_sum(torch.where(seen, refined, 0))  # [B, T + 1, 14, 3]
    counts = _running_sum(seen)
    parts = []
    for sign in (-1, 1):
        for near, far in BLOCKS:
            low, high = sorted((t + sign * near, t + sign * far), key=lambda x: int(x[0]))
            begin = torch.minimum(torch.maximum(low, first_frame), last_frame + 1)  # empty if no frame of the block exists
            end = torch.maximum(torch.minimum(high + 1, last_frame + 1), begin)

            def between(sums: Tensor, begin: Tensor = begin, end: Tensor = end) -> Tensor:
                rows = torch.arange(len(sums)).unsqueeze(1)
                return sums[rows, end] - sums[rows, begin]

            count = between(counts)
            mean = torch.where(count > 0, between(positions) / count.clamp(min=1) - refined, 0)
            parts += [_compress(mean), count / (far - near + 1)]
    parts.append(torch.where(seen, refined - joints, 0) / STEP_UNIT_MM)
    for slot in _BONES_OF_JOINT:
        bone = torch.tensor([entry[0] for entry in slot])
        other = torch.tensor([entry[1] for entry in slot])
        exists = bone >= 0
        rest = lengths[..., bone.clamp(min=0)].masked_fill(~exists, torch.nan).unsqueeze(-1)
        known = rest.isfinite()
        vector = refined[..., other, :] - refined
        length = vector.norm(dim=-1, keepdim=True).clamp(min=1e-3)
        move = vector / length * (length - rest)
        parts += [
            torch.where(known, _compress(move), 0),
            torch.where(known, rest / SCALE_MM, 0),
            known,
        ]
    known = roughness.isfinite()
    parts += [torch.where(known, roughness, 0).unsqueeze(-1), known.unsqueeze(-1)]
    return torch.cat([p.to(joints.dtype) for p in parts], -1)


def _running_sum(x: Tensor) -> Tensor:
    """``(B, T + 1, ...)`` float64 sums of the first 0 to T frames."""
    return F.pad(x.double().cumsum(1), [0, 0] * (x.ndim - 2) + [1, 0])


def _compress(vector: Tensor) -> Tensor:
    """Divides vectors in mm by 10 mm and replaces their length by its asinh."""
    length = vector.norm(dim=-1, keepdim=True) / STEP_UNIT_MM
    return vector / STEP_UNIT_MM * torch.where(length > 1e-6, torch.asinh(length) / length.clamp(min=1e-6), 1)


def _bones_of_joint() -> tuple[tuple[tuple[int, int], ...], ...]:
    """For each of two slots and each joint: the index of a rigid bone and the bone's other joint; (-1, 0) for none."""
    of = [[(i, sum(bone) - j) for i, bone in enumerate(RIGID_BONES) if j in bone] for j in range(NUM_JOINTS)]
    return tuple(tuple((bones + [(-1, 0)] * 2)[slot] for bones in of) for slot in range(2))


_BONES_OF_JOINT = _bones_of_joint()


def first_stage(
    model: JointRefiner, joints: Tensor, observed: Tensor, confidence: Tensor, error_mm: Tensor
) -> tuple[Tensor, Tensor]:
    """Refined joints ``(B, T, 14, 3)`` and hidden states ``(B, T, 14, 128)``; arguments as :func:`refine_sequences`.

    Frames with fewer than :data:`MIN_JOINTS` observed joints are returned unchanged; their hidden states are meaningless.
    """
    usable = (observed.sum(-1) >= MIN_JOINTS).flatten()
    flat = [x.flatten(0, 1) for x in (joints, observed, confidence, error_mm)]
    flat[1] = flat[1] | ~usable.unsqueeze(-1)
    features, mean = encode(*flat)
    hidden, output = model.hidden_and_output(features.to(model.mask.dtype))
    refined, _ = decode(flat[0], flat[1], mean, output.to(joints.dtype))
    refined = torch.where(usable[:, None, None], refined, flat[0])
    return refined.view_as(joints), hidden.view(*joints.shape[:2], NUM_JOINTS, -1)


@torch.inference_mode()
def refine_sequences(
    first: JointRefiner,
    second: SequenceRefiner,
    joints: Tensor,
    observed: Tensor,
    confidence: Tensor,
    error_mm: Tensor,
    lengths_mm: Tensor | None = None,
    look_behind: int = REACH,
    look_ahead: int = REACH,
    online: bool = False,
) -> tuple[Tensor, Tensor]:
    """Runs both stages: the reference implementation of sequences, online refinement and calibrated single frames.

    Args:
        joints: ``(B, T, 14, 3)`` millimetres, canonical order, right hand.
        observed: ``(B, T, 14)``, T at least 1. A frame with fewer than :data:`MIN_JOINTS` is not used and is returned
            unchanged. For a frame that is not a hand, all values must be False.
        confidence, error_mm: ``(B, T, 14)``; NaN: unknown.
        lengths_mm: ``(9,)`` bone lengths of a calibrated person; NaN: unknown.
        look_behind, look_ahead: number of frames before and after a frame that may be used.
        online: whether a frame's bone lengths and roughness are computed from the :data:`HISTORY_FRAMES` frames of its segment
            up to ``look_ahead`` frames after it; otherwise from the whole segment.

    Returns:
        Refined joints and their expected errors ``(B, T, 14)``, millimetres.
    """
    observed = observed & (observed.sum(-1, keepdim=True) >= MIN_JOINTS)
    segments = find_segments(joints, observed)
    refined, hidden = first_stage(first, joints, observed, confidence, error_mm)
    frames = joints.shape[1]
    everything = torch.ones(segments.shape, dtype=torch.bool)
    lengths, roughness = statistics(refined, observed, segments, everything)
    if online:
        lengths, roughness = lengths.clone(), roughness.clone()
        for t in range(frames):
            newest = min(t + look_ahead, frames - 1)
            counted = everything.clone()
            counted[:, newest + 1 :] = False
            counted[:, : max(0, newest + 1 - HISTORY_FRAMES)] = False
            now = statistics(refined, observed, segments, counted)
            lengths[:, t], roughness[:, t] = now[0][:, t], now[1][:, t]
    if lengths_mm is not None:
        lengths = torch.where(lengths_mm.isfinite(), lengths_mm, lengths).to(lengths.dtype)
    behind, ahead = (torch.full((len(joints),), n) for n in (look_behind, look_ahead))
    features = sequence_features(joints, refined, observed, segments, lengths, roughness, behind, ahead)
    output = second(hidden.flatten(0, 1), features.flatten(0, 1).to(second.gain.dtype)).to(joints.dtype)
    output = output.view(*joints.shape[:3], 4)
    usable = observed.any(-1)[..., None, None]
    sigma = SCALE_MM * torch.exp(output[..., 3].clamp(*LOG_SIGMA_RANGE))
    return torch.where(usable, refined + SCALE_MM * output[..., :3], joints), sigma.masked_fill(~usable[..., 0], torch.nan)
