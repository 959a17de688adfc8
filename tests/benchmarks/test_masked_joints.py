from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("typer")

from benchmarks.masked_joints import finger_patterns, nearest_fill


def test_the_nearest_pose_is_found_moved_turned_and_scaled() -> None:
    rng = np.random.default_rng(0)
    train = rng.normal(0, 50, (20, 14, 3))
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn))
    pose = 0.7 * train[11] @ turn + [10, -20, 800]
    seen = np.arange(14) > 3
    np.testing.assert_allclose(nearest_fill(train, pose, seen), pose[~seen], atol=1e-9)
    mirrored = pose * [-1, 1, 1]
    assert (
        np.abs(nearest_fill(train, mirrored, seen) - mirrored[~seen]).max() > 1
    )  # the similarity does not include a reflection


def test_one_finger_is_masked() -> None:
    seen = finger_patterns(200, 0)
    assert set((~seen).sum(1)) == {2, 3}
    assert seen[:, 11:].all()
    assert not seen[:, :11].all(0).any()
