"""How is the refiner's attention distributed, layer by layer: along bones, to neighbouring indices, to the joint itself?

    python -m benchmarks.attention --data DIR --figures OUT

The thesis (chapter 6) reports that lower layers attend to adjacent indices and higher layers to indices further away. The
shares are means over the validation frames of published predictions; each method has the same weight. ``--figures`` draws
layers 2, 4, ..., 12 by head (figures 5.4 to 5.9).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from benchmarks.common import Data, Stride, Weights, validation_frames
from jointbert.evaluation.attention import print_shares
from jointbert.evaluation.figures import save_attention_layers
from jointbert.models.refiner import JointRefiner, encode
from training.errors import one_sentence


def mean_attention(model: JointRefiner, poses: torch.Tensor) -> np.ndarray:
    """``(layers, heads, 14, 14)`` attention, the mean over poses ``(N, 14, 3)`` without confidence or error size."""
    unknown = torch.full(poses.shape[:2], torch.nan)
    total = torch.zeros(())
    for part in poses.split(1024):
        n = len(part)
        features, _ = encode(part, torch.ones(n, 14, dtype=torch.bool), unknown[:n], unknown[:n])
        total = total + model.attention(features).sum(1)
    return np.asarray((total / len(poses)).numpy())


def main(
    data: Data,
    weights: Weights = "nyu14",
    stride: Stride = 4,
    figures: Annotated[Path | None, typer.Option(help="Folder for a picture of every second layer.", file_okay=False)] = None,
) -> None:
    """Print the shares of attention by layer."""
    with one_sentence():
        frames = validation_frames(data, stride)
        poses = np.concatenate(list(frames.predictions.values())).astype(np.float32)
        attention = mean_attention(JointRefiner.load(weights), torch.from_numpy(poses))
        print(f"{weights}: {len(poses)} poses")
        print_shares(attention)
        if figures is not None:
            save_attention_layers(figures, attention)


if __name__ == "__main__":
    typer.run(main)
