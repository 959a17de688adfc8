"""How much does refinement change the published predictions on NYU's test frames, method by method?

    python benchmarks/nyu_published.py --data DIR

DIR holds groundtruth.txt and predictions/*.txt (u v d). For each range of frames: mean joint error before and after, relative
gain, methods improved, worst method, and the plain baselines beside it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

if __name__ == "__main__":  # a script in a checkout: the repository's root is what it imports from
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jointbert
from benchmarks.baselines import BASELINES
from jointbert.evaluation.metrics import NYU_RANGES, relative_gain
from training.data.nyu import read_published


def mean_error(poses: np.ndarray, truth: np.ndarray) -> float:
    """Mean joint error, mm."""
    return float(np.linalg.norm(poses - truth, axis=-1).mean())


def measure(data: Path, weights: str, backend: str, threads: int) -> dict[str, dict[str, dict[str, float]]]:
    """Mean errors by range, method and column (``before``, ``refine()``, each baseline)."""
    published = read_published(data)
    frames = len(published.groundtruth)
    refiner = jointbert.Refiner(weights, backend, threads)
    ranges = {name: rows for name, rows in NYU_RANGES.items() if rows.start < frames}
    result: dict[str, dict[str, dict[str, float]]] = {name: {} for name in ranges}
    with typer.progressbar(published.predictions.items(), label="methods", file=sys.stderr) as methods:
        for method, poses in methods:
            refined = refiner(poses)
            for name, rows in ranges.items():
                truth = published.groundtruth[rows]
                row = {"before": mean_error(poses[rows], truth), "refine()": mean_error(refined[rows], truth)}
                # The baselines see the range alone: it is one person, which is what the bone lengths assume.
                row.update({key: mean_error(baseline(poses[rows]), truth) for key, baseline in BASELINES.items()})
                result[name][method] = row
    return result


def print_range(name: str, methods: dict[str, dict[str, float]]) -> None:
    """One table."""
    columns = ["refine()", *BASELINES]
    print(f"\nframes {name}: {len(methods)} methods; mean joint error in mm, relative gain in %")
    print(f"{'method':34s}{'before':>8s}{'after':>8s}" + "".join(f"{c:>11s}" for c in columns))
    gains = {c: [relative_gain(row["before"], row[c]) for row in methods.values()] for c in columns}
    for i, (method, row) in enumerate(methods.items()):
        cells = "".join(f"{100 * gains[c][i]:+11.2f}" for c in columns)
        print(f"{method:34s}{row['before']:8.2f}{row['refine()']:8.2f}{cells}")
    means = [np.mean([row[c] for row in methods.values()]) for c in ("before", "refine()")]
    print(
        f"{'mean (of the gains: relative)':34s}{means[0]:8.2f}{means[1]:8.2f}"
        + "".join(f"{100 * np.mean(gains[c]):+11.2f}" for c in columns)
    )
    print(f"{'methods improved':50s}" + "".join(f"{sum(g > 0 for g in gains[c]):>8d}/{len(methods)}" for c in columns))
    print(f"{'worst method':50s}" + "".join(f"{100 * min(gains[c]):+11.2f}" for c in columns))


def main(
    data: Annotated[Path, typer.Option(help="Folder with groundtruth.txt and predictions/*.txt.")],
    weights: Annotated[str, typer.Option(help="Shipped weights' name or a .safetensors file.")] = "nyu14",
    backend: Annotated[str, typer.Option(help="auto, native or torch.")] = "auto",
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures to this file.")] = None,
) -> None:
    """Refine every published prediction of a folder and print what changed."""
    try:
        result = measure(data, weights, backend, threads)
    except (ValueError, OSError) as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(2) from None
    for name, methods in result.items():
        print_range(name, methods)
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
