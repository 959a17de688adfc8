"""The picture of docs/joints.md shows the skeleton that the package uses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pyplot = pytest.importorskip("matplotlib.pyplot")
image = pytest.importorskip("PIL.Image")

from jointbert.evaluation.joint_map import KNUCKLES_MM, POSE_MM, joint_map_figure, save_joint_map  # noqa: E402
from jointbert.skeletons import NYU14  # noqa: E402


def test_every_joint_is_numbered_and_named() -> None:
    figure = joint_map_figure()
    shown = {text.get_text(): text.get_position() for text in figure.axes[0].texts}
    pyplot.close(figure)
    assert set(NYU14.names) < shown.keys()
    for joint, pose in enumerate(POSE_MM):
        assert shown[str(joint)] == tuple(pose[:2])


def test_every_bone_is_drawn() -> None:
    figure = joint_map_figure()
    lines = [line.get_xydata() for line in figure.axes[0].lines]
    pyplot.close(figure)
    for a, b in NYU14.bones:
        assert any(np.array_equal(line, POSE_MM[[a, b], :2]) for line in lines)


def test_it_is_a_right_hand_of_human_proportions() -> None:
    """Palm towards the camera, fingers up: the thumb points to the image's right (x), fingertips up (-y)."""
    assert POSE_MM.shape == (14, 3)
    assert POSE_MM[8, 0] > POSE_MM[12, 0] > POSE_MM[11, 0] > POSE_MM[0, 0]
    tips, mids = POSE_MM[[0, 2, 4, 6]], POSE_MM[[1, 3, 5, 7]]
    assert (tips[:, 1] < mids[:, 1]).all()
    # training/data/hand.py: lengths that were fitted to NYU's subject 1, root to mid and mid to tip.
    np.testing.assert_allclose(np.linalg.norm(mids - KNUCKLES_MM[:4], axis=-1), [33, 41, 49, 46], atol=2)
    np.testing.assert_allclose(np.linalg.norm(tips - mids, axis=-1), [42.8, 50, 56.5, 50.9], atol=2)


def test_the_file_is_a_picture(tmp_path: Path) -> None:
    save_joint_map(tmp_path / "joints.png")
    with image.open(tmp_path / "joints.png") as picture:
        assert picture.size == (1100, 836)
