"""The native second stage against its reference implementation, ``jointbert.models.sequence`` in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from jointbert import _core
from jointbert.contract import Status, layout
from jointbert.skeletons import NYU14

torch = pytest.importorskip("torch")
from jointbert.models.sequence import REACH, SequenceConfig, SequenceRefiner  # noqa: E402
from tests.support.native_sequence import (  # noqa: E402
    CANONICAL,
    ISAS,
    LENGTHS,
    SHUFFLED,
    Sequence,
    Stages,
    assert_matches,
    assert_same_bits,
    canonical_of,
    difference_mm,
    everything,
    first_stages_bones,
    lower_median,
    motion,
    open_stream,
    plain,
    randomised,
    reference_of,
    run,
    shared,
    small_stages,
    stages,
    stream_all,
    tolerance_mm,
)

pytestmark = pytest.mark.sanitize


@pytest.fixture(params=ISAS)
def native(request: pytest.FixtureRequest) -> _core.SequenceRefiner:
    return shared(request.param)


@pytest.mark.parametrize("make", [plain, everything])
@pytest.mark.parametrize("frames", [1, 2, 3, 7, 8, 10, 17, 60])
def test_refines_sequences_like_the_reference(
    native: _core.SequenceRefiner, make: Callable[[int], Sequence], frames: int
) -> None:
    given = make(frames)
    mine = run(native, given)
    assert_matches(mine, reference_of(given), given)
    came = np.isfinite(given.joints).all(-1) & (mine[2] == Status.REFINED)[:, None]
    # The networks have something to say.
    assert not came.any() or np.abs(mine[0][came] - given.joints[came]).max() * given.mm_per_unit > 1


@pytest.mark.parametrize(("look_behind", "look_ahead"), [(0, 0), (20, 0), (0, 20), (3, 5), (11, 1), (1, 12)])
def test_looks_as_far_as_it_is_told_to(native: _core.SequenceRefiner, look_behind: int, look_ahead: int) -> None:
    given = everything(40, seed=2)
    mine = run(native, given, look_behind=look_behind, look_ahead=look_ahead)
    assert_matches(mine, reference_of(given, look_behind=look_behind, look_ahead=look_ahead), given)
    assert difference_mm(mine, run(native, given), given) > 1e-3


@pytest.mark.parametrize("frames", [1, 5, 40])
def test_given_lengths_take_the_place_of_measured_ones(native: _core.SequenceRefiner, frames: int) -> None:
    given = everything(frames, seed=3)
    mine = run(native, given, lengths_mm=LENGTHS)
    assert_matches(mine, reference_of(given, lengths_mm=LENGTHS), given)
    assert difference_mm(mine, run(native, given), given) > 1e-3
    assert_same_bits(run(native, given, lengths_mm=np.full(9, np.nan)), run(native, given))


@pytest.mark.parametrize("lengths_mm", [LENGTHS, None])
def test_frames_alone_know_only_what_is_given(native: _core.SequenceRefiner, lengths_mm: np.ndarray | None) -> None:
    given = everything(40, seed=4)
    mine = run(native, given, lengths_mm=lengths_mm, look_behind=0, look_ahead=0, alone=True)
    assert_matches(mine, reference_of(given, lengths_mm=lengths_mm, look_behind=0, look_ahead=0, alone=True), given)
    for t in (0, 7, 39):
        one = run(native, given.rows(slice(t, t + 1)), lengths_mm=lengths_mm, look_behind=0, look_ahead=0, alone=True)
        assert_same_bits(one, mine, slice(t, t + 1))
        assert_same_bits(run(native, given.rows(slice(t, t + 1)), lengths_mm=lengths_mm), one)
    as_sequence = run(native, given, lengths_mm=lengths_mm, look_behind=0, look_ahead=0)
    assert difference_mm(as_sequence, mine, given) > 1e-3  # that one knows the roughness


@pytest.mark.parametrize("option", ["visible", "confidence", "error_mm"])
def test_each_option_alone_is_the_references_and_matters(native: _core.SequenceRefiner, option: str) -> None:
    given = replace(plain(20), **{option: getattr(everything(20), option)})
    mine = run(native, given)
    assert_matches(mine, reference_of(given), given)
    assert np.abs(mine[0] - run(native, plain(20))[0]).max() > 0.01


def test_float32_joints_are_within_a_thousandth_of_a_millimetre(native: _core.SequenceRefiner) -> None:
    for given in (plain(40).as_float32(), everything(40).as_float32()):
        assert_matches(run(native, given), reference_of(given), given, tolerance=1e-3)


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
        mine, reference = run(changed.native(isa), given)[:2], reference_of(given, both=changed)
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
    assert_matches(run(both.native(), given), reference_of(given, both=both), given)


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
    assert_matches(mine, reference_of(given), given)
    later = run(shared(), given.rows(slice(12, None)))
    assert (np.abs(mine[0][13:] - later[0][1:]).max() > 1e-3) != cut


def test_joints_unseen_in_either_frame_tell_of_no_cut() -> None:
    given = plain(24, cuts=(12,))
    visible = np.ones((24, 14), bool)
    visible[11, 7:] = visible[12, :4] = False  # three joints are in both
    given = replace(given, visible=visible)
    mine = run(shared(), given)
    assert_matches(mine, reference_of(given), given)
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
