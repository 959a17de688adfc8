from __future__ import annotations

import math
import subprocess
import sys
import warnings
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")

from typer.testing import CliRunner  # noqa: E402

from jointbert import Refiner  # noqa: E402
from jointbert.models import JointRefiner, RefinerConfig  # noqa: E402
from jointbert.weights import load_weights  # noqa: E402
from tests.support.training import ROOT, invoke  # noqa: E402
from training import losses  # noqa: E402
from training.__main__ import app  # noqa: E402
from training.config import Experiment, OptimConfig, TrainerConfig, read_experiment  # noqa: E402
from training.data.nyu import read_published  # noqa: E402
from training.data.sampler import DataConfig, PoseSampler  # noqa: E402
from training.fit import learning_rate  # noqa: E402
from training.refiner import RefinerTraining, calibrate_sigma, export, load_checkpoint, pretrain  # noqa: E402
from training.validation import GAINS, Gains, fill_error, gains, gaussian_fill_error, masked_patterns, refine_poses  # noqa: E402

CONFIGS = ROOT / "training" / "configs" / "refiner"
ABLATIONS = CONFIGS.parent / "ablations"


def test_thesis_config_is_table_4_2() -> None:
    experiment = read_experiment(CONFIGS / "thesis.yaml")
    assert experiment.optim.optimizer == "adam"
    assert experiment.trainer.epochs == 500
    assert experiment.trainer.batch_size == 128
    assert experiment.trainer.steps_per_epoch * 128 == pytest.approx(2440, rel=0.01)  # an epoch is one pass
    assert experiment.optim.lr == 1e-4
    assert experiment.optim.decay == "cosine"
    assert experiment.optim.warmup_steps == 1000
    assert experiment.model.layers == 12
    assert experiment.model.heads == 8
    assert experiment.optim.loss == "l2"
    corruption = experiment.data.corruption
    assert (corruption.gaussian, corruption.transplant, corruption.mask_some) == (1.0, 0.0, 0.0)


def test_thesis_data_is_the_true_pose_with_plain_noise(small_folder: Path) -> None:
    config = replace(read_experiment(CONFIGS / "thesis.yaml").data, nyu=str(small_folder))
    sampler = PoseSampler(config, 256, 1, seed=0)
    true, predicted, _ = sampler.draw(torch.zeros(256, dtype=torch.bool), torch.Generator().manual_seed(0))
    recorded = torch.from_numpy(read_published(small_folder).groundtruth[:2440]).float()
    recorded = recorded - recorded[:, 13:]
    for pose in (true - true[:, 13:])[:8]:
        assert (recorded - pose).abs().amax((1, 2)).min() < 1e-2
    assert (predicted - true).std() == pytest.approx(10, rel=0.02)
    assert sampler[0].observed.all()


def test_every_config_reads() -> None:
    names = {read_experiment(path).name for path in CONFIGS.glob("*.yaml")}
    assert {"nyu14", "thesis"} <= names


def test_ablations_differ_from_the_recipe_by_what_they_leave_out() -> None:
    recipe = read_experiment(CONFIGS / "nyu14.yaml")
    runs = {path.stem: read_experiment(path) for path in ABLATIONS.glob("*.yaml")}
    reference = runs.pop("reference")
    assert reference.data == recipe.data
    assert set(runs) == {"no-pretraining", "no-masking", "no-size", "no-error"}
    for name, run in runs.items():
        assert run.name == name
        assert (run.seed, run.model, run.optim, run.trainer) == (
            reference.seed,
            reference.model,
            reference.optim,
            reference.trainer,
        )
    assert asdict(runs["no-masking"].data.corruption) == {**asdict(recipe.data.corruption), "mask_some": 0.0}
    assert asdict(runs["no-error"].data.corruption) == {**asdict(recipe.data.corruption), "error_known": 0.0}
    same_size = replace(recipe.data, scale=(1.0, 1.0), variation=0.0, root_shift_mm=0.0)
    assert runs["no-size"].data == same_size


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1", "expected a mapping"),
        ("name: x\nepochs: 3", "unknown 'epochs'"),
        ("name: x\noptim: {lr: fast}", "optim: lr: could not convert"),
        ("name: x\noptim: {optimizer: sgd}", "optimizer: got 'sgd'; expected one of"),
        ("name: x\ntrainer: {epochs: 1.5}", "epochs: got 1.5; expected int"),
        ("seed: 1", "'name' is missing"),
        ("a: [", "no valid yaml"),
    ],
)
def test_bad_configs_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_experiment(path)


def test_learning_rate_by_hand() -> None:
    optim = OptimConfig(warmup_steps=10, final_lr=0.0)
    assert learning_rate(0, optim, 110) == pytest.approx(0.1)
    assert learning_rate(9, optim, 110) == 1
    assert learning_rate(60, optim, 110) == pytest.approx(0.5)
    assert learning_rate(110, optim, 110) == pytest.approx(0, abs=1e-12)
    assert learning_rate(60, replace(optim, decay="constant"), 110) == 1


def test_the_likelihood_s_best_sigma_is_the_expected_error() -> None:
    error = torch.tensor([0.02, 0.06, 0.1])
    output = torch.zeros(3, 14, 4)
    target = torch.zeros(3, 14, 3)
    target[..., 0] = error.unsqueeze(1)
    observed, counted = torch.ones(3, 14, dtype=torch.bool), torch.ones(3, dtype=torch.bool)
    best = min(
        np.arange(0.01, 0.2, 0.001), key=lambda s: losses.likelihood(_with_sigma(output, s), target, observed, counted).item()
    )
    assert best == pytest.approx(0.06, abs=1.1e-3)


def _with_sigma(output: torch.Tensor, sigma: float) -> torch.Tensor:
    output = output.clone()
    output[..., 3] = math.log(sigma)
    return output


def test_l2_by_hand() -> None:
    output, target = torch.zeros(2, 14, 4), torch.zeros(2, 14, 3)
    target[0, 0] = torch.tensor([3.0, 4, 0])
    assert losses.l2(output, target).item() == pytest.approx(25 / 28)


def test_joints_that_should_not_move() -> None:
    """Moved by 30 mm of 50: the joints' term is 30 / (50 + 8), and sigma's is of what is left of the error."""
    output, target = torch.zeros(1, 14, 4), torch.zeros(1, 14, 3)
    output[..., 0], target[..., 0] = 0.3, 0.5
    output[..., 3] = math.log(0.2)
    observed, no, yes = torch.ones(1, 14, dtype=torch.bool), torch.tensor([False]), torch.tensor([True])
    sigma = 0.1 * (0.2 / 0.2 + math.log(0.2))
    assert losses.likelihood(output, target, observed, no, yes).item() == pytest.approx(0.3 / 0.58 + sigma, rel=1e-4)
    assert losses.likelihood(output, target, observed, yes).item() == pytest.approx(0.2 / 0.58 + sigma, rel=1e-4)
    assert losses.likelihood(output, target, observed, no).item() == pytest.approx(sigma, rel=1e-4)


def test_sigma_does_not_move_the_joints() -> None:
    output = torch.randn(4, 14, 4, requires_grad=True)
    target, observed = torch.randn(4, 14, 3), torch.ones(4, 14, dtype=torch.bool)
    counted = torch.tensor([True, True, True, False])
    (with_sigma,) = torch.autograd.grad(losses.likelihood(output, target, observed, counted), output)
    assert not with_sigma[3, :, :3].any()  # what is not counted moves no joint
    assert with_sigma[3, :, 3].abs().min() > 0
    moved = output.detach().clone()
    moved[..., 3] += 1
    moved.requires_grad_()
    (other,) = torch.autograd.grad(losses.likelihood(moved, target, observed, counted), moved)
    torch.testing.assert_close(with_sigma[..., :3], other[..., :3])
    assert (with_sigma[..., 3] - other[..., 3]).abs().max() > 0


def test_gaussian_conditional_against_its_closed_form() -> None:
    """Of two joints with correlation r, the masked one's conditional mean is r times the deviation of the other."""
    rng = np.random.default_rng(0)
    r, n = 0.8, 50_000
    first = rng.normal(size=(n, 3)) * 10
    poses = np.zeros((n, 14, 3)) + np.arange(14)[:, None] * 10
    poses[:, 13] = 0
    poses[:, 0] += first
    poses[:, 1] += r * first + (1 - r * r) ** 0.5 * 10 * rng.normal(size=(n, 3))
    observed = torch.ones(2000, 14, dtype=torch.bool)
    observed[:, 1] = False
    residual = poses[:2000, 1] - 10 - r * (poses[:2000, 0] - 0)
    expected = np.linalg.norm(residual, axis=-1).mean()
    assert gaussian_fill_error(poses, poses[:2000], observed) == pytest.approx(expected, rel=0.01)
    moved = poses[:2000] + [300, -200, 800]  # the place of the hand is not known
    assert gaussian_fill_error(poses, moved, observed) == pytest.approx(expected, rel=0.01)


def test_an_untrained_refiner_fills_in_the_mean() -> None:
    truth = np.random.default_rng(1).normal(0, 50, (10, 14, 3))
    observed = masked_patterns(10, 4)
    assert (observed.sum(1) == 10).all()
    model = JointRefiner(RefinerConfig(layers=1)).eval()
    errors = [
        np.linalg.norm(pose[~seen] - pose[seen].mean(0), axis=-1) for pose, seen in zip(truth, observed.numpy(), strict=True)
    ]
    assert fill_error(model, truth, observed) == pytest.approx(np.concatenate(errors).mean(), rel=1e-4)
    np.testing.assert_allclose(refine_poses(model, truth), truth, atol=1e-3)


@pytest.fixture
def experiment(small_folder: Path, small_leap: Path) -> Experiment:
    return Experiment(
        "tiny",
        model=RefinerConfig(layers=1),
        data=DataConfig(nyu=str(small_folder), leap=str(small_leap)),
        optim=OptimConfig(lr=2e-3, warmup_steps=5, ema=0.9),
        trainer=TrainerConfig(
            epochs=2, steps_per_epoch=6, batch_size=16, precision="32-true", compile=False, validation_stride=200
        ),
    )


def quiet_pretrain(*arguments: object) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice on workers and its own deprecations
        return pretrain(*arguments)  # type: ignore[arg-type]


def test_a_resumed_run_equals_an_uninterrupted_one(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet_pretrain(experiment, tmp_path / "whole", True, 1)

    def die_in_the_second_epoch(module: RefinerTraining) -> None:
        if module.current_epoch == 1:
            raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(RefinerTraining, "on_train_epoch_start", die_in_the_second_epoch)
        with pytest.raises(RuntimeError, match="killed"):
            quiet_pretrain(experiment, tmp_path / "halves", True, 1)

    def refuse_the_first_epoch(module: RefinerTraining) -> None:
        assert module.current_epoch == 1, "the run started anew"

    with monkeypatch.context() as patch:
        patch.setattr(RefinerTraining, "on_train_epoch_start", refuse_the_first_epoch)
        quiet_pretrain(experiment, tmp_path / "halves", True, 1)
    whole, run = load_checkpoint(tmp_path / "whole" / "last.ckpt")
    halves, _ = load_checkpoint(tmp_path / "halves" / "last.ckpt")
    assert run["steps"] == 12
    for a, b in zip(whole.parameters(), halves.parameters(), strict=True):
        assert torch.equal(a, b)
    assert (tmp_path / "whole" / "csv" / "version_0" / "metrics.csv").read_text().count("\n") >= 2


def test_export_writes_the_averaged_weights(experiment: Experiment, tmp_path: Path) -> None:
    best = quiet_pretrain(experiment, tmp_path, False, 1)
    model, _ = load_checkpoint(best)
    chosen = model.observed_gain.item()
    assert chosen in GAINS
    export(best, tmp_path / "chosen.safetensors")
    assert JointRefiner.load(tmp_path / "chosen.safetensors").observed_gain.item() == chosen
    model.observed_gain.fill_(1.0)
    export(best, tmp_path / "out.safetensors", 0.5, sigma_power=0.9)
    assert abs(JointRefiner.load(tmp_path / "out.safetensors").head.weight[3] - 0.9 * model.head.weight[3]).max() < 1e-6
    export(best, tmp_path / "out.safetensors", 0.5)
    exported = JointRefiner.load(tmp_path / "out.safetensors")
    features = torch.ones(4, 14, 8)
    with torch.inference_mode():
        torch.testing.assert_close(exported(features)[..., :3], model(features)[..., :3] / 2)
        torch.testing.assert_close(exported(features)[..., 3], model(features)[..., 3])
    with pytest.raises(ValueError, match="--nyu: the predictions are read for --sigma-power alone"):
        export(best, tmp_path / "out.safetensors", nyu=tmp_path)
    learned = torch.load(best, weights_only=False)
    learned["hyper_parameters"]["experiment"]["optim"]["loss"] = "l2"
    torch.save(learned, tmp_path / "l2.ckpt")
    with pytest.raises(ValueError, match=r"l2.ckpt was trained with the loss 'l2', which teaches no sigma"):
        export(tmp_path / "l2.ckpt", tmp_path / "out.safetensors", sigma_power=0.9)
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="not a checkpoint of pretrain-refiner"):
        export(tmp_path / "other.ckpt", tmp_path / "out.safetensors", 1.0)


def test_a_calibrated_sigma_is_a_power_scaled_to_the_errors(experiment: Experiment, tmp_path: Path) -> None:
    published = read_published(experiment.data.nyu)
    torch.manual_seed(0)
    model = JointRefiner(experiment.model)
    torch.nn.init.normal_(model.head.weight, std=0.02)
    model.save(tmp_path / "raw.safetensors")
    with pytest.raises(ValueError, match=r"power: got 0\.0; expected a positive number"):
        calibrate_sigma(model, published, 0.0)
    scale = calibrate_sigma(model, published, 0.8, stride=50)
    model.save(tmp_path / "calibrated.safetensors")
    raw, calibrated = Refiner(tmp_path / "raw.safetensors"), Refiner(tmp_path / "calibrated.safetensors")
    frames = published.frames(slice(None, None, 50))
    sigma, errors = [], []
    for poses in frames.predictions.values():
        stated = float(np.linalg.norm(poses - frames.groundtruth, axis=-1).mean())
        before, after = (r(poses, error_mm=stated, return_details=True) for r in (raw, calibrated))
        np.testing.assert_allclose(after.joints, before.joints, atol=1e-3)
        np.testing.assert_allclose(after.sigma, scale * before.sigma**0.8, rtol=1e-4)
        sigma.append(after.sigma.mean())
        errors.append(np.linalg.norm(after.joints - frames.groundtruth, axis=-1).mean())
    assert np.mean(sigma) == pytest.approx(np.mean(errors), rel=1e-3)


def test_ablations_are_trained_and_exported(
    small_folder: Path, small_leap: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("warnings.filters", [("ignore", None, Warning, None, 0)])
    configs, out = tmp_path / "configs", tmp_path / "out"
    configs.mkdir()
    for name, share in (("one", 0.0), ("two", 0.5)):
        (configs / f"{name}.yaml").write_text(
            f"name: {name}\nmodel: {{layers: 1}}\ndata: {{corruption: {{mask_some: {share}}}}}\n"
            "trainer: {epochs: 3, steps_per_epoch: 2, batch_size: 8, precision: 32-true, compile: false, "
            "validation_stride: 200}\n"
        )
    arguments = [
        "ablations",
        "--configs",
        str(configs),
        "--out",
        str(out),
        "--nyu",
        str(small_folder),
        "--leap",
        str(small_leap),
    ]
    for _ in range(2):  # the second time nothing is left to do but the export
        result = CliRunner().invoke(app, [*arguments, "--epochs", "1", "--threads", "1"])
        assert result.exit_code == 0, result.output
        for name in ("one", "two"):
            weights = load_weights(out / f"{name}.safetensors")
            assert weights.metadata["name"] == name
            assert weights.metadata["steps"] == "2"
            assert weights.predicts_sigma


def test_a_model_is_scored_by_its_mean_gain_less_the_worst_harm() -> None:
    helped = Gains({"a": (10.0, 9.0), "b": (20.0, 19.0)})
    assert helped.mean == helped.score == pytest.approx(0.075)
    assert (helped.improved, helped.worst) == (2, pytest.approx(0.05))
    harmed = Gains({"a": (10.0, 9.0), "b": (20.0, 20.4)})
    assert harmed.score == pytest.approx(0.04 - 0.02)
    assert harmed.improved == 1


def test_gains_at_several_factors(small_folder: Path) -> None:
    published = read_published(small_folder).frames(slice(0, 40))
    model = JointRefiner(RefinerConfig(layers=1)).eval()
    with torch.no_grad():
        model.head.bias[0] = 0.1  # moves every joint by 10 mm along x
    by_factor = gains(model, published, (0.0, 0.5, 1.0))
    moved = published.predictions["weak"] + [5.0, 0, 0]
    before, after = by_factor[0.5].by_method["weak"]
    assert before == pytest.approx(
        np.linalg.norm(published.predictions["weak"] - published.groundtruth, axis=-1).mean(), rel=1e-5
    )
    assert after == pytest.approx(np.linalg.norm(moved - published.groundtruth, axis=-1).mean(), rel=1e-5)
    assert by_factor[0.0].mean == pytest.approx(0, abs=1e-9)


def test_one_batch_can_be_overfitted(experiment: Experiment) -> None:
    batch = PoseSampler(experiment.data, 16, 1, seed=0)[0]
    torch.manual_seed(0)
    model = JointRefiner(RefinerConfig(layers=1))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(250):
        optimizer.zero_grad()
        losses.likelihood(model(batch.features), batch.target, batch.observed, batch.counted).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
    features, target, observed, *_ = (x[batch.counted] for x in batch)
    error = (model(features)[..., :3] - target).norm(dim=-1)
    before = target.norm(dim=-1)
    assert error[observed].mean() < 0.3 * before[observed].mean()
    assert error[~observed].mean() < 0.3 * before[~observed].mean()


def test_commands(tmp_path: Path) -> None:
    """Bad input ends in one sentence; the first command also runs as ``python -m training``."""
    refused: tuple[tuple[list[str], str], ...] = (
        (["ablations", "--configs", str(tmp_path), "--out", str(tmp_path)], "there is no experiment"),
        (
            ["pretrain-refiner", "--config", str(CONFIGS / "nyu14.yaml"), "--out", str(tmp_path), "--nyu", "none"],
            "no groundtruth.txt",
        ),
        (["make-demo", "--nyu", "none", "--out", str(tmp_path / "x.npz")], "no groundtruth.txt"),
    )
    for arguments, message in refused:
        code, output = invoke(app, *arguments)
        assert (code, output.startswith("Error: "), message in output) == (2, True, True), output
    command = [sys.executable, "-m", "training", *refused[0][0]]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd=ROOT)
    assert result.returncode == 2
    assert refused[0][1] in result.stderr
    assert "Traceback" not in result.stderr
