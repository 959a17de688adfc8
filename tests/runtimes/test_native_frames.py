"""Frames that the native backend can not refine, and what is kept of them."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from jointbert.contract import Status, layout
from jointbert.runtimes.native import NativeBackend

torch = pytest.importorskip("torch")
from jointbert.runtimes.torch import TorchBackend  # noqa: E402
from tests.support.native import ISAS, assert_same_bits, hands, make_batch, random_weights, rows  # noqa: E402

pytestmark = pytest.mark.sanitize


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_frames_that_are_no_hand_come_back_bit_for_bit(native: NativeBackend, reference: TorchBackend, dtype: type) -> None:
    joints = hands(9).astype(dtype)
    joints[1, 3:] = np.nan  # three joints
    joints[2] = np.inf  # none
    joints[3] = (joints[3] - joints[3].mean(0)) * 0.01 + joints[3].mean(0)
    joints[4] *= 1000
    joints[5, 4] = np.finfo(dtype).max  # finite, and no hand
    joints[6] = 0
    joints[7] *= np.finfo(dtype).tiny
    payload = joints[1].view(np.uint32 if dtype is np.float32 else np.uint64)
    payload[5, 0] |= 0x1234  # a NaN that holds something comes back with it
    batch = make_batch(joints)
    mine = native.run(batch)
    few, strange = Status.TOO_FEW_JOINTS, Status.NOT_A_HAND
    expected = [Status.REFINED, few, few, strange, strange, strange, strange, strange, Status.REFINED]
    np.testing.assert_array_equal(mine.status, expected)
    np.testing.assert_array_equal(mine.status, reference.run(batch).status)
    for i in range(1, 8):
        assert mine.joints[i].tobytes() == joints[i].tobytes()
        assert np.isnan(mine.sigma[i]).all()
    assert np.isnan(mine.size_mm[2])
    assert np.isnan(mine.chirality[1])
    assert np.isfinite(mine.joints[[0, 8]]).all()
    assert_same_bits(native.run(rows(batch, slice(8, 9))), mine, slice(8, 9))


def test_three_joints_are_too_few_and_four_enough(native: NativeBackend) -> None:
    visible = np.zeros((2, 14), dtype=bool)
    visible[0, :3] = visible[1, :4] = True
    mine = native.run(make_batch(hands(2), visible=visible))
    assert mine.status.tolist() == [Status.TOO_FEW_JOINTS, Status.REFINED]
    assert np.isfinite(mine.joints[1]).all()


def test_a_missing_joint_is_filled_in_whatever_it_holds(native: NativeBackend) -> None:
    joints = hands(1)
    visible = np.ones((1, 14), dtype=bool)
    visible[0, 5] = False
    reference = native.run(make_batch(joints, visible=visible))
    assert np.isfinite(reference.joints).all()
    for value in (np.nan, np.inf, -np.inf, 1e300, 1e-300, 0.0):
        changed = joints.copy()
        changed[0, 5] = value
        assert_same_bits(native.run(make_batch(changed, visible=visible)), reference)
    joints[0, 5, 2] = np.nan  # one coordinate is enough
    assert_same_bits(native.run(make_batch(joints)), reference)


@pytest.mark.parametrize(("low", "high"), [layout.HAND_SIZE_MM])
def test_size_limits(native: NativeBackend, low: float, high: float) -> None:
    joints = hands(1)
    centred = joints - joints.mean(1, keepdims=True)
    centred /= np.sqrt((centred**2).sum(-1).mean())
    sizes = np.array([low - 1e-3, low + 1e-3, high - 1e-3, high + 1e-3])
    mine = native.run(make_batch(centred * sizes[:, None, None] + 700))
    np.testing.assert_allclose(mine.size_mm, sizes, rtol=1e-6)
    assert mine.status.tolist() == [Status.NOT_A_HAND, Status.REFINED, Status.REFINED, Status.NOT_A_HAND]


extreme = st.one_of(
    st.floats(-150, 150), st.floats(), st.sampled_from([np.nan, np.inf, -np.inf, 1e300, -1e300, 1e-300, 5e-324, 1.7e308])
)


@settings(derandomize=True)
@given(
    joints=arrays(np.float64, (3, 14, 3), elements=extreme, fill=st.floats(-100, 100)),
    visible=arrays(np.bool_, (3, 14)),
    confidence=arrays(np.float32, (3, 14), elements=st.floats(width=32)),
    error_mm=arrays(np.float32, (3, 14), elements=st.floats(width=32)),
)
def test_any_number_gives_finite_joints_or_the_frame_as_it_was(
    joints: np.ndarray, visible: np.ndarray, confidence: np.ndarray, error_mm: np.ndarray
) -> None:
    batch = make_batch(joints, visible=visible, confidence=confidence, error_mm=error_mm)
    reference = shared_reference().run(batch)
    sizes = reference.size_mm[:, None] - np.array(layout.HAND_SIZE_MM)
    sure = ~(np.abs(sizes) < 1e-4).any(-1)  # at the limit itself, the last bit decides
    for isa in ISAS:
        mine = shared_native(isa).run(batch)
        np.testing.assert_array_equal(mine.status[sure], reference.status[sure])
        for i, status in enumerate(mine.status):
            if status == Status.REFINED:
                assert not np.isnan(mine.joints[i]).any()
                assert not np.isnan(mine.sigma[i]).any()
            else:
                assert mine.joints[i].tobytes() == joints[i].tobytes()


@cache  # hypothesis takes no fixtures
def shared_native(isa: str) -> NativeBackend:
    return NativeBackend(random_weights(2), isa=isa)


@cache
def shared_reference() -> TorchBackend:
    return TorchBackend(random_weights(2), dtype=torch.float64)


@pytest.mark.parametrize("beyond", [-0.01, 1.01, 1.2742336e38, -np.inf, np.inf])
def test_a_confidence_outside_0_to_1_is_unknown(beyond: float) -> None:
    joints = hands(2)
    confidence = np.full((2, 14), 0.5, np.float32)
    confidence[:, 3] = np.nan
    expected = shared_native(ISAS[0]).run(make_batch(joints, confidence=confidence))
    confidence[:, 3] = beyond
    for runtime in (shared_reference(), *map(shared_native, ISAS)):
        found = runtime.run(make_batch(joints, confidence=confidence))
        np.testing.assert_allclose(found.joints, expected.joints, atol=1e-3)
        np.testing.assert_allclose(found.sigma, expected.sigma, rtol=1e-4)
