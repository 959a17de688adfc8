"""Sequences, streams and calibrated persons through the front door."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jointbert
from jointbert import JOINT_NAMES, JointbertWarning, Refined, Refiner, Status

pytestmark = pytest.mark.sanitize


@pytest.fixture(scope="module")
def refiner(sequence_weights: Path) -> Refiner:
    return Refiner(sequence_weights)


@pytest.fixture(scope="module")
def video(poses: np.ndarray) -> np.ndarray:
    """``(60, 14, 3)``: a hand that moves from pose to pose, with some jitter."""
    time = np.linspace(0, 5, 60)
    low = np.minimum(time.astype(int), 4)
    share = (time - low)[:, None, None]
    centred = poses - poses.mean(1, keepdims=True)
    smooth = (1 - share) * centred[low] + share * centred[low + 1] + [30.0, -20, 700]
    return np.asarray(smooth + np.random.default_rng(0).normal(0, 2, (60, 14, 3)))


def test_neighbours_matter_in_a_sequence(refiner: Refiner, video: np.ndarray) -> None:
    alone, together = refiner(video), refiner(video, sequence=True)
    assert together.shape == video.shape
    assert np.abs(together - alone).mean() > 0.1
    moved = video.copy()
    moved[30] += 5
    changed = np.abs(refiner(moved, sequence=True) - together).max((1, 2)) > 1e-6
    assert changed[10:51].all()  # 20 frames on either side


@pytest.mark.parametrize("missing", [False, True])
def test_native_equals_torch(sequence_weights: Path, video: np.ndarray, missing: bool) -> None:
    pytest.importorskip("torch")
    video = video.copy()
    if missing:
        video[5, 3:7] = np.nan
        video[20:24] = np.nan
    native, torch = Refiner(sequence_weights), Refiner(sequence_weights, backend="torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", JointbertWarning)
        a, b = native(video, sequence=True, return_details=True), torch(video, sequence=True, return_details=True)
    np.testing.assert_allclose(a.joints, b.joints, atol=1e-3)
    np.testing.assert_allclose(a.sigma, b.sigma, rtol=1e-4)
    np.testing.assert_array_equal(a.status, b.status)
    assert native.calibrate(video[30:]) == pytest.approx(torch.calibrate(video[30:]), abs=1e-4)
    np.testing.assert_allclose(native(video[30:]), torch(video[30:]), atol=1e-3)
    empty = video[:0]
    assert native(empty, sequence=True).shape == torch(empty, sequence=True).shape == (0, 14, 3)


def test_leading_dimensions_are_sequences_of_their_own(refiner: Refiner, video: np.ndarray) -> None:
    both = np.stack([video[:30], video[30:]]).astype(np.float32)
    together = refiner(both[None], sequence=True)
    assert together.shape == (1, 2, 30, 14, 3)
    assert together.dtype == np.float32
    for i in range(2):
        np.testing.assert_array_equal(together[0, i], refiner(both[i], sequence=True))


def test_nothing_is_smeared_over_a_cut(refiner: Refiner, video: np.ndarray) -> None:
    first, second = video[:30], video[30:] + [200.0, 0, 0]
    cut = refiner(np.concatenate([first, second]), sequence=True)
    np.testing.assert_allclose(cut[:30], refiner(first, sequence=True), atol=1e-9)
    np.testing.assert_allclose(cut[30:], refiner(second, sequence=True), atol=1e-9)
    stream = refiner.stream(look_ahead=5)
    out = [stream(pose) for pose in np.concatenate([first, second])][5:] + stream.flush()
    fresh = refiner.stream(look_ahead=5)
    alone = [fresh(pose) for pose in second][5:] + fresh.flush()
    np.testing.assert_allclose(out[30:], alone, atol=1e-9)


@given(
    st.tuples(*[st.floats(-300, 300)] * 3),
    st.permutations(range(14)),
    st.sampled_from([("mm", 1.0), ("cm", 10.0), ("m", 1000.0)]),
    st.booleans(),
)
def test_place_order_unit_and_side_make_no_difference(
    refiner: Refiner, video: np.ndarray, place: Any, permutation: list[int], unit: tuple[str, float], left: bool
) -> None:
    given_frames = (video[:25] + place)[:, permutation] * ([-1, 1, 1] if left else 1) / unit[1]
    kept = given_frames.copy()
    options = {"order": [JOINT_NAMES[i] for i in permutation], "units": unit[0], "hand": "left" if left else "right"}
    expected = (refiner(video[:25], sequence=True) + place)[:, permutation] * ([-1, 1, 1] if left else 1)
    out = refiner(given_frames, sequence=True, **options)
    np.testing.assert_allclose(out * unit[1], expected, atol=1e-3)
    np.testing.assert_array_equal(given_frames, kept)
    stream = refiner.stream(**options)
    streamed = np.stack([stream(pose) for pose in given_frames])
    plain = refiner.stream()
    expected = (np.stack([plain(pose) for pose in video[:25]]) + place)[:, permutation] * ([-1, 1, 1] if left else 1)
    np.testing.assert_allclose(streamed * unit[1], expected, atol=1e-3)


def test_one_pose_is_no_sequence(refiner: Refiner, video: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"joints: got the shape \(14, 3\); expected \(frames, 14, 3\)"):
        refiner(video[0], sequence=True)


def test_weights_without_a_second_stage(random_weights: Path, video: np.ndarray) -> None:
    single = Refiner(random_weights)
    for call in (lambda: single(video, sequence=True), lambda: single.calibrate(video), single.stream):
        with pytest.raises(ValueError, match=r"weights: .* refines single frames only; .* need 'random-sequence\.safetensors'"):
            call()


def test_a_second_stage_of_another_refiner_is_refused(sequence_weights: Path, tmp_path: Path, video: np.ndarray) -> None:
    from safetensors.numpy import load_file, save_file

    from jointbert.weights import load_weights

    first = load_weights(sequence_weights)
    tensors = load_file(sequence_weights)
    tensors["head.bias"] = tensors["head.bias"] + 1
    save_file(tensors, tmp_path / "x.safetensors", metadata=first.metadata)
    second = sequence_weights.with_name("both-sequence.safetensors").read_bytes()
    (tmp_path / "x-sequence.safetensors").write_bytes(second)
    with pytest.raises(ValueError, match="was trained on another refiner"):
        Refiner(tmp_path / "x.safetensors")(video, sequence=True)
    (tmp_path / "x-sequence.safetensors").write_bytes(sequence_weights.read_bytes())
    with pytest.raises(ValueError, match="has the layout"):
        Refiner(tmp_path / "x.safetensors")(video, sequence=True)
    (tmp_path / "x-sequence.safetensors").write_bytes(second[:1000])
    with pytest.raises(ValueError, match="no valid safetensors file"):
        Refiner(tmp_path / "x.safetensors").stream()


def test_a_stream_is_late_by_its_look_ahead(refiner: Refiner, video: np.ndarray) -> None:
    frames = video.astype(np.float32)
    for look_ahead in (0, 3, 20):
        stream = refiner.stream(look_ahead, return_details=True)
        out = [stream(pose) for pose in frames]
        assert [o is None for o in out] == [True] * look_ahead + [False] * (60 - look_ahead)
        done = [o for o in out if o is not None] + stream.flush()
        assert len(done) == 60
        assert all(isinstance(o, Refined) and o.joints.dtype == o.sigma.dtype == np.float32 for o in done)
        assert {int(o.status) for o in done} == {Status.REFINED}
        error = [np.abs(o.joints - pose).max() for o, pose in zip(done, frames, strict=True)]
        assert max(error) < 100  # each its own frame's: between frames 12 apart the hand changes more
        again = [stream(pose) for pose in frames]  # as new after the flush
        for a, b in zip(out, again, strict=True):
            assert (a is None and b is None) or np.array_equal(a.joints, b.joints)


def test_a_stream_goes_on_when_frames_are_lost(refiner: Refiner, video: np.ndarray) -> None:
    stream = refiner.stream(return_details=True)
    lost = np.full((14, 3), np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = [stream(lost if 10 <= i < 14 else pose) for i, pose in enumerate(video)]
    assert [int(o.status) for o in out[9:15]] == [0, 1, 1, 1, 1, 0]
    assert np.isnan(out[11].joints).all()
    assert np.isfinite(out[14].joints).all()
    point = stream(np.ones((14, 3)))
    assert point.status == Status.NOT_A_HAND
    np.testing.assert_array_equal(point.joints, 1)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"joints": np.zeros((2, 14, 3))}, ValueError, r"joints: got the shape \(2, 14, 3\); a stream takes one frame"),
        ({"joints": np.zeros((21, 3))}, ValueError, "joints: got the shape"),
        ({"joints": "hand"}, TypeError, "joints: got str"),
        ({"confidence": np.full(14, 2.0)}, ValueError, r"confidence: got 2\.0"),
        ({"confidence": np.ones(13)}, ValueError, r"confidence: got the shape \(13,\)"),
        ({"visible": np.full(14, 0.5)}, TypeError, "visible: got the dtype float64"),
        ({"error_mm": -1.0}, ValueError, r"error_mm: got -1\.0"),
    ],
)
def test_a_stream_s_mistakes_leave_its_state(
    refiner: Refiner, video: np.ndarray, arguments: dict[str, Any], kind: type[Exception], message: str
) -> None:
    stream, clean = refiner.stream(), refiner.stream()
    for pose in video[:10]:
        stream(pose)
        clean(pose)
    with pytest.raises(kind, match=f"^{message}"):
        stream(**{"joints": video[10], **arguments})
    np.testing.assert_array_equal(stream(video[10]), clean(video[10]))


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"look_ahead": 21}, ValueError, "look_ahead: got 21; expected 0 to 20"),
        ({"look_ahead": -1}, ValueError, "look_ahead: got -1"),
        ({"look_ahead": 1.5}, TypeError, "look_ahead: got float"),
        ({"look_ahead": True}, TypeError, "look_ahead: got bool"),
        ({"units": "ft"}, ValueError, "units: got 'ft'"),
        ({"hand": "both"}, ValueError, "hand: got 'both'"),
        ({"hand": ["left"]}, ValueError, "hand: got the shape"),
        ({"order": "mano"}, ValueError, "order: 'mano'"),
        ({"return_details": 1}, TypeError, "return_details: got int"),
    ],
)
def test_a_stream_that_can_t_begin(refiner: Refiner, arguments: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=f"^{message}"):
        refiner.stream(**arguments)


def test_a_mirrored_stream_warns_once(refiner: Refiner, video: np.ndarray) -> None:
    stream = refiner.stream()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for pose in video * [-1, 1, 1]:
            stream(pose)
    assert [w.category for w in caught] == [JointbertWarning]
    assert "mirrored" in str(caught[0].message)


def test_streams_of_other_libraries(refiner: Refiner, video: np.ndarray) -> None:
    torch = pytest.importorskip("torch")
    stream = refiner.stream(return_details=True)
    out = stream(torch.from_numpy(video[0]))
    assert isinstance(out.joints, torch.Tensor)
    assert out.joints.dtype == torch.float64
    assert isinstance(stream(video[1].tolist()).joints, np.ndarray)
    assert stream(video[2].astype(np.float16)).joints.dtype == np.float16


def test_a_calibrated_person(refiner: Refiner, sequence_weights: Path, video: np.ndarray) -> None:
    calibrated = Refiner(sequence_weights)
    lengths = calibrated.calibrate(video)
    refined = refiner(video)
    assert len(lengths) == 9
    for (a, b), length in lengths.items():
        ends = refined[:, JOINT_NAMES.index(a)] - refined[:, JOINT_NAMES.index(b)]
        assert length == pytest.approx(np.quantile(np.linalg.norm(ends, axis=-1), 0.5, method="lower"), abs=1e-6)
    assert calibrated.calibrate(video / 10, units="cm")["pinky_tip", "pinky_mid"] == pytest.approx(
        lengths["pinky_tip", "pinky_mid"] / 10
    )
    alone = calibrated(video)
    assert np.abs(alone - refined).mean() > 0.1
    for i in (0, 17):  # one frame or many
        np.testing.assert_array_equal(calibrated(video[i]), alone[i])
    copy = pickle.loads(pickle.dumps(calibrated))
    np.testing.assert_array_equal(copy(video), alone)
    assert "calibrated" in repr(copy)
    assert calibrated.calibrate(None) == {}
    np.testing.assert_array_equal(calibrated(video), refined)


def test_calibration_needs_frames(refiner: Refiner, video: np.ndarray) -> None:
    with pytest.raises(ValueError, match="joints: at most 7 of 7 frames show a bone; a calibration needs 8 frames"):
        refiner.calibrate(video[:7])
    no_thumb = video.copy()
    no_thumb[:, 9] = np.nan
    fresh = Refiner(refiner._weights.path)
    assert sorted(fresh.calibrate(no_thumb)) == sorted(b for b in fresh.calibrate(video) if "thumb_mid" not in b)


def test_a_person_is_the_stream_s_from_its_start(sequence_weights: Path, video: np.ndarray) -> None:
    calibrated = Refiner(sequence_weights)
    calibrated.calibrate(video)
    stream, unknown = calibrated.stream(), Refiner(sequence_weights).stream()
    calibrated.calibrate(None)
    assert np.abs(stream(video[0]) - unknown(video[0])).max() > 0.01


def test_shipped_weights_have_a_second_stage() -> None:
    demo = jointbert.load_demo()
    assert jointbert.refine(demo.predictions, sequence=True).shape == demo.predictions.shape
