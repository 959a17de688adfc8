"""``jointbert evaluate``: prints the accuracy of a prediction file, before and after refinement."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from jointbert.cli.common import (
    BackendOption,
    CameraOption,
    ErrorOption,
    FormatOption,
    HandOption,
    OrderOption,
    SequenceOption,
    ThreadsOption,
    WeightsOption,
    check_folder,
    one_sentence,
    parse_camera,
    parse_order,
    refine_file,
    refuse_unused,
)
from jointbert.evaluation.metrics import NYU_RANGES, NYU_TEST_FRAMES, SELECTED, Accuracy, accuracy, joint_errors, relative_gain
from jointbert.inputs.textformat import read_joints
from jointbert.skeletons import NYU14


def command(
    context: typer.Context,
    prediction: Annotated[Path, typer.Argument(metavar="PREDICTION", help="Prediction file.")],
    groundtruth: Annotated[Path, typer.Option(help="Ground truth, in the same format.")],
    format: FormatOption,
    camera: CameraOption = None,
    refine: Annotated[bool, typer.Option("--refine", help="Also refine the prediction and compare.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures to this file, too.")] = None,
    hand: HandOption = "right",
    order: OrderOption = "nyu14",
    error_mm: ErrorOption = None,
    sequence: SequenceOption = False,
    weights: WeightsOption = "nyu14",
    backend: BackendOption = "auto",
    threads: ThreadsOption = 1,
) -> None:
    """Print the accuracy of a prediction file against the ground truth, before and after refinement."""
    with one_sentence():
        if not refine:
            unused = ("hand", "error_mm", "sequence", "weights", "backend", "threads")
            refuse_unused(context, unused, "without --refine nothing is refined, and it has no effect")
        intrinsics = parse_camera(format, camera)
        permutation = NYU14.resolve_order(parse_order(order))
        check_folder(json_file)
        before = read_joints(prediction, format, intrinsics)  # type: ignore[arg-type]
        truth = read_joints(groundtruth, format, intrinsics)[:, permutation]  # type: ignore[arg-type]
        if len(before) != len(truth):
            raise ValueError(f"{prediction} has {len(before)} frames, {groundtruth} has {len(truth)}; expected the same number")
        poses = {"before": before[:, permutation]}
        filled = None
        if refine:
            options = {"hand": hand, "order": parse_order(order), "error_mm": error_mm, "sequence": sequence}
            after = refine_file(before, weights, backend, threads, **options).joints[:, permutation]
            # Before and after are compared on the same joints; errors of filled-in joints are reported separately.
            missing = ~np.isfinite(poses["before"]).all(-1)
            poses["after"] = np.where(missing[..., None], np.nan, after)
            filled = joint_errors(after, truth)[missing]
            filled = filled[np.isfinite(filled)]
        ranges = {"all frames": slice(None)}
        nyu = len(truth) in (NYU_TEST_FRAMES, NYU_RANGES[SELECTED].stop)  # all frames, or those before the unseen ones
        if nyu:
            ranges.update({name: rows for name, rows in NYU_RANGES.items() if rows.start < len(truth)})
        figures = {
            where: {name: accuracy(joints[rows], truth[rows]) for name, joints in poses.items()}
            for where, rows in ranges.items()
        }
        _print_accuracy(figures)
        if filled is not None and len(filled):
            typer.echo(f"{len(filled)} missing joints were filled in, with a mean error of {filled.mean():.2f} mm")
        if nyu:
            typer.echo(
                f"\nThese {len(truth):,} frames look like NYU's test frames. The shipped weights were trained on 0-2439\n"
                "and selected on 2440-4375: only frames 4376-8251 show the accuracy on unseen data."
            )
        if json_file is not None:
            content: dict[str, Any] = {
                where: {name: figure.as_dict() for name, figure in row.items()} for where, row in figures.items()
            }
            if filled is not None:
                content["filled_in"] = {"joints": len(filled), "mean_mm": float(filled.mean()) if len(filled) else None}
            json_file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _print_accuracy(figures: dict[str, dict[str, Accuracy]]) -> None:
    overall = figures["all frames"]
    columns = list(overall)
    both = len(columns) == 2

    def row(label: str, values: list[float], unit: str = "", gain: bool = True) -> None:
        cells = "".join(f"{value:10.2f}{unit}" for value in values)
        change = f"{100 * relative_gain(*values):+9.2f} %" if both and gain else ""
        typer.echo(f"{label:36s}{cells}{change}")

    typer.echo(f"{'mean joint error, mm':36s}" + "".join(f"{c:>10s}" for c in columns) + ("       gain" if both else ""))
    for where, accuracies in figures.items():
        row(f"{where} ({accuracies[columns[0]].frames})", [accuracies[c].mean_mm for c in columns])
    for joint in overall[columns[0]].by_joint_mm:
        row(f"  {joint}", [overall[c].by_joint_mm[joint] for c in columns])
    typer.echo("\nframes within D, by the mean and by the largest joint error")
    for d in overall[columns[0]].mean_within:
        row(f"  mean error <= {d:g} mm", [100 * overall[c].mean_within[d] for c in columns], " %", gain=False)
    for d in overall[columns[0]].max_within:
        row(f"  max error  <= {d:g} mm", [100 * overall[c].max_within[d] for c in columns], " %", gain=False)
    missing = overall[columns[0]].joints_missing
    if missing:
        typer.echo(f"{missing} joints are missing in the prediction or the ground truth and have no error")
