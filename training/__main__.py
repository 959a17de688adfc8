"""``python -m training``: pre-training and export, from a checkout."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)


@app.command()
def pretrain_refiner(
    config: Annotated[Path, typer.Option(help="Experiment, see training/configs/refiner.", exists=True, dir_okay=False)],
    out: Annotated[Path, typer.Option(help="Folder for checkpoints and logs.")],
    nyu: Annotated[Path | None, typer.Option(help="Folder of published NYU predictions; the config's without it.")] = None,
    leap: Annotated[Path | None, typer.Option(help="Leap recordings (npz); the config's without it.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on from out/last.ckpt if it is there.")] = True,
    epochs: Annotated[int | None, typer.Option(help="Train for so many epochs instead of the config's.", min=1)] = None,
    threads: Annotated[int, typer.Option(help="CPU threads.", min=1)] = 2,
) -> None:
    """Pre-trains the joint refinement module by an experiment's yaml file."""
    from dataclasses import replace

    from training.config import read_experiment
    from training.refiner import pretrain

    try:
        experiment = read_experiment(config)
        data = experiment.data
        data = replace(data, nyu=str(nyu or data.nyu), leap=str(leap or data.leap))
        experiment = replace(experiment, data=data)
        if epochs:
            experiment = replace(experiment, trainer=replace(experiment.trainer, epochs=epochs))
        best = pretrain(experiment, out, resume, threads)
    except (ValueError, OSError) as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(2) from None
    typer.echo(f"best checkpoint: {best}")


@app.command()
def export_refiner(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint of pretrain-refiner.", exists=True, dir_okay=False)],
    out: Annotated[Path, typer.Argument(help="The safetensors file to write.")],
    gain: Annotated[
        float | None, typer.Option(help="Factor of observed joints' corrections; validation's choice without it.", min=0, max=1)
    ] = None,
) -> None:
    """Writes a checkpoint's refiner (the averaged weights, where it has them) as safetensors."""
    from training.refiner import export

    try:
        export(checkpoint, out, gain)
    except (ValueError, OSError) as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(2) from None
    typer.echo(f"wrote {out}")


@app.command()
def train_sequence(
    config: Annotated[Path, typer.Option(help="Experiment, see training/configs/sequence.", exists=True, dir_okay=False)],
    out: Annotated[Path, typer.Option(help="Folder for checkpoints and logs.")],
    first: Annotated[str | None, typer.Option(help="The refiner: a shipped name or a file; the config's without it.")] = None,
    nyu: Annotated[Path | None, typer.Option(help="Folder of published NYU predictions; the config's without it.")] = None,
    leap: Annotated[Path | None, typer.Option(help="Leap recordings (npz); the config's without it.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on from out/last.ckpt if it is there.")] = True,
    epochs: Annotated[int | None, typer.Option(help="Train for so many epochs instead of the config's.", min=1)] = None,
    threads: Annotated[int, typer.Option(help="CPU threads.", min=1)] = 2,
) -> None:
    """Trains the sequence refiner on a single-frame refiner by an experiment's yaml file."""
    from dataclasses import replace

    from training.config import SequenceExperiment, read_experiment
    from training.sequence import train_sequence

    try:
        experiment = read_experiment(config, SequenceExperiment)
        data = experiment.data
        data = replace(data, nyu=str(nyu or data.nyu), leap=str(leap or data.leap))
        experiment = replace(experiment, data=data, first=first or experiment.first)
        if epochs:
            experiment = replace(experiment, trainer=replace(experiment.trainer, epochs=epochs))
        best = train_sequence(experiment, out, resume, threads)
    except (ValueError, OSError) as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(2) from None
    typer.echo(f"best checkpoint: {best}")


@app.command()
def export_sequence(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint of train-sequence.", exists=True, dir_okay=False)],
    out: Annotated[Path, typer.Argument(help="The safetensors file to write: NAME-sequence beside the refiner's NAME.")],
    first: Annotated[str, typer.Option(help="The refiner it was trained on: a shipped name or a file.")] = "nyu14",
) -> None:
    """Writes a checkpoint's sequence refiner (the averaged weights, where it has them) as safetensors."""
    from training.sequence import export_sequence

    try:
        export_sequence(checkpoint, first, out)
    except (ValueError, OSError) as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(2) from None
    typer.echo(f"wrote {out}")


@app.command()
def make_demo(
    nyu: Annotated[Path, typer.Option(help="Folder of published NYU predictions.")],
    out: Annotated[Path, typer.Option(help="The npz file to write.")] = Path("jointbert/demo/sample.npz"),
) -> None:
    """Generates the demo's sample: procedural hands with errors of a model fitted to subject 1's."""
    from training.demo import make_demo

    try:
        make_demo(nyu, out)
    except (ValueError, OSError) as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(2) from None
    typer.echo(f"wrote {out}")


if __name__ == "__main__":
    app()
