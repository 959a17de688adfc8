"""Moving hands, both stages' weights, and comparisons for the tests of the native second stage."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from jointbert import _core
from jointbert.contract import Status, layout
from jointbert.skeletons import NYU14

torch = pytest.importorskip("torch")
from jointbert.models.refiner import JointRefiner, RefinerConfig  # noqa: E402
from jointbert.models.sequence import REACH, SequenceConfig, SequenceRefiner, refine_sequences  # noqa: E402

ISAS = _core.supported_isas()
CANONICAL = np.arange(14, dtype=np.int32)
SHUFFLED = np.random.default_rng(7).permutation(14).astype(np.int32)
BONES = np.array(NYU14.rigid_bones)
LENGTHS = np.array([38.0, 44.0, 46.0, 43.0, 29.0, np.nan, 52.0, 66.0, 64.0])
"""A person's, but for one that was not measured."""


def randomised(model: Any, seed: int) -> dict[str, np.ndarray]:
    """Weights of a trained network's scale in which every tensor matters: an untrained one corrects nothing."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, parameter in model.state_dict().items():
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in name and name.endswith("weight"):
            value = 1 + 0.2 * noise
        elif name.endswith("bias"):
            value = 0.1 * noise
        else:
            value = noise * (0.2 if name in ("embed1.weight", "embed.weight", "joint_embedding", "mask") else 0.06)
        tensors[name] = value.numpy()
    tensors["head.weight"] *= 0.02 / 0.06
    for gain in ("gain", "observed_gain"):
        if gain in tensors:
            tensors[gain] = np.full(1, 0.8, np.float32)
    return tensors


class Stages:
    """Both networks' weights, their reference implementations in torch, and the native refiners."""

    def __init__(self, first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> None:
        self.first, self.second = first, second

    def models(self, dtype: Any) -> tuple[JointRefiner, SequenceRefiner]:
        def layers(tensors: dict[str, np.ndarray]) -> int:
            return len({name.split(".")[1] for name in tensors if name.startswith("layers.")})

        models = (
            JointRefiner(RefinerConfig(layers=layers(self.first))),
            SequenceRefiner(SequenceConfig(layers=layers(self.second))),
        )
        for model, tensors in zip(models, (self.first, self.second), strict=True):
            model.load_state_dict({key: torch.from_numpy(value.copy()) for key, value in tensors.items()})
            model.to(dtype).eval()
        return models

    def native(self, isa: str = "auto") -> _core.SequenceRefiner:
        return _core.SequenceRefiner(_core.Refiner(self.first, isa), self.second)


@cache
def stages() -> Stages:
    """The shipped first stage, and a second one of random weights."""
    first = {key: value.numpy() for key, value in JointRefiner.load().state_dict().items()}
    return Stages(first, randomised(SequenceRefiner(), 1))


@cache
def small_stages() -> Stages:
    """One layer each, for what takes many frames."""
    return Stages(
        randomised(JointRefiner(RefinerConfig(layers=1)), 2), randomised(SequenceRefiner(SequenceConfig(layers=1)), 3)
    )


@cache
def shared(isa: str = "auto", small: bool = False) -> _core.SequenceRefiner:
    return (small_stages() if small else stages()).native(isa)


@dataclass(frozen=True)
class Sequence:
    """A sequence as the user gives it: what ``run`` takes, but for the options."""

    joints: np.ndarray
    permutation: np.ndarray
    mm_per_unit: float
    mirror: np.ndarray | None = None
    visible: np.ndarray | None = None
    confidence: np.ndarray | None = None
    error_mm: np.ndarray | None = None

    def rows(self, index: slice) -> Sequence:
        per_frame: dict[str, Any] = {
            name: None if (value := getattr(self, name)) is None else np.ascontiguousarray(value[index])
            for name in ("joints", "mirror", "visible", "confidence", "error_mm")
        }
        return replace(self, **per_frame)

    def as_float32(self) -> Sequence:
        return replace(self, joints=self.joints.astype(np.float32))


def motion(frames: int, seed: int = 0, cuts: tuple[int, ...] = ()) -> np.ndarray:
    """A right hand that moves, turns and bends, and is predicted with an error: (frames, 14, 3) in millimetres.

    At a cut it is elsewhere at once, and belongs to somebody else.
    """
    rng = np.random.default_rng(seed)
    fingers = [(-30 + 20 * i, y) for i in range(4) for y in (-90 - 10 * (i in (1, 2)), -45 - 10 * (i in (1, 2)))]
    flat = np.array([*fingers, (70, -20), (50, 0), (30, 20), (-25, 60), (25, 60), (0, 0)], dtype=np.float64)
    t = np.arange(frames)
    segment = np.searchsorted(np.array(cuts, dtype=int), t, side="right")
    size = rng.uniform(0.85, 1.15, len(cuts) + 1)[segment]
    place = np.stack([rng.uniform(-60, 60, (len(cuts) + 1, 3))[segment, i] + 25 * np.sin(t / (7 + i)) for i in range(3)], -1)
    place += np.array([250.0, 0, 0]) * (segment % 2)[:, None] + np.array([0, 0, 800.0])
    bend = 0.4 + 0.3 * np.sin(t / 9)
    pose = np.zeros((frames, 14, 3))
    pose[..., 0] = flat[:, 0]
    upward = flat[:, 1] < -40
    pose[..., 1] = np.where(upward, -30 + (flat[:, 1] + 30) * np.cos(bend)[:, None], flat[:, 1])
    pose[..., 2] = np.where(upward, (flat[:, 1] + 30) * np.sin(bend)[:, None], 0)
    angle = 0.5 * np.sin(t / 11)
    cos, sin, zero = np.cos(angle), np.sin(angle), np.zeros(frames)
    rotation = np.stack([cos, -sin, zero, sin, cos, zero, zero, zero, zero + 1], -1).reshape(-1, 3, 3)
    noise = 3 * rng.standard_normal((frames, 14, 3)) + 4 * rng.standard_normal((14, 3))
    return (pose * size[:, None, None] + noise) @ rotation + place[:, None]


def plain(frames: int, seed: int = 0, cuts: tuple[int, ...] = ()) -> Sequence:
    return Sequence(motion(frames, seed, cuts), CANONICAL, 1.0)


def everything(frames: int, seed: int = 0, cuts: tuple[int, ...] | None = None, mirror: bool | None = None) -> Sequence:
    """Every option at once: shuffled order, centimetres, both hands, missing joints, lost frames, frames of no hand, cuts."""
    rng = np.random.default_rng(seed + 1000)
    canonical = motion(frames, seed, (frames // 3, 2 * frames // 3) if cuts is None else cuts)
    for index, kind in zip(rng.permutation(frames)[: frames // 6], rng.integers(0, 5, frames), strict=False):
        if kind == 0:
            canonical[index] = np.nan
        elif kind == 1:
            canonical[index, 3:] = np.inf  # three joints are left
        elif kind == 2:
            canonical[index] *= 1e3
        elif kind == 3:
            canonical[index] = 700
    mirrored = rng.random(frames) < 0.5 if mirror is None else np.full(frames, mirror)
    canonical[mirrored, :, 0] *= -1
    joints = np.empty_like(canonical)
    joints[:, SHUFFLED] = canonical / 10
    joints[rng.random((frames, 14)) < 0.05, 1] = np.nan
    confidence = rng.random((frames, 14), dtype=np.float32)
    confidence[rng.random((frames, 14)) < 0.2] = np.nan
    error_mm = rng.uniform(0.01, 300, (frames, 14)).astype(np.float32)
    error_mm[rng.random((frames, 14)) < 0.2] = np.nan
    return Sequence(joints, SHUFFLED, 10.0, mirrored, rng.random((frames, 14)) < 0.95, confidence, error_mm)


def canonical_of(given: Sequence) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """What the reference implementation takes, the status of each frame, and the factor of each frame's x."""
    joints = given.joints[:, given.permutation].astype(np.float64) * given.mm_per_unit
    sign = np.ones(len(joints)) if given.mirror is None else np.where(given.mirror, -1.0, 1.0)
    joints[..., 0] *= sign[:, None]
    observed = np.isfinite(joints).all(-1)
    if given.visible is not None:
        observed &= given.visible[:, given.permutation]
    status = np.full(len(joints), Status.REFINED, np.uint8)
    for i, (pose, seen) in enumerate(zip(joints, observed, strict=True)):
        if seen.sum() < layout.MIN_JOINTS:
            status[i] = Status.TOO_FEW_JOINTS
        else:
            size = np.sqrt(((pose[seen] - pose[seen].mean(0)) ** 2).sum(-1).mean())
            if not layout.HAND_SIZE_MM[0] <= size <= layout.HAND_SIZE_MM[1]:
                status[i] = Status.NOT_A_HAND
    observed &= (status == Status.REFINED)[:, None]

    def per_joint(values: np.ndarray | None) -> np.ndarray:
        return np.full(observed.shape, np.nan) if values is None else values[:, given.permutation].astype(np.float64)

    tensors = {
        "joints": joints,
        "observed": observed,
        "confidence": per_joint(given.confidence),
        "error_mm": per_joint(given.error_mm),
    }
    return tensors, status, sign


@dataclass(frozen=True)
class Reference:
    """In the user's order and unit, float64."""

    joints: np.ndarray
    sigma: np.ndarray
    status: np.ndarray


def reference_of(
    given: Sequence,
    *,
    lengths_mm: np.ndarray | None = None,
    look_behind: int = REACH,
    look_ahead: int = REACH,
    alone: bool = False,
    online: bool = False,
    both: Stages | None = None,
    dtype: Any = torch.float64,
) -> Reference:
    tensors, status, sign = canonical_of(given)
    first, second = (both or stages()).models(dtype)
    refined, sigma = refine_sequences(
        first,
        second,
        *(torch.from_numpy(x).unsqueeze(1 if alone else 0) for x in tensors.values()),
        lengths_mm=None if lengths_mm is None else torch.from_numpy(lengths_mm),
        look_behind=look_behind,
        look_ahead=look_ahead,
        online=online,
    )
    inverse = np.argsort(given.permutation)
    joints = refined.squeeze(1 if alone else 0).numpy().copy()
    joints[..., 0] *= sign[:, None]
    joints = joints[:, inverse] / given.mm_per_unit
    return Reference(joints, sigma.squeeze(1 if alone else 0).numpy()[:, inverse] / given.mm_per_unit, status)


Arrays = tuple[np.ndarray, ...]


def run(
    refiner: _core.SequenceRefiner,
    given: Sequence,
    *,
    lengths_mm: np.ndarray | None = None,
    look_behind: int = REACH,
    look_ahead: int = REACH,
    alone: bool = False,
    threads: int = 1,
) -> Arrays:
    return refiner.run(
        **vars(given), lengths_mm=lengths_mm, look_behind=look_behind, look_ahead=look_ahead, alone=alone, threads=threads
    )


def open_stream(
    refiner: _core.SequenceRefiner, given: Sequence, look_ahead: int, lengths_mm: np.ndarray | None = None
) -> _core.OnlineSequence:
    mirror = bool(given.mirror is not None and len(given.mirror) and given.mirror[0])
    return refiner.stream(given.permutation, given.mm_per_unit, mirror, lengths_mm, look_ahead)


def push(stream: _core.OnlineSequence, given: Sequence, t: int) -> tuple[Any, ...] | None:
    optional = (given.visible, given.confidence, given.error_mm)
    return stream.push(given.joints[t], *(None if x is None else x[t] for x in optional))


def stream_all(stream: _core.OnlineSequence, given: Sequence, look_ahead: int) -> Arrays:
    """All frames through a stream, which is then as new."""
    results = []
    for t in range(len(given.joints)):
        result = push(stream, given, t)
        assert (result is None) == (t < look_ahead)
        if result is not None:
            results.append(result)
    rest = stream.flush()
    assert len(rest) == min(look_ahead, len(given.joints))
    joints, sigma, status, size, chirality = zip(*results, *rest, strict=True)
    assert {type(x) for x in (*size, *chirality)} == {float}
    assert {type(x) for x in status} == {int}
    return (
        np.stack(joints),
        np.stack(sigma),
        np.array(status, np.uint8),
        np.array(size, np.float32),
        np.array(chirality, np.float32),
    )


@cache
def tolerance_mm() -> float:
    """Twice torch float32's own error plus 1e-5 mm; float64 joints, so that no camera frame's rounding hides it."""
    worst = 0.0
    for given in (plain(60), everything(60)):
        single, double = (reference_of(given, dtype=dtype) for dtype in (torch.float32, torch.float64))
        good = double.status == Status.REFINED
        worst = max(worst, float(np.abs(single.joints[good] - double.joints[good]).max()) * given.mm_per_unit)
    assert 1e-6 < worst < 1e-3  # else this yardstick measures nothing
    return 2 * worst + 1e-5


def assert_matches(
    mine: Arrays, reference: Reference, given: Sequence, tolerance: float | None = None, rows: slice = slice(None)
) -> None:
    joints, sigma, status, *_ = (x[rows] for x in mine)
    came = given.joints[rows]
    assert joints.dtype == came.dtype
    assert joints.shape == came.shape
    np.testing.assert_array_equal(status, reference.status[rows])
    good = status == Status.REFINED
    error = np.abs(joints[good].astype(np.float64) - reference.joints[rows][good]) * given.mm_per_unit
    assert error.max(initial=0) <= (tolerance_mm() if tolerance is None else tolerance)
    np.testing.assert_allclose(sigma[good], reference.sigma[rows][good], rtol=5e-6)
    assert np.isnan(sigma[~good]).all()
    assert joints[~good].tobytes() == came[~good].tobytes()


def assert_same_bits(one: Arrays, other: Arrays, rows: slice = slice(None)) -> None:
    assert len(one) == len(other)
    for mine, theirs in zip(one, other, strict=True):
        assert mine.dtype == theirs.dtype
        assert mine.tobytes() == theirs[rows].tobytes()


def difference_mm(one: Arrays, other: Arrays, given: Sequence, rows: slice = slice(None)) -> float:
    """The largest, of the frames that were refined."""
    good = one[2][rows] == Status.REFINED
    return float(np.abs(one[0][rows][good] - other[0][rows][good]).max(initial=0)) * given.mm_per_unit


def first_stages_bones(native: _core.SequenceRefiner, given: Sequence) -> np.ndarray:
    """(T, 9) millimetres; NaN where one of the ends was not observed."""
    joints, *_ = _core.Refiner(stages().first, native.isa).run(**vars(given), threads=1)
    observed = canonical_of(given)[0]["observed"]
    refined = np.where(observed[..., None], joints[:, given.permutation] * given.mm_per_unit, np.nan)
    return np.linalg.norm(refined[:, BONES[:, 0]] - refined[:, BONES[:, 1]], axis=-1)


def lower_median(values: np.ndarray) -> float:
    values = np.sort(values[np.isfinite(values)])
    return float(values[(len(values) - 1) // 2]) if len(values) >= layout.KNOWN_FRAMES else np.nan
