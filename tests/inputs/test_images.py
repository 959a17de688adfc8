from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("PIL")

from PIL import Image

from jointbert.camera import NYU, Camera
from jointbert.inputs.images import centre_of_mass, read_depth, read_rgb

DEPTH = np.array([[0, 700, 701], [1200, 65535, 255]], np.uint16)


def test_depth_in_every_form(tmp_path: Path) -> None:
    Image.fromarray(DEPTH).save(tmp_path / "plain.png")
    coded = np.stack([np.full_like(DEPTH, 7), DEPTH // 256, DEPTH % 256], -1).astype(np.uint8)
    Image.fromarray(coded).save(tmp_path / "nyu.png")
    np.save(tmp_path / "metres.npy", DEPTH / 1000)
    expected = DEPTH.astype(np.float32)
    for name, unit in (("plain.png", 1.0), ("nyu.png", 1.0), ("metres.npy", 1000.0)):
        found = read_depth(tmp_path / name, unit)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.save(tmp_path / "holes.npy", np.array([[np.nan, np.inf, 5.0]]))
    assert read_depth(tmp_path / "holes.npy").tolist() == [[0, 0, 5]]


def test_rgb(tmp_path: Path) -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    Image.fromarray(pixels).save(tmp_path / "rgb.png")
    np.testing.assert_allclose(read_rgb(tmp_path / "rgb.png"), pixels.transpose(2, 0, 1) / 255, rtol=1e-6)


def test_what_is_no_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"none.png: no such file"):
        read_depth(tmp_path / "none.png")
    Image.fromarray(np.zeros((40, 40), np.uint16)).save(tmp_path / "whole.png")
    content = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "short.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"short.png: no readable image"):
        read_depth(tmp_path / "short.png")
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "grey.png")
    with pytest.raises(ValueError, match=r"grey.png: got an image of the shape \(4, 4\), uint8; expected 16 bits of depth"):
        read_depth(tmp_path / "grey.png")
    with pytest.raises(ValueError, match=r"grey.png: .* expected 8-bit RGB"):
        read_rgb(tmp_path / "grey.png")
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"objects.npy: no readable image"):
        read_depth(tmp_path / "objects.npy")


def test_the_centre_of_mass_of_what_is_nearest() -> None:
    depth = np.zeros((480, 640), np.float32)
    depth[240:260, 320:340] = 500
    depth[100:200, 100:200] = 1500
    np.testing.assert_allclose(centre_of_mass(depth, NYU), [9.5 * 500 / NYU.fx, 9.5 * 500 / NYU.fy, 500])
    moved = Camera(NYU.fx, NYU.fy, NYU.cx + 10, NYU.cy)
    np.testing.assert_allclose(centre_of_mass(depth, moved), [-0.5 * 500 / NYU.fx, 9.5 * 500 / NYU.fy, 500])
    with pytest.raises(ValueError, match="an image without any depth"):
        centre_of_mass(np.zeros((4, 4)), NYU)
