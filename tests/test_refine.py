"""The contract of `refine()` and `Refiner`, on every backend."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import jointbert
from jointbert import JOINT_NAMES, JointbertWarning, Refiner, Status

BACKENDS = ["native", pytest.param("torch", marks=pytest.mark.skipif(not find_spec("torch"), reason="torch is not installed"))]
relaxed = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module", params=BACKENDS)
def refiner(request: pytest.FixtureRequest, random_weights: Path) -> Refiner:
    """Random weights: a contract must not lean on what training made of them."""
    return Refiner(random_weights, backend=request.param)


def quietly(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", JointbertWarning)
        return call(*args, **kwargs)


class DLPackOnly:
    """A library of its own that speaks nothing but DLPack."""

    def __init__(self, array: np.ndarray, device: tuple[int, int] = (1, 0)) -> None:
        self.array, self.device = array, device

    def __dlpack__(self, **keywords: Any) -> Any:
        return self.array.__dlpack__(**keywords)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device


class ArrayOnly:
    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self.array


# A hand is any cloud of the size of one: coordinates within 80 mm about a place within reach of a camera.
hands = arrays(np.float64, (14, 3), elements=st.floats(-80, 80), fill=st.nothing()).filter(lambda p: p.std() > 20)
places = arrays(np.float64, 3, elements=st.floats(-1000, 1000))


@relaxed
@given(hands, places)
def test_finite_in_finite_out_and_the_input_stays(refiner: Refiner, hand: np.ndarray, place: np.ndarray) -> None:
    pose = hand + place
    before = pose.copy()
    pose.flags.writeable = False
    joints, sigma, status = quietly(refiner, pose, return_details=True)
    assert np.array_equal(pose, before)
    assert np.isfinite(joints).all()
    assert (sigma > 0).all()
    assert status == Status.REFINED


@relaxed
@given(hands, places)
def test_translation_invariance(refiner: Refiner, hand: np.ndarray, place: np.ndarray) -> None:
    at_origin, moved = quietly(refiner, hand), quietly(refiner, hand + place)
    np.testing.assert_allclose(moved - place, at_origin, atol=1e-3)


@relaxed
@given(hands)
def test_a_left_hand_is_a_mirrored_right_one(refiner: Refiner, hand: np.ndarray) -> None:
    mirror = np.array([-1, 1, 1])
    left = quietly(refiner, hand * mirror, hand="left")
    np.testing.assert_allclose(left * mirror, quietly(refiner, hand), atol=1e-3)


@relaxed
@given(hands, st.permutations(range(14)))
def test_order_round_trip(refiner: Refiner, hand: np.ndarray, order: list[int]) -> None:
    names = [JOINT_NAMES[i] for i in order]
    np.testing.assert_allclose(quietly(refiner, hand[order], order=names), quietly(refiner, hand)[order], atol=1e-3)


@relaxed
@given(hands, st.sampled_from([("cm", 10.0), ("m", 1000.0)]))
def test_units(refiner: Refiner, hand: np.ndarray, unit: tuple[str, float]) -> None:
    name, factor = unit
    scaled = quietly(refiner, hand / factor, units=name, return_details=True)
    reference = quietly(refiner, hand, return_details=True)
    np.testing.assert_allclose(scaled.joints * factor, reference.joints, atol=1e-3)
    np.testing.assert_allclose(scaled.sigma * factor, reference.sigma, rtol=1e-4)


@relaxed
@given(arrays(np.float64, (3, 14, 3), elements=st.floats(-80, 80), fill=st.nothing()), st.data())
def test_alone_as_in_a_batch(refiner: Refiner, batch: np.ndarray, data: st.DataObject) -> None:
    hidden = data.draw(arrays(bool, (3, 14)))
    batch[hidden] = np.nan
    assume((np.isfinite(batch).all(-1).sum(-1) >= 4).all())
    confidence = data.draw(arrays(np.float32, (3, 14), elements=st.floats(0, 1, width=32)))
    together = quietly(refiner, batch, confidence=confidence, return_details=True)
    for i in range(3):
        alone = quietly(refiner, batch[i], confidence=confidence[i], return_details=True)
        exact = "native" in repr(refiner)
        np.testing.assert_allclose(alone.joints, together.joints[i], atol=0 if exact else 1e-3)
        np.testing.assert_allclose(alone.sigma, together.sigma[i], rtol=0 if exact else 1e-4)
        assert alone.status == together.status[i]


def test_long_batches_are_as_short_ones(refiner: Refiner, poses: np.ndarray) -> None:
    many = np.concatenate([poses] * 9)[:2100]
    options = {"hand": ["right"] * 2100, "confidence": np.full((2100, 14), 0.7), "return_details": True}
    long = refiner(many, **options)
    short = refiner(poses, confidence=np.full(14, 0.7), return_details=True)
    for a, b in zip(long, short, strict=True):
        np.testing.assert_allclose(a[1024:1280], b, atol=1e-9)


def test_nested_shapes(refiner: Refiner, poses: np.ndarray) -> None:
    nested = poses[:24].reshape(2, 3, 4, 14, 3)
    joints, sigma, status = refiner(nested, return_details=True)
    assert joints.shape == (2, 3, 4, 14, 3)
    assert sigma.shape == (2, 3, 4, 14)
    assert status.shape == (2, 3, 4)
    np.testing.assert_allclose(joints.reshape(24, 14, 3), refiner(poses[:24]), atol=1e-9)
    assert refiner(nested[:0]).shape == (0, 3, 4, 14, 3)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.longdouble, ">f4", ">f8"])
def test_dtypes_are_kept(refiner: Refiner, poses: np.ndarray, dtype: Any) -> None:
    # Near the origin, where float16 still resolves a hundredth of a millimetre.
    centred = poses[:5] - poses[:5].mean(1, keepdims=True)
    result = refiner(centred.astype(dtype), return_details=True)
    assert result.joints.dtype == np.dtype(dtype)
    tolerance = 0.5 if dtype == np.float16 else 1e-3
    np.testing.assert_allclose(result.joints.astype(np.float64), refiner(centred), atol=tolerance)


def test_lists_and_integers_come_back_as_float64(refiner: Refiner, poses: np.ndarray) -> None:
    whole = np.round(poses[0]).astype(np.int32)
    from_integers, from_list = refiner(whole), refiner(whole.tolist())
    assert from_integers.dtype == from_list.dtype == np.float64
    assert refiner([pose.astype(np.float32) for pose in poses[:2]]).dtype == np.float64
    assert refiner(tuple(poses[0].astype(np.float16))).dtype == np.float64
    np.testing.assert_array_equal(from_integers, from_list)
    np.testing.assert_allclose(from_integers, refiner(whole.astype(np.float64)))


def test_non_contiguous_input(refiner: Refiner, poses: np.ndarray) -> None:
    wide = np.zeros((8, 28, 6))
    wide[:, ::2, ::2] = poses[:8]
    np.testing.assert_array_equal(refiner(wide[:, ::2, ::2]), refiner(poses[:8]))
    fortran = np.asfortranarray(poses[:8])
    np.testing.assert_array_equal(refiner(fortran), refiner(poses[:8]))


def test_torch_tensors(refiner: Refiner, poses: np.ndarray) -> None:
    torch = pytest.importorskip("torch")
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        centred = torch.from_numpy(poses[:3] - poses[:3].mean(1, keepdims=True)).to(dtype)
        kept = centred.clone()
        joints, sigma, status = refiner(centred, confidence=torch.full((3, 14), 0.5), return_details=True)
        assert isinstance(joints, torch.Tensor)
        assert joints.dtype == dtype
        assert joints.shape == centred.shape
        assert isinstance(sigma, torch.Tensor)
        assert status.dtype == torch.uint8
        assert torch.equal(centred, kept)
        assert (joints - centred).abs().max() > 0
    with pytest.raises(TypeError, match=r"joints: the tensor requires grad.*detach"):
        refiner(torch.zeros(14, 3, requires_grad=True))
    with pytest.raises(ValueError, match=r"joints: the tensor is on meta"):
        refiner(torch.zeros(14, 3, device="meta"))
    with pytest.raises(TypeError, match=r"joints: got a sparse"):
        refiner(torch.zeros(14, 3).to_sparse())
    with pytest.raises(TypeError, match=r"joints: the list can't be read|joints: the tensor requires grad"):
        refiner([torch.zeros(14, 3, requires_grad=True)])
    with pytest.raises(TypeError, match=r"joints: the Tensor can't be read as an array"):
        refiner(torch.zeros(14, 3).to(torch.float8_e5m2))


def test_dlpack_and_array_protocols(refiner: Refiner, poses: np.ndarray) -> None:
    expected = refiner(poses[0])
    np.testing.assert_array_equal(refiner(DLPackOnly(poses[0])), expected)
    np.testing.assert_array_equal(refiner(ArrayOnly(poses[0])), expected)
    with pytest.raises(ValueError, match=r"joints: the array is on a GPU, and backend .* computes on the CPU"):
        refiner(DLPackOnly(poses[0], device=(2, 0)))
    with pytest.raises(
        ValueError, match=r"confidence: the DLPackOnly is on a device, where it can't be used here; pass an array"
    ):
        refiner(poses[0], confidence=DLPackOnly(poses[0, :, 0], device=(2, 0)))


def test_missing_joints_are_filled_in(refiner: Refiner, poses: np.ndarray) -> None:
    pose = poses[0].copy()
    visible = np.ones(14, dtype=bool)
    visible[[0, 7]] = False
    by_flag = refiner(pose, visible=visible)
    pose[0] = np.nan
    pose[7, 1] = np.inf
    by_nan = refiner(pose)
    np.testing.assert_array_equal(by_flag, by_nan)
    assert np.isfinite(by_nan).all()
    # What a hidden joint's coordinates were makes no difference.
    pose[[0, 7]] = 1e30
    np.testing.assert_array_equal(refiner(pose, visible=visible), by_nan)
    np.testing.assert_array_equal(refiner(pose, visible=visible.astype(int).tolist()), by_nan)


def test_confidence_and_error_reach_the_network(refiner: Refiner, poses: np.ndarray) -> None:
    plain = refiner(poses[0])
    low = refiner(poses[0], confidence=np.full(14, 0.1))
    assert np.abs(plain - low).max() > 1e-3
    assert np.abs(refiner(poses[0], confidence=np.ones(14)) - plain).max() > 1e-3  # unknown is not the same as 1
    np.testing.assert_array_equal(refiner(poses[0], confidence=np.full(14, np.nan)), plain)
    sized = refiner(poses[0], error_mm=12)
    assert np.abs(sized - plain).max() > 1e-3
    np.testing.assert_array_equal(refiner(poses[:2], error_mm=np.full((2, 14), 12.0))[0], sized)
    # In the user's order, like the joints.
    names = list(JOINT_NAMES[::-1])
    confidence = np.linspace(0.1, 1, 14)
    there = refiner(poses[0][::-1], confidence=confidence[::-1], order=names)[::-1]
    np.testing.assert_allclose(there, refiner(poses[0], confidence=confidence), atol=1e-9)


def test_one_hand_side_for_each_frame(refiner: Refiner, poses: np.ndarray) -> None:
    both = np.stack([poses[0], poses[0] * [-1, 1, 1]])
    refined = refiner(both, hand=["right", "left"])
    np.testing.assert_allclose(refined[0], refined[1] * [-1, 1, 1], atol=1e-9)
    nested = refiner(both.reshape(2, 1, 14, 3), hand=np.array([["right"], ["left"]]))
    np.testing.assert_array_equal(nested[:, 0], refined)


def test_unusable_frames_come_back_as_they_were(refiner: Refiner, poses: np.ndarray) -> None:
    batch = poses[:4].copy()
    batch[1, :11] = np.nan  # three joints
    batch[2] *= 0.001
    batch[3, 3] = 1e300
    with pytest.warns(JointbertWarning, match="3 of 4 frames were returned unchanged: 1 with fewer.*, 2 of a size") as caught:
        joints, sigma, status = refiner(batch, return_details=True)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert status.tolist() == [Status.REFINED, Status.TOO_FEW_JOINTS, Status.NOT_A_HAND, Status.NOT_A_HAND]
    np.testing.assert_array_equal(joints[1:], batch[1:])
    assert np.isnan(sigma[1:]).all()
    np.testing.assert_allclose(joints[0], refiner(poses[0]), atol=1e-9)


def test_nothing_usable_is_an_error(refiner: Refiner) -> None:
    with pytest.raises(ValueError, match=r"^joints: the frame has fewer than 4 finite, visible joints"):
        refiner(np.full((14, 3), np.nan))
    with pytest.raises(ValueError, match=r"^joints: each of the 2 frames"):
        refiner(np.zeros((2, 14, 3)), visible=np.zeros(14, dtype=bool))


@pytest.mark.parametrize(
    ("factor", "units", "hint"),
    [
        (1e-3, "mm", r"looks like metres \(units='m'\)"),
        (1e-1, "mm", r"looks like centimetres \(units='cm'\)"),
        (1 / 25.4, "mm", "looks like inches"),
        (1.0, "cm", r"looks like millimetres \(units='mm'\)"),
        (5.0, "mm", "looks like pixels"),
        (1e-3, "cm", r"looks like metres \(units='m'\)"),
    ],
)
def test_wrong_units_are_suspected(refiner: Refiner, poses: np.ndarray, factor: float, units: str, hint: str) -> None:
    with pytest.warns(JointbertWarning, match=hint):
        refiner(poses * factor, units=units)


def test_mirrored_hands_are_suspected(refiner: Refiner, poses: np.ndarray) -> None:
    with pytest.warns(JointbertWarning, match="most hands are mirrored"):
        refiner(poses * [-1, 1, 1])
    with pytest.warns(JointbertWarning, match="negate y"):
        refiner(poses * [1, -1, 1])
    with pytest.warns(JointbertWarning, match="not of the stated side: check hand="):
        refiner(poses, hand="left")
    refiner(poses)  # warnings are errors in this suite
    refiner(poses * [-1, 1, 1], hand="left")


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"joints": np.zeros((21, 3))}, ValueError, r"joints: got the shape \(21, 3\); expected \(..., 14, 3\); 21 joints"),
        ({"joints": np.zeros((5, 14, 2))}, ValueError, r"joints: .*two coordinates"),
        ({"joints": np.zeros((3, 14))}, ValueError, r"joints: .*swap the last two axes"),
        ({"joints": np.zeros((5, 42))}, ValueError, r"joints: .*reshape"),
        ({"joints": np.zeros(())}, ValueError, r"joints: got the shape \(\)"),
        ({"joints": [[1.0, 2], [3]]}, ValueError, r"joints: .*uneven"),
        ({"joints": "hand"}, TypeError, r"joints: got str"),
        ({"joints": None}, TypeError, r"joints: got NoneType"),
        ({"joints": object()}, TypeError, r"joints: got object"),
        ({"joints": np.zeros((14, 3), dtype=bool)}, TypeError, r"joints: got the dtype bool"),
        ({"joints": np.zeros((14, 3), dtype=complex)}, TypeError, r"joints: got the dtype complex128"),
        ({"joints": np.full((14, 3), "1")}, TypeError, r"joints: got the dtype <U1"),
        ({"joints": np.ma.masked_equal(np.zeros((14, 3)), 0)}, TypeError, r"joints: got a masked array"),
        ({"units": "feet"}, ValueError, r"units: got 'feet'; expected one of 'mm', 'cm', 'm'"),
        ({"units": 1}, ValueError, r"units: got 1"),
        ({"order": "msra"}, ValueError, r"order: 'msra'"),
        ({"hand": "both"}, ValueError, r"hand: got 'both'"),
        ({"hand": ["right", "wrong"]}, ValueError, r"hand: got 'wrong'"),
        ({"hand": ["right"]}, ValueError, r"hand: got the shape \(1,\); expected one word for each frame, \(2,\)"),
        ({"hand": [True, False]}, TypeError, r"hand: got an array of bool"),
        ({"hand": 3}, TypeError, r"hand: got int"),
        ({"confidence": np.full(14, 1.5)}, ValueError, r"confidence: got 1.5; expected values in \[0, 1\]"),
        ({"confidence": np.ones(13)}, ValueError, r"confidence: got the shape \(13,\); expected \(2, 14\)"),
        ({"confidence": 0.5}, ValueError, r"confidence: got the shape \(\)"),
        ({"confidence": np.ones((3, 14))}, ValueError, r"confidence: got the shape \(3, 14\)"),
        ({"confidence": "high"}, TypeError, r"confidence: got str"),
        ({"visible": np.full(14, 0.5)}, TypeError, r"visible: got the dtype float64"),
        ({"visible": np.full(14, 2)}, ValueError, r"visible: got integers other than 0 and 1"),
        ({"visible": np.ones((1, 2, 14), bool)}, ValueError, r"visible: got the shape \(1, 2, 14\)"),
        ({"error_mm": 0}, ValueError, r"error_mm: got 0\.0; expected positive"),
        ({"error_mm": -3.0}, ValueError, r"error_mm: got -3"),
        ({"error_mm": np.inf}, ValueError, r"error_mm: got inf"),
        ({"error_mm": [1, 2]}, ValueError, r"error_mm: got the shape \(2,\); expected \(2, 14\), or a number"),
        ({"sequence": True}, ValueError, r"weights: .* refines single frames only"),
        ({"sequence": np.ones(2)}, TypeError, r"sequence: got ndarray; expected a bool"),
        ({"return_details": "yes"}, TypeError, r"return_details: got str"),
        ({"order": set(JOINT_NAMES)}, TypeError, r"order: got set"),
        ({"order": dict.fromkeys(JOINT_NAMES)}, TypeError, r"order: got dict"),
        ({"joints": [np.ma.masked_equal(np.zeros((14, 3)), 0)]}, TypeError, r"joints: got a masked array"),
        ({"joints": ArrayOnly(np.ma.masked_equal(np.zeros((14, 3)), 0))}, TypeError, r"joints: got a masked array"),
        ({"joints": ArrayOnly("broken")}, TypeError, r"joints: the ArrayOnly can't be read as an array"),  # type: ignore
        ({"joints": [["a"] * 3] * 14}, TypeError, r"joints: got str"),
        ({"confidence": np.full(14, 1 + 1e-9)}, ValueError, r"confidence: got 1\.000000001; expected"),
    ],
)
def test_certain_mistakes_are_errors(refiner: Refiner, poses: np.ndarray, arguments: dict, kind: type, message: str) -> None:
    with pytest.raises(kind, match=f"^{message}"):
        refiner(**{"joints": poses[:2], **arguments})


def test_refine_is_a_refiner_kept(random_weights: Path, poses: np.ndarray) -> None:
    expected = Refiner(random_weights)(poses[:3])
    np.testing.assert_array_equal(jointbert.refine(poses[:3], weights=random_weights), expected)
    np.testing.assert_array_equal(jointbert.refine(poses[:3], weights=str(random_weights)), expected)
    with pytest.warns(JointbertWarning) as caught:
        jointbert.refine(poses[:3] / 1000, weights=random_weights)
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"weights": "nyu21"}, ValueError, r"weights: 'nyu21' is not shipped; expected one of \['nyu14'\]"),
        ({"weights": "no/such.safetensors"}, ValueError, r"weights: there is no file"),
        ({"weights": 3}, TypeError, r"weights: got int"),
        ({"weights": ["nyu14"]}, TypeError, r"weights: got list"),
        ({"backend": "gpu"}, ValueError, r"backend: got 'gpu'; expected 'auto' or one of 'native', 'cuda', 'onnx"),
        ({"backend": None}, ValueError, r"backend: got None"),
    ],
)
def test_bad_weights_and_backends(poses: np.ndarray, arguments: dict, kind: type, message: str) -> None:
    with pytest.raises(kind, match=f"^{message}"):
        Refiner(**arguments)
    with pytest.raises(kind, match=f"^{message}"):
        jointbert.refine(poses[0], **arguments)


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({}, {"layers": "13"}, r"has missing or unknown tensors, among them 'layers\.12"),
        ({}, {"heads": "0"}, r"has heads = '0'; expected a whole number"),
        ({}, {"heads": "7"}, r"the width 128 .* is no multiple of its 7 heads"),
        ({}, {"width": "8000000000"}, r"has width = '8000000000'"),
        ({}, {"layers": "x"}, r"has layers = 'x'"),
        ({"mask": np.zeros(5, np.float32)}, {}, r"'mask' of .* is F32 \(5,\); expected F32 \(128,\)"),
        ({"mask": np.zeros(128, np.float16)}, {}, r"'mask' of .* is F16 \(128,\)"),
        ({"mask": np.full(128, np.nan, np.float32)}, {}, r"'mask' of .* has values that are not finite"),
        ({"extra": np.zeros(1, np.float32)}, {}, r"unknown tensors, among them 'extra'"),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_that_do_not_fit(
    tmp_path: Path, random_weights: Path, backend: str, tensors: dict, metadata: dict, message: str
) -> None:
    from safetensors.numpy import load_file, save_file

    from jointbert.weights import load_weights

    path = tmp_path / "wrong.safetensors"
    given = {**load_weights(random_weights).metadata, **metadata}
    save_file({**load_file(random_weights), **tensors}, path, metadata=given)
    with pytest.raises(ValueError, match=rf"^weights: .*{message}"):
        Refiner(path, backend=backend)


def test_pickled_and_copied(refiner: Refiner, poses: np.ndarray) -> None:
    for again in (pickle.loads(pickle.dumps(refiner)), copy.deepcopy(refiner)):
        np.testing.assert_array_equal(again(poses[:2]), refiner(poses[:2]))


def test_the_same_relative_path_elsewhere_is_another_file(
    tmp_path: Path, random_weights: Path, poses: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.numpy import load_file, save_file

    from jointbert.weights import load_weights

    results = []
    for i, name in enumerate(("one", "two")):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        tensors = load_file(random_weights)
        tensors["head.bias"] = tensors["head.bias"] + i
        save_file(tensors, "mine.safetensors", metadata=load_weights(random_weights).metadata)
        os.utime("mine.safetensors", (1, 1))
        results.append(jointbert.refine(poses[0], weights="mine.safetensors"))
    assert np.abs(results[0] - results[1]).max() > 50


def test_bad_weight_files(tmp_path: Path, random_weights: Path) -> None:
    from safetensors.numpy import load_file, save_file

    path = tmp_path / "file.safetensors"
    path.write_bytes(b"no safetensors at all")
    with pytest.raises(ValueError, match=r"is no valid safetensors file"):
        Refiner(path)
    path.write_bytes(random_weights.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"is no valid safetensors file"):
        Refiner(path)
    save_file(load_file(random_weights), path, metadata={"layout": "pose21"})
    with pytest.raises(ValueError, match=r"has the layout 'pose21'; this version runs"):
        Refiner(path)


@pytest.mark.parametrize(("threads", "kind"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError)])
def test_bad_threads(threads: Any, kind: type) -> None:
    with pytest.raises(kind, match=r"^threads: got"):
        Refiner(threads=threads)


def test_a_changed_weight_file_is_read_again(tmp_path: Path, random_weights: Path, poses: np.ndarray) -> None:
    from safetensors.numpy import load_file, save_file

    path = tmp_path / "mine.safetensors"
    path.write_bytes(random_weights.read_bytes())
    first = jointbert.refine(poses[0], weights=path)
    from jointbert.weights import load_weights

    tensors = load_file(path)
    tensors["head.bias"] = tensors["head.bias"] + 1
    save_file(tensors, path, metadata={**load_weights(path).metadata, "note": "changed"})
    assert np.abs(jointbert.refine(poses[0], weights=path) - first).max() > 50


def test_backends_agree(random_weights: Path, poses: np.ndarray) -> None:
    pytest.importorskip("torch")
    native, reference = (Refiner(random_weights, backend=b)(poses, return_details=True) for b in ("native", "torch"))
    np.testing.assert_allclose(native.joints, reference.joints, atol=1e-3)
    np.testing.assert_allclose(native.sigma, reference.sigma, rtol=1e-4)


def test_import_loads_nothing_slow() -> None:
    code = (
        "import sys, jointbert; refine = jointbert.refine(jointbert.load_demo().predictions[:1]); "
        "slow = {'torch', 'typer', 'matplotlib', 'onnx', 'lightning', 'rich', 'scipy'} & set(sys.modules); "
        "assert not slow, slow"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
