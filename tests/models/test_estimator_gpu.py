"""The estimator on a GPU: its graphs, its precisions, and our kernels within."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

if not os.environ.get("JOINTBERT_NEEDS_GPU"):  # where it is set, what is missing fails
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU", allow_module_level=True)
    pytest.importorskip("jointbert._cuda", reason="built without GPU kernels")
    pytest.importorskip("torchvision")

from jointbert.camera import NYU  # noqa: E402
from jointbert.estimator import Estimated, Estimator  # noqa: E402
from jointbert.estimator.torch_runtime import OneLaunch, TorchEstimator  # noqa: E402
from jointbert.models.estimator import EstimatorConfig, HandPoseEstimator  # noqa: E402
from jointbert.models.refiner import RefinerConfig  # noqa: E402

SMALL = EstimatorConfig(size=64, backbone="resnet18", width=16, depth=3, beta=20.0, refiner=RefinerConfig(layers=2))


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    """float32 is float32."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = HandPoseEstimator(SMALL)
    assert model.refiner is not None
    torch.nn.init.normal_(model.refiner.head.weight, std=0.1)
    path = tmp_path_factory.mktemp("estimator") / "small.safetensors"
    model.save(path)
    return path


def scene(batch: int, seed: int = 0, h: int = 480, w: int = 640) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    v, u = np.meshgrid(np.arange(h), np.arange(w), indexing="ij")
    bump = 800 - 60 * np.exp(-((u - 330) ** 2 + (v - 250) ** 2) / 2000)
    images = np.stack([np.where(bump < 798, bump + rng.normal(0, 3, bump.shape), 0) for _ in range(batch)])
    return images.astype(np.float32), np.array([[10.0, 10, 790]] * batch) + rng.normal(0, 5, (batch, 3))


def test_float32_is_the_cpu_s(file: Path) -> None:
    on_gpu, on_cpu = Estimator(file, device="cuda", precision="f32"), Estimator(file)
    for batch, seed in ((2, 0), (1, 1), (2, 2)):  # the third replays the first's graph
        found, expected = (e(*scene(batch, seed), NYU, np.arange(batch) % 2 == 1) for e in (on_gpu, on_cpu))
        for name, tolerance in (("heatmaps", 1e-3), ("crops", 1e-4), ("joints", 0.1), ("refined", 0.1), ("uv", 0.05)):
            np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=tolerance, err_msg=name)


@pytest.mark.parametrize("precision", ["f16", "bf16"])
def test_the_refiner_is_one_launch(file: Path, precision: str) -> None:
    """It refines what the network found, as torch does in float32 on the CPU."""
    if precision == "bf16" and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this GPU multiplies no bfloat16")
    runtime = TorchEstimator(file, 1, "cuda", precision)
    assert isinstance(runtime._refine, OneLaunch)
    images, centres = scene(3)
    left = np.array([False, True, False])
    camera = np.tile(np.array([[NYU.fx, NYU.fy, NYU.cx, NYU.cy]], np.float32), (3, 1))
    found = runtime(images[:, None], centres.astype(np.float32), camera, left)
    model = HandPoseEstimator.load(file)
    with torch.inference_mode():
        refined, sigma = model.refine(*(torch.from_numpy(x) for x in (found.joints, found.confidence, left)))
    np.testing.assert_allclose(found.refined, refined.numpy(), atol=0.3 if precision == "bf16" else 0.1)
    np.testing.assert_allclose(found.sigma, sigma.numpy(), rtol=0.1)
    assert np.abs(found.refined - found.joints).max() > 1


def test_half_precision_finds_the_same_heatmaps(file: Path) -> None:
    found, expected = Estimator(file, device="cuda")(*scene(2), NYU), Estimator(file)(*scene(2), NYU)
    np.testing.assert_allclose(found.heatmaps, expected.heatmaps, atol=0.01)
    np.testing.assert_allclose(found.crops, expected.crops, atol=1e-4)
    assert all(getattr(found, name).dtype == np.float32 for name in Estimated._fields)


def test_shapes_and_threads(file: Path) -> None:
    """Any batch and image size, none included, from several threads."""
    estimator = Estimator(file, device="cuda", precision="f32")
    assert estimator(np.zeros((0, 480, 640), np.float32), np.zeros((0, 3)), NYU).refined.shape == (0, 14, 3)
    inputs = [scene(batch, batch, h, 640) for batch in (1, 2, 3, 4, 5) for h in (400, 480)]  # more than are kept
    alone = [estimator(*given, NYU).refined for given in inputs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda given: estimator(*given, NYU).refined, inputs * 2))
    for a, b in zip(alone * 2, together, strict=True):
        np.testing.assert_allclose(a, b, atol=0.1)
