"""What several benchmarks share: command-line options, and the frames that they measure on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from training.data.nyu import VALIDATION, Published, read_published

Data = Annotated[Path, typer.Option(help="Folder with groundtruth.txt and predictions/*.txt.")]
Weights = Annotated[str, typer.Option(help="Shipped weights' name or a .safetensors file.")]
Stride = Annotated[int, typer.Option(help="Measure on every N-th frame.", min=1)]
Batches = Annotated[str, typer.Option(help="Batch sizes, comma-separated.")]


def validation_frames(data: Path, stride: int = 1) -> Published:
    """Every ``stride``-th of the validation frames (subject 2, 2440-4375) of a folder of published predictions."""
    return read_published(data).frames(slice(VALIDATION.start, VALIDATION.stop, stride))


def mpjpe(poses: np.ndarray, truth: np.ndarray) -> float:
    """Mean Euclidean distance of the joints of ``(..., 14, 3)``, mm."""
    return float(np.linalg.norm(poses - truth, axis=-1).mean())


def numbers(text: str) -> list[int]:
    """The whole numbers of a comma-separated list, which may be empty."""
    return [int(number) for number in text.split(",") if number]
