from __future__ import annotations

import numpy as np
import pytest

from jointbert.evaluation.metrics import acceleration_error, accuracy, area_under_roc, joint_errors, relative_gain


def test_figures_of_a_pose_computed_by_hand() -> None:
    truth = np.zeros((2, 14, 3))
    prediction = truth.copy()
    prediction[0, 0] = [3, 4, 0]  # 5 mm
    prediction[1, :, 2] = 28.0
    figures = accuracy(prediction, truth, thresholds=(5.0, 30.0))
    assert figures.mean_mm == pytest.approx((5 + 14 * 28) / 28)
    assert figures.by_joint_mm["pinky_tip"] == pytest.approx((5 + 28) / 2)
    assert figures.by_joint_mm["palm"] == pytest.approx(14)
    assert figures.mean_within == {5.0: 0.5, 30.0: 1.0}
    assert figures.max_within == {5.0: 0.5, 30.0: 1.0}
    assert figures.joints_missing == 0


def test_the_largest_error_decides_the_max_criterion() -> None:
    truth, prediction = np.zeros((1, 14, 3)), np.zeros((1, 14, 3))
    prediction[0, 3, 1] = 41
    figures = accuracy(prediction, truth, thresholds=(40.0,))
    assert figures.mean_within[40.0] == 1
    assert figures.max_within[40.0] == 0


def test_missing_joints_are_counted_not_averaged() -> None:
    truth, prediction = np.zeros((2, 14, 3)), np.ones((2, 14, 3))
    prediction[0, 5] = np.nan
    figures = accuracy(prediction, truth)
    assert figures.mean_mm == pytest.approx(3**0.5)
    assert figures.joints_missing == 1
    assert figures.mean_within[50.0] == 0.5
    prediction[:, 5] = np.nan
    assert accuracy(prediction, truth).as_dict()["by_joint_mm"]["middle_mid"] is None  # type: ignore[index]


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"\(2, 14, 3\) and \(3, 14, 3\)"):
        joint_errors(np.zeros((2, 14, 3)), np.zeros((3, 14, 3)))


def test_relative_gain_is_table_5_1s() -> None:
    assert relative_gain(7.82, 7.55) == pytest.approx(0.0345, abs=5e-5)  # the thesis: 3.5 %
    assert relative_gain(0.0, 0.0) == 0
    assert relative_gain(0.0, 1.0) == -np.inf


def test_acceleration_error_by_hand() -> None:
    truth = np.zeros((5, 14, 3))
    moving = truth + np.arange(5)[:, None, None] * [3.0, 0, 0]
    assert acceleration_error(moving, truth) == pytest.approx(0)  # a steady velocity
    shaking = truth.copy()
    shaking[1::2, :, 1] = 2.0
    assert acceleration_error(shaking, truth) == pytest.approx(4)
    assert acceleration_error(shaking, shaking) == 0


def test_area_under_roc_by_hand() -> None:
    """Of six pairs, four are in order and one is equal."""
    scores, positive = np.array([0.9, 0.4, 0.4, 0.1, 0.7]), np.array([True, True, False, False, False])
    assert area_under_roc(scores, positive) == pytest.approx((3 + 1.5) / 6)
    assert area_under_roc(-scores, positive) == pytest.approx(1 - 4.5 / 6)
    rng = np.random.default_rng(0)
    scores, positive = rng.integers(0, 9, 200), rng.random(200) < 0.3
    pairs = np.sign(scores[positive][:, None] - scores[~positive][None]).mean() / 2 + 0.5
    assert area_under_roc(scores, positive) == pytest.approx(pairs)
    with pytest.raises(ValueError, match="got 0 of 2; expected some of either kind"):
        area_under_roc(np.zeros(2), np.zeros(2))
    with pytest.raises(ValueError, match="expected two of"):
        area_under_roc(np.zeros(2), np.zeros(3))
