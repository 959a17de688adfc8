"""The thesis's figures, and the benchmarks of attention and of the feature cache, at the smallest size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

pytest.importorskip("torchvision")
image = pytest.importorskip("PIL.Image")
pytest.importorskip("matplotlib")

from benchmarks import attention as attention_benchmark  # noqa: E402
from benchmarks import feature_cache  # noqa: E402
from jointbert.models.estimator import EstimatorConfig, HandPoseEstimator  # noqa: E402
from jointbert.models.refiner import JointRefiner, RefinerConfig  # noqa: E402
from tests.support.training import TINY, app_of, invoke  # noqa: E402
from training.experiments import thesis_figures  # noqa: E402

MODEL = {**TINY, "refiner": {**TINY["refiner"], "layers": 3}}


def said(main: Any, *arguments: object) -> tuple[int, str]:
    return invoke(app_of(main), *arguments)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A config and an estimator."""
    content = {"name": "tiny", "model": MODEL, "data": {"images": 8, "validation_images": 10}}
    content["trainer"] = {"precision": "32-true", "compile": False}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(content))
    torch.manual_seed(0)
    HandPoseEstimator(EstimatorConfig.of(MODEL)).save(tmp_path / "estimator.safetensors")
    return tmp_path / "tiny.yaml", tmp_path / "estimator.safetensors"


def test_figures_of_an_estimator(files: tuple[Path, Path], tmp_path: Path) -> None:
    config, estimator = files
    out = tmp_path / "figures"
    given = ("--config", config, "--estimator", estimator, "--out", out, "--samples", "2", "--threads", "1")
    code, text = said(thesis_figures.main, *given)
    assert code == 0, text
    assert "before refinement: " in text
    assert "40 images" in text
    assert len(text.splitlines()) == 2 + 1 + 3 + 1  # errors, a head, three layers, uniform
    torch.manual_seed(1)
    (tmp_path / "another").mkdir()
    HandPoseEstimator(EstimatorConfig.of({**MODEL, "refiner": None})).save(tmp_path / "another" / "e.safetensors")
    code, beside = said(thesis_figures.main, *given, "--beside", tmp_path / "another" / "e.safetensors")
    assert code == 0, beside
    assert beside.splitlines()[0].startswith("another: ")
    assert beside.splitlines()[1:] == text.splitlines()
    names = sorted(path.name for path in out.iterdir())
    assert names == ["attention-02.png", "heatmaps-1.png", "heatmaps-2.png", "joint-errors.png"]
    for name in names:
        with image.open(out / name) as picture:
            assert picture.size[0] > 400


def test_attention_is_that_of_what_refine_sees(files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean over images of the refiner's attention on the features that :meth:`HandPoseEstimator.refine` passes it."""
    from training.config import EstimatorExperiment, read_experiment
    from training.estimator import test_set

    config, estimator = files
    model = HandPoseEstimator.load(estimator)
    assert model.refiner is not None
    images = test_set(read_experiment(config, EstimatorExperiment).data, model.config)
    passed: list[torch.Tensor] = []
    model.refiner.register_forward_hook(lambda _, given, __: passed.append(given[0]))
    found = thesis_figures.mean_attention(model, images)
    assert not passed
    assert len(images) == 40  # four times those that validate
    for rows in (range(32), range(32, 40)):
        seen = images.take(list(rows)).images
        with torch.inference_mode():
            dense = model.dense(seen.crops)
            model.refine(model.to_xyz(dense.joints, seen.crop), dense.joints.confidence)
    expected = model.refiner.attention(torch.cat(passed)).mean(1)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)
    assert found.shape == (3, 2, 14, 14)


def test_attention_of_published_predictions(small_folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    JointRefiner(RefinerConfig(**MODEL["refiner"])).save(tmp_path / "r.safetensors")
    given = ("--weights", tmp_path / "r.safetensors", "--stride", "100", "--figures", tmp_path / "out")
    code, text = said(attention_benchmark.main, "--data", small_folder, *given)
    assert code == 0, text
    assert "r.safetensors: 40 poses" in text  # 20 frames of two methods
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["attention-02.png"]


def test_the_cache_s_benchmark(files: tuple[Path, Path]) -> None:
    code, text = said(feature_cache.main, "--config", files[0], "--batch", "2", "--seconds", "0.1")
    assert code == 0, text
    # A ResNet18's maps of 64 x 64: 64 x 16^2 + 128 x 8^2 + 256 x 4^2 + 512 x 2^2 halves.
    assert f"{2 * (64 * 256 + 128 * 64 + 256 * 16 + 512 * 4) / 2**20:.2f} MiB of maps an image" in text
    assert "times as fast" in text


def test_bad_input_is_one_sentence(files: tuple[Path, Path], small_folder: Path, tmp_path: Path) -> None:
    config, estimator = files
    refiner = tmp_path / "r.safetensors"
    JointRefiner(RefinerConfig(**MODEL["refiner"])).save(refiner)
    nyu = tmp_path / "nyu.yaml"
    nyu.write_text(yaml.safe_dump({"name": "nyu", "model": MODEL, "data": {"source": "nyu", "nyu": str(tmp_path)}}))
    without = tmp_path / "without.yaml"
    without.write_text(yaml.safe_dump({"name": "a refiner's"}))
    large = tmp_path / "large.safetensors"
    wide, rgb, taken = tmp_path / "wide.safetensors", tmp_path / "rgb.safetensors", tmp_path / "after" / "e.safetensors"
    taken.parent.mkdir()
    for path, change in ((large, {"size": 96}), (wide, {"cube_mm": 250.0}), (rgb, {"image": "rgb"}), (taken, {})):
        HandPoseEstimator(EstimatorConfig.of({**MODEL, **change})).save(path)
    out = ("--out", tmp_path / "out")
    cases: list[tuple[Any, tuple[object, ...], str]] = [
        (thesis_figures.main, ("--config", config, "--estimator", refiner, *out), "is not an estimator's"),
        (thesis_figures.main, ("--config", nyu, "--estimator", estimator, *out), "joint_data.mat: no such file"),
        (thesis_figures.main, ("--config", without, "--estimator", estimator, *out), "without.yaml: 'model' is missing"),
        (thesis_figures.main, ("--config", config, "--estimator", estimator, *out, "--beside", large), "looks at other crops"),
        (thesis_figures.main, ("--config", config, "--estimator", estimator, *out, "--beside", wide), "looks at other crops"),
        (thesis_figures.main, ("--config", config, "--estimator", rgb, *out), "takes rgb images"),
        (thesis_figures.main, ("--config", config, "--estimator", estimator, *out, "--beside", taken), "'after' is taken"),
        (feature_cache.main, ("--config", without), "without.yaml: 'model' is missing"),
        (attention_benchmark.main, ("--data", tmp_path / "none"), "none"),
        (attention_benchmark.main, ("--data", small_folder, "--weights", "nyu15"), "'nyu15' is not shipped"),
    ]
    for main, arguments, message in cases:
        code, text = said(main, *arguments)
        assert code == 2, text
        assert text.startswith("Error: "), text
        assert message in text, text
        assert len(text.splitlines()) == 1, text
