"""``jointbert info``: prints the version, backends and weights of this installation."""

from __future__ import annotations

from typing import Annotated

import typer

from jointbert import __version__
from jointbert.cli.common import WeightsOption, one_sentence
from jointbert.contract import Weights
from jointbert.runtimes import RUNTIMES, RuntimeSpec, capability_table, load, load_any
from jointbert.runtimes.registry import describe_precisions, file_kind
from jointbert.skeletons import SKELETONS
from jointbert.weights import load_sequence_weights


def command(
    weights: WeightsOption = "nyu14",
    capabilities: Annotated[bool, typer.Option("--capabilities", help="Print what each backend can do, as Markdown.")] = False,
) -> None:
    """Print the version, the backends, and the weights' metadata."""
    with one_sentence():
        if capabilities:
            typer.echo(capability_table())
            return
        typer.echo(f"jointbert {__version__}")
        loaded = load_any(weights)
        for spec in RUNTIMES:
            able = [word for word in ("sequences", "streams", "calibration") if getattr(spec, word)]
            typer.echo(f"backend {spec.name}: {_availability(spec, loaded)}")
            typer.echo(f"  {spec.summary}; precision {describe_precisions(spec)}; {', '.join(['single frames', *able])}")
        for skeleton in SKELETONS.values():
            typer.echo(f"skeleton {skeleton.name}: {skeleton.num_joints} joints; orders {', '.join(skeleton.all_orders)}")
        parameters = sum(tensor.size for tensor in loaded.tensors.values())
        typer.echo(f"weights {weights}" + (f": {parameters / 1e6:.2f}M parameters" if parameters else " (ONNX)"))
        for key, value in sorted(loaded.metadata.items()):
            typer.echo(f"  {key}: {value}")
        try:
            second = load_sequence_weights(loaded)
        except ValueError as error:
            typer.echo(f"second stage: none ({error})")
            return
        parameters = sum(tensor.size for tensor in second.tensors.values())
        typer.echo(f"second stage, for sequences and calibrated persons: {parameters / 1e6:.2f}M parameters")
        for key, value in sorted(second.metadata.items()):
            typer.echo(f"  {key}: {value}")


def _availability(spec: RuntimeSpec, weights: Weights) -> str:
    if file_kind(weights.path) not in spec.suffixes:
        return f"not for these weights: it runs {' or '.join(spec.suffixes)} files"
    try:
        detail = load(spec, weights, 1).detail
    except (ImportError, RuntimeError, ValueError) as error:
        return f"not available: {error}"
    return f"available, {detail}" if detail else "available"
