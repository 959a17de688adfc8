"""Keypoints from heatmaps of any library, on the fake CUDA runtime."""

from __future__ import annotations

import ctypes
from types import ModuleType

import numpy as np
import pytest

from jointbert.cuda.heatmaps import soft_argmax, soft_argmax_depth
from tests.support.fake_gpu import GpuArray, to_numpy

pytestmark = pytest.mark.usefixtures("gpu")


@pytest.mark.sanitize
def test_heatmaps_of_any_library(emulated_module: ModuleType) -> None:
    """Arrays of any library in, of the same library out."""
    rng = np.random.default_rng(0)
    maps = rng.random((3, 2, 14, 8, 8), dtype=np.float32)
    top = maps.reshape(3, 2, 14, -1).argmax(-1)
    expected = np.stack([top % 8, top // 8], -1)
    waits = ctypes.CDLL(emulated_module.__file__).fake_synchronisations
    before = waits()
    found = soft_argmax(GpuArray(maps), "argmax")
    assert waits() == before
    assert (found.uv.shape, found.uv.dtype, found.status.dtype) == ((3, 2, 14, 2), "float32", "uint8")
    np.testing.assert_array_equal(to_numpy(found.uv), expected)
    np.testing.assert_array_equal(to_numpy(found.confidence), maps.max((3, 4)))
    np.testing.assert_array_equal(to_numpy(found.status), 0)
    # Expected: the softmax's mean place over the whole map, and around the peak.
    places = np.stack(np.meshgrid(np.arange(8), np.arange(8)), -1).reshape(-1, 2).astype(float)
    for window in (None, 1):
        weights = np.exp(20 * maps.astype(float).reshape(3, 2, 14, -1))
        if window is not None:
            weights *= (np.abs(places - expected[..., None, :]) <= window).all(-1)
        mean = (weights[..., None] * places).sum(-2) / weights.sum(-1, keepdims=True)
        np.testing.assert_allclose(to_numpy(soft_argmax(GpuArray(maps), "soft", 20.0, window).uv), mean, atol=2e-5)

    weight, bias = rng.random((14, 14 * 64), dtype=np.float32), np.arange(14, dtype=np.float32)
    both = soft_argmax_depth(GpuArray(maps), GpuArray(weight), GpuArray(bias), "argmax")
    np.testing.assert_array_equal(to_numpy(both.uv), expected)
    linear = maps.reshape(3, 2, -1).astype(float) @ weight.T.astype(float) + bias
    np.testing.assert_allclose(to_numpy(both.depth), linear, rtol=1e-6)
    none = soft_argmax_depth(GpuArray(maps[:0]), GpuArray(weight), GpuArray(bias))
    assert (none.uv.shape, none.depth.shape) == ((0, 2, 14, 2), (0, 2, 14))


@pytest.mark.sanitize
def test_heatmap_arguments_are_checked(emulated_module: ModuleType) -> None:
    maps, weight, bias = np.zeros((2, 14, 8, 8), np.float32), np.zeros((14, 14 * 64), np.float32), np.zeros(14, np.float32)
    with pytest.raises(TypeError, match="heatmaps: got ndarray; expected an array on a GPU"):
        soft_argmax(maps)
    with pytest.raises(TypeError, match="heatmaps: got the dtype float64; expected one of float32, float16, bfloat16"):
        soft_argmax(GpuArray(maps.astype(float)))
    for shape in ((2, 21, 8, 8), (8, 8)):
        with pytest.raises(ValueError, match=r"heatmaps: got the shape .*; expected \(..., 14, H, W\)"):
            soft_argmax(GpuArray(np.zeros(shape, np.float32)))
    with pytest.raises(ValueError, match="up to 128 x 128"):
        soft_argmax(GpuArray(np.zeros((1, 14, 129, 8), np.float32)))
    with pytest.raises(ValueError, match="mode: got 'mean'"):
        soft_argmax(GpuArray(maps), "mean")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"weight: got the shape \(14, 5\); expected \(14, 896\) for heatmaps \(2, 14, 8, 8\)"):
        soft_argmax_depth(GpuArray(maps), GpuArray(weight[:, :5]), GpuArray(bias))
    with pytest.raises(ValueError, match=r"bias: got float64 of the shape \(14,\); expected float32"):
        soft_argmax_depth(GpuArray(maps), GpuArray(weight), GpuArray(bias.astype(float)))
    with pytest.raises(TypeError, match="weight: got ndarray; expected an array on a GPU"):
        soft_argmax_depth(GpuArray(maps), weight, GpuArray(bias))
    with pytest.raises(ValueError, match="up to 128 x 128"):
        emulated_module.soft_argmax_depth(0, 0, 1, 129, 8, False, 1.0, -1, 0, 0, 0, 0, 0, 0, 0, 0, 0)
