"""``jointbert export``: writes a refiner or an estimator as an ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jointbert.cli.common import WeightsOption, one_sentence


def command(
    output: Annotated[Path, typer.Argument(metavar="OUT.onnx", help="The ONNX file to write.")],
    weights: WeightsOption = "nyu14",
    estimator: Annotated[
        Path | None, typer.Option(help="Write this estimator (.safetensors) instead: images in, joints out.")
    ] = None,
) -> None:
    """Write the refiner as ONNX (features in, correction and log sigma out), or an estimator; needs the extra [export]."""
    with one_sentence():
        try:
            from jointbert.export.onnx import export_estimator, export_refiner
        except ImportError as error:
            raise ImportError(f'export needs torch and onnx ({error}); pip install "jointbert[export]"') from None
        if estimator is None:
            export_refiner(output, weights)
        else:
            export_estimator(output, estimator)
        typer.echo(f"wrote {output}")
