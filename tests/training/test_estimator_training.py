"""Training the estimator: losses by closed form, what learns in which stage, the feature cache, resuming, several processes."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

pytest.importorskip("torchvision")

from jointbert.models.estimator import EstimatorConfig, HandPoseEstimator
from jointbert.models.refiner import JointRefiner, RefinerConfig
from training import losses
from training.__main__ import app
from training.config import (
    EstimatorExperiment,
    EstimatorLossConfig,
    ImageDataConfig,
    OptimConfig,
    TrainerConfig,
    read_experiment,
)
from training.data import feature_cache
from training.data.batches import Endless, ImageBatch, OneByOne, Shuffled
from training.data.feature_cache import FeatureCache, build_cache, encoder_hash
from training.data.images import RenderConfig, RenderedHands
from training.estimator import (
    EstimatorTraining,
    estimate_statistics,
    export_estimator,
    hourglass_parts,
    load_parts,
    measure,
    prepare,
    train,
    training_set,
)
from training.fit import learning_rate

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice on workers and its own deprecations
ROOT = Path(__file__).resolve().parents[2]
TINY: dict[str, Any] = {"size": 64, "backbone": "resnet18", "width": 8, "depth": 2, "beta": 20.0, "window": 3}
TINY["refiner"] = {"layers": 1, "heads": 2, "width": 16, "ffn": 16}


def experiment(**changes: Any) -> EstimatorExperiment:
    return EstimatorExperiment(
        "tiny",
        seed=1,
        model=EstimatorConfig.of({**TINY, **changes}),
        data=ImageDataConfig(images=8, validation_images=4),
        optim=OptimConfig(lr=1e-3, warmup_steps=1, ema=0.5),
        trainer=TrainerConfig(epochs=2, steps_per_epoch=2, batch_size=4, precision="32-true", compile=False),
    )


def model_of(run: EstimatorExperiment, trained: bool = True) -> HandPoseEstimator:
    torch.manual_seed(0)
    model = HandPoseEstimator(run.model)
    if trained:
        model.encoder.freeze()
    return model


def test_blobs_by_hand() -> None:
    maps = losses.blobs(torch.tensor([[[3.0, 5.0]]]).expand(1, 14, 2), 16, 2.0)
    assert maps.shape == (1, 14, 16, 16)
    assert maps[0, 0, 5, 3] == 1
    assert maps[0, 0, 5, 5].item() == pytest.approx(math.exp(-0.5))
    assert maps[0, 0, 9, 6].item() == pytest.approx(math.exp(-(9 + 16) / 8))


def test_losses_by_hand() -> None:
    zero = torch.zeros(2, 14, 16, 16)
    assert losses.heatmap_loss(zero, zero + 0.5).item() == pytest.approx(64)
    joints = torch.zeros(2, 14, 3)
    true = joints + torch.tensor([30.0, -40.0, 0.0])
    assert losses.joint_loss(joints, true).item() == pytest.approx(0.25)
    confidence = torch.full((2, 14), 0.5)
    assert losses.refinement_loss(joints, true, confidence, 0.05).item() == pytest.approx(1.4)
    assert losses.refinement_loss(joints, true, torch.zeros(2, 14), 0.05).item() == pytest.approx(14)
    assert losses.sigma_loss(joints, true, torch.full((2, 14), 100.0)).item() == pytest.approx(0.5)


def test_the_confidence_is_a_weight_alone() -> None:
    confidence = torch.full((1, 14), 0.5, requires_grad=True)
    joints = torch.zeros(1, 14, 3, requires_grad=True)
    losses.refinement_loss(joints, joints.detach() + 1, confidence, 0.05).backward()
    assert confidence.grad is None


def test_table_4_1_s_schedule() -> None:
    run = read_experiment(ROOT / "training/configs/estimator/thesis-hourglass.yaml", EstimatorExperiment)
    assert run.model == EstimatorConfig()
    factor = lambda step: learning_rate(step, run.optim, 225_700, run.trainer.steps_per_epoch)  # noqa: E731
    assert [factor(0), factor(499), factor(999), factor(1000)] == [0.001, 0.5, 1.0, 1.0]
    assert factor(10 * 2257) == pytest.approx(0.99**10)
    end_to_end = read_experiment(ROOT / "training/configs/estimator/thesis.yaml", EstimatorExperiment)
    assert end_to_end.model.peak == "argmax"
    for table in (run, end_to_end):
        assert (table.optim.optimizer, table.optim.lr, table.trainer.epochs, table.trainer.batch_size) == (
            "adam",
            1e-4,
            100,
            32,
        )


@pytest.mark.parametrize("head", ["linear", "awr"])
@pytest.mark.parametrize("stage", ["encoder", "hourglass", "estimator"])
def test_gradients_reach_what_a_stage_trains(stage: str, head: str) -> None:
    run = experiment(head=head)
    images, _ = training_set(run.data, run.model)
    assert images is not None
    model = model_of(run)
    assert model.refiner is not None
    torch.nn.init.normal_(model.refiner.head.weight, std=0.1)
    training = EstimatorTraining(run, model, stage, images)  # type: ignore[arg-type]
    training.terms(images.take(list(range(4))))["loss"].backward()
    learned = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    expected = {"encoder": {"encoder", "neck", "hourglass"}, "hourglass": {"neck", "hourglass"}}
    parts = expected.get(stage, {"neck", "hourglass", "regression", "refiner"}) | ({"regression"} if head == "awr" else set())
    allowed = {name for name, _ in model.named_parameters() if name.split(".")[0] in parts} - {"refiner.mask"}
    assert learned == allowed
    assert all(p.requires_grad == (name in allowed) for name, p in model.named_parameters())


def test_batch_norm_s_statistics_are_means_over_batches() -> None:
    """Of a layer whose input is known, against its mean and variance; a frozen encoder keeps its own."""
    run = experiment()
    model = model_of(run)
    frozen = {name: value.clone() for name, value in model.encoder.state_dict().items()}
    model.hourglass.residual.change[0].running_mean.fill_(7)
    hands = RenderedHands(RenderConfig(), 64, 300.0, 4, 3, 5)
    batches = [ImageBatch(hands[i], None) for i in range(3)]
    inputs: list[torch.Tensor] = []
    layer = model.hourglass.linear[1]
    hook = layer.register_forward_pre_hook(lambda _, given: inputs.append(given[0].detach().double()))
    momentum = layer.momentum
    estimate_statistics(model, batches)
    hook.remove()
    assert len(inputs) == 3
    means = torch.stack([x.mean((0, 2, 3)) for x in inputs]).mean(0)
    variances = torch.stack([x.var((0, 2, 3)) for x in inputs]).mean(0)
    torch.testing.assert_close(layer.running_mean.double(), means, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(layer.running_var.double(), variances, rtol=1e-4, atol=1e-6)
    assert layer.momentum == momentum
    for name, value in model.encoder.state_dict().items():
        torch.testing.assert_close(value, frozen[name], rtol=0, atol=0)
    assert (model.hourglass.residual.change[0].running_mean < 7).all()
    model.eval()
    with pytest.raises(ValueError, match="there are none to take statistics of"):
        estimate_statistics(model, [])
    with pytest.raises(AttributeError):
        estimate_statistics(model, [None])  # type: ignore[list-item]
    assert (layer.momentum, model.training) == (momentum, False)


def test_averaged_weights_have_statistics_of_their_own(tmp_path: Path) -> None:
    """What is exported is as if its statistics had been taken from the last epoch's batches, not from earlier weights."""
    run = experiment()
    module_best = train(run, "hourglass", model_of(run), tmp_path, threads=1)
    epoch = 1 if module_best.name == "best-1.ckpt" else 0
    model = HandPoseEstimator.load(tmp_path / "estimator.safetensors")
    kept = model.hourglass.linear[1].running_var.clone()
    images, _ = training_set(run.data, run.model)
    assert images is not None
    sampler = Shuffled(images, 4, 2, run.seed)
    sampler.offset = 2 * epoch
    estimate_statistics(model, [sampler[0], sampler[1]])
    torch.testing.assert_close(model.hourglass.linear[1].running_var, kept, rtol=1e-4, atol=1e-7)


def test_a_frozen_random_encoder_is_refused() -> None:
    with pytest.raises(ValueError, match=r"random, and it is frozen: name ImageNet weights .*pretrain-encoder"):
        prepare(model_of(experiment(), trained=False), "hourglass")
    prepare(model_of(experiment(), trained=False), "encoder")


def test_thirty_two_images_can_be_learned_by_heart() -> None:
    """To under 2 mm: everything from the heatmaps to the refiner works together."""
    run = dataclasses.replace(experiment(width=32, depth=3), data=ImageDataConfig(images=32, validation_images=8))
    run = dataclasses.replace(run, optim=OptimConfig(ema=0.0))
    images, _ = training_set(run.data, run.model)
    assert images is not None
    model = model_of(run)
    training = EstimatorTraining(run, model, "estimator", images)
    batch = images.take(list(range(32)))
    batch = ImageBatch(batch.images, tuple(model.encode(batch.images.crops)))
    steps = 450
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        training.terms(batch)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    found = measure(model, images, run.loss.blob)
    assert found.after.mean() < 2
    assert found.before.mean() < 4
    assert found.heatmaps < 2


def test_batches_of_a_set_that_stays() -> None:
    hands = RenderedHands(RenderConfig(), 32, 300.0, 1, 10, seed=1)
    sampler = Shuffled(OneByOne(hands), 4, 6, seed=0)
    seen = [sampler[i].images.joints for i in range(6)]
    for first in (0, 2, 4):  # two batches of four are one round over ten images
        both = torch.cat(seen[first : first + 2])
        assert len(torch.unique(both.flatten(1), dim=0)) == 8
    assert not torch.equal(seen[0], seen[2])
    sampler.offset = 2
    assert torch.equal(sampler[1].images.joints, seen[3])
    with pytest.raises(ValueError, match="there are 10 images; a batch takes 11"):
        Shuffled(OneByOne(hands), 11, 1, 0)
    with pytest.raises(IndexError):
        sampler[6]
    endless = Endless(RenderedHands(RenderConfig(), 32, 300.0, 2, 3, seed=1))
    assert len(endless) == 3
    endless.offset = 5
    assert not torch.equal(
        endless[0].images.joints, Endless(RenderedHands(RenderConfig(), 32, 300.0, 2, 3, 1))[0].images.joints
    )


def test_the_feature_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = experiment()
    images, name = training_set(run.data, run.model)
    assert images is not None
    model = model_of(run)
    monkeypatch.setattr(feature_cache, "CHUNK", 3)
    with pytest.raises(ValueError, match="no feature cache there"):
        FeatureCache(tmp_path, model, name)

    class Interrupted(OneByOne):
        def take(self, rows: list[int]) -> ImageBatch:
            if rows[-1] >= 6:
                raise KeyboardInterrupt
            return super().take(rows)

    with pytest.raises(KeyboardInterrupt):
        build_cache(tmp_path, model, Interrupted(images.items), name)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="6 of 8 images are cached; go on with cache-features"):
        FeatureCache(tmp_path, model, name)
    taken: list[int] = []

    class Counting(OneByOne):
        def take(self, rows: list[int]) -> ImageBatch:
            taken.extend(rows)
            return super().take(rows)

    build_cache(tmp_path, model, Counting(images.items), name)  # type: ignore[attr-defined]
    assert taken == [6, 7]
    cache = FeatureCache(tmp_path, model, name)
    assert len(cache) == 8
    rows = [7, 0, 3]
    direct, cached = images.take(rows).images, cache.take(rows)
    assert cached.maps is not None
    for a, b in zip(model.eval().encode(direct.crops), cached.maps, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-3, atol=2e-3)
    assert torch.equal(direct.joints, cached.images.joints)
    assert torch.equal(direct.visible, cached.images.visible)
    header = json.loads((tmp_path / "header.json").read_text())
    assert feature_cache.size_of(header) == sum(f.stat().st_size for f in tmp_path.glob("*.bin"))

    other = model_of(run)
    torch.nn.init.normal_(other.encoder.stem[0].weight)
    assert encoder_hash(other) != encoder_hash(model)
    with pytest.raises(ValueError, match="features of another encoder"):
        FeatureCache(tmp_path, other, name)
    with pytest.raises(ValueError, match="features of other images"):
        FeatureCache(tmp_path, model, "others")
    with pytest.raises(ValueError, match="features of other images"):
        build_cache(tmp_path, model, images, "others")
    with pytest.raises(ValueError, match="the encoder's weights are random"):
        build_cache(tmp_path / "new", model_of(run, trained=False), images, name)
    (tmp_path / "header.json").write_text("{")
    with pytest.raises(ValueError, match=r"header.json: can't be read"):
        FeatureCache(tmp_path, model, name)


def test_a_cache_that_would_fill_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = experiment()
    images, name = training_set(run.data, run.model)
    assert images is not None
    monkeypatch.setattr(feature_cache, "SPARE_BYTES", 1 << 60)
    with pytest.raises(OSError, match=r"the features of 8 images take 0.0 GiB, and \d+"):
        build_cache(tmp_path / "cache", model_of(run), images, name)
    assert not list((tmp_path / "cache").glob("*.bin"))


def weights_of(run: EstimatorExperiment, out: Path, **options: Any) -> dict[str, torch.Tensor]:
    checkpoint = train(run, "estimator", model_of(run), out, threads=1, **options)
    state: dict[str, torch.Tensor] = torch.load(checkpoint.parent / "last.ckpt", weights_only=True)["state_dict"]
    return state


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    run = experiment()
    whole = weights_of(run, tmp_path / "whole")
    short = dataclasses.replace(run, trainer=dataclasses.replace(run.trainer, epochs=1))
    # The schedule is that of two epochs: a run that was stopped after the first.
    steps = dataclasses.replace(run.optim, decay="constant")
    first = dataclasses.replace(short, optim=steps)
    full = dataclasses.replace(run, optim=steps)
    expected = weights_of(full, tmp_path / "constant")
    weights_of(first, tmp_path / "resumed")
    resumed = weights_of(full, tmp_path / "resumed")
    assert all(torch.equal(resumed[key], value) for key, value in expected.items())
    assert any(not torch.equal(whole[key], value) for key, value in expected.items())


def test_training_from_a_cache_is_training(tmp_path: Path) -> None:
    """The losses of the same images, live and cached; and a run on a cache ends."""
    run = experiment()
    images, name = training_set(run.data, run.model)
    assert images is not None
    model = model_of(run)
    build_cache(tmp_path / "cache", model, images, name)
    training = EstimatorTraining(run, model, "estimator", images).eval()
    rows = [5, 2, 7]
    live, cached = (training.terms(x.take(rows)) for x in (images, FeatureCache(tmp_path / "cache", model, name)))
    assert live.keys() == cached.keys()
    for key, value in live.items():
        assert cached[key].item() == pytest.approx(value.item(), rel=5e-3)
    assert weights_of(run, tmp_path / "run", cache=tmp_path / "cache")
    with pytest.raises(ValueError, match="--cache: the encoder learns in this stage"):
        train(run, "encoder", model_of(run), tmp_path / "x", cache=tmp_path / "cache")


def test_exported_and_taken_over(tmp_path: Path) -> None:
    run = experiment()
    checkpoint = train(run, "encoder", model_of(run, trained=False), tmp_path / "run", threads=1)
    export_estimator(checkpoint, tmp_path / "encoder.safetensors")
    exported = HandPoseEstimator.load(tmp_path / "encoder.safetensors")
    assert exported.encoder.trained
    model = HandPoseEstimator.from_config(run.model, tmp_path / "encoder.safetensors")
    assert torch.equal(model.encoder.stem[0].weight, exported.encoder.stem[0].weight)
    load_parts(model, tmp_path / "encoder.safetensors", ("neck", "hourglass"))
    assert torch.equal(model.hourglass.heatmaps.weight, exported.hourglass.heatmaps.weight)
    wide = HandPoseEstimator(EstimatorConfig.of({**TINY, "width": 16}))
    with pytest.raises(ValueError, match=r"its hourglass is of another architecture: EstimatorConfig\(.*width=8"):
        load_parts(wide, tmp_path / "encoder.safetensors", ("hourglass",))


def write_config(path: Path, **changes: Any) -> Path:
    run = experiment()
    content = {
        "name": "tiny",
        "model": TINY,
        "data": {"images": 8, "validation_images": 4},
        "optim": {"lr": 1e-3, "warmup_steps": 1, "ema": 0.5},
        "trainer": {k: v for k, v in dataclasses.asdict(run.trainer).items() if k != "validation_stride"},
        **changes,
    }
    path.write_text(yaml.safe_dump(content))
    return path


def said(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, " ".join(result.output.split())


def test_from_the_command_line(tmp_path: Path) -> None:
    """Encoder, cache, hourglass, end to end, export: each command takes what the one before left."""
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
    """With --encoder random the encoder learns, too."""
    config = write_config(tmp_path / "tiny.yaml")
    code, text = said("train", "--config", config, "--out", tmp_path / "t", "--encoder", "random", "--threads", 1)
    assert code == 0, text
    trained = HandPoseEstimator.load(tmp_path / "t" / "estimator.safetensors")
    assert trained.encoder.trained
    assert trained.encoder.stem[1].running_mean.any()  # batch norm learned, too


def test_a_look_at_rendered_hands(tmp_path: Path) -> None:
    from PIL import Image

    from jointbert.images import read_depth

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


def one_step_of(path: Path, batches: list[int]) -> dict[str, torch.Tensor]:
    """What one step of the experiment in ``path`` gives by hand, with the mean of these batches' gradients."""
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


@pytest.mark.parametrize("launcher", ["processes", "torchrun"])
def test_two_processes_share_a_step(tmp_path: Path, launcher: str) -> None:
    """By DDP on the CPU (gloo): a step is that of the mean of both batches' gradients, and not that of the first batch's."""
    trainer = {"epochs": 1, "steps_per_epoch": 1, "batch_size": 4, "precision": "32-true", "compile": False}
    optim = {"lr": 1e-3, "warmup_steps": 1, "ema": 0.0, "clip": 0.0}
    config = write_config(tmp_path / "tiny.yaml", trainer=trainer, optim=optim, seed=3)
    torch.manual_seed(3)  # the encoder of the model that the command makes: its weights are taken from there
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


def test_another_run_s_folder_is_refused(tmp_path: Path) -> None:
    run = experiment()
    train(run, "hourglass", model_of(run), tmp_path / "run", threads=1)
    with pytest.raises(
        ValueError, match=r"there is a run of another stage \(hourglass; this is estimator\); choose another --out"
    ):
        train(run, "estimator", model_of(run), tmp_path / "run", threads=1)
    wide = experiment(width=16)
    with pytest.raises(ValueError, match=r"there is a run of another model \(.*'width': 8"):
        train(wide, "hourglass", model_of(wide), tmp_path / "run", threads=1)
    (tmp_path / "run" / "last.ckpt").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"last.ckpt: no readable checkpoint"):
        train(run, "hourglass", model_of(run), tmp_path / "run", threads=1)


def test_a_seed_decides_everything(tmp_path: Path) -> None:
    config = write_config(tmp_path / "tiny.yaml")
    for out in ("a", "b"):
        torch.manual_seed(hash(out) % 1000)
        code, text = said("pretrain-encoder", "--config", config, "--out", tmp_path / out, "--threads", 1, "--epochs", 1)
        assert code == 0, text
    a, b = (HandPoseEstimator.load(tmp_path / out / "estimator.safetensors").state_dict() for out in ("a", "b"))
    assert all(torch.equal(value, b[key]) for key, value in a.items())


def test_awr_keeps_what_its_hourglass_stage_learned(tmp_path: Path) -> None:
    run = experiment(head="awr")
    train(run, "hourglass", model_of(run), tmp_path / "run", threads=1)
    model = model_of(run)
    load_parts(model, tmp_path / "run" / "estimator.safetensors", hourglass_parts(model))
    trained = HandPoseEstimator.load(tmp_path / "run" / "estimator.safetensors")
    assert torch.equal(model.regression.directions.weight, trained.regression.directions.weight)
    assert hourglass_parts(model_of(experiment())) == ("neck", "hourglass")


def test_rgb_is_refused(tmp_path: Path) -> None:
    run = experiment(image="rgb")
    with pytest.raises(ValueError, match="model: image: got 'rgb'; rendered and NYU's images are depth"):
        train(run, "estimator", model_of(run), tmp_path)


def test_sigma_moves_neither_joints_nor_confidence() -> None:
    run = dataclasses.replace(experiment(), loss=EstimatorLossConfig(heatmaps=0, joints=0, refined=0, sigma=1))
    images, _ = training_set(run.data, run.model)
    assert images is not None
    model = model_of(run)
    assert model.refiner is not None
    torch.nn.init.normal_(model.refiner.head.weight, std=0.1)
    EstimatorTraining(run, model, "estimator", images).terms(images.take([0, 1]))["loss"].backward()
    moved = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert moved == {"refiner"}
