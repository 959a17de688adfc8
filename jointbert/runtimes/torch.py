"""The refiner in torch, in float32 or float64: the reference implementation of the other runtimes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from jointbert.contract import Batch, Result, Status, Weights
from jointbert.contract.layout import HAND_SIZE_MM, KNOWN_FRAMES, MIN_JOINTS
from jointbert.models.refiner import JointRefiner, RefinerConfig, decode, encode
from jointbert.models.sequence import REACH, SequenceConfig, SequenceRefiner, bone_lengths, refine_sequences
from jointbert.skeletons import NYU14

RIGID_BONES = NYU14.rigid_bones


class TorchBackend:
    """Runs :class:`JointRefiner` on the CPU. Tests measure other runtimes' deviations from ``dtype=torch.float64``."""

    name = "torch"
    precision = "f32"
    detail = ""

    def __init__(self, weights: Weights, threads: int = 1, dtype: torch.dtype = torch.float32, chunk: int = 1024) -> None:
        self.model = JointRefiner(RefinerConfig(**weights.sizes)).eval()
        self.model.load_state_dict({key: torch.from_numpy(value.copy()) for key, value in weights.tensors.items()})
        self.model.to(dtype)
        self.dtype = dtype
        self.threads = threads
        self.chunk = chunk

    def run(self, batch: Batch) -> Result:
        """See :meth:`jointbert.contract.Backend.run`."""
        parts = [self._run(batch, slice(i, i + self.chunk)) for i in range(0, len(batch.joints), self.chunk)]
        if not parts:
            parts = [self._run(batch, slice(0, 0))]
        return Result.joined([Result(*part) for part in parts])

    @torch.inference_mode()
    def _run(self, batch: Batch, rows: slice) -> tuple[np.ndarray, ...]:
        poses = Canonical.of(batch, rows)
        return poses.result(*self.refine(poses))

    def refine(self, poses: Canonical) -> tuple[Tensor, Tensor]:
        """Refined joints ``(n, 14, 3)`` and sigma ``(n, 14)`` of the n frames that can be refined, millimetres."""
        good = poses.good
        features, mean = encode(*(x[good] for x in (poses.joints, poses.observed, poses.confidence, poses.error_mm)))
        output = self.model(features.to(self.dtype)).double()
        return decode(poses.joints[good], poses.observed[good], mean, output)

    def sequence(self, weights: Weights) -> TorchSequenceBackend:
        """See :meth:`jointbert.contract.SequentialBackend.sequence`."""
        return TorchSequenceBackend(self, weights)


class TorchSequenceBackend:
    """Runs the second stage in torch, on whole sequences only: there is no online refinement."""

    def __init__(self, first: TorchBackend, weights: Weights) -> None:
        self.first = first
        self.model = SequenceRefiner(SequenceConfig(**weights.sizes)).eval()
        self.model.load_state_dict({key: torch.from_numpy(value.copy()) for key, value in weights.tensors.items()})
        self.model.to(first.dtype)

    @torch.inference_mode()
    def run(self, batch: Batch, lengths_mm: np.ndarray | None, alone: bool) -> Result:
        """See :meth:`jointbert.contract.SequenceBackend.run`."""
        poses = Canonical.of(batch, slice(None))
        good = poses.good
        axis = 1 if alone else 0  # single frames: N sequences of one frame; otherwise one sequence of N frames
        if not len(good):
            return Result(*poses.result(poses.joints, poses.confidence))
        lengths = None if lengths_mm is None else torch.tensor(lengths_mm)
        look = 0 if alone else REACH
        refined, sigma = refine_sequences(
            self.first.model,
            self.model,
            poses.joints.unsqueeze(axis),
            (poses.observed & good.unsqueeze(1)).unsqueeze(axis),
            poses.confidence.unsqueeze(axis),
            poses.error_mm.unsqueeze(axis),
            lengths,
            look,
            look,
        )
        return Result(*poses.result(refined.squeeze(axis)[good], sigma.squeeze(axis)[good]))

    @torch.inference_mode()
    def calibrate(self, batch: Batch) -> tuple[np.ndarray, np.ndarray, Result]:
        """See :meth:`jointbert.contract.SequenceBackend.calibrate`."""
        poses = Canonical.of(batch, slice(None))
        refined, sigma = self.first.refine(poses)
        both = poses.observed[poses.good][:, torch.tensor(RIGID_BONES)].all(-1)
        counts = both.sum(0)
        lengths = torch.full((len(RIGID_BONES),), torch.nan, dtype=torch.float64)
        if len(refined):
            lengths = bone_lengths(refined).masked_fill(~both, torch.nan).nanmedian(0).values
        lengths = lengths.masked_fill(counts < KNOWN_FRAMES, torch.nan)
        return lengths.numpy(), counts.numpy(), Result(*poses.result(refined, sigma))


@dataclass(frozen=True)
class Canonical:
    """A batch in canonical form (float64, millimetres, canonical order, right hand), and each frame's status before
    refinement."""

    batch: Batch
    given: Tensor  # [N, 14, 3], as the user gave them
    joints: Tensor  # [N, 14, 3]
    observed: Tensor  # [N, 14]
    confidence: Tensor  # [N, 14]; NaN: unknown
    error_mm: Tensor  # [N, 14]; NaN: unknown
    mirror: Tensor  # [N, 1, 3]: factors of x, y, z; the skeleton's for left hands
    status: Tensor  # [N] uint8
    size: Tensor  # [N]: root mean square distance of the observed joints from their mean, mm
    permutation: Tensor  # [14]

    @classmethod
    def of(cls, batch: Batch, rows: slice) -> Canonical:
        """Converts some rows of a batch."""
        permutation = torch.from_numpy(batch.permutation.astype(np.int64))
        given = torch.tensor(batch.joints[rows])  # copies: the input may be read-only
        joints = given.double()[:, permutation] * batch.mm_per_unit
        mirror = torch.ones(len(joints), 1, 3, dtype=torch.float64)
        if batch.mirror is not None:
            mirror[torch.tensor(batch.mirror[rows])] = torch.tensor(NYU14.mirror, dtype=torch.float64)
        joints *= mirror
        observed = joints.isfinite().all(-1)
        if batch.visible is not None:
            observed &= torch.tensor(batch.visible[rows])[:, permutation]

        def optional(values: np.ndarray | None) -> Tensor:
            if values is None:
                return torch.full(observed.shape, torch.nan, dtype=torch.float64)
            return torch.tensor(values[rows])[:, permutation].double()

        seen = observed.unsqueeze(-1)
        mean = torch.where(seen, joints, 0).sum(-2, keepdim=True) / seen.sum(-2, keepdim=True)
        spread = torch.where(seen, joints - mean, 0).square().sum(-1)
        size = (spread.sum(-1) / observed.sum(-1)).sqrt()
        status = torch.full((len(joints),), int(Status.REFINED), dtype=torch.uint8)
        status[~((size >= HAND_SIZE_MM[0]) & (size <= HAND_SIZE_MM[1]))] = int(Status.NOT_A_HAND)
        status[observed.sum(-1) < MIN_JOINTS] = int(Status.TOO_FEW_JOINTS)
        optionals = (optional(batch.confidence), optional(batch.error_mm))
        return cls(batch, given, joints, observed, *optionals, mirror, status, size, permutation)

    @property
    def good(self) -> Tensor:
        """``(N,)`` bool: frames that can be refined."""
        return self.status == int(Status.REFINED)

    def result(self, refined: Tensor, sigma: Tensor) -> tuple[np.ndarray, ...]:
        """The fields of a :class:`Result`, from refined joints and sigma of the :attr:`good` frames in millimetres."""
        good = self.good
        out = self.given.clone()
        out_sigma = torch.full(self.observed.shape, torch.nan, dtype=torch.float32)
        inverse = torch.argsort(self.permutation)
        refined = refined.clone()
        refined *= self.mirror[good]
        out[good] = (refined / self.batch.mm_per_unit)[:, inverse].to(out.dtype)
        out_sigma[good] = (sigma / self.batch.mm_per_unit)[:, inverse].float()
        side = chirality(self.joints, self.observed)
        return tuple(t.numpy() for t in (out, out_sigma, self.status, self.size.float(), side.float()))


def chirality(joints: Tensor, observed: Tensor) -> Tensor:
    """A signed measure of the hand's side, in millimetres: negative for right hands, positive for left or mirrored ones.

    The palm's normal is the cross product of the directions from index to little finger and from wrist to fingers. The measure
    is the component along this normal of a vector to the palm's side: the mean direction in which the fingers curl, plus the
    direction from the palm to the thumb. On the NYU ground truth the sign is right for 99.8 % of the frames.

    Args:
        joints: ``(B, J, 3)``, the skeleton's order. observed: ``(B, J)``.

    Returns:
        ``(B,)``; NaN if a joint of the palm frame is missing or the palm has no normal.
    """
    palm = NYU14.palm_frame
    tips, near = ([pair[end] for pair in palm.curl] for end in (0, 1))
    across = joints[:, palm.across[0]] - joints[:, palm.across[1]]
    up = joints[:, list(palm.up[0])].mean(1) - joints[:, list(palm.up[1])].mean(1)
    normal = torch.linalg.cross(across, up)
    toward = (joints[:, tips] - joints[:, near]).mean(1) + joints[:, palm.thumb[0]] - joints[:, palm.thumb[1]]
    value = (normal * toward).sum(-1) / normal.norm(dim=-1)
    return torch.where(observed[:, list(palm.joints)].all(-1) & value.isfinite(), value, torch.nan)
