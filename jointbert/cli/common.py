"""Shared code of the commands: options, errors as one sentence, progress, checks before long work."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from jointbert.camera import Camera
from jointbert.inputs.arguments import HANDS
from jointbert.refine import Refiner
from jointbert.runtimes import RUNTIMES
from jointbert.skeletons import NYU14
from jointbert.stream import Refined

BACKEND_WORDS = ", ".join(f"{spec.name} ({spec.summary})" for spec in RUNTIMES)
FormatOption = Annotated[str, typer.Option("--format", help="What a line holds: uvd (pixels, pixels, mm) or xyz (mm).")]
CameraOption = Annotated[str | None, typer.Option(help="For uvd: nyu, or fx,fy,cx,cy in pixels.")]
HandOption = Annotated[str, typer.Option(help=f"Whose hands: {' or '.join(HANDS)}.")]
OrderOption = Annotated[
    str, typer.Option(help=f"Joint order of the files: {', '.join(NYU14.all_orders)}, or 14 names with commas.")
]
ErrorOption = Annotated[float | None, typer.Option(help="Expected joint error of the method, mm; inferred without it.")]
SequenceOption = Annotated[
    bool, typer.Option("--sequence", help="The file is one video of one person: refine each frame with those around it.")
]
WeightsOption = Annotated[str, typer.Option(help="Shipped weights' name, a .safetensors file, or an .onnx one.")]
BackendOption = Annotated[str, typer.Option(help=f"auto, or {BACKEND_WORDS}.")]
ThreadsOption = Annotated[int, typer.Option(help="CPU threads.")]


@contextmanager
def one_sentence() -> Iterator[None]:
    """Prints user errors as one sentence with exit code 2, and warnings as one line each."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield
            message = None
        except BrokenPipeError:
            raise  # the reader of the output has closed it; click exits silently
        except OSError as error:
            message = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        except (ValueError, TypeError, ImportError, RuntimeError) as error:
            message = str(error)
    for text in dict.fromkeys(str(warning.message) for warning in caught):
        typer.echo(f"Warning: {text}", err=True)
    if message is not None:
        typer.echo(f"Error: {message}", err=True)
        raise typer.Exit(2)


@contextmanager
def progress_bar(frames: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error if that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    with typer.progressbar(length=frames, label="refining", file=sys.stderr) as bar:
        yield bar.update


def parse_camera(format: str, camera: str | None) -> Camera | None:
    """The camera of the option ``--camera``.

    Raises:
        ValueError: an invalid camera, or a camera for x y z.
    """
    if camera is not None and format == "xyz":
        raise ValueError("--camera: x y z needs no camera; leave it out")
    return None if camera is None else Camera.parse(camera)


def parse_order(order: str) -> str | list[str]:
    """A named order, or the list of joint names in a comma-separated text."""
    return [name.strip() for name in order.split(",")] if "," in order else order


def refuse_unused(context: typer.Context, parameters: Sequence[str], reason: str) -> None:
    """Refuses options that were given on the command line and have no effect.

    Raises:
        ValueError: one was given; ``reason`` says what it needs.
    """
    for name in parameters:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise ValueError(f"--{name.replace('_', '-')}: {reason}")


def check_folder(*files: Path | None) -> None:
    """Raises ValueError if an output file can't be written, before long work starts: its folder is missing, or it is a
    folder."""
    for file in files:
        if file is None:
            continue
        if file.is_dir():
            raise ValueError(f"{file} is a folder; expected the name of a file to write")
        if not file.resolve().parent.is_dir():
            raise ValueError(f"{file}: the folder {file.resolve().parent} does not exist")


def refine_file(joints: np.ndarray, weights: str, backend: str, threads: int, **options: Any) -> Refined:
    """Refines a file's joints, with a progress bar if standard error is a terminal."""
    refiner = Refiner(weights, backend, threads)
    with progress_bar(len(joints)) as progress:
        refined: Refined = refiner(joints, return_details=True, progress=progress, **options)
    return refined
