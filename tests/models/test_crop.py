from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from jointbert.camera import NYU, Camera  # noqa: E402
from jointbert.models.crop import Crop  # noqa: E402

CAMERA = Camera(500, 400, 320, 240)


def test_the_window_by_hand() -> None:
    """A cube of 300 mm at one metre spans 150 x 120 pixels, centred on the centre's pixel."""
    crop = Crop.around(torch.tensor([[100.0, -50, 1000]]), CAMERA, 300.0, 100)
    corners = crop.to_image(torch.tensor([[[-0.5, -0.5], [99.5, 99.5], [49.5, 49.5]]]))
    torch.testing.assert_close(corners, torch.tensor([[[295.0, 160], [445, 280], [370, 220]]]))
    uv, depth = crop.from_xyz(torch.tensor([[[250.0, 100, 1000], [100, -50, 850]]]))
    torch.testing.assert_close(uv[0, 0], torch.tensor([99.5, 99.5]))
    torch.testing.assert_close(depth, torch.tensor([[0.0, -1]]))


def test_a_turn_by_hand() -> None:
    """Turned clockwise by a right angle: what the crop shows to its right lies below in the image."""
    crop = Crop.around(torch.tensor([[0.0, 0, 1000]]), CAMERA, 300.0, 100, torch.tensor([math.pi / 2]))
    seen = crop.to_image(torch.tensor([[[99.5, 49.5]]]))
    torch.testing.assert_close(seen, torch.tensor([[[320.0, 300]]]), atol=1e-4, rtol=0)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.floats(-math.pi, math.pi), st.floats(100, 500))
def test_there_and_back(seed: int, angle: float, cube: float) -> None:
    g = torch.Generator().manual_seed(seed)
    centres = torch.tensor([0.0, 0, 800]) + 200 * torch.rand(4, 3, generator=g, dtype=torch.float64)
    joints = centres.unsqueeze(1) + 100 * torch.randn(4, 14, 3, generator=g, dtype=torch.float64)
    crop = Crop.around(centres, NYU, cube, 128, torch.full((4,), angle))
    uv, depth = crop.from_xyz(joints)
    torch.testing.assert_close(crop.to_xyz(uv, depth), joints)
    image = torch.from_numpy(NYU.xyz_to_uvd(joints.numpy())[..., :2])
    torch.testing.assert_close(crop.to_image(uv), image)


def test_a_pixel_of_the_crop_is_the_image_s_nearest() -> None:
    v, u = torch.meshgrid(torch.arange(480.0), torch.arange(640.0), indexing="ij")
    image = (600 + u / 10 + v).view(1, 1, 480, 640)
    crop = Crop.around(torch.tensor([[20.0, 10, 900]]), CAMERA, 2000.0, 64, torch.tensor([0.3]))
    pixels = torch.stack(torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="xy"), -1).view(1, -1, 2)
    places = crop.to_image(pixels)
    away = ((places - places.floor() - 0.5).abs() > 1e-3).all(-1)  # between two pixels either may be taken
    near = places.round().long()
    inside = (near >= 0).all(-1) & (near < torch.tensor([640, 480])).all(-1)
    found = crop.depth(image).view(1, -1)
    expected = image[0, 0, near[..., 1].clamp(0, 479), near[..., 0].clamp(0, 639)]
    expected = torch.where(inside, ((expected - 900) / 1000).clamp(-1, 1), 1)
    assert inside.any()
    assert not inside.all()
    torch.testing.assert_close(found[away], expected[away])


def test_holes_and_what_lies_outside_the_cube() -> None:
    image = torch.full((1, 1, 480, 640), 1000.0)
    image[..., :320] = 0
    image[0, 0, 0:240, 400:] = math.nan
    image[0, 0, 300:, 400:] = 3000
    image[0, 0, 240:260, 340:350] = 200
    found = Crop.around(torch.tensor([[0.0, 0, 1000]]), CAMERA, 600.0, 60).depth(image)[0, 0]
    assert found.min() == -1
    assert (found[:, :29] == 1).all()
    assert set(np.unique(found.numpy())) == {-1, 0, 1}
    assert (found[:30, 50:] == 1).all()
    assert (found[50:, 50:] == 1).all()


def test_rgb_is_bilinear() -> None:
    image = torch.arange(640.0).expand(1, 3, 480, 640)
    crop = Crop.around(torch.tensor([[0.0, 0, 1000]]), CAMERA, 300.0, 64)
    across = crop.to_image(torch.stack([torch.arange(64.0), torch.full((64,), 31.5)], -1).unsqueeze(0))[0, :, 0]
    torch.testing.assert_close(crop.rgb(image)[0, 1, 20], across)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"centres": torch.zeros(3)}, r"centres: got the shape \(3,\)"),
        ({"centres": torch.tensor([[0.0, 0, 800], [0, 0, -1]])}, r"centres: got \[0.0, 0.0, -1.0\] for image 1"),
        ({"centres": torch.tensor([[0.0, math.nan, 800]])}, "for image 0; expected x y z in front of the camera"),
        ({"camera": torch.ones(3)}, r"camera: got the shape \(3,\)"),
        ({"camera": torch.tensor([1.0, 0, 0, 0])}, "camera: expected finite numbers with positive focal lengths"),
        ({"cube_mm": 0.0}, "cube_mm: expected positive sides"),
        ({"cube_mm": torch.ones(2)}, r"cube_mm: got the shape \(2,\); expected one number or \(1,\)"),
    ],
)
def test_bad_crops_are_named(change: dict[str, object], message: str) -> None:
    given_ = {"centres": torch.tensor([[0.0, 0, 800]]), "camera": CAMERA, "cube_mm": 300.0, "size": 64, **change}
    with pytest.raises(ValueError, match=message):
        Crop.around(**given_)  # type: ignore[arg-type]


def test_autocast_does_not_round_places() -> None:
    """Mixed precision is for networks; a pixel of 200 in bfloat16 would be off by up to one."""
    g = torch.Generator().manual_seed(0)
    centres = torch.tensor([[20.0, 30, 700]])
    joints = centres.unsqueeze(1) + 60 * torch.randn(1, 14, 3, generator=g)
    crop = Crop.around(centres, NYU, 300.0, 256, torch.tensor([0.7]))
    uv, depth = crop.from_xyz(joints)
    with torch.autocast("cpu", torch.bfloat16):
        for a, b in zip((*crop.from_xyz(joints), crop.to_xyz(uv, depth)), (uv, depth, joints), strict=True):
            assert a.dtype == torch.float32
            torch.testing.assert_close(a, b, atol=1e-3, rtol=0)
