"""Fixtures: real-looking poses, weights with every tensor at work, the shared data where it is."""

from __future__ import annotations

import os
from pathlib import Path

if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    # Before numpy and torch read it: threads of several workers that wait for each other's cores take many times as long.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

import hypothesis
import numpy as np
import pytest

import jointbert
from jointbert.contract.layout import LAYOUT, SEQUENCE_FEATURES, SEQUENCE_LAYOUT
from jointbert.weights import fingerprint, sequence_tensor_shapes, tensor_shapes
from tests.support.once import once

DATA = Path(os.environ.get("JOINTBERT_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="run tests marked `full`, and others at their full sizes")


def pytest_configure(config: pytest.Config) -> None:
    hypothesis.settings.register_profile("commit", max_examples=40, deadline=None)
    hypothesis.settings.register_profile("full", max_examples=400, deadline=None)
    hypothesis.settings.register_profile("sanitize", max_examples=15, deadline=None)  # by scripts/sanitize.sh: slow
    chosen = "full" if config.getoption("--full") else "sanitize" if "SANITIZED_BUILD" in os.environ else "commit"
    hypothesis.settings.load_profile(chosen)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--full"):
        for item in items:
            if item.get_closest_marker("full"):
                item.add_marker(pytest.mark.skip(reason="only with --full"))


@pytest.fixture(scope="session")
def full(request: pytest.FixtureRequest) -> bool:
    """Whether tests run at their full sizes (``pytest --full``)."""
    return bool(request.config.getoption("--full"))


@pytest.fixture(scope="session")
def nyu_folder() -> Path:
    """The folder of published predictions; the test is skipped where it is missing."""
    folder = DATA / "nyu"
    if not (folder / "groundtruth.txt").is_file():
        pytest.skip(f"no published predictions at {folder} (set JOINTBERT_DATA)")
    return folder


@pytest.fixture(scope="session")
def leap_file() -> Path:
    """The Leap recordings; the test is skipped where they are missing."""
    path = DATA / "leap" / "leap_hands.npz"
    if not path.is_file():
        pytest.skip(f"no Leap recordings at {path} (set JOINTBERT_DATA)")
    return path


@pytest.fixture(scope="session")
def poses() -> np.ndarray:
    """``(256, 14, 3)`` float64 predictions of right hands in the camera frame, millimetres."""
    return jointbert.load_demo().predictions.astype(np.float64)


@pytest.fixture(scope="session")
def random_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weight file in which every tensor matters: an untrained refiner's head is zero. Made without torch."""
    from safetensors.numpy import save_file

    sizes = {"layers": 12, "heads": 8, "width": 128, "ffn": 256, "features": 8, "outputs": 4}
    tensors = _random_tensors(tensor_shapes(sizes), np.random.default_rng(3))
    tensors["observed_gain"] = np.full(1, 0.8, np.float32)
    path = tmp_path_factory.mktemp("weights") / "random.safetensors"
    save_file(tensors, path, metadata={"layout": LAYOUT, "name": "random", **{k: str(v) for k, v in sizes.items()}})
    return path


@pytest.fixture(scope="session")
def sequence_weights(random_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same refiner with a second stage beside it."""
    from safetensors.numpy import load_file, save_file

    path = tmp_path_factory.mktemp("sequence") / "both.safetensors"
    path.write_bytes(random_weights.read_bytes())
    sizes = {"layers": 2, "heads": 8, "width": 128, "ffn": 256, "features": SEQUENCE_FEATURES, "outputs": 4}
    tensors = _random_tensors(sequence_tensor_shapes(sizes), np.random.default_rng(4))
    tensors["gain"] = np.full(1, 0.7, np.float32)
    metadata = {"layout": SEQUENCE_LAYOUT, "first_stage": fingerprint(load_file(path)), "name": "random"}
    save_file(tensors, path.with_name("both-sequence.safetensors"), metadata | {k: str(v) for k, v in sizes.items()})
    return path


@pytest.fixture(scope="session")
def exported(random_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same refiner as an ONNX file, alone in its folder."""
    pytest.importorskip("onnxscript")
    from jointbert.export.onnx import export_refiner

    folder = once(tmp_path_factory, "exported", lambda folder: export_refiner(folder / "refiner.onnx", random_weights))
    return folder / "refiner.onnx"


def _random_tensors(shapes: dict[str, tuple[int, ...]], rng: np.random.Generator) -> dict[str, np.ndarray]:
    tensors = {}
    for name, shape in shapes.items():
        noise = rng.normal(size=shape)
        if "norm" in name and name.endswith("weight"):
            value = 1 + 0.1 * noise
        elif len(shape) == 1:
            value = 0.05 * noise
        else:
            value = noise * shape[-1] ** -0.5
        tensors[name] = value.astype(np.float32)
    tensors["head.weight"] *= 0.2
    return tensors
