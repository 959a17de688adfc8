"""A picture of rendered hands, and the speed of rendering."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch

from jointbert.camera import NYU
from training.data.images import RenderConfig, RenderedHands
from training.data.render import render, sample_hands, sense

ROWS, COLUMNS, SIZE = 4, 8, 128


def draw(path: Path, seed: int) -> float:
    """Writes a sheet of hands; returns rendered images per second of processor time on one thread, after a warm-up."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    sampler = RenderedHands(RenderConfig(), SIZE, 300.0, ROWS * COLUMNS, 11, seed)
    batch = sampler[0]
    begin = time.process_time()
    for i in range(1, len(sampler)):
        sampler[i]
    seconds = time.process_time() - begin
    torch.set_num_threads(threads)
    uv, _ = batch.crop.from_xyz(batch.joints)
    figure, grid = plt.subplots(ROWS, COLUMNS, figsize=(2 * COLUMNS, 2 * ROWS), constrained_layout=True)
    for i, axes in enumerate(np.ravel(grid)):
        axes.imshow(batch.crops[i, 0], cmap="bone", vmin=-1, vmax=1)
        for seen, face in ((True, "#e15759"), (False, "none")):
            u, v = uv[i][batch.visible[i] == seen].T
            axes.scatter(u, v, s=12, facecolors=face, edgecolors="#e15759", linewidths=0.8)
        axes.set_axis_off()
    figure.savefig(path, dpi=70)
    plt.close(figure)
    return (len(sampler) - 1) * ROWS * COLUMNS / seconds


def write_depth(path: Path, seed: int) -> None:
    """Writes a depth image of one hand as of NYU's camera: 640 x 480, millimetres, 0 where there is no surface."""
    from PIL import Image

    g = torch.Generator().manual_seed(seed)
    hands = sample_hands(1, g)
    depth = render(hands.capsules, torch.tensor([[NYU.fx, NYU.fy, NYU.cx, NYU.cy]]), (480, 640))
    Image.fromarray(sense(depth, g, holes=0.0)[0].numpy().astype(np.uint16)).save(path)
