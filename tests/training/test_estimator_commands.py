"""The estimator's training from the command line, and by several processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("torchvision")

from jointbert.models.estimator import EstimatorConfig, HandPoseEstimator
from jointbert.models.refiner import JointRefiner, RefinerConfig
from tests.support.training import ROOT, TINY, experiment, invoke, model_of, write_config
from training.__main__ import app
from training.config import EstimatorExperiment, read_experiment
from training.data.batches import Shuffled
from training.estimator import EstimatorTraining, training_set

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice on workers and its own deprecations


def said(*arguments: object) -> tuple[int, str]:
    code, output = invoke(app, *arguments)
    return code, " ".join(output.split())


def test_from_the_command_line(tmp_path: Path) -> None:
    """Encoder, cache, hourglass, end to end, export: each command takes the files of the previous one."""
    config = write_config(tmp_path / "tiny.yaml")
    common = ("--config", config, "--threads", 1, "--epochs", 1)
    code, text = said("pretrain-encoder", *common, "--out", tmp_path / "e")
    assert (code, text.endswith(f"wrote {tmp_path}/e/estimator.safetensors")) == (0, True), text
    encoder = ("--encoder", tmp_path / "e" / "estimator.safetensors")
    code, text = said("cache-features", "--config", config, "--out", tmp_path / "cache", *encoder)
    assert (code, "features of 8 images" in text) == (0, True)
    cached = (*encoder, "--cache", tmp_path / "cache")
    assert said("pretrain-hourglass", *common, "--out", tmp_path / "h", *cached)[0] == 0
    JointRefiner(RefinerConfig(**TINY["refiner"])).save(tmp_path / "refiner.safetensors")
    parts = ("--hourglass", tmp_path / "h" / "estimator.safetensors", "--refiner", tmp_path / "refiner.safetensors")
    assert said("train", *common, "--out", tmp_path / "t", *cached, *parts)[0] == 0
    trained = HandPoseEstimator.load(tmp_path / "t" / "estimator.safetensors")
    assert trained.config == EstimatorConfig.of(TINY)
    before = HandPoseEstimator.load(tmp_path / "e" / "estimator.safetensors")
    assert torch.equal(trained.encoder.stem[0].weight, before.encoder.stem[0].weight)
    assert not torch.equal(trained.neck.smooth.weight, before.neck.smooth.weight)
    best = next((tmp_path / "t").glob("best-*.ckpt"))
    assert said("export-estimator", best, tmp_path / "again.safetensors")[0] == 0
    again = HandPoseEstimator.load(tmp_path / "again.safetensors").state_dict()
    assert all(torch.equal(value, again[key]) for key, value in trained.state_dict().items())


def test_all_at_once_from_nothing(tmp_path: Path) -> None:
    """With --encoder random the encoder is trained, too."""
    config = write_config(tmp_path / "tiny.yaml")
    code, text = said(
        "train", "--config", config, "--out", tmp_path / "t", "--encoder", "random", "--threads", 1, "--epochs", 1
    )
    assert code == 0, text
    trained = HandPoseEstimator.load(tmp_path / "t" / "estimator.safetensors")
    assert trained.encoder.trained
    assert trained.encoder.stem[1].running_mean.any()  # so were the statistics of batch norm


def test_a_look_at_rendered_hands(tmp_path: Path) -> None:
    from PIL import Image

    from jointbert.inputs.images import read_depth

    code, text = said("render-hands", tmp_path / "sheet.png", "--depth", tmp_path / "depth.png")
    assert (code, "images of 128 x 128 a second" in text) == (0, True)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size[0] > 800
    depth = read_depth(tmp_path / "depth.png")
    assert depth.shape == (480, 640)
    assert 400 < depth[depth > 0].mean() < 1200


def test_bad_input_is_one_sentence(tmp_path: Path) -> None:
    config = write_config(tmp_path / "tiny.yaml")
    out = ("--config", config, "--out", tmp_path / "out")
    assert said("train", *out, "--encoder", tmp_path / "none.pth") == (
        2,
        f"Error: {tmp_path}/none.pth: no such file of encoder weights",
    )
    JointRefiner(RefinerConfig(layers=1)).save(tmp_path / "refiner.safetensors")
    code, text = said("train", *out, "--encoder", tmp_path / "refiner.safetensors")
    assert (code, "not the weights of resnet18" in text) == (2, True)
    endless = write_config(tmp_path / "endless.yaml", data={"validation_images": 4})
    model_of(experiment()).save(tmp_path / "trained.safetensors")
    code, text = said(
        "cache-features", "--config", endless, "--out", tmp_path / "c", "--encoder", tmp_path / "trained.safetensors"
    )
    assert (code, "images without end can't be cached" in text) == (2, True)
    nyu = write_config(tmp_path / "nyu.yaml", data={"source": "nyu", "nyu": str(tmp_path)})
    code, text = said("pretrain-encoder", "--config", nyu, "--out", tmp_path / "out")
    assert (code, "joint_data.mat: no such file" in text) == (2, True)
    bad = write_config(tmp_path / "bad.yaml", model={"size": "large"})
    code, text = said("pretrain-encoder", "--config", bad, "--out", tmp_path / "out")
    assert (code, "model: size: got 'large'; expected int" in text) == (2, True)


def test_a_seed_decides_everything(tmp_path: Path) -> None:
    config = write_config(tmp_path / "tiny.yaml")
    for out in ("a", "b"):
        torch.manual_seed(hash(out) % 1000)
        code, text = said("pretrain-encoder", "--config", config, "--out", tmp_path / out, "--threads", 1, "--epochs", 1)
        assert code == 0, text
    a, b = (HandPoseEstimator.load(tmp_path / out / "estimator.safetensors").state_dict() for out in ("a", "b"))
    assert all(torch.equal(value, b[key]) for key, value in a.items())


def one_step_of(path: Path, batches: list[int]) -> dict[str, torch.Tensor]:
    """Parameters after one step of the experiment in ``path``, computed here from the mean of the batches' gradients."""
    run = read_experiment(path, EstimatorExperiment)
    images, _ = training_set(run.data, run.model)
    assert images is not None
    torch.manual_seed(run.seed)
    model = HandPoseEstimator(run.model)
    model.encoder.freeze()
    training = EstimatorTraining(run, model, "estimator", images).train()
    optimizer = training.configure_optimizers()["optimizer"]
    start = {k: v.clone() for k, v in model.state_dict().items()}
    gradients = []
    for index in batches:
        model.load_state_dict(start)
        optimizer.zero_grad()
        training.terms(Shuffled(images, run.trainer.batch_size, 2, run.seed)[index])["loss"].backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    learned = [p for p in model.parameters() if p.grad is not None]
    for parameter, *parts in zip(learned, *gradients, strict=True):
        parameter.grad = torch.stack(parts).mean(0)
    optimizer.step()
    return {f"model.{name}": p.detach() for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("launcher", ["processes", pytest.param("torchrun", marks=pytest.mark.full)])
def test_two_processes_share_a_step(tmp_path: Path, launcher: str) -> None:
    """With DDP on the CPU (gloo), a step follows the mean of both batches' gradients, not the first batch's."""
    trainer = {"epochs": 1, "steps_per_epoch": 1, "batch_size": 4, "precision": "32-true", "compile": False}
    optim = {"lr": 1e-3, "warmup_steps": 1, "ema": 0.0, "clip": 0.0}
    data = {"images": 8, "validation_images": 1}  # one: each validation image is drawn
    config = write_config(tmp_path / "tiny.yaml", trainer=trainer, optim=optim, data=data, seed=3)
    torch.manual_seed(3)  # the command creates its model with this seed: encoder and all other weights are equal
    start = HandPoseEstimator(EstimatorConfig.of(TINY))
    start.encoder.freeze()
    start.save(tmp_path / "trained.safetensors")
    command = [sys.executable, "-m", "training", "train", "--processes", "2"]
    if launcher == "torchrun":
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            "2",
            "-m",
            "training",
            "train",
        ]
    command += ["--config", str(config), "--encoder", str(tmp_path / "trained.safetensors"), "--threads", "1"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out")], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    state = torch.load(tmp_path / "out" / "last.ckpt", weights_only=True)["state_dict"]

    def share(expected: dict[str, torch.Tensor]) -> float:
        close = [torch.isclose(state[key], value, atol=2e-5, rtol=0).flatten() for key, value in expected.items()]
        return torch.cat(close).float().mean().item()

    assert share(one_step_of(config, [0, 1])) > 0.99
    assert share(one_step_of(config, [0])) < 0.9
