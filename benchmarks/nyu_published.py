"""How much does refinement change the published predictions on NYU's test frames, method by method?

    python -m benchmarks.nyu_published --data DIR

DIR holds groundtruth.txt and predictions/*.txt (u v d). For each range of frames and each method the table gives the MPJPE
before refinement and the relative gain of: single frames; single frames of a calibrated person (calibrated with the predictions
of the same range); a stream without look-ahead; the whole sequence; the baselines of :mod:`benchmarks.baselines`. Below stand
the mean gain, the number of methods improved, the worst method and the acceleration error.

``--variants DIR`` adds a row for every weight file of a folder, such as the ablations' (see training/README.md): the gain on
single frames, with and without each method's MPJPE stated, and the error of four random masked joints of the ground truth.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

import jointbert
from benchmarks.baselines import BASELINES
from benchmarks.common import Data, Weights, mpjpe
from jointbert import JOINT_NAMES
from jointbert.evaluation.metrics import FITTED, NYU_RANGES, SELECTED, acceleration_error, relative_gain
from training.data.nyu import Published, read_published
from training.errors import one_sentence
from training.validation import masked_patterns

SINGLE, CALIBRATED, STREAM, SEQUENCE = "single", "calibrated", "stream", "sequence"
Row = dict[str, dict[str, object]]


def figures(poses: np.ndarray, truth: np.ndarray) -> dict[str, object]:
    """MPJPE and mean error of each joint, mm; mean error of the accelerations, mm per frame squared."""
    errors = np.linalg.norm(poses - truth, axis=-1)
    return {
        "mean_mm": float(errors.mean()),
        "by_joint_mm": dict(zip(JOINT_NAMES, errors.mean(0).tolist(), strict=True)),
        "acceleration": acceleration_error(poses, truth),
    }


def refined_by(weights: str, backend: str, threads: int, poses: np.ndarray, sequences: bool) -> dict[str, np.ndarray]:
    """The refined poses of one range, by column of the table."""
    refiner = jointbert.Refiner(weights, backend, threads)
    out = {SINGLE: refiner(poses)}
    if sequences:
        out[SEQUENCE] = refiner(poses, sequence=True)
        stream = refiner.stream()
        out[STREAM] = np.stack([stream(pose) for pose in poses])
        refiner.calibrate(poses)
        out[CALIBRATED] = refiner(poses)
    return out


def measure(data: Path, weights: str, backend: str, threads: int, sequences: bool) -> dict[str, dict[str, Row]]:
    """Figures by range of frames, method and column."""
    published = read_published(data)
    ranges = {name: rows for name, rows in NYU_RANGES.items() if rows.start < len(published.groundtruth)}
    result: dict[str, dict[str, Row]] = {name: {} for name in ranges}
    with typer.progressbar(published.predictions.items(), label="methods", file=sys.stderr) as methods:
        for method, poses in methods:
            # Each range shows one person, as the baselines' bone lengths assume.
            for name, rows in ranges.items():
                truth = published.groundtruth[rows]
                columns = {"before": poses[rows], **refined_by(weights, backend, threads, poses[rows], sequences)}
                columns.update({key: baseline(poses[rows]) for key, baseline in BASELINES.items()})
                result[name][method] = {key: figures(value, truth) for key, value in columns.items()}
    return result


def print_range(name: str, methods: dict[str, Row]) -> None:
    """Prints the table of one range."""
    columns = [column for column in next(iter(methods.values())) if column != "before"]

    def column(key: str, figure: str = "mean_mm") -> np.ndarray:
        return np.array([row[key][figure] for row in methods.values()], dtype=float)

    before = column("before")
    gains = {c: 100 * (1 - column(c) / before) for c in columns}
    print(f"\nframes {name}: {len(methods)} methods; MPJPE before in mm, relative gain in %")
    print(f"{'method':30s}{'before':>8s}" + "".join(f"{c:>11s}" for c in columns))
    for i, method in enumerate(methods):
        print(f"{method[:30]:30s}{before[i]:8.2f}" + "".join(f"{gains[c][i]:+11.2f}" for c in columns))
    print(f"{'mean':30s}{before.mean():8.2f}" + "".join(f"{gains[c].mean():+11.2f}" for c in columns))
    print(f"{'methods improved':38s}" + "".join(f"{(gains[c] > 0).sum():>8d}/{len(methods)}" for c in columns))
    print(f"{'worst method':38s}" + "".join(f"{gains[c].min():+11.2f}" for c in columns))
    rough = column("before", "acceleration")
    cells = "".join(f"{column(c, 'acceleration').mean():11.2f}" for c in columns)
    print(f"{'acceleration error, mm/frame^2':30s}{rough.mean():8.2f}{cells}")


def print_variants(data: Path, folder: Path, backend: str, threads: int) -> None:
    """Prints one row for each weight file of ``folder``."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder}: there are no weights (*.safetensors)")
    published = read_published(data)
    fitted, selected = (published.frames(NYU_RANGES[name]) for name in (FITTED, SELECTED))
    seen = masked_patterns(len(selected.groundtruth), 4).numpy()

    def cells(refiner: jointbert.Refiner, frames: Published, stated: bool = False) -> str:
        gains = []
        for poses in frames.predictions.values():
            before = mpjpe(poses, frames.groundtruth)
            after = refiner(poses, error_mm=before if stated else None)
            gains.append(100 * relative_gain(before, mpjpe(after, frames.groundtruth)))
        return f"{np.mean(gains):+8.2f}{min(gains):+8.2f}{sum(g > 0 for g in gains):>6d}/{len(gains)}"

    print("\nvariants, single frames: mean gain and worst method in %, methods improved; error of four masked joints, mm")
    heads = (f"frames {SELECTED.split()[0]}", "error_mm stated", f"frames {FITTED.split()[0]}")
    print(f"{'':18s}" + "".join(f"{head:>25s}" for head in heads) + f"{'masked':>9s}")
    for file in files:
        refiner = jointbert.Refiner(file, backend, threads)
        filled = refiner(selected.groundtruth, visible=seen)
        masked = mpjpe(filled[~seen], selected.groundtruth[~seen])
        columns = [cells(refiner, selected), cells(refiner, selected, True), cells(refiner, fitted)]
        print(f"{file.stem[:18]:18s}" + "".join(f"{c:>25s}" for c in columns) + f"{masked:9.2f}", flush=True)


def draw(path: Path, name: str, methods: dict[str, Row]) -> None:
    """Draws the gain by method and the error by joint, of refinement and of the filters."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = [c for c in (SINGLE, STREAM, SEQUENCE, "median-7", "med+bones", "One-Euro") if c in next(iter(methods.values()))]
    colours = dict(zip(shown, ("#4c78a8", "#59a14f", "#e15759", "#bbbbbb", "#999999", "#777777"), strict=False))
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 6.2), constrained_layout=True)
    names = sorted(methods, key=lambda m: float(methods[m]["before"]["mean_mm"]))  # type: ignore[arg-type]
    before = np.array([methods[m]["before"]["mean_mm"] for m in names], dtype=float)
    height = 0.8 / len(shown)
    for i, c in enumerate(shown):
        gain = 100 * (1 - np.array([methods[m][c]["mean_mm"] for m in names], dtype=float) / before)
        left.barh(np.arange(len(names)) + (i - (len(shown) - 1) / 2) * height, gain, height, color=colours[c], label=c)
    short = [m.split("_NYU_")[-1].split("_n7")[0] for m in names]
    left.set_yticks(np.arange(len(names)), [f"{m} ({e:.1f} mm)" for m, e in zip(short, before, strict=True)])
    left.invert_yaxis()
    left.axvline(0, color="black", lw=0.8)
    left.set_xlabel("relative gain, %")
    left.legend(frameon=False)
    left.set_title(f"by method, frames {name}")

    def by_joint(c: str) -> np.ndarray:
        return np.mean([list(row[c]["by_joint_mm"].values()) for row in methods.values()], axis=0)  # type: ignore[attr-defined]

    x = np.arange(len(JOINT_NAMES))
    columns = ["before", *(c for c in shown if c != "med+bones")]
    width = 0.84 / len(columns)
    for i, c in enumerate(columns):
        right.bar(x + (i - (len(columns) - 1) / 2) * width, by_joint(c), width, color=colours.get(c, "#222222"), label=c)
    right.set_xticks(x, [j.replace("_", " ") for j in JOINT_NAMES], rotation=50, ha="right")
    right.set_ylabel("mean error, mm")
    right.set_title("by joint, mean of the methods")
    right.legend(frameon=False, ncols=2)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main(
    data: Data,
    weights: Weights = "nyu14",
    backend: Annotated[str, typer.Option(help="auto, native or torch.")] = "auto",
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    sequences: Annotated[bool, typer.Option(help="Measure sequences, streams and calibration, too.")] = True,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures to this file.")] = None,
    figure: Annotated[Path | None, typer.Option(help="Draw the validation range's figures (needs matplotlib).")] = None,
    variants: Annotated[
        Path | None, typer.Option(help="A folder of weight files, each of which gets a row.", exists=True, file_okay=False)
    ] = None,
) -> None:
    """Refine every published prediction of a folder and print how its error changes."""
    with one_sentence():
        result = measure(data, weights, backend, threads, sequences)
        for name, methods in result.items():
            print_range(name, methods)
        if variants is not None:
            print_variants(data, variants, backend, threads)
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if figure is not None:
        draw(figure, SELECTED, result[SELECTED])


if __name__ == "__main__":
    typer.run(main)
