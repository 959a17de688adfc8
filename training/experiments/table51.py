"""Table 5.1 of the thesis on a given data set, at a given size: does a refiner help, and does pre-training help it?

    python -m training.experiments.table51 --config training/configs/estimator/table51.yaml --encoder E --out runs/table51

On one frozen encoder, whose features of a set of images are computed once, and for each of several seeds: an AWR head, no
refiner, a refiner that was not pre-trained, a pre-trained one; all after the same pre-training of the hourglass. The last two
again without that pre-training make the thesis's 2 x 2. Each row is trained for as many steps, and measured on images that no
training saw: MPJPE before and after refinement, of visible and of occluded joints (rendered hands
know), how well the confidence tells them apart (area under the ROC curve), and the first epoch within 10 % of the best row's
validation error. Goes on where it stopped, and refuses to with another experiment, encoder or options.
"""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer
from torch import Tensor

from jointbert.evaluation.metrics import area_under_roc
from jointbert.models.estimator import HandPoseEstimator
from jointbert.models.refiner import JointRefiner, RefinerConfig, encode
from training import losses
from training.config import EstimatorExperiment, read_experiment
from training.data.feature_cache import build_cache
from training.data.render import sample_hands
from training.errors import one_sentence
from training.estimator import hourglass_parts, load_parts, measure, test_set, train, training_set

THESIS_MM = {"AWR": 7.70, "no refiner": 7.82, "refiner": 7.86, "pre-trained refiner": 7.55}
"""Table 5.1, on NYU."""


class Row(NamedTuple):
    """One way to train."""

    head: str
    refiner: bool
    refiner_trained: bool
    hourglass_trained: bool


ROWS = {
    "AWR": Row("awr", False, False, True),
    "no refiner": Row("linear", False, False, True),
    "refiner": Row("linear", True, False, True),
    "pre-trained refiner": Row("linear", True, True, True),
    "refiner, hourglass not pre-trained": Row("linear", True, False, False),
    "pre-trained refiner, hourglass not pre-trained": Row("linear", True, True, False),
}


def pretrain_refiner(config: RefinerConfig, steps: int, noise_mm: float, seed: int, path: Path) -> None:
    """Table 4.2 on poses of the procedural hand: joints perturbed by Gaussian noise, and some masked; L2 loss; Adam, a warm-up,
    a cosine. The confidence is simulated: half of the poses have one, the lower a joint's, the larger its noise."""
    if path.is_file():
        return
    torch.manual_seed(seed)
    g = torch.Generator().manual_seed(seed)
    model = JointRefiner(config)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    warm_up = min(100, steps // 10)
    linear = torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, 1.0, warm_up)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps - warm_up)
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [linear, cosine], [warm_up])
    for _ in range(steps):
        true = sample_hands(128, g).joints
        noise = noise_mm * torch.randn(true.shape, generator=g) * 2 * torch.rand(len(true), 1, 1, generator=g)
        observed = torch.rand(true.shape[:2], generator=g) > 0.1
        known = torch.rand(len(true), 1, generator=g) < 0.5
        confidence = torch.where(known, torch.exp(-noise.norm(dim=-1) / 30), torch.nan)
        features, mean = encode(true + noise, observed, confidence, torch.full_like(confidence, torch.nan))
        start = torch.where(observed.unsqueeze(-1), true + noise, mean)
        loss = losses.l2(model(features), (true - start) / 100)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.save(path)


def run_row(
    experiment: EstimatorExperiment, row: Row, encoder: Path, cache: Path, out: Path, parts: Path, threads: int
) -> None:
    """Trains one row, or resumes it."""
    head = "awr" if row.head == "awr" else "linear"
    model_config = replace(experiment.model, head=head, refiner=experiment.model.refiner if row.refiner else None)  # type: ignore[arg-type]
    experiment = replace(experiment, model=model_config)
    model = HandPoseEstimator.from_config(model_config, encoder, parts / "refiner.safetensors" if row.refiner_trained else None)
    if row.hourglass_trained:
        load_parts(model, parts / f"hourglass-{head}" / "estimator.safetensors", hourglass_parts(model))
    train(experiment, "estimator", model, out, True, threads, 1, cache)


def curve(folder: Path) -> list[float]:
    """Validation errors of a run by epoch."""
    import csv

    by_epoch = {}
    starts = sorted((folder / "csv").glob("version_*"), key=lambda path: int(path.name.removeprefix("version_")))
    for start in starts:  # a resumed run has one folder for each start
        with open(start / "metrics.csv", encoding="utf-8") as file:
            by_epoch |= {
                int(row["epoch"]): float(row["val/after_mm"]) for row in csv.DictReader(file) if row.get("val/after_mm")
            }
    return [by_epoch[epoch] for epoch in sorted(by_epoch)]


def figures(model: HandPoseEstimator, experiment: EstimatorExperiment, folder: Path) -> dict[str, float]:
    """The figures of a row of the table."""
    found = measure(model, test_set(experiment.data, experiment.model), experiment.loss.blob)
    occluded = ~found.visible
    result = {"before_mm": mean(found.before), "after_mm": mean(found.after), "best_validation_mm": min(curve(folder))}
    if occluded.any():
        for name, rows in (("visible", found.visible), ("hidden", occluded)):
            result |= {f"before_{name}_mm": mean(found.before[rows]), f"after_{name}_mm": mean(found.after[rows])}
        result["auc"] = area_under_roc(1 - found.confidence.flatten().numpy(), occluded.flatten().numpy())
    return result


def mean(values: Tensor) -> float:
    """Mean as a Python number."""
    return float(values.mean())


def main(
    config: Annotated[Path, typer.Option(help="Experiment with a fixed set of images.", exists=True, dir_okay=False)],
    encoder: Annotated[Path, typer.Option(help="An estimator whose encoder is trained.", exists=True, dir_okay=False)],
    out: Annotated[Path, typer.Option(help="Folder for runs and results.", file_okay=False)],
    seeds: Annotated[str, typer.Option(help="Seeds, comma-separated.")] = "0,1,2",
    refiner_steps: Annotated[int, typer.Option(help="Steps of the refiner's pre-training.", min=20)] = 2000,
    noise_mm: Annotated[
        float, typer.Option(help="Standard deviation of the noise in the refiner's pre-training.", min=0)
    ] = 10.0,
    threads: Annotated[int, typer.Option(help="CPU threads.", min=1)] = 2,
) -> None:
    """Train every row for every seed, and print the table."""
    torch.set_num_threads(threads)
    with one_sentence():
        chosen = numbers(seeds)
        base = read_experiment(config, EstimatorExperiment)
        images, images_id = training_set(base.data, base.model)
        if images is None or base.model.refiner is None:
            raise ValueError(f"{config}: expected a set of images that stays (data: images: N) and a refiner")
        file, cache = out / "table51.json", out / "features"
        results = earlier(file)
        first = HandPoseEstimator.from_config(base.model, encoder)
        asked = {**asdict(base), "encoder": digest(encoder), "refiner": [refiner_steps, noise_mm]}
        same_as_before(out / "asked.json", asked, bool(results))
        build_cache(cache, first.to("cuda" if torch.cuda.is_available() else "cpu"), images, images_id)
    for seed in chosen:
        experiment = replace(base, seed=seed)
        parts = out / f"seed{seed}"
        parts.mkdir(parents=True, exist_ok=True)
        pretrain_refiner(base.model.refiner, refiner_steps, noise_mm, seed, parts / "refiner.safetensors")
        for head in ("linear", "awr"):
            folder = parts / f"hourglass-{head}"
            if not (folder / "estimator.safetensors").is_file():
                only = replace(experiment, model=replace(base.model, head=head, refiner=None))  # type: ignore[arg-type]
                torch.manual_seed(seed)
                train(only, "hourglass", HandPoseEstimator.from_config(only.model, encoder), folder, True, threads, 1, cache)
        for name, row in ROWS.items():
            folder = folder_of(parts, name)
            if not (folder / "estimator.safetensors").is_file():
                torch.manual_seed(seed)
                run_row(experiment, row, encoder, cache, folder, parts, threads)
            elif str(seed) in results.get(name, {}):
                continue
            model = HandPoseEstimator.load(folder / "estimator.safetensors")
            results.setdefault(name, {})[str(seed)] = figures(model, replace(experiment, model=model.config), folder)
        goal = 1.1 * min(results[name][str(seed)]["best_validation_mm"] for name in ROWS)
        for name in ROWS:
            reached = [epoch for epoch, error in enumerate(curve(folder_of(parts, name)), 1) if error <= goal]
            results[name][str(seed)]["epochs_to_goal"] = float(reached[0]) if reached else float("nan")
        file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print_table({name: {str(seed): results[name][str(seed)] for seed in chosen} for name in ROWS})


def numbers(text: str) -> list[int]:
    """Whole numbers with commas between them.

    Raises:
        ValueError: something else.
    """
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--seeds: got {text!r}; expected whole numbers with commas, such as 0,1,2") from None


def digest(file: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def earlier(file: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Results of an earlier run, by row and seed.

    Raises:
        ValueError: a file that can't be read.
    """
    try:
        return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{file}: no readable results ({error})") from None


def same_as_before(file: Path, asked: dict[str, Any], results: bool) -> None:
    """Writes a folder's experiment, encoder and options, or checks them against an earlier run's.

    Raises:
        ValueError: the folder holds results of others, or of unknown ones.
    """
    text = json.dumps(asked, indent=1, sort_keys=True) + "\n"
    if file.is_file() or results:
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            raise ValueError(
                f"{file.parent}: its results are of another experiment, encoder or options ({file}); take another folder"
            )
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def folder_of(parts: Path, name: str) -> Path:
    """Folder of a row."""
    return parts / name.replace(", ", "-").replace(" ", "-")


def print_table(results: dict[str, dict[str, dict[str, float]]]) -> None:
    """Prints means over the seeds and half their range."""
    columns = {"before_mm": "before", "after_mm": "after", "before_visible_mm": "visible", "after_visible_mm": "after"}
    columns |= {"before_hidden_mm": "occluded", "after_hidden_mm": "after", "auc": "AUC", "epochs_to_goal": "epochs"}
    print(f"{'mm':46s}" + "".join(f"{c:>14s}" for c in columns.values()) + f"{'thesis':>8s}")
    for name, by_seed in results.items():
        cells = ""
        for column in columns:
            values = torch.tensor([r.get(column, float("nan")) for r in by_seed.values()])
            cells += f"{values.nanmean():8.2f} ±{(values.max() - values.min()) / 2:5.2f}"
        print(f"{name:46s}{cells}{THESIS_MM.get(name, float('nan')):8.2f}")


if __name__ == "__main__":
    sys.exit(typer.run(main))
