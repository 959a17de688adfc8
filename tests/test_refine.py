"""The contract of `refine()` and `Refiner`, on every backend."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import jointbert
from jointbert import JOINT_NAMES, JointbertWarning, Refiner, Status
from tests.support.refiners import BACKENDS, ArrayOnly

pytestmark = pytest.mark.sanitize

relaxed = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


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
    masked = data.draw(arrays(bool, (3, 14)))
    batch[masked] = np.nan
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
    # What a masked joint's coordinates were makes no difference.
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


def test_refine_is_a_refiner_kept(random_weights: Path, poses: np.ndarray) -> None:
    expected = Refiner(random_weights)(poses[:3])
    np.testing.assert_array_equal(jointbert.refine(poses[:3], weights=random_weights), expected)
    np.testing.assert_array_equal(jointbert.refine(poses[:3], weights=str(random_weights)), expected)
    with pytest.warns(JointbertWarning) as caught:
        jointbert.refine(poses[:3] / 1000, weights=random_weights)
    assert caught[0].filename == __file__


def test_pickled_and_copied(refiner: Refiner, poses: np.ndarray) -> None:
    for again in (pickle.loads(pickle.dumps(refiner)), copy.deepcopy(refiner)):
        np.testing.assert_array_equal(again(poses[:2]), refiner(poses[:2]))


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
