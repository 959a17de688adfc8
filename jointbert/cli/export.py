"""``jointbert export``: writes a refiner or an estimator as an ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jointbert.cli.common import one_sentence, refuse_unused


def command(
    context: typer.Context,
    output: Annotated[Path, typer.Argument(metavar="OUT.onnx", help="The ONNX file to write.")],
    weights: Annotated[str, typer.Option(help="Shipped weights' name, or a .safetensors file.")] = "nyu14",
    estimator: Annotated[
        Path | None, typer.Option(help="Write this estimator (.safetensors) instead: images in, joints out.")
    ] = None,
) -> None:
    """Write the refiner as ONNX (features in, correction and log sigma out), or an estimator; needs the extra [export]."""
    with one_sentence():
        if estimator is not None:
            refuse_unused(context, ("weights",), "an estimator's file holds its own refiner; leave it out")
        try:
            from jointbert.export.onnx import export_estimator, export_refiner
        except ImportError as error:
            raise ImportError(f'export needs torch and onnx ({error}); pip install "jointbert[export]"') from None
        if estimator is None:
            export_refiner(output, weights)
        else:
            export_estimator(output, estimator)
        typer.echo(f"wrote {output}")
