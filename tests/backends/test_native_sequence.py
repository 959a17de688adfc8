"""The native second stage against its twin, :func:`jointbert.models.sequence.refine_sequences` in float64."""

from __future__ import annotations

import gc
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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
    """Both networks' weights, their twins in torch, and the native refiners."""

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
    """What the twin takes, the status of each frame, and the factor of each frame's x."""
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


def twin(
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
) -> _core.Stream:
    mirror = bool(given.mirror is not None and len(given.mirror) and given.mirror[0])
    return refiner.stream(given.permutation, given.mm_per_unit, mirror, lengths_mm, look_ahead)


def push(stream: _core.Stream, given: Sequence, t: int) -> tuple[Any, ...] | None:
    optional = (given.visible, given.confidence, given.error_mm)
    return stream.push(given.joints[t], *(None if x is None else x[t] for x in optional))


def stream_all(stream: _core.Stream, given: Sequence, look_ahead: int) -> Arrays:
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
        single, double = (twin(given, dtype=dtype) for dtype in (torch.float32, torch.float64))
        good = double.status == Status.REFINED
        worst = max(worst, float(np.abs(single.joints[good] - double.joints[good]).max()) * given.mm_per_unit)
    assert 1e-6 < worst < 1e-3  # else this yardstick measures nothing
    return 2 * worst + 1e-5


def assert_twins(
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


@pytest.fixture(params=ISAS)
def native(request: pytest.FixtureRequest) -> _core.SequenceRefiner:
    return shared(request.param)


# The twin


@pytest.mark.parametrize("make", [plain, everything])
@pytest.mark.parametrize("frames", [1, 2, 3, 7, 8, 10, 17, 60])
def test_refines_sequences_like_its_twin(native: _core.SequenceRefiner, make: Callable[[int], Sequence], frames: int) -> None:
    given = make(frames)
    mine = run(native, given)
    assert_twins(mine, twin(given), given)
    came = np.isfinite(given.joints).all(-1) & (mine[2] == Status.REFINED)[:, None]
    # The networks have something to say.
    assert not came.any() or np.abs(mine[0][came] - given.joints[came]).max() * given.mm_per_unit > 1


@pytest.mark.parametrize(("look_behind", "look_ahead"), [(0, 0), (20, 0), (0, 20), (3, 5), (11, 1), (1, 12)])
def test_looks_as_far_as_it_is_told_to(native: _core.SequenceRefiner, look_behind: int, look_ahead: int) -> None:
    given = everything(40, seed=2)
    mine = run(native, given, look_behind=look_behind, look_ahead=look_ahead)
    assert_twins(mine, twin(given, look_behind=look_behind, look_ahead=look_ahead), given)
    assert difference_mm(mine, run(native, given), given) > 1e-3


@pytest.mark.parametrize("frames", [1, 5, 40])
def test_given_lengths_take_the_place_of_measured_ones(native: _core.SequenceRefiner, frames: int) -> None:
    given = everything(frames, seed=3)
    mine = run(native, given, lengths_mm=LENGTHS)
    assert_twins(mine, twin(given, lengths_mm=LENGTHS), given)
    assert difference_mm(mine, run(native, given), given) > 1e-3
    assert_same_bits(run(native, given, lengths_mm=np.full(9, np.nan)), run(native, given))


@pytest.mark.parametrize("lengths_mm", [LENGTHS, None])
def test_frames_alone_know_only_what_is_given(native: _core.SequenceRefiner, lengths_mm: np.ndarray | None) -> None:
    given = everything(40, seed=4)
    mine = run(native, given, lengths_mm=lengths_mm, look_behind=0, look_ahead=0, alone=True)
    assert_twins(mine, twin(given, lengths_mm=lengths_mm, look_behind=0, look_ahead=0, alone=True), given)
    for t in (0, 7, 39):
        one = run(native, given.rows(slice(t, t + 1)), lengths_mm=lengths_mm, look_behind=0, look_ahead=0, alone=True)
        assert_same_bits(one, mine, slice(t, t + 1))
        assert_same_bits(run(native, given.rows(slice(t, t + 1)), lengths_mm=lengths_mm), one)
    as_sequence = run(native, given, lengths_mm=lengths_mm, look_behind=0, look_ahead=0)
    assert difference_mm(as_sequence, mine, given) > 1e-3  # that one knows the roughness


@pytest.mark.parametrize("option", ["visible", "confidence", "error_mm"])
def test_each_option_alone_is_the_twins_and_matters(native: _core.SequenceRefiner, option: str) -> None:
    given = replace(plain(20), **{option: getattr(everything(20), option)})
    mine = run(native, given)
    assert_twins(mine, twin(given), given)
    assert np.abs(mine[0] - run(native, plain(20))[0]).max() > 0.01


def test_float32_joints_are_within_a_thousandth_of_a_millimetre(native: _core.SequenceRefiner) -> None:
    for given in (plain(40).as_float32(), everything(40).as_float32()):
        assert_twins(run(native, given), twin(given), given, tolerance=1e-3)


def test_no_frames(native: _core.SequenceRefiner) -> None:
    for given in (plain(0), everything(0).as_float32()):
        for options in ({}, {"alone": True, "look_behind": 0, "look_ahead": 0}, {"threads": 3}):
            joints, sigma, status, size, chirality = run(native, given, **options)  # type: ignore[arg-type]
            assert joints.dtype == given.joints.dtype
            assert [x.shape for x in (joints, sigma, status, size, chirality)] == [(0, 14, 3), (0, 14), (0,), (0,), (0,)]


def test_size_and_chirality_are_the_first_stages(native: _core.SequenceRefiner) -> None:
    given = everything(30)
    alone = _core.Refiner(stages().first, native.isa).run(**vars(given), threads=1)
    assert_same_bits(run(native, given)[2:], alone[2:])
    results = stream_all(open_stream(native, everything(30, mirror=True), 5), everything(30, mirror=True), 5)
    alone = _core.Refiner(stages().first, native.isa).run(**vars(everything(30, mirror=True)), threads=1)
    assert_same_bits(results[2:], alone[2:])


def test_network_alone_is_the_models(native: _core.SequenceRefiner) -> None:
    rng = np.random.default_rng(3)
    hidden = rng.normal(0, 1, (33, 14, 128)).astype(np.float32)
    features = rng.normal(0, 0.6, (33, 14, layout.SEQUENCE_FEATURES)).astype(np.float32)
    with torch.inference_mode():
        reference = stages().models(torch.float64)[1](*(torch.from_numpy(x).double() for x in (hidden, features))).numpy()
    before = hidden.tobytes(), features.tobytes()
    out = native.forward(hidden, features)
    assert (hidden.tobytes(), features.tobytes()) == before
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, reference, rtol=0, atol=tolerance_mm() / layout.SCALE_MM * 1.5)
    assert native.forward(hidden, features, 3).tobytes() == out.tobytes()
    assert native.forward(hidden[5:6], features[5:6]).tobytes() == out[5:6].tobytes()


@pytest.mark.parametrize("isa", ISAS)
def test_every_tensor_matters_as_it_does_in_torch(isa: str) -> None:
    both = small_stages()
    given = everything(24, cuts=())

    good = canonical_of(given)[1] == Status.REFINED
    assert good.sum() > 15

    def results(tensors: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        changed = Stages(both.first, tensors)
        mine, reference = run(changed.native(isa), given)[:2], twin(given, both=changed)
        pairs = mine, (reference.joints, reference.sigma)
        return tuple(np.concatenate([joints[good], np.log(sigma[good])[..., None]], -1) for joints, sigma in pairs)  # type: ignore[return-value]

    mine, reference = results(both.second)
    rng = np.random.default_rng(4)
    for name, tensor in both.second.items():
        noise = rng.normal(0, 0.05, tensor.shape).astype(np.float32)
        my_changed, changed = results({**both.second, name: tensor + noise})
        assert np.abs(changed - reference).max() > 1e-3, name
        np.testing.assert_allclose(my_changed - mine, changed - reference, rtol=0, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("layers", [1, 3])
def test_any_number_of_layers(layers: int) -> None:
    both = Stages(stages().first, randomised(SequenceRefiner(SequenceConfig(layers=layers)), 5))
    given = plain(12)
    assert both.native().layers == layers
    assert_twins(run(both.native(), given), twin(given, both=both), given)


# What a frame sees


def test_nothing_is_seen_beyond_a_cut(native: _core.SequenceRefiner) -> None:
    given = plain(40, cuts=(20,))
    whole = run(native, given)
    for rows in (slice(0, 20), slice(20, 40)):
        assert_same_bits(run(native, given.rows(rows)), whole, rows)


def test_without_a_cut_everything_is_seen(native: _core.SequenceRefiner) -> None:
    given = plain(40)
    whole = run(native, given)
    assert np.abs(run(native, given.rows(slice(0, 20)))[0] - whole[0][:20]).max() > 1e-3


@pytest.mark.parametrize(("step", "cut"), [(59.0, False), (61.0, True)])
@pytest.mark.parametrize("lost", [0, 2])
def test_a_cut_is_a_move_of_sixty_millimetres_a_frame(step: float, cut: bool, lost: int) -> None:
    joints = np.repeat(motion(1), 24, axis=0)
    joints[12:] += np.array([0.6, 0, 0.8]) * step * (lost + 1)
    joints[12 - lost : 12] = np.nan
    joints[12, :7] += 80  # half of the joints are elsewhere: the lower median is of the other half
    given = Sequence(joints, CANONICAL, 1.0)
    mine = run(shared(), given)
    assert_twins(mine, twin(given), given)
    later = run(shared(), given.rows(slice(12, None)))
    assert (np.abs(mine[0][13:] - later[0][1:]).max() > 1e-3) != cut


def test_joints_unseen_in_either_frame_tell_of_no_cut() -> None:
    given = plain(24, cuts=(12,))
    visible = np.ones((24, 14), bool)
    visible[11, 7:] = visible[12, :4] = False  # three joints are in both
    given = replace(given, visible=visible)
    mine = run(shared(), given)
    assert_twins(mine, twin(given), given)
    assert np.abs(mine[0][12:] - run(shared(), given.rows(slice(12, None)))[0]).max() > 1e-3


def test_a_lost_frame_is_as_if_nothing_was_there(native: _core.SequenceRefiner) -> None:
    given = plain(30)
    results = []
    for value in (np.nan, np.inf, 0.0, 1e300):
        joints = given.joints.copy()
        joints[10] = value
        results.append(run(native, replace(given, joints=joints)))
        assert results[-1][0][10].tobytes() == joints[10].tobytes()
        assert results[-1][2][10] != Status.REFINED
    others = np.arange(30) != 10
    for result in results[1:]:
        assert_same_bits(tuple(x[others] for x in result), tuple(x[others] for x in results[0]))


def test_translation_changes_nothing(native: _core.SequenceRefiner) -> None:
    given = plain(30)
    shift = np.array([512.0, -1024.0, 2048.0])
    moved = run(native, replace(given, joints=given.joints + shift))[0] - shift
    np.testing.assert_allclose(moved, run(native, given)[0], rtol=0, atol=1e-4)


def test_order_side_and_unit_change_nothing_else(native: _core.SequenceRefiner) -> None:
    given = plain(20)
    expected = run(native, given)
    joints = np.empty_like(given.joints)
    joints[:, SHUFFLED] = given.joints * np.array([-1.0, 1.0, 1.0])
    shuffled = replace(given, joints=joints, permutation=SHUFFLED, mirror=np.ones(20, bool))
    result = run(native, shuffled)
    assert (result[0][:, SHUFFLED] * np.array([-1.0, 1.0, 1.0])).tobytes() == expected[0].tobytes()
    assert result[1][:, SHUFFLED].tobytes() == expected[1].tobytes()
    metres = run(native, replace(given, joints=given.joints / 1000, mm_per_unit=1000.0))
    np.testing.assert_allclose(metres[0] * 1000, expected[0], rtol=0, atol=1e-4)
    np.testing.assert_allclose(metres[1] * 1000, expected[1], rtol=1e-5)


def test_threads_change_no_bit(native: _core.SequenceRefiner) -> None:
    alone: dict[str, Any] = {"lengths_mm": LENGTHS, "look_behind": 0, "look_ahead": 0, "alone": True}
    for given in (plain(50).as_float32(), everything(50)):
        for options in ({}, alone):
            expected = run(native, given, **options)
            for threads in (3, 10**6):
                assert_same_bits(run(native, given, threads=threads, **options), expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_frames_that_are_not_refined_come_back_bit_for_bit(native: _core.SequenceRefiner, dtype: type) -> None:
    joints = motion(12).astype(dtype)
    joints[2, 3:] = np.nan
    payload = joints[2].view(np.uint32 if dtype is np.float32 else np.uint64)
    payload[5, 0] |= 0x1234  # a NaN that holds something comes back with it
    joints[3] = np.inf
    joints[4] *= 1000
    joints[11] = 0
    given = Sequence(joints, CANONICAL, 1.0)
    for mine in (run(native, given), stream_all(open_stream(native, given, 3), given, 3)):
        few, strange = Status.TOO_FEW_JOINTS, Status.NOT_A_HAND
        assert mine[2].tolist() == [0, 0, few, few, strange, 0, 0, 0, 0, 0, 0, strange]
        for t in (2, 3, 4, 11):
            assert mine[0][t].tobytes() == joints[t].tobytes()
            assert np.isnan(mine[1][t]).all()
        assert np.isfinite(mine[0][mine[2] == 0]).all()


# Streams


@pytest.mark.parametrize("look_ahead", [0, 1, 5, 20])
@pytest.mark.parametrize("frames", [1, 4, 45])
def test_streams_are_their_twins(native: _core.SequenceRefiner, look_ahead: int, frames: int) -> None:
    for given in (plain(frames), everything(frames, mirror=True), everything(frames, seed=9, cuts=(15, 17, 30), mirror=False)):
        mine = stream_all(open_stream(native, given, look_ahead), given, look_ahead)
        assert_twins(mine, twin(given, look_ahead=look_ahead, online=True), given)


@pytest.mark.parametrize("look_ahead", [0, 7])
def test_streams_with_given_lengths(native: _core.SequenceRefiner, look_ahead: int) -> None:
    given = everything(30, mirror=True)
    mine = stream_all(open_stream(native, given, look_ahead, LENGTHS), given, look_ahead)
    assert_twins(mine, twin(given, lengths_mm=LENGTHS, look_ahead=look_ahead, online=True), given)


@pytest.mark.parametrize("look_ahead", [0, 6])
def test_a_stream_gives_each_frame_in_the_dtype_in_which_it_came(native: _core.SequenceRefiner, look_ahead: int) -> None:
    given = everything(30, mirror=False).as_float32()
    mine = stream_all(open_stream(native, given, look_ahead), given, look_ahead)
    assert_twins(mine, twin(given, look_ahead=look_ahead, online=True), given, tolerance=1e-3)
    stream = open_stream(native, given, look_ahead)
    results = [push(stream, given if t % 3 else replace(given, joints=given.joints.astype(np.float64)), t) for t in range(30)]
    for t, result in enumerate(results[look_ahead:] + stream.flush()):
        assert result is not None
        assert result[0].dtype == (np.float32 if t % 3 else np.float64)
        assert result[0].astype(np.float32).tobytes() == mine[0][t].tobytes()


@pytest.mark.parametrize(("look_ahead", "cuts"), [(0, ()), (20, (40, 45, 560)), (3, (600,))])
def test_a_stream_forgets_what_is_long_ago(look_ahead: int, cuts: tuple[int, ...]) -> None:
    both, count = small_stages(), layout.HISTORY_FRAMES + 100
    given = everything(count, cuts=cuts, mirror=False)
    # The person grows, and the predictions get rougher: what was known once is wrong now.
    growth = np.linspace(0.8, 1.2, count)[:, None, None]
    rough = np.random.default_rng(0).standard_normal((count, 14, 3)) * (growth - 0.8)
    middle = np.array([0.0, 0, 80])
    given = replace(given, joints=(given.joints - middle) * growth + middle + rough)
    mine = stream_all(open_stream(shared(small=True), given, look_ahead), given, look_ahead)
    reference = twin(given, look_ahead=look_ahead, online=True, both=both)
    assert_twins(mine, reference, given, tolerance=2e-4)
    # Of the longest segment, the first frames are forgotten at its end; the whole sequence's statistics know them.
    end = cuts[-1] if cuts else count
    assert difference_mm(mine, run(shared(small=True), given, look_ahead=look_ahead), given, slice(end - 5, end)) > 1e-3


def test_a_stream_does_not_change_with_age() -> None:
    """What it has forgotten leaves no trace: the last frames alone give the same, bit for bit."""
    given = plain(3 * layout.HISTORY_FRAMES)
    old = open_stream(shared(small=True), given, 2)
    for t in range(len(given.joints)):
        last = push(old, given, t)
    young = open_stream(shared(small=True), given, 2)
    start = len(given.joints) - layout.HISTORY_FRAMES - 2  # the roughness of the first two is not known
    for t in range(start, len(given.joints)):
        last_of_young = push(young, given, t)
    assert last is not None
    assert last_of_young is not None
    assert_same_bits(last[:2], last_of_young[:2])


def test_a_stream_that_ended_begins_anew(native: _core.SequenceRefiner) -> None:
    given, other = everything(30, mirror=True), everything(33, seed=5, mirror=True)
    stream = open_stream(native, given, 4, LENGTHS)
    expected = stream_all(stream, given, 4)
    stream_all(stream, other, 4)  # ends with flush
    assert_same_bits(stream_all(stream, given, 4), expected)
    for count in (1, 4, 5, 25):
        for t in range(count):
            push(stream, other, t)
        stream.reset()
        assert stream.flush() == []
        assert_same_bits(stream_all(stream, given, 4), expected)
    assert stream.flush() == []


def test_a_refused_frame_leaves_the_stream_as_it_was(native: _core.SequenceRefiner) -> None:
    given = everything(12, mirror=True)
    stream = open_stream(native, given, 2)
    expected = stream_all(stream, given, 2)
    results = []
    for t in range(12):
        with pytest.raises(ValueError, match="joints: got shape"):
            stream.push(given.joints)
        results.append(push(stream, given, t))
    for result, joints in zip(results[2:] + stream.flush(), expected[0], strict=True):
        assert result is not None
        assert result[0].tobytes() == joints.tobytes()


def test_streams_bone_lengths_are_the_current_persons(native: _core.SequenceRefiner) -> None:
    given = everything(60, cuts=(24,), mirror=False)
    lengths = first_stages_bones(native, given)
    cut = 24 + int(np.flatnonzero(np.isfinite(lengths[24:]).any(-1))[0])
    for look_ahead in (0, 9):
        stream, known = open_stream(native, given, look_ahead), open_stream(native, given, look_ahead, LENGTHS)
        assert np.isnan(stream.bone_lengths_mm).all()
        np.testing.assert_array_equal(known.bone_lengths_mm, LENGTHS)
        for t in range(60):
            push(stream, given, t)
            push(known, given, t)
            begin = cut if t >= cut else 0
            expected = [lower_median(x) for x in lengths[begin : t + 1].T]
            np.testing.assert_allclose(stream.bone_lengths_mm, expected, rtol=1e-9)
            np.testing.assert_allclose(known.bone_lengths_mm, np.where(np.isnan(LENGTHS), expected, LENGTHS), rtol=1e-9)
        assert np.isfinite(stream.bone_lengths_mm).all()
        stream.flush()
        assert np.isnan(stream.bone_lengths_mm).all()


def test_a_stream_serves_many_python_threads() -> None:
    given = everything(64, mirror=True)
    stream = open_stream(shared(small=True), given, 5)
    start = threading.Barrier(8)

    def work(offset: int) -> int:
        start.wait()
        count = 0
        for t in range(64):
            count += push(stream, given, (t + offset) % 64) is not None
            assert stream.bone_lengths_mm.shape == (9,)
            if t % 16 == offset:
                count += len(stream.flush())
            if t == 40 and offset == 3:
                stream.reset()
        return count

    with ThreadPoolExecutor(8) as pool:
        counts = list(pool.map(work, range(8)))
    assert 0 < sum(counts) + len(stream.flush()) <= 8 * 64
    expected = stream_all(open_stream(shared(small=True), given, 5), given, 5)
    assert_same_bits(stream_all(stream, given, 5), expected)


def test_many_streams_and_sequences_share_one_refiner() -> None:
    refiner = shared(small=True)
    cases = [everything(count, seed=count, mirror=True) for count in (5, 20, 33, 50)]
    expected = [(run(refiner, given), stream_all(open_stream(refiner, given, 3), given, 3)) for given in cases]

    def work(i: int) -> tuple[Arrays, Arrays]:
        given = cases[i % 4]
        return run(refiner, given, threads=2), stream_all(open_stream(refiner, given, 3), given, 3)

    with ThreadPoolExecutor(8) as pool:
        for i, (sequence, stream) in enumerate(pool.map(work, range(16))):
            assert_same_bits(sequence, expected[i % 4][0])
            assert_same_bits(stream, expected[i % 4][1])


def test_a_stream_keeps_its_weights_alive() -> None:
    given = everything(20, mirror=True)
    expected = stream_all(open_stream(shared(small=True), given, 2), given, 2)
    refiner = small_stages().native()
    stream = open_stream(refiner, given, 2)
    del refiner
    gc.collect()
    assert_same_bits(stream_all(stream, given, 2), expected)


# Calibration


def test_calibration_is_the_median_of_the_first_stages_bones(native: _core.SequenceRefiner) -> None:
    for given in (plain(31), plain(30), everything(40), everything(12, cuts=())):
        lengths_mm, counts, status, size, chirality = native.calibrate(**vars(given), threads=1)
        single = _core.Refiner(stages().first, native.isa).run(**vars(given), threads=1)
        assert_same_bits((status, size, chirality), single[2:])
        for bone, length in enumerate(first_stages_bones(native, given).T):
            assert counts[bone] == np.isfinite(length).sum()
            np.testing.assert_allclose(lengths_mm[bone], lower_median(length), rtol=1e-9)
        assert lengths_mm.dtype == np.float64
        assert counts.dtype == np.int64
        assert_same_bits(native.calibrate(**vars(given), threads=3), (lengths_mm, counts, status, size, chirality))


def test_calibration_needs_eight_frames(native: _core.SequenceRefiner) -> None:
    for frames in (0, 1, 7, 8):
        given = plain(frames)
        lengths_mm, counts, *_ = native.calibrate(**vars(given), threads=1)
        assert counts.tolist() == [frames] * 9
        assert np.isfinite(lengths_mm).tolist() == [frames >= layout.KNOWN_FRAMES] * 9
    # Frames in any order, of any sequences: cuts do not matter.
    given = plain(16, cuts=(4, 8, 12))
    whole = native.calibrate(**vars(given), threads=1)
    order = np.random.default_rng(0).permutation(16)
    mixed = native.calibrate(**vars(replace(given, joints=given.joints[order])), threads=1)
    assert whole[0].tobytes() == mixed[0].tobytes()
    assert np.isfinite(whole[0]).all()


# Weights


@pytest.mark.parametrize("name", ["embed1.weight", "embed2.bias", "layers.1.qkv.weight", "norm.weight", "head.bias", "gain"])
@pytest.mark.parametrize("isa", ISAS)
def test_bad_weights_are_refused_by_name(name: str, isa: str) -> None:
    first, tensors = _core.Refiner(stages().first, isa), stages().second
    tensor = tensors[name]
    broken = tensor.copy()
    broken.flat[-1] = np.nan
    cases: list[tuple[Any, type[Exception], str]] = [
        (tensor.astype(np.float64), ValueError, "is float64; expected float32"),
        (tensor[..., :-1], ValueError, f"has shape {tensor[..., :-1].shape}; expected {tensor.shape}"),
        (tensor[None], ValueError, "has shape (1, "),
        (np.zeros((0,), np.float32), ValueError, "has shape (0,); expected"),
        (broken, ValueError, "not finite"),
        (tensor.tolist(), TypeError, "is of type list; expected a NumPy array"),
    ]
    for value, error, message in cases:
        with pytest.raises(error, match=re.escape(f"'{name}'") + ".*" + re.escape(message)):
            _core.SequenceRefiner(first, {**tensors, name: value})
    with pytest.raises(ValueError, match=re.escape(f"there is no tensor '{name}'")):
        _core.SequenceRefiner(first, {key: value for key, value in tensors.items() if key != name})


def test_unknown_tensors_and_refiners_are_refused() -> None:
    first, tensors = _core.Refiner(stages().first), stages().second
    for name in ("layers.0.gate.weight", "layers.3.fc1.bias", "mask", "embed.weight", "observed_gain", ""):
        with pytest.raises(ValueError, match=re.escape(f"'{name}' is no tensor of this network")):
            _core.SequenceRefiner(first, {**tensors, name: np.zeros(128, np.float32)})
    with pytest.raises(ValueError, match=re.escape("there is no tensor 'layers.0.")):
        _core.SequenceRefiner(first, {key: value for key, value in tensors.items() if not key.startswith("layers.")})
    with pytest.raises(ValueError, match="there is no tensor"):
        _core.SequenceRefiner(first, {})
    for refiner, weights in ((None, tensors), (tensors, tensors), (first, None), (shared(), tensors)):
        with pytest.raises(TypeError):
            _core.SequenceRefiner(refiner, weights)  # type: ignore[arg-type]


# Arguments


def arguments() -> dict[str, Any]:
    options = {"lengths_mm": LENGTHS, "look_behind": 20, "look_ahead": 20, "alone": False, "threads": 1}
    return {**vars(everything(3).as_float32()), **options}


BATCH_CASES = [
    ("joints", np.zeros((3, 21, 3)), ValueError, "joints: got shape (3, 21, 3); expected (N, 14, 3)"),
    ("joints", np.zeros((3, 14, 3), np.int64), TypeError, "joints: got int64; expected float32 or float64"),
    ("joints", None, TypeError, "joints: got NoneType"),
    ("permutation", np.zeros(14, np.int32), ValueError, "permutation: 0 at 1; expected each of 0 to 13 once"),
    ("mm_per_unit", 0.0, ValueError, "mm_per_unit: got 0.0; expected a positive number"),
    ("mirror", np.zeros(2, bool), ValueError, "mirror: got shape (2,); expected (3,)"),
    ("visible", np.zeros((3, 14), np.uint8), TypeError, "visible: got uint8; expected bool"),
    ("confidence", np.zeros((2, 14), np.float32), ValueError, "confidence: got shape (2, 14); expected (3, 14)"),
    ("error_mm", 5.0, TypeError, "error_mm: got float; expected a NumPy array"),
    ("threads", 0, ValueError, "threads: got 0; expected at least 1"),
]
LENGTH_CASES = [
    ("lengths_mm", LENGTHS[:8], ValueError, "lengths_mm: got shape (8,); expected (9,)"),
    ("lengths_mm", LENGTHS.astype(np.float32), TypeError, "lengths_mm: got float32; expected float64"),
    ("lengths_mm", 40.0, TypeError, "lengths_mm: got float; expected a NumPy array"),
    *(
        (
            "lengths_mm",
            np.where(np.arange(9) == 6, value, LENGTHS),
            ValueError,
            f"lengths_mm: got {value} at 6; expected positive millimetres, NaN where unknown",
        )
        for value in (0.0, -3.0, np.inf)
    ),
]
LOOK_CASES = [
    ("look_ahead", -1, ValueError, "look_ahead: got -1; expected 0 to 20"),
    ("look_ahead", 21, ValueError, "look_ahead: got 21; expected 0 to 20"),
    ("look_ahead", 1.5, TypeError, "look_ahead"),
]


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        *BATCH_CASES,
        *LENGTH_CASES,
        *LOOK_CASES,
        ("look_behind", 21, ValueError, "look_behind: got 21; expected 0 to 20"),
        ("look_behind", -(2**40), ValueError, "look_behind: got -1099511627776"),
        ("alone", True, ValueError, "alone: got frames that stand alone, and to look 20 behind and 20 ahead"),
        ("alone", 1, TypeError, "alone: bool"),
    ],
)
def test_bad_arguments_are_refused_by_name(name: str, value: Any, error: type[Exception], message: str) -> None:
    shared(small=True).run(**arguments())
    with pytest.raises(error, match=re.escape(message)):
        shared(small=True).run(**{**arguments(), name: value})


@pytest.mark.parametrize(("name", "value", "error", "message"), BATCH_CASES)
def test_calibrate_checks_its_arguments(name: str, value: Any, error: type[Exception], message: str) -> None:
    given = {**vars(everything(3).as_float32()), "threads": 1}
    with pytest.raises(error, match=re.escape(message)):
        shared(small=True).calibrate(**{**given, name: value})


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        *(case for case in BATCH_CASES if case[0] in ("permutation", "mm_per_unit")),
        *LENGTH_CASES,
        *LOOK_CASES,
        ("mirror", None, TypeError, "mirror: bool"),
        ("mirror", np.zeros(1, bool), TypeError, "mirror: bool"),
    ],
)
def test_streams_check_their_options(name: str, value: Any, error: type[Exception], message: str) -> None:
    options = {"permutation": CANONICAL, "mm_per_unit": 1.0, "mirror": False, "lengths_mm": None, "look_ahead": 0}
    shared(small=True).stream(**options)  # type: ignore[arg-type]
    with pytest.raises(error, match=re.escape(message)):
        shared(small=True).stream(**{**options, name: value})


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("joints", np.zeros((1, 14, 3)), ValueError, "joints: got shape (1, 14, 3); expected (14, 3)"),
        ("joints", np.zeros((14, 3), np.float16), TypeError, "joints: got float16; expected float32 or float64"),
        ("joints", None, TypeError, "joints: got NoneType"),
        ("visible", np.zeros((1, 14), bool), ValueError, "visible: got shape (1, 14); expected (14,)"),
        ("visible", np.zeros(14), TypeError, "visible: got float64; expected bool"),
        ("confidence", np.zeros(13, np.float32), ValueError, "confidence: got shape (13,); expected (14,)"),
        ("confidence", np.zeros(14), TypeError, "confidence: got float64; expected float32"),
        ("error_mm", 5.0, TypeError, "error_mm: got float; expected a NumPy array"),
    ],
)
def test_push_checks_its_arguments(name: str, value: Any, error: type[Exception], message: str) -> None:
    stream = open_stream(shared(small=True), plain(1), 0)
    given = {"joints": motion(1)[0], "visible": None, "confidence": None, "error_mm": None}
    assert stream.push(**given) is not None  # type: ignore[arg-type]
    with pytest.raises(error, match=re.escape(message)):
        stream.push(**{**given, name: value})


def test_forward_checks_its_arguments() -> None:
    refiner = shared(small=True)
    hidden, features = np.zeros((2, 14, 128), np.float32), np.zeros((2, 14, layout.SEQUENCE_FEATURES), np.float32)
    assert refiner.forward(hidden[:0], features[:0]).shape == (0, 14, 4)
    with pytest.raises(ValueError, match=re.escape("hidden: got shape (2, 14, 127); expected (N, 14, 128)")):
        refiner.forward(hidden[..., 1:], features)
    with pytest.raises(ValueError, match=re.escape("features: got shape (1, 14, ")):
        refiner.forward(hidden, features[:1])
    with pytest.raises(TypeError, match="features: got float64; expected float32"):
        refiner.forward(hidden, features.astype(np.float64))
    with pytest.raises(ValueError, match="threads: got 0"):
        refiner.forward(hidden, features, 0)


def test_input_is_not_modified_and_may_be_strided_or_read_only() -> None:
    refiner, given = shared(small=True), everything(12, mirror=True)
    expected = run(refiner, given, lengths_mm=LENGTHS)
    streamed = stream_all(open_stream(refiner, given, 2), given, 2)
    strided: dict[str, Any] = {
        key: np.repeat(v, 2, axis=0)[::2] if isinstance(v, np.ndarray) else v for key, v in vars(given).items()
    }
    changed = Sequence(**strided)
    values = [value for value in vars(changed).values() if isinstance(value, np.ndarray)]
    before = [value.tobytes() for value in values]
    for value in values:
        value.setflags(write=False)
    assert_same_bits(run(refiner, changed, lengths_mm=np.repeat(LENGTHS, 2)[::2]), expected)
    assert_same_bits(stream_all(open_stream(refiner, changed, 2), changed, 2), streamed)
    assert [value.tobytes() for value in values] == before


# The module


def test_constants_are_the_contracts() -> None:
    names = "SEQUENCE_FEATURES", "BLOCKS", "STEP_UNIT_MM", "CUT_MM", "KNOWN_FRAMES", "HISTORY_FRAMES", "ROUGHNESS_FLOOR_MM"
    for name in names:
        assert getattr(_core, name) == getattr(layout, name), name
    assert _core.REACH == REACH
    assert NYU14.rigid_bones == _core.RIGID_BONES
    config = SequenceConfig()
    assert (config.heads, config.width, config.ffn, config.outputs) == (_core.HEADS, _core.WIDTH, _core.FFN, _core.OUTPUTS)


@pytest.mark.parametrize("isa", ISAS)
def test_the_second_stage_runs_on_the_firsts_instruction_set(isa: str) -> None:
    assert shared(isa).isa == isa
    assert shared(isa).layers == 2
