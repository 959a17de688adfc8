"""What the documentation shows is run as it stands."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import numpy as np
import pytest

import jointbert
from tests.support.readme import python_block


def test_the_readme_s_example_runs() -> None:
    names: dict[str, object] = {}
    exec(compile(python_block("poses"), "README.md", "exec"), names)
    assert names["status"].shape == (256,)  # type: ignore[attr-defined]
    assert names["better"].shape == (60, 14, 3)  # type: ignore[attr-defined]
    assert len(names["online"]) == 60  # type: ignore[arg-type]
    assert (names["status"] == 0).all()  # type: ignore[attr-defined]


def test_the_readme_s_estimator_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    for needed in ("torchvision", "onnxscript", "onnxruntime"):
        pytest.importorskip(needed)
    from jointbert.export.onnx import export_estimator
    from jointbert.models.estimator import HandPoseEstimator

    torch.manual_seed(0)
    small = {"size": 64, "backbone": "resnet18", "width": 8, "depth": 2, "refiner": {"layers": 1, "heads": 2, "width": 16}}
    HandPoseEstimator.from_config(small, encoder=None).save(tmp_path / "small.safetensors")
    export_estimator(tmp_path / "small.onnx", tmp_path / "small.safetensors")
    monkeypatch.chdir(tmp_path)
    depth = np.zeros((2, 480, 640), np.float32)
    depth[:, 200:280, 280:360] = 800
    names = {"jointbert": jointbert, "depth_images": depth, "centres": np.array([[0, 0, 800]] * 2)}
    exec(compile(python_block("estimator"), "README.md", "exec"), names)
    assert names["estimated"].refined.shape == (2, 14, 3)  # type: ignore[attr-defined]


@pytest.mark.parametrize("module", ["jointbert", "jointbert.refine"])
def test_examples_in_docstrings(module: str) -> None:
    result = doctest.testmod(importlib.import_module(module))

    assert result.attempted > 0
    assert result.failed == 0
