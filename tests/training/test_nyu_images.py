"""The reader of NYU's images, on a small folder of that shape."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("scipy")
pytest.importorskip("PIL")

from PIL import Image
from scipy.io import savemat

from jointbert.camera import NYU
from jointbert.skeletons import NYU14
from training.data.nyu_images import Augmentation, NyuImages, read_annotations
from training.data.render import Hands, render, sample_hands

FRAMES = 3


@pytest.fixture(scope="module")
def hands() -> Hands:
    return sample_hands(FRAMES, torch.Generator().manual_seed(4))


@pytest.fixture(scope="module")
def folder(hands: Hands, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rendered hands 40 cm in front of a wall, as the data set would store them: two cameras, 36 joints, y up."""
    folder = tmp_path_factory.mktemp("nyu")
    camera = torch.tensor([[NYU.fx, NYU.fy, NYU.cx, NYU.cy]]).expand(FRAMES, 4)
    depth = render(hands.capsules, camera, (480, 640)).round()
    wall = hands.joints[..., 2].mean(1).view(-1, 1, 1) + 400
    depth = torch.where(depth > 0, depth, wall).numpy().astype(np.uint16)
    joints = np.full((2, FRAMES, 36, 3), 7.0)
    joints[0][:, NYU14.indices["nyu36"]] = hands.joints.numpy() * [1, -1, 1]
    savemat(folder / "joint_data.mat", {"joint_xyz": joints, "joint_uvd": np.zeros_like(joints)})
    for i, image in enumerate(depth):
        rgb = np.stack([np.full_like(image, 99), image // 256, image % 256], -1).astype(np.uint8)
        Image.fromarray(rgb).save(folder / f"depth_1_{i + 1:07d}.png")
    return folder


def test_frames_as_recorded(folder: Path, hands: Hands, tmp_path: Path) -> None:
    centres = hands.joints.mean(1)
    np.savetxt(tmp_path / "centres.txt", centres.numpy())
    data = NyuImages(folder, 96, tmp_path / "centres.txt")
    assert len(data) == FRAMES
    for i, item in enumerate(data[i] for i in range(FRAMES)):
        torch.testing.assert_close(item.joints[0], hands.joints[i])
        torch.testing.assert_close(item.centres[0], centres[i])
        assert item.crops.shape == (1, 1, 96, 96)
        # A visible joint's surface is at most a finger's breadth in front of the joint.
        uv, depth = item.crop.from_xyz(item.joints)
        at = uv[0].round().long()
        surface = item.crops[0, 0, at[:, 1].clamp(0, 95), at[:, 0].clamp(0, 95)]
        assert ((depth[0] - surface) > -0.02).all()
        assert ((depth[0] - surface) < 25 / 150).float().mean() > 0.6
        assert (item.crops == 1).float().mean() > 0.5  # the wall is beyond the cube
    np.savetxt(tmp_path / "uvd.txt", NYU.xyz_to_uvd(centres.numpy()))
    again = NyuImages(folder, 96, tmp_path / "uvd.txt", "uvd")[1]
    torch.testing.assert_close(again.centres, data[1].centres, atol=1e-2, rtol=0)


def test_augmentation_is_in_3d(folder: Path, hands: Hands, tmp_path: Path) -> None:
    """Rotated, scaled and shifted crops give the same joints in the camera frame; each variant is another crop."""
    np.savetxt(tmp_path / "centres.txt", hands.joints.mean(1).numpy())
    data = NyuImages(folder, 96, tmp_path / "centres.txt", augmentation=Augmentation(), variants=4, seed=3)
    assert len(data) == 4 * FRAMES
    items = [data[4 + k] for k in range(4)]
    for item in items:
        torch.testing.assert_close(item.crop.to_xyz(*item.crop.from_xyz(item.joints)), hands.joints[1:2], atol=1e-2, rtol=0)
        assert ((item.centres - hands.joints[1].mean(0)).abs() <= 10.001).all()
        assert 269.9 <= item.cube_mm.item() <= 330.1
        uv, depth = item.crop.from_xyz(item.joints)
        at = uv[0].round().long()
        inside = ((at >= 0) & (at < 96)).all(-1)
        surface = item.crops[0, 0, at[inside, 1], at[inside, 0]]
        assert ((depth[0, inside] - surface) > -0.03).float().mean() > 0.9
    assert len({item.angle.item() for item in items}) == 4
    assert torch.equal(data[5].crops, items[1].crops)


def test_the_second_subject_s_cube(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.data.nyu_images.SUBJECT2", 2)
    assert [NyuImages(folder, 64, test=True)[i].cube_mm.item() for i in range(3)] == [300, 300, 250]
    assert NyuImages(folder, 64)[2].cube_mm.item() == 300
    assert [NyuImages(folder, 64, test=True, cube_mm=240.0)[i].cube_mm.item() for i in (1, 2)] == [240, 200]


def test_its_sets_do_not_overlap(folder: Path, tmp_path: Path) -> None:
    """Training and validation share the training split, the test set is the other one."""
    from jointbert.models.estimator import EstimatorConfig
    from training.config import ImageDataConfig
    from training.estimator import test_set, training_set, validation_set

    for split in ("train", "test"):
        (tmp_path / split).symlink_to(folder)
    data = ImageDataConfig(source="nyu", nyu=str(tmp_path), validation_images=1, variants=2)
    model = EstimatorConfig(size=64, depth=2)
    images, name = training_set(data, model)
    assert images is not None
    assert (len(images), len(validation_set(data, model)), len(test_set(data, model))) == (4, 1, FRAMES)
    seen = images.take([0, 1, 2, 3]).images.joints
    assert torch.equal(seen[0], seen[1])
    assert not any(torch.equal(joints, validation_set(data, model).take([0]).images.joints[0]) for joints in seen)
    assert name == training_set(data, model)[1]
    with pytest.raises(ValueError, match="3 frames, of which 9 are for validation"):
        training_set(ImageDataConfig(source="nyu", nyu=str(tmp_path), validation_images=9), model)


def test_the_centre_of_mass(folder: Path, hands: Hands) -> None:
    data = NyuImages(folder, 64)
    for i in range(FRAMES):
        # Where the arm points at the camera, some of it is nearer than the hand, and counts.
        assert (data[i].centres[0] - hands.joints[i].mean(0)).norm() < 120


def test_what_is_broken_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"joint_data.mat: no such file; it comes with"):
        NyuImages(tmp_path, 64)
    whole = (folder / "joint_data.mat").read_bytes()
    (tmp_path / "joint_data.mat").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"joint_data.mat: can't be read"):
        read_annotations(tmp_path / "joint_data.mat")
    savemat(tmp_path / "other.mat", {"x": 1})
    with pytest.raises(ValueError, match=r"other.mat: there is no joint_xyz"):
        read_annotations(tmp_path / "other.mat")
    savemat(tmp_path / "few.mat", {"joint_xyz": np.zeros((1, 2, 21, 3))})
    with pytest.raises(
        ValueError, match=r"few.mat: joint_xyz has the shape \(1, 2, 21, 3\); expected \(cameras, frames, 36, 3\)"
    ):
        read_annotations(tmp_path / "few.mat")


def test_bad_centres_are_named(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "centres.txt"
    with pytest.raises(OSError, match="no such file of hand centres"):
        NyuImages(folder, 64, path)
    path.write_text("1 2 3\n")
    with pytest.raises(ValueError, match="got 1 lines of 3 numbers; expected 3 of 3"):
        NyuImages(folder, 64, path)
    path.write_text("1 2 x\n")
    with pytest.raises(ValueError, match="can't be read as three numbers a line"):
        NyuImages(folder, 64, path)
    np.savetxt(path, np.zeros((3, 3)))
    with pytest.raises(ValueError, match="centre_format: got 'uv'"):
        NyuImages(folder, 64, path, "uv")
