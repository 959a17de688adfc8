"""The experiment of table 5.1, at the smallest size at which every part runs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import yaml
from typer.testing import CliRunner

pytest.importorskip("torchvision")

from jointbert.models.estimator import EstimatorConfig, HandPoseEstimator
from jointbert.models.refiner import JointRefiner, RefinerConfig
from tests.support.training import TINY, app_of
from training.experiments import table51

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice on workers and its own deprecations


def test_every_row_is_trained_and_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: bool) -> None:
    seeds = ("0", "1") if full else ("0",)
    trainer = {"epochs": 1, "steps_per_epoch": 1, "batch_size": 4, "precision": "32-true", "compile": False}
    content: dict[str, object] = {
        "name": "tiny",
        "model": TINY,
        "data": {"images": 8, "validation_images": 8},
        "trainer": trainer,
    }
    content["optim"] = {"ema": 0.999 if full else 0.0}  # averaged weights double the checkpoints
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(content))
    torch.manual_seed(0)
    encoder = HandPoseEstimator(EstimatorConfig.of(TINY))
    encoder.encoder.freeze()
    encoder.save(tmp_path / "encoder.safetensors")
    app = app_of(table51.main)
    arguments = ["--config", str(tmp_path / "tiny.yaml"), "--encoder", str(tmp_path / "encoder.safetensors"), "--threads", "1"]
    arguments += ["--out", str(tmp_path / "out"), "--seeds", ",".join(seeds), "--refiner-steps", "20"]
    first = CliRunner().invoke(app, arguments)
    assert first.exit_code == 0, first.output
    results = json.loads((tmp_path / "out" / "table51.json").read_text())
    assert results.keys() == table51.ROWS.keys()
    for name, by_seed in results.items():
        assert by_seed.keys() == set(seeds)
        for row in by_seed.values():
            assert row["after_mm"] > 0
            assert 0 <= row["auc"] <= 1
            assert row["epochs_to_goal"] == 1 or math.isnan(row["epochs_to_goal"])
            refines = table51.ROWS[name].refiner
            assert (row["before_mm"] == row["after_mm"]) == (not refines)
    assert "7.55" in first.output
    # A second run trains and measures nothing, because every row is there.
    for name in ("train", "figures"):
        monkeypatch.setattr(table51, name, lambda *_, name=name: pytest.fail(f"{name} again"))
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 0, again.output
    assert again.output.splitlines()[-7:] == first.output.splitlines()[-7:]
    assert json.loads((tmp_path / "out" / "table51.json").read_text()).keys() == results.keys()
    # A folder with results of another experiment, or of an unknown one, is refused.
    config, asked = tmp_path / "tiny.yaml", tmp_path / "out" / "asked.json"
    before, owner = config.read_text(), asked.read_text()

    def refused(changed: list[str], what: str = "results are of another experiment, encoder or options") -> None:
        other = CliRunner().invoke(app, changed)
        assert (other.exit_code, what in other.output) == (2, True), other.output

    refused([*arguments[:-1], "21"])
    config.write_text(yaml.safe_dump({**content, "data": {"images": 8, "validation_images": 9}}))
    refused(arguments)
    config.write_text(before)
    next(iter(encoder.neck.state_dict().values())).add_(1)
    encoder.save(tmp_path / "another.safetensors")
    refused([str(tmp_path / "another.safetensors") if a.endswith("encoder.safetensors") else a for a in arguments])
    asked.unlink()
    refused(arguments)
    asked.write_text(owner)
    (tmp_path / "out" / "table51.json").write_text("{")
    refused(arguments, "table51.json: no readable results")
    bad = CliRunner().invoke(app, [*arguments, "--seeds", "0,a"])
    assert (bad.exit_code, bad.output) == (2, "Error: --seeds: got '0,a'; expected whole numbers with commas, such as 0,1,2\n")


def test_pretraining_teaches_the_refiner(tmp_path: Path) -> None:
    """The refiner reduces the error of unseen poses with noise of 10 mm."""
    config = RefinerConfig(layers=2, heads=2, width=32, ffn=64)
    table51.pretrain_refiner(config, 300, 10.0, 0, tmp_path / "refiner.safetensors")
    model = JointRefiner.load(tmp_path / "refiner.safetensors")
    true = table51.sample_hands(256, torch.Generator().manual_seed(5)).joints
    given = true + 10 * torch.randn(true.shape, generator=torch.Generator().manual_seed(6))
    unknown = torch.full(true.shape[:2], torch.nan)
    features, _ = table51.encode(given, torch.ones(true.shape[:2], dtype=torch.bool), unknown, unknown)
    with torch.inference_mode():
        refined = given + 100 * model(features)[..., :3]
    centred = [x - x.mean(1, keepdim=True) for x in (true, given, refined)]
    before, after = ((x - centred[0]).norm(dim=-1).mean() for x in centred[1:])
    assert after < 0.96 * before
    stamp = (tmp_path / "refiner.safetensors").stat().st_mtime_ns
    table51.pretrain_refiner(config, 300, 10.0, 0, tmp_path / "refiner.safetensors")
    assert (tmp_path / "refiner.safetensors").stat().st_mtime_ns == stamp
