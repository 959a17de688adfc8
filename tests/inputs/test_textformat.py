from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from jointbert.camera import NYU
from jointbert.inputs.textformat import read_joints, write_joints

poses = arrays(np.float64, st.tuples(st.integers(1, 4), st.just(14), st.just(3)), elements=st.floats(-300, 300))


@given(poses)
def test_xyz_round_trip(tmp_path_factory: pytest.TempPathFactory, joints: np.ndarray) -> None:
    path = tmp_path_factory.mktemp("text") / "poses.txt"
    write_joints(path, joints, "xyz")
    np.testing.assert_allclose(read_joints(path, "xyz"), joints, atol=0.5e-3)


@given(poses)
def test_uvd_round_trip(tmp_path_factory: pytest.TempPathFactory, joints: np.ndarray) -> None:
    joints = joints + [0, 0, 800]
    path = tmp_path_factory.mktemp("text") / "poses.txt"
    write_joints(path, joints, "uvd", NYU)
    np.testing.assert_allclose(read_joints(path, "uvd", NYU), joints, atol=2e-3)


def test_a_line_read_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "one.txt"
    path.write_text("\ufeff" + ", ".join(["378.803 240 1000"] * 13) + " nan nan nan\r\n\n", encoding="utf-8")
    joints = read_joints(path, "uvd", NYU)
    assert joints.shape == (1, 14, 3)
    np.testing.assert_allclose(joints[0, :13], np.tile([100, 0, 1000], (13, 1)), atol=1e-9)  # a tenth of fx off the centre
    assert np.isnan(joints[0, 13]).all()


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (b"", "holds no frame"),
        (b"\n\n", "holds no frame"),
        (b"1 2 3\n", "line 1 has 3 numbers; expected 42"),
        (b"1 " * 42 + b"\n\n" + b"1 " * 42, "line 2 is blank, and frames follow"),
        (b"1 " * 42 + b"\n" + b"1 " * 63, "line 2 has 63 numbers; expected 42"),
        (b"1 " * 41 + b"x", "line 1: could not convert"),
        (b"\xff\xfe" * 42, "line 1"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, text: bytes, part: str) -> None:
    path = tmp_path / "bad.txt"
    path.write_bytes(text)
    with pytest.raises(ValueError, match=part) as caught:
        read_joints(path, "xyz")
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize("depth", ["0", "-1", "nan"])
def test_what_has_no_depth_is_missing(tmp_path: Path, depth: str) -> None:
    path = tmp_path / "one.txt"
    path.write_text("320 240 800 " * 13 + f"10 20 {depth}")
    joints = read_joints(path, "uvd", NYU)
    assert np.isnan(joints[0, 13]).all()
    assert np.isfinite(joints[0, :13]).all()
    assert not np.isnan(read_joints(path, "xyz")[0, 13, :2]).any()


def test_lines_can_be_kept(tmp_path: Path) -> None:
    path = tmp_path / "kept.gz"  # a name that NumPy's own writer would compress
    write_joints(path, np.ones((2, 14, 3)), "xyz", lines=[None, "as it was"])
    assert path.read_text() == " ".join(["1.000"] * 42) + "\nas it was\n"


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "precious.txt"
    path.write_text("precious")
    with pytest.raises(TypeError):
        write_joints(path, np.ones((2, 14, 3)), "xyz", lines=[None, 3])  # type: ignore[list-item]
    assert path.read_text() == "precious"
    assert [p.name for p in tmp_path.iterdir()] == ["precious.txt"]
    with pytest.raises(OSError, match="missing") as caught:
        write_joints(tmp_path / "missing" / "file.txt", np.ones((1, 14, 3)), "xyz")
    assert caught.value.filename == str(tmp_path / "missing" / "file.txt")


def test_the_camera_is_never_guessed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="never guessed"):
        read_joints(tmp_path / "none.txt", "uvd")
    with pytest.raises(ValueError, match="format: got 'uvz'"):
        read_joints(tmp_path / "none.txt", "uvz")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"got the shape \(14, 3\)"):
        write_joints(tmp_path / "none.txt", np.zeros((14, 3)), "xyz")
