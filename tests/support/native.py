"""Poses, weights and comparisons for the tests of the native backend."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from jointbert import _core
from jointbert.contract import Batch, Result, Status
from jointbert.weights import Weights

torch = pytest.importorskip("torch")
from jointbert.models.refiner import JointRefiner, RefinerConfig  # noqa: E402

ISAS = _core.supported_isas()
CANONICAL = np.arange(14, dtype=np.int32)
SHUFFLED = np.random.default_rng(7).permutation(14).astype(np.int32)


def random_weights(layers: int = 12) -> Weights:
    """Weights of a trained refiner's scale in which every tensor matters: an untrained one corrects nothing."""
    generator = torch.Generator().manual_seed(layers)
    model = JointRefiner(RefinerConfig(layers=layers))
    tensors = {}
    for name, parameter in model.state_dict().items():
        noise = torch.randn(parameter.shape, generator=generator)
        norm = "norm" in name
        if norm and name.endswith("weight"):
            value = 1 + 0.2 * noise
        elif name.endswith("bias"):
            value = 0.1 * noise
        else:
            value = noise * (0.3 if name in ("embed.weight", "joint_embedding", "mask") else 0.06)
        tensors[name] = value.numpy()
    tensors["head.weight"] *= 0.02 / 0.06
    tensors["observed_gain"] = np.full(1, 0.8, np.float32)
    sizes = {"layers": layers, "heads": 8, "width": 128, "ffn": 256, "features": 8, "outputs": 4}
    return Weights("random", tensors, sizes, {})


def hands(count: int, seed: int = 0) -> np.ndarray:
    """Right hands of an adult's size, some 80 cm from the camera: (count, 14, 3) float64 in millimetres."""
    rng = np.random.default_rng(seed)
    fingers = [(-30 + 20 * i, y) for i in range(4) for y in (-90 - 10 * (i in (1, 2)), -45 - 10 * (i in (1, 2)))]
    flat = np.array([*fingers, (70, -20), (50, 0), (30, 20), (-25, 60), (25, 60), (0, 0)])
    pose = np.concatenate([flat, np.zeros((14, 1))], axis=1)
    rotation = np.linalg.qr(rng.standard_normal((count, 3, 3)))[0]
    rotation *= np.linalg.det(rotation)[:, None, None]
    place = rng.uniform((-200, -200, 600), (200, 200, 1000), (count, 1, 3))
    return (pose + rng.normal(0, 8, (count, 14, 3))) @ rotation + place


def make_batch(joints: np.ndarray, **given: Any) -> Batch:
    blank: dict[str, Any] = {"mirror": None, "visible": None, "confidence": None, "error_mm": None}
    return Batch(**{"joints": joints, "permutation": CANONICAL, "mm_per_unit": 1.0, **blank, **given})


def full_batch(count: int, dtype: type = np.float64, seed: int = 1) -> Batch:
    """Every option at once: shuffled order, centimetres, both hands, missing joints, unknown confidences and errors."""
    rng = np.random.default_rng(seed)
    joints = hands(count, seed) / 10
    joints[rng.random((count, 14)) < 0.1, 0] = np.nan
    confidence = rng.random((count, 14), dtype=np.float32)
    confidence[rng.random((count, 14)) < 0.2] = np.nan
    error_mm = rng.uniform(0.01, 300, (count, 14)).astype(np.float32)
    error_mm[rng.random((count, 14)) < 0.2] = np.nan
    return Batch(
        joints=joints.astype(dtype),
        permutation=SHUFFLED,
        mm_per_unit=10.0,
        mirror=rng.random(count) < 0.5,
        visible=rng.random((count, 14)) < 0.9,
        confidence=confidence,
        error_mm=error_mm,
    )


def rows(batch: Batch, index: slice) -> Batch:
    cut = {
        name: None if (value := getattr(batch, name)) is None else np.ascontiguousarray(value[index])
        for name in ("joints", "mirror", "visible", "confidence", "error_mm")
    }
    return replace(batch, **cut)


def assert_same_bits(one: Result, other: Result, index: slice = slice(None)) -> None:
    for name in ("joints", "sigma", "status", "size_mm", "chirality"):
        mine, theirs = getattr(one, name), getattr(other, name)[index]
        assert mine.dtype == theirs.dtype, name
        assert mine.shape == theirs.shape, name
        assert mine.tobytes() == theirs.tobytes(), name


def assert_matches(mine: Result, reference: Result, batch: Batch, tolerance_mm: float) -> None:
    assert mine.joints.dtype == batch.joints.dtype
    assert mine.joints.shape == batch.joints.shape
    np.testing.assert_array_equal(mine.status, reference.status)
    np.testing.assert_allclose(mine.size_mm, reference.size_mm, rtol=1e-6)
    np.testing.assert_allclose(mine.chirality, reference.chirality, rtol=1e-5, atol=1e-6)
    good = mine.status == Status.REFINED
    error = np.abs(mine.joints[good].astype(np.float64) - reference.joints[good]) * batch.mm_per_unit
    assert error.max(initial=0) <= tolerance_mm
    np.testing.assert_allclose(mine.sigma[good], reference.sigma[good], rtol=3e-6)
    assert np.isnan(mine.sigma[~good]).all()
    assert mine.joints[~good].tobytes() == batch.joints[~good].tobytes()
