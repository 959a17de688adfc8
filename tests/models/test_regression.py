from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from jointbert.models.hourglass import Hourglass  # noqa: E402
from jointbert.models.regression import AdaptiveWeighting, LinearDepth, foreground_of, pixel_points  # noqa: E402


def test_the_hourglass_is_the_papers() -> None:
    """Bottlenecks of 256-128-128-256 with batch norm before each convolution have 214,528 parameters; there are 13 and one."""
    hourglass = Hourglass()
    bottleneck = sum(256 * 2 * (i == 0) + 128 * 2 * (i > 0) for i in range(3))
    bottleneck += 256 * 128 + 128 + 9 * 128 * 128 + 128 + 128 * 256 + 256
    head = 256 * 256 + 256 + 2 * 256 + 256 * 14 + 14
    assert sum(p.numel() for p in hourglass.parameters()) == 14 * bottleneck + head
    features, heatmaps = hourglass(torch.randn(1, 256, 16, 32))
    assert (features.shape, heatmaps.shape) == ((1, 256, 16, 32), (1, 14, 16, 32))
    with pytest.raises(ValueError, match="got width 3 and depth 4"):
        Hourglass(3)


def test_the_linear_head() -> None:
    head = LinearDepth(8)
    maps = torch.rand(3, 14, 8, 8)
    maps[:, :, 2, 5] = 2
    found = head(maps)
    torch.testing.assert_close(found.uv, torch.tensor([5.0, 2]).expand(3, 14, 2))
    torch.testing.assert_close(found.depth, maps.flatten(1) @ head.linear.weight.T + head.linear.bias)
    assert (found.confidence == 1).all()


def surface(size: int = 32) -> torch.Tensor:
    """A sloping surface in half the crop."""
    depth = torch.ones(2, 1, size, size)
    depth[..., : size // 2] = torch.linspace(-0.5, 0.5, size).view(1, 1, size, 1)
    return depth


def test_awr_gives_back_what_its_targets_were_made_of() -> None:
    """Every pixel near a joint points exactly at it: so does their mean, but for far pixels' faint votes."""
    depth = surface()
    joints = torch.stack([torch.tensor([-0.6 + 0.04 * j, -0.7 + 0.1 * j, -0.3 + 0.05 * j]) for j in range(14)]).expand(2, 14, 3)
    head = AdaptiveWeighting(4)
    closeness, directions, near = head.targets(joints, depth)
    assert near.flatten(2).any(-1).all()
    assert not near[..., 16:].any()
    found = head.vote(closeness, directions, depth)
    torch.testing.assert_close(found.uv, (joints[..., :2] + 1) * 16 - 0.5, atol=2e-3, rtol=0)
    torch.testing.assert_close(found.depth, joints[..., 2], atol=2e-4, rtol=0)
    assert ((found.confidence > 0.5) & (found.confidence <= 1)).all()


def test_awr_where_there_is_no_foreground() -> None:
    head = AdaptiveWeighting(4)
    joints, directions = head(torch.randn(1, 4, 8, 8), torch.rand(1, 14, 8, 8), torch.ones(1, 1, 8, 8))
    assert joints.uv.isfinite().all()
    assert directions.shape == (1, 14, 3, 8, 8)


def test_pixels_stand_for_points() -> None:
    points = pixel_points(torch.full((1, 1, 4, 4), 0.5))
    torch.testing.assert_close(points[0, :, 0, 3], torch.tensor([0.75, -0.75, 0.5]))
    assert foreground_of(points[:, 2:]).all()
