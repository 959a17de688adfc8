"""Rendered hands: against closed forms, computed in NumPy and float64."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from jointbert.camera import NYU
from jointbert.models.crop import Crop
from training.data.images import RenderConfig, RenderedHands, intrinsics
from training.data.render import Capsules, render, sample_hands, sample_occluders, sense, visibility

CAMERA = torch.tensor([[500.0, 450, 32, 24]])
SIZE = (48, 64)


def rays() -> np.ndarray:
    v, u = np.meshgrid(np.arange(48.0), np.arange(64.0), indexing="ij")
    return np.stack([(u - 32) / 500, (v - 24) / 450, np.ones_like(u)], -1)


def scene(*capsules: tuple[tuple[float, float, float], tuple[float, float, float], float]) -> Capsules:
    a, b, r = (torch.tensor(x, dtype=torch.float32).unsqueeze(0) for x in zip(*capsules, strict=True))
    return Capsules(a, b, r)


def test_a_ball() -> None:
    centre, radius = np.array([5.0, -3, 400]), 12.0
    found = render(scene((tuple(centre), tuple(centre), radius)), CAMERA, SIZE)[0].numpy()
    ray = rays()
    along = ray @ centre / (ray**2).sum(-1)
    miss = (centre @ centre) - along**2 * (ray**2).sum(-1)
    expected = along - np.sqrt(np.maximum(radius**2 - miss, 0) / (ray**2).sum(-1))
    edge = np.abs(radius**2 - miss) < 0.5
    hit = (miss < radius**2) & ~edge
    assert hit.sum() > 400
    np.testing.assert_allclose(found[hit], expected[hit], atol=0.02)
    assert not found[(miss > radius**2) & ~edge].any()


def test_a_cylinder_across() -> None:
    """Along x through (0, 4, 500): the same depth in a row, that of a circle in the plane of y and z."""
    found = render(scene(((-900.0, 4, 500), (900.0, 4, 500), 10.0)), CAMERA, SIZE)[0].numpy()
    y = (np.arange(48) - 24) / 450
    p, q, r = 1 + y**2, 500 + 4 * y, 500**2 + 16 - 100
    side = q**2 - p * r
    rows = side > 50
    assert 10 < rows.sum() < 20
    expected = (q[rows] - np.sqrt(side[rows])) / p[rows]
    np.testing.assert_allclose(found[rows], np.broadcast_to(expected[:, None], (rows.sum(), 64)), atol=2e-2)
    assert not found[side < -50].any()


def test_a_capsule_that_points_at_the_camera() -> None:
    found = render(scene(((0.0, 0, 420), (0.0, 0, 500), 10.0)), CAMERA, SIZE)[0]
    assert found[24, 32].item() == pytest.approx(410, abs=1e-2)


@pytest.mark.parametrize("seed", range(3))
def test_a_surface_is_where_the_axis_is_a_radius_away(seed: int) -> None:
    """Any capsules: the point that a pixel shows lies on one of them, and no point of its ray before it lies within one."""
    g = torch.Generator().manual_seed(seed)
    ends = torch.tensor([0.0, 0, 450]) + torch.randn(2, 1, 6, 3, generator=g) * torch.tensor([15.0, 12, 30])
    capsules = Capsules(ends[0], ends[1], 2 + 6 * torch.rand(1, 6, generator=g))
    depth = render(capsules, CAMERA, SIZE)[0].numpy().astype(np.float64)
    a, b, radius = (x[0].double().numpy() for x in (capsules.a, capsules.b, capsules.radius))

    def beyond(points: np.ndarray) -> np.ndarray:  # how far outside of the nearest capsule
        way = b - a
        along = np.clip(((points[..., None, :] - a) * way).sum(-1) / (way**2).sum(-1), 0, 1)
        return (np.linalg.norm(points[..., None, :] - a - along[..., None] * way, axis=-1) - radius).min(-1)

    ray = rays()
    seen = depth > 0
    assert 100 < seen.sum() < seen.size
    assert np.abs(beyond(ray[seen] * depth[seen][:, None])).max() < 0.02
    for share in np.linspace(0.6, 0.999, 150):
        assert beyond(ray[seen] * (share * depth[seen])[:, None]).min() > 0
    for z in np.linspace(300, 600, 150):
        assert beyond(ray[~seen] * z).min() > -0.05


def test_occluded_joints() -> None:
    """A rod in front of one joint hides it; what is behind hides nothing; outside the image nothing is visible."""
    g = torch.Generator().manual_seed(0)
    hands = sample_hands(64, g)
    centres = hands.joints.mean(1)
    crop = Crop.around(centres, NYU, 400.0, 128)
    camera = intrinsics(crop)
    free = visibility(hands, render(hands.capsules, camera, (128, 128)), camera)
    assert 0.7 < free.float().mean() < 0.95
    for offset, hides in ((-60.0, True), (260.0, False)):
        middle = hands.joints[:, 7] * (1 + offset / hands.joints[:, 7, 2:])
        rod = Capsules(middle.unsqueeze(1), middle.unsqueeze(1), torch.full((64, 1), 8.0))
        seen = visibility(hands, render(hands.capsules.and_(rod), camera, (128, 128)), camera)
        assert not seen[:, 7].any() if hides else torch.equal(seen, free)
    away = camera + torch.tensor([0.0, 0, 500, 0])
    assert not visibility(hands, render(hands.capsules, away, (128, 128)), away).any()


def test_a_flat_hand_shows_every_joint() -> None:
    """No joint of an open hand seen from its palm's or back's side hides another."""
    from training.data.hand import LENGTHS_MM, PALM_MM, ROOTS_MM, THUMB_LENGTHS_MM
    from training.data.render import Hands, _surface

    up, out = torch.tensor([0.0, 1, 0]), torch.tensor([0.8, 0.6, 0])
    mids = ROOTS_MM[:4] + LENGTHS_MM[:, :1] * up
    tips = mids + LENGTHS_MM[:, 1:] * up
    thumb = ROOTS_MM[4] + THUMB_LENGTHS_MM.cumsum(0).unsqueeze(1) * out
    joints = torch.cat([torch.stack([tips, mids], 1).flatten(0, 1), thumb.flip(0), PALM_MM])
    for side in (1.0, -1.0):
        points = torch.cat([joints, ROOTS_MM]) * torch.tensor([side, -1, side]) + torch.tensor([0, 0, 700.0])
        hands = Hands(points[None, :14], _surface(points[None, :14], points[None, 14:], torch.ones(1)))
        camera = torch.tensor([[300.0, 300, 64, 90]])
        assert visibility(hands, render(hands.capsules, camera, (128, 128)), camera).all()


def test_a_sensor_s_faults() -> None:
    g = torch.Generator().manual_seed(0)
    wall = torch.full((4, 100, 120), 700.0)
    seen = sense(wall, g, noise_mm=2.0, holes=0.0)
    assert seen.std().item() == pytest.approx(np.hypot(2, 12**-0.5), rel=0.02)
    assert torch.equal(seen, seen.round())
    assert (sense(2 * wall, g, noise_mm=2.0, holes=0.0).std() / seen.std()).item() == pytest.approx(4, rel=0.05)
    holed = sense(wall, g, noise_mm=0.0, holes=1.0)
    assert ((holed == 0).flatten(1).sum(1) > 0).all()
    half = wall.clone()
    half[:, :, 60:] = 0
    cut = sense(half, g, holes=0.0)
    assert not cut[:, :, 60:].any()
    assert 0.1 < (cut[:, :, 59] == 0).float().mean() < 0.6
    assert (cut[:, :, 5:58] > 0).all()


def test_batches_come_again() -> None:
    sampler = RenderedHands(RenderConfig(), 64, 300.0, 4, 3, seed=5)
    first = sampler[1]
    for a, b in zip(first, sampler[1], strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first.crops, sampler[2].crops)
    assert not torch.equal(first.crops, RenderedHands(RenderConfig(), 64, 300.0, 4, 3, seed=6)[1].crops)
    sampler.offset = 1
    assert torch.equal(first.crops, sampler[0].crops)
    assert len(sampler) == 3
    with pytest.raises(IndexError):
        sampler[3]


def test_a_crop_shows_what_a_camera_s_image_would() -> None:
    """The crop is rendered with intrinsics of its own: cut out of a whole image it is the same, but for the image's pixels."""
    config = dataclasses.replace(RenderConfig(), occluders=0.0)
    batch = RenderedHands(config, 128, 300.0, 3, 1, seed=2)[0]
    g = torch.Generator().manual_seed(2 * 1_000_003)
    hands = sample_hands(3, g)
    assert torch.equal(hands.joints, batch.joints)
    whole = render(hands.capsules, torch.tensor([[NYU.fx, NYU.fy, NYU.cx, NYU.cy]]).expand(3, 4), (480, 640))
    cut = batch.crop.depth(whole.unsqueeze(1))
    both = (cut < 1) & (batch.crops < 1)
    assert both.flatten(1).sum(1).min() > 300
    assert ((cut < 1) == (batch.crops < 1)).float().mean() > 0.97
    assert (cut - batch.crops).abs()[both].median() < 0.02  # of 150 mm
    uv, depth = batch.crop.from_xyz(batch.joints)
    assert ((uv > 0) & (uv < 127)).float().mean() > 0.97
    assert depth.abs().max() < 1.2


def test_occluders_are_in_front() -> None:
    g = torch.Generator().manual_seed(1)
    hands = sample_hands(200, g)
    rods = sample_occluders(hands, 0.3, g)
    there = rods.radius[:, 0] > 0
    assert 0.2 < there.float().mean() < 0.4
    assert ((rods.a + rods.b)[there, 0, 2] / 2 < hands.joints[there, :, 2].mean(1) - 29).all()
