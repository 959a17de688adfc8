"""``python -m training``: training and export from a checkout."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from training.config import EstimatorExperiment, Experiment, SequenceExperiment, read_experiment
from training.errors import one_sentence

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)

Out = Annotated[Path, typer.Option(help="Folder for checkpoints and logs.")]
Nyu = Annotated[Path | None, typer.Option(help="Folder of published NYU predictions; the config's without it.")]
Leap = Annotated[Path | None, typer.Option(help="Leap recordings (npz); the config's without it.")]
Resume = Annotated[bool, typer.Option(help="Resume from out/last.ckpt if it exists.")]
Epochs = Annotated[int | None, typer.Option(help="Number of epochs, instead of the config's.", min=1)]
Threads = Annotated[int, typer.Option(help="CPU threads.", min=1)]
E_ = TypeVar("E_", Experiment, SequenceExperiment)


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

    with one_sentence():
        best = pretrain(_experiment(config, Experiment, nyu, leap, epochs), out, resume, threads)
    typer.echo(f"best checkpoint: {best}")


@app.command()
def export_refiner(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint of pretrain-refiner.", exists=True, dir_okay=False)],
    out: Annotated[Path, typer.Argument(help="The safetensors file to write.")],
    gain: Annotated[
        float | None, typer.Option(help="Factor of observed joints' corrections; validation's choice without it.", min=0, max=1)
    ] = None,
    sigma_power: Annotated[
        float | None, typer.Option(help="Calibrate sigma as a power of itself, scaled on subject 1.", min=0.1, max=2)
    ] = None,
    nyu: Nyu = None,
) -> None:
    """Writes a checkpoint's refiner (the averaged weights, where it has them) as safetensors."""
    from training.refiner import export

    with one_sentence():
        export(checkpoint, out, gain, sigma_power, nyu)
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
    """Pre-trains and exports every experiment of a folder, one after the other; resumes an interrupted run."""
    from training.refiner import export, pretrain

    with one_sentence():
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

    with one_sentence():
        experiment = _experiment(config, SequenceExperiment, nyu, leap, epochs)
        best = train_sequence(replace(experiment, first=first or experiment.first), out, resume, threads)
    typer.echo(f"best checkpoint: {best}")


@app.command()
def export_sequence(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint of train-sequence.", exists=True, dir_okay=False)],
    out: Annotated[Path, typer.Argument(help="The safetensors file to write: NAME-sequence beside the refiner's NAME.")],
    first: Annotated[str, typer.Option(help="The refiner it was trained on: a shipped name or a file.")] = "nyu14",
    gain: Annotated[
        float | None, typer.Option(help="Factor of the corrections; validation's choice without it.", min=0, max=1)
    ] = None,
) -> None:
    """Writes a checkpoint's sequence refiner (the averaged weights, where it has them) as safetensors."""
    from training.sequence import export_sequence

    with one_sentence():
        export_sequence(checkpoint, first, out, gain)
    typer.echo(f"wrote {out}")


ImageConfig = Annotated[Path, typer.Option(help="Experiment, see training/configs/estimator.", exists=True, dir_okay=False)]
Processes = Annotated[int, typer.Option(help="Number of processes that share each step (DDP).", min=1)]
Images = Annotated[Path | None, typer.Option("--nyu", help="Folder of the NYU data set; the config's without it.")]
Encoder = Annotated[str, typer.Option(help="The frozen encoder: 'imagenet', a ResNet's weights, or an estimator's file.")]
Hourglass = Annotated[Path | None, typer.Option(help="An exported estimator, whose hourglass it starts from.", dir_okay=False)]
Cache = Annotated[Path | None, typer.Option(help="Folder of cache-features, of the same config and encoder.", file_okay=False)]


ESTIMATOR = "estimator.safetensors"
"""Name of the file that each stage writes to its folder for the next one."""


def _image_experiment(config: Path, nyu: Path | None, epochs: int | None) -> EstimatorExperiment:
    experiment = read_experiment(config, EstimatorExperiment)
    data = replace(experiment.data, nyu=str(nyu or experiment.data.nyu))
    return replace(experiment, data=data, trainer=replace(experiment.trainer, epochs=epochs or experiment.trainer.epochs))


@app.command()
def pretrain_encoder(
    config: ImageConfig,
    out: Out,
    nyu: Images = None,
    resume: Resume = True,
    epochs: Epochs = None,
    threads: Threads = 2,
    processes: Processes = 1,
) -> None:
    """Pre-trains encoder and hourglass on images, where ImageNet's weights are not available."""
    import torch

    from jointbert.models.estimator import HandPoseEstimator
    from training.estimator import train

    with one_sentence():
        experiment = _image_experiment(config, nyu, epochs)
        torch.manual_seed(experiment.seed)
        model = HandPoseEstimator(experiment.model)
        train(experiment, "encoder", model, out, resume, threads, processes)
    typer.echo(f"wrote {out / ESTIMATOR}")


@app.command()
def pretrain_hourglass(
    config: ImageConfig,
    out: Out,
    encoder: Encoder = "imagenet",
    cache: Cache = None,
    nyu: Images = None,
    resume: Resume = True,
    epochs: Epochs = None,
    threads: Threads = 2,
    processes: Processes = 1,
) -> None:
    """Pre-trains the hourglass on a frozen encoder (thesis, table 4.1)."""
    import torch

    from jointbert.models.estimator import HandPoseEstimator
    from training.estimator import train

    with one_sentence():
        experiment = _image_experiment(config, nyu, epochs)
        torch.manual_seed(experiment.seed)
        model = HandPoseEstimator.from_config(experiment.model, encoder)
        train(experiment, "hourglass", model, out, resume, threads, processes, cache)
    typer.echo(f"wrote {out / ESTIMATOR}")


@app.command()
def train(
    config: ImageConfig,
    out: Out,
    encoder: Encoder = "imagenet",
    hourglass: Hourglass = None,
    refiner: Annotated[str | None, typer.Option(help="A refiner's weights, shipped or a file; random without it.")] = None,
    cache: Cache = None,
    nyu: Images = None,
    resume: Resume = True,
    epochs: Epochs = None,
    threads: Threads = 2,
    processes: Processes = 1,
) -> None:
    """Trains the estimator end to end (thesis, table 4.3); with --encoder random the encoder is trained, too."""
    import torch

    from jointbert.models.estimator import HandPoseEstimator
    from training.estimator import hourglass_parts, load_parts
    from training.estimator import train as train_estimator

    with one_sentence():
        experiment = _image_experiment(config, nyu, epochs)
        torch.manual_seed(experiment.seed)
        model = HandPoseEstimator.from_config(experiment.model, None if encoder == "random" else encoder, refiner)
        if encoder == "random":
            model.encoder.thaw()
        if hourglass is not None:
            load_parts(model, hourglass, hourglass_parts(model))
        train_estimator(experiment, "estimator", model, out, resume, threads, processes, cache)
    typer.echo(f"wrote {out / ESTIMATOR}")


@app.command()
def cache_features(
    config: ImageConfig,
    out: Annotated[Path, typer.Option(help="Folder for the features.", file_okay=False)],
    encoder: Encoder = "imagenet",
    nyu: Images = None,
    threads: Threads = 2,
) -> None:
    """Computes the frozen encoder's features of a config's images once; resumes an interrupted run."""
    import torch

    from jointbert.models.estimator import HandPoseEstimator
    from training.data.feature_cache import build_cache
    from training.estimator import training_set

    with one_sentence():
        torch.set_num_threads(threads)
        experiment = _image_experiment(config, nyu, None)
        images, images_id = training_set(experiment.data, experiment.model)
        if images is None:
            raise ValueError(f"{config}: data: images without end can't be cached; say how many, as in images: 2000")
        model = HandPoseEstimator.from_config(experiment.model, encoder)
        build_cache(out, model.to("cuda" if torch.cuda.is_available() else "cpu"), images, images_id)
    typer.echo(f"features of {len(images)} images: {out}")


@app.command()
def export_estimator(
    checkpoint: Annotated[
        Path, typer.Argument(help="One of pretrain-encoder's, pretrain-hourglass's or train's.", exists=True, dir_okay=False)
    ],
    out: Annotated[Path, typer.Argument(help="The safetensors file to write.")],
) -> None:
    """Writes a checkpoint's estimator (the averaged weights, where it has them); the best one's is written after training."""
    from training.estimator import export_estimator as export

    with one_sentence():
        export(checkpoint, out)
    typer.echo(f"wrote {out}")


@app.command()
def render_hands(
    out: Annotated[Path, typer.Argument(help="The picture to write (PNG).", dir_okay=False)],
    seed: Annotated[int, typer.Option(help="Of the hands.")] = 0,
    depth: Annotated[
        Path | None, typer.Option(help="Write one hand as NYU's camera would see it: a PNG of 16 bits, mm.", dir_okay=False)
    ] = None,
) -> None:
    """Draws rendered hands with their joints (occluded joints hollow) and prints the rendering speed on one thread."""
    from training.render_hands import draw, write_depth

    with one_sentence():
        speed = draw(out, seed)
        if depth is not None:
            write_depth(depth, seed)
            typer.echo(f"depth image: {depth}")
    typer.echo(f"{speed:.0f} images of 128 x 128 a second on one thread; picture: {out}")


@app.command()
def make_demo(
    nyu: Annotated[Path, typer.Option(help="Folder of published NYU predictions.")],
    out: Annotated[Path, typer.Option(help="The npz file to write.")] = Path("jointbert/demo/sample.npz"),
) -> None:
    """Generates the demo's sample: procedural hands with errors of a model fitted to subject 1's."""
    from training.demo import make_demo

    with one_sentence():
        make_demo(nyu, out)
    typer.echo(f"wrote {out}")


if __name__ == "__main__":
    app()
