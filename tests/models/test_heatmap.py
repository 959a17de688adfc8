from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

torch = pytest.importorskip("torch")

from jointbert.models.heatmap import soft_argmax, to_image_pixels  # noqa: E402


def gaussian(u: float, v: float, sigma: float, shape: tuple[int, int] = (64, 64), peak: float = 1.0) -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(shape[0]).double(), torch.arange(shape[1]).double(), indexing="ij")
    return peak * torch.exp(-((x - u) ** 2 + (y - v) ** 2) / (2 * sigma**2))


def test_argmax_is_the_highest_pixel_and_its_value() -> None:
    maps = torch.zeros(2, 3, 5, 7)
    maps[1, 2, 4, 6] = 0.75
    maps[0, 1, 2, 3] = 2.5
    maps[0, 2] = -1
    uv, confidence, status = soft_argmax(maps, "argmax")
    assert uv[1, 2].tolist() == [6, 4]
    assert uv[0, 1].tolist() == [3, 2]
    assert uv[0, 0].tolist() == [0, 0]  # all equal: the first
    assert confidence.tolist() == [[0, 1, 0], [0, 0, 0.75]]  # clamped
    assert not status.any()


@given(arrays(np.float32, (3, 6, 9), elements=st.floats(-2, 2, width=32)))
def test_the_first_among_equals(values: np.ndarray) -> None:
    values = np.round(values)  # many ties
    uv, confidence, _ = soft_argmax(torch.from_numpy(values), "argmax")
    for k, one in enumerate(values):
        v, u = divmod(int(one.argmax()), 9)
        assert uv[k].tolist() == [u, v]
        assert confidence[k] == min(max(float(one.max()), 0), 1)


@given(arrays(np.float64, (5, 4), elements=st.floats(-1, 1)), st.floats(0.1, 50), st.sampled_from([None, 0, 1, 2]))
def test_soft_is_the_weighted_mean_of_places(values: np.ndarray, beta: float, window: int | None) -> None:
    """Against plain Python, pixel by pixel."""
    peak = values.argmax()
    pv, pu = divmod(int(peak), 4)
    total = su = sv = 0.0
    for v in range(5):
        for u in range(4):
            if window is not None and max(abs(u - pu), abs(v - pv)) > window:
                continue
            weight = math.exp(beta * (values[v, u] - values.flat[peak]))
            total, su, sv = total + weight, su + weight * u, sv + weight * v
    uv, _, _ = soft_argmax(torch.from_numpy(values), "soft", beta, window)
    assert uv.tolist() == pytest.approx([su / total, sv / total], rel=1e-9, abs=1e-9)


def test_a_parabola_s_soft_argmax_is_its_centre() -> None:
    """exp(-(x - u)^2 / 2 s^2) summed over the integers has the mean u up to exp(-2 pi^2 s^2): closed form."""
    u, v, s = 30.3, 25.8, 2.0
    y, x = torch.meshgrid(torch.arange(64).double(), torch.arange(64).double(), indexing="ij")
    parabola = -((x - u) ** 2 + (y - v) ** 2) / (2 * s * s)
    uv, confidence, _ = soft_argmax(parabola, "soft", beta=1.0)
    assert uv.tolist() == pytest.approx([u, v], abs=1e-10)
    assert confidence == 0  # negative values


def test_a_window_keeps_a_faint_peak_in_place() -> None:
    faint = gaussian(50.0, 50.0, 2.0, peak=0.3)
    whole = soft_argmax(faint, "soft", beta=10.0).uv
    near = soft_argmax(faint, "soft", beta=10.0, window=6).uv
    assert (whole - 50).abs().max() > 5  # pulled towards the middle
    assert (near - 50).abs().max() < 1e-6


@pytest.mark.parametrize("mode", ["argmax", "soft"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_maps_with_nan_are_told(mode: str, bad: float) -> None:
    maps = gaussian(10, 12, 2).repeat(3, 1, 1)
    maps[1, 60, 3] = bad
    maps[2] = -math.inf
    uv, confidence, status = soft_argmax(maps, mode)
    assert status.tolist() == [0, 1, 1]
    assert uv[0].tolist() == pytest.approx([10, 12], abs=1e-3)
    assert uv[1:].isnan().all()
    assert confidence[1:].tolist() == [0, 0]


def test_minus_infinity_excludes_a_pixel() -> None:
    maps = torch.zeros(4, 4)
    maps[:, 1:] = -math.inf
    uv, confidence, status = soft_argmax(maps, "soft")
    assert uv.tolist() == [0, 1.5]
    assert (confidence, status) == (0, 0)


@pytest.mark.parametrize("window", [None, 2])
def test_gradients(window: int | None) -> None:
    torch.manual_seed(0)
    maps = (torch.rand(2, 5, 6, dtype=torch.float64) * 0.8).requires_grad_()

    def both(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return tuple(soft_argmax(x, "soft", 7.0, window)[:2])

    assert torch.autograd.gradcheck(both, maps)


def test_no_gradient_leaves_a_map_that_is_not_valid() -> None:
    maps = torch.rand(2, 5, 6).requires_grad_()
    broken = maps + torch.tensor([0.0, math.nan]).view(2, 1, 1)
    uv, confidence, _ = soft_argmax(broken)
    (uv[0].sum() + confidence.sum()).backward()
    assert maps.grad is not None
    assert maps.grad.isfinite().all()
    assert not maps.grad[1].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype: torch.dtype) -> None:
    maps = gaussian(33.3, 20.7, 2).to(dtype)
    uv, confidence, _ = soft_argmax(maps)
    assert uv.dtype == confidence.dtype == torch.float32
    expected = soft_argmax(maps.double())
    torch.testing.assert_close(uv, expected.uv.float(), atol=1e-4, rtol=0)


def test_autocast_changes_nothing() -> None:
    """Sums stay in float32 where products would be taken in less."""
    maps = gaussian(100.3, 20.7, 2, (128, 128)).float()
    plain = soft_argmax(maps, beta=3.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(soft_argmax(maps, beta=3.0).uv, plain.uv)


def test_pixels_of_the_image() -> None:
    corners = torch.tensor([[0.0, 0.0], [63.0, 31.0], [-0.5, 31.5]])
    half = to_image_pixels(corners, (32, 64), (128, 256))
    torch.testing.assert_close(half, 4 * (corners + 0.5) - 0.5)
    assert to_image_pixels(corners, (32, 64), (128, 256), "align_corners")[1].tolist() == pytest.approx([255, 127])
    assert to_image_pixels(corners, (32, 64), (128, 256), "corner")[1].tolist() == [252, 124]
    with pytest.raises(ValueError, match="convention: got 'middle'"):
        to_image_pixels(corners, (32, 64), (128, 256), "middle")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least two pixels"):
        to_image_pixels(corners, (1, 64), (128, 256), "align_corners")
    with pytest.raises(ValueError, match="expected positive"):
        to_image_pixels(corners, (32, 64), (0, 256))


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"heatmaps": torch.zeros(3)}, ValueError, r"heatmaps: got the shape \(3,\)"),
        ({"heatmaps": torch.zeros(2, 0, 4)}, ValueError, r"heatmaps: got the shape \(2, 0, 4\)"),
        ({"heatmaps": torch.zeros(129, 4)}, ValueError, "up to 128 x 128"),
        ({"heatmaps": torch.zeros(4, 4, dtype=torch.int32)}, TypeError, "heatmaps: got the dtype torch.int32"),
        ({"mode": "hard"}, ValueError, "mode: got 'hard'"),
        ({"beta": 0.0}, ValueError, "beta: got 0.0"),
        ({"beta": math.nan}, ValueError, "beta: got nan"),
        ({"window": -1}, ValueError, "window: got -1"),
        ({"window": 1.5}, ValueError, "window: got 1.5"),
    ],
)
def test_what_is_refused(arguments: dict, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=f"^{message}" if not message.startswith("up") else message):
        soft_argmax(**{"heatmaps": torch.zeros(4, 4), **arguments})


def test_no_maps_at_all() -> None:
    uv, confidence, status = soft_argmax(torch.zeros(0, 14, 8, 8))
    assert (uv.shape, confidence.shape, status.shape) == ((0, 14, 2), (0, 14), (0, 14))


def test_confidence_s_gradient_at_its_ends() -> None:
    """1 at 0 and at 1, 0 beyond: whatever torch's clamp does there."""
    for peak, expected in ((1.0, 1.0), (0.0, 1.0), (0.4, 1.0), (1.5, 0.0), (-0.5, 0.0)):
        maps = torch.full((1, 4, 4), peak - 1)
        maps[0, 1, 2] = peak
        maps.requires_grad_()
        soft_argmax(maps, "argmax").confidence.sum().backward()
        assert maps.grad is not None
        assert maps.grad[0, 1, 2] == expected
        assert maps.grad.abs().sum() == expected
