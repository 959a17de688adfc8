"""``jointbert refine``: refines a prediction file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
)
from jointbert.contract import Status
from jointbert.inputs.textformat import read_frames, write_joints


def command(
    input: Annotated[Path, typer.Argument(metavar="IN", help="Prediction file: one line per frame, 42 numbers.")],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="File to write, in the same format.")],
    format: FormatOption,
    camera: CameraOption = None,
    hand: HandOption = "right",
    order: OrderOption = "nyu14",
    error_mm: ErrorOption = None,
    sequence: SequenceOption = False,
    weights: WeightsOption = "nyu14",
    backend: BackendOption = "auto",
    threads: ThreadsOption = 1,
) -> None:
    """Refine a prediction file. Mark missing joints as nan; they are predicted from the others."""
    with one_sentence():
        intrinsics = parse_camera(format, camera)
        check_folder(output)
        given = read_frames(input, format, intrinsics)  # type: ignore[arg-type]
        options = {"hand": hand, "order": parse_order(order), "error_mm": error_mm, "sequence": sequence}
        refined = refine_file(given.joints, weights, backend, threads, **options)
        # Frames that are not refined keep their lines unchanged.
        good = refined.status == Status.REFINED
        kept = [None if ok else line for ok, line in zip(good, given.lines, strict=True)]
        write_joints(output, refined.joints, format, intrinsics, kept)  # type: ignore[arg-type]
        typer.echo(f"{good.sum()} of {len(good)} frames refined: {output}")
