"""Online refinement by the native second stage against its reference implementation."""

from __future__ import annotations

import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from jointbert import _core
from jointbert.contract import layout

torch = pytest.importorskip("torch")
from tests.support.native_sequence import (  # noqa: E402
    ISAS,
    LENGTHS,
    Arrays,
    assert_matches,
    assert_same_bits,
    difference_mm,
    everything,
    first_stages_bones,
    lower_median,
    open_stream,
    plain,
    push,
    reference_of,
    run,
    shared,
    small_stages,
    stream_all,
)

pytestmark = pytest.mark.sanitize


@pytest.fixture(params=ISAS)
def native(request: pytest.FixtureRequest) -> _core.SequenceRefiner:
    return shared(request.param)


@pytest.mark.parametrize("look_ahead", [0, 1, 5, 20])
@pytest.mark.parametrize("frames", [1, 4, 45])
def test_online_results_are_the_references(native: _core.SequenceRefiner, look_ahead: int, frames: int) -> None:
    for given in (plain(frames), everything(frames, mirror=True), everything(frames, seed=9, cuts=(15, 17, 30), mirror=False)):
        mine = stream_all(open_stream(native, given, look_ahead), given, look_ahead)
        assert_matches(mine, reference_of(given, look_ahead=look_ahead, online=True), given)


@pytest.mark.parametrize("look_ahead", [0, 7])
def test_streams_with_given_lengths(native: _core.SequenceRefiner, look_ahead: int) -> None:
    given = everything(30, mirror=True)
    mine = stream_all(open_stream(native, given, look_ahead, LENGTHS), given, look_ahead)
    assert_matches(mine, reference_of(given, lengths_mm=LENGTHS, look_ahead=look_ahead, online=True), given)


@pytest.mark.parametrize("look_ahead", [0, 6])
def test_a_stream_gives_each_frame_in_the_dtype_in_which_it_came(native: _core.SequenceRefiner, look_ahead: int) -> None:
    given = everything(30, mirror=False).as_float32()
    mine = stream_all(open_stream(native, given, look_ahead), given, look_ahead)
    assert_matches(mine, reference_of(given, look_ahead=look_ahead, online=True), given, tolerance=1e-3)
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
    reference = reference_of(given, look_ahead=look_ahead, online=True, both=both)
    assert_matches(mine, reference, given, tolerance=2e-4)
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
