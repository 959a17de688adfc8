"""``python -m training``: training and export, from a checkout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from training.config import Experiment, SequenceExperiment, read_experiment

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)

Out = Annotated[Path, typer.Option(help="Folder for checkpoints and logs.")]
Nyu = Annotated[Path | None, typer.Option(help="Folder of published NYU predictions; the config's without it.")]
Leap = Annotated[Path | None, typer.Option(help="Leap recordings (npz); the config's without it.")]
Resume = Annotated[bool, typer.Option(help="Go on from out/last.ckpt if it is there.")]
Epochs = Annotated[int | None, typer.Option(help="Train for so many epochs instead of the config's.", min=1)]
Threads = Annotated[int, typer.Option(help="CPU threads.", min=1)]
E_ = TypeVar("E_", Experiment, SequenceExperiment)


@contextmanager
def _one_sentence() -> Iterator[None]:
    """Bad input ends in a sentence and exit code 2."""
    try:
        yield
    except (ValueError, OSError) as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(2) from None


def _experiment(config: Path, kind: type[E_], nyu: Path | None, leap: Path | None, epochs: int | None) -> E_:
    experiment = read_experiment(config, kind)
    data = replace(experiment.data, nyu=str(nyu or experiment.data.nyu), leap=str(leap or experiment.data.leap))
    trainer = replace(experiment.trainer, epochs=epochs or experiment.trainer.epochs)
    return replace(experiment, data=data, trainer=trainer)


@app.command()
def pretrain_refiner(
    config: Annotated[Path, typer.Option(help="Experiment, see training/configs/refiner.", exists=True, dir_okay=False)],
    out: Out,
    nyu: Nyu = None,
    leap: Leap = None,
    resume: Resume = True,
    epochs: Epochs = None,
    threads: Threads = 2,
) -> None:
    """Pre-trains the joint refinement module by an experiment's yaml file."""
    from training.refiner import pretrain

    with _one_sentence():
        best = pretrain(_experiment(config, Experiment, nyu, leap, epochs), out, resume, threads)
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

    with _one_sentence():
        export(checkpoint, out, gain)
    typer.echo(f"wrote {out}")


@app.command()
def ablations(
    out: Annotated[Path, typer.Option(help="Folder for runs and for their weights, one file a config.")],
    configs: Annotated[
        Path, typer.Option(help="Folder of experiments as for pretrain-refiner.", exists=True, file_okay=False)
    ] = Path("training/configs/ablations"),
    nyu: Nyu = None,
    leap: Leap = None,
    epochs: Epochs = None,
    threads: Threads = 2,
) -> None:
    """Pre-trains and exports every experiment of a folder, one after the other; goes on where it stopped."""
    from training.refiner import export, pretrain

    with _one_sentence():
        files = sorted(configs.glob("*.yaml"))
        if not files:
            raise ValueError(f"{configs}: there is no experiment (*.yaml)")
        experiments = {file.stem: _experiment(file, Experiment, nyu, leap, epochs) for file in files}
        for name, experiment in experiments.items():
            weights = out / f"{name}.safetensors"
            export(pretrain(experiment, out / name, True, threads), weights)
            typer.echo(f"wrote {weights}")


@app.command()
def train_sequence(
    config: Annotated[Path, typer.Option(help="Experiment, see training/configs/sequence.", exists=True, dir_okay=False)],
    out: Out,
    first: Annotated[str | None, typer.Option(help="The refiner: a shipped name or a file; the config's without it.")] = None,
    nyu: Nyu = None,
    leap: Leap = None,
    resume: Resume = True,
    epochs: Epochs = None,
    threads: Threads = 2,
) -> None:
    """Trains the sequence refiner on a single-frame refiner by an experiment's yaml file."""
    from training.sequence import train_sequence

    with _one_sentence():
        experiment = _experiment(config, SequenceExperiment, nyu, leap, epochs)
        best = train_sequence(replace(experiment, first=first or experiment.first), out, resume, threads)
    typer.echo(f"best checkpoint: {best}")


@app.command()
def export_sequence(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint of train-sequence.", exists=True, dir_okay=False)],
    out: Annotated[Path, typer.Argument(help="The safetensors file to write: NAME-sequence beside the refiner's NAME.")],
    first: Annotated[str, typer.Option(help="The refiner it was trained on: a shipped name or a file.")] = "nyu14",
) -> None:
    """Writes a checkpoint's sequence refiner (the averaged weights, where it has them) as safetensors."""
    from training.sequence import export_sequence

    with _one_sentence():
        export_sequence(checkpoint, first, out)
    typer.echo(f"wrote {out}")


@app.command()
def make_demo(
    nyu: Annotated[Path, typer.Option(help="Folder of published NYU predictions.")],
    out: Annotated[Path, typer.Option(help="The npz file to write.")] = Path("jointbert/demo/sample.npz"),
) -> None:
    """Generates the demo's sample: procedural hands with errors of a model fitted to subject 1's."""
    from training.demo import make_demo

    with _one_sentence():
        make_demo(nyu, out)
    typer.echo(f"wrote {out}")


if __name__ == "__main__":
    app()
