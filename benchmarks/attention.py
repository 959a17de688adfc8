"""Where do the refiner's joints look, layer by layer: along bones, along indices, at themselves?

    python benchmarks/attention.py --data DIR --figures OUT

The thesis (chapter 6) sees its lower layers look at adjacent indices and its higher ones further. On the validation frames of
published predictions, every method weighing the same. ``--figures`` draws layers 2, 4, ..., 12 by head (figures 5.4 to 5.9).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jointbert.evaluation.attention import print_shares
from jointbert.evaluation.figures import save_attention_layers
from jointbert.models.refiner import JointRefiner, encode
from training.data.nyu import VALIDATION, read_published
from training.errors import one_sentence


def mean_attention(model: JointRefiner, poses: torch.Tensor) -> np.ndarray:
    """``(layers, heads, 14, 14)``, a mean over poses ``(N, 14, 3)``, nothing known but the joints."""
    unknown = torch.full(poses.shape[:2], torch.nan)
    total = torch.zeros(())
    for part in poses.split(1024):
        n = len(part)
        features, _ = encode(part, torch.ones(n, 14, dtype=torch.bool), unknown[:n], unknown[:n])
        total = total + model.attention(features).sum(1)
    return np.asarray((total / len(poses)).numpy())


def main(
    data: Annotated[Path, typer.Option(help="Folder with groundtruth.txt and predictions/*.txt.")],
    weights: Annotated[str, typer.Option(help="Shipped weights' name or a .safetensors file.")] = "nyu14",
    stride: Annotated[int, typer.Option(help="Every so-manieth frame.", min=1)] = 4,
    figures: Annotated[Path | None, typer.Option(help="Folder for a picture of every second layer.", file_okay=False)] = None,
) -> None:
    """Print the shares by layer."""
    with one_sentence():
        frames = read_published(data).frames(slice(VALIDATION.start, VALIDATION.stop, stride))
        poses = np.concatenate(list(frames.predictions.values())).astype(np.float32)
        attention = mean_attention(JointRefiner.load(weights), torch.from_numpy(poses))
        print(f"{weights}: {len(poses)} poses")
        print_shares(attention)
        if figures is not None:
            save_attention_layers(figures, attention)


if __name__ == "__main__":
    typer.run(main)
