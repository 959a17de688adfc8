"""Frames that can not be used, and mistakes that `refine()` and `Refiner` suspect or refuse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jointbert import JOINT_NAMES, JointbertWarning, Refiner, Status
from tests.support.refiners import BACKENDS, ArrayOnly

pytestmark = pytest.mark.sanitize


@pytest.fixture(scope="module", params=BACKENDS)
def refiner(request: pytest.FixtureRequest, random_weights: Path) -> Refiner:
    """Random weights: a contract must not lean on what training made of them."""
    return Refiner(random_weights, backend=request.param)


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
