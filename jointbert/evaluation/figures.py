"""Pictures of hands, attention and errors. matplotlib is imported on demand (``pip install "jointbert[viz]"``)."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from jointbert.skeletons import NYU14, Skeleton

JOINT_NAMES = NYU14.names
_FINGER_COLOURS = ("#4c78a8", "#59a14f", "#edc948", "#f28e2b", "#e15759")


def pyplot_without_display() -> Any:
    """matplotlib.pyplot with a backend that needs no display."""
    try:
        import matplotlib
    except ImportError:
        raise ImportError('pictures need matplotlib; pip install "jointbert[viz]"') from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def draw_hand(
    axes: Any,
    joints: np.ndarray,
    dims: tuple[int, int] = (0, 1),
    colour: str | None = None,
    width: float = 7,
    layer: int = 3,
    skeleton: Skeleton = NYU14,
) -> None:
    """Draws ``(J, 3)`` joints of a skeleton as rounded bones over the palm, far ones first.

    Args:
        axes: matplotlib axes. dims: which two coordinates to show. colour: for all fingers; ``None``: one for each.
        width: of the bones, points. layer: hands with a higher layer cover those with a lower one.
    """
    if np.shape(joints) != (skeleton.num_joints, 3):
        raise ValueError(f"joints: got the shape {np.shape(joints)}; expected ({skeleton.num_joints}, 3) for {skeleton.name}")
    depth_axis = ({0, 1, 2} - set(dims)).pop()
    triangle = joints[list(skeleton.palm)][:, dims]
    axes.fill(*triangle.T, color=colour or "#b9a394", alpha=0.35, lw=0)
    for chain, finger in zip(skeleton.chains, cycle(_FINGER_COLOURS), strict=False):
        order = float(joints[list(chain), depth_axis].mean())
        x, y = joints[list(chain)][:, dims].T
        axes.plot(
            x,
            y,
            color=colour or finger,
            lw=width,
            solid_capstyle="round",
            solid_joinstyle="round",
            alpha=0.9,
            zorder=layer - order / 1e4,
        )
        axes.plot(x[:-1], y[:-1], "o", color="white", ms=width * 0.45, zorder=layer + 0.5)


def before_after(path: str | Path, groundtruth: np.ndarray, prediction: np.ndarray, refined: np.ndarray) -> None:
    """Writes a picture of one pose ``(14, 3)`` in millimetres: prediction and refinement over the truth, from front and side.

    Raises:
        ImportError: matplotlib is missing.
    """
    plt = pyplot_without_display()
    figure, grid = plt.subplots(2, 2, figsize=(8, 8.6), constrained_layout=True)
    centre = groundtruth.mean(0)
    for column, (name, joints) in enumerate((("predicted", prediction), ("refined", refined))):
        error = float(np.linalg.norm(joints - groundtruth, axis=-1).mean())
        for row, (dims, view) in enumerate((((0, 1), "front"), ((2, 1), "side"))):
            axes = grid[row][column]
            draw_hand(axes, groundtruth - centre, dims, colour="#c9c9c9", width=11, layer=1)
            draw_hand(axes, joints - centre, dims, width=5)
            for true, got in zip(groundtruth - centre, joints - centre, strict=True):
                axes.plot(*np.stack([true, got])[:, dims].T, color="#222222", lw=1.2, zorder=5)
            axes.set_aspect("equal")
            axes.invert_yaxis()
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_xlabel(view)
            for spine in axes.spines.values():
                spine.set_visible(False)
        grid[0][column].set_title(f"{name}: {error:.1f} mm mean error", fontsize=13)
    figure.suptitle("grey: the true hand; black lines: each joint's error", fontsize=10, color="#555555")
    limits = np.array([(axes.get_xlim(), sorted(axes.get_ylim())) for axes in grid.flat])
    for axes in grid.flat:  # one scale everywhere
        axes.set_xlim(limits[:, 0, 0].min(), limits[:, 0, 1].max())
        axes.set_ylim(limits[:, 1, 1].max(), limits[:, 1, 0].min())
    figure.savefig(path, dpi=110)
    plt.close(figure)


def save_estimate(
    path: str | Path,
    crop: np.ndarray,
    heatmaps: np.ndarray,
    uv: np.ndarray,
    joints: np.ndarray,
    groundtruth: np.ndarray | None = None,
) -> None:
    """Writes the picture of :func:`estimate_figure`."""
    figure = estimate_figure(crop, heatmaps, uv, joints, groundtruth)
    figure.savefig(path, dpi=110)
    pyplot_without_display().close(figure)


def estimate_figure(
    crop: np.ndarray, heatmaps: np.ndarray, uv: np.ndarray, joints: np.ndarray, groundtruth: np.ndarray | None = None
) -> Any:
    """A matplotlib figure of an estimator's result for one image: skeleton, heatmaps, and the pose from the side.

    Args:
        crop: ``(S, S)`` depth, or ``(S, S, 3)`` RGB in [0, 1]. heatmaps: ``(14, H, W)``.
        uv: ``(14, 2)`` the joints' crop pixels. joints: ``(14, 3)`` mm. groundtruth: the true ones, drawn in grey.

    Raises:
        ImportError: matplotlib is missing.
    """
    plt = pyplot_without_display()
    figure, (image, heat, side) = plt.subplots(1, 3, figsize=(12, 4.2), constrained_layout=True)
    size = crop.shape[0]
    image.imshow(crop, cmap="gray")
    draw_hand(image, np.concatenate([uv, joints[:, 2:] - joints[:, 2:].mean()], 1), width=3)
    image.set_title("joints")
    heat.imshow(crop, cmap="gray")
    shown = heat.imshow(
        heatmaps.max(0), extent=(-0.5, size - 0.5, size - 0.5, -0.5), cmap="inferno", alpha=0.75, vmin=0, vmax=1
    )
    figure.colorbar(shown, ax=heat, shrink=0.8)
    heat.set_title("heatmaps, the highest at each pixel")
    centre = joints.mean(0)
    if groundtruth is not None:
        draw_hand(side, groundtruth - centre, (2, 1), colour="#c9c9c9", width=9, layer=1)
    draw_hand(side, joints - centre, (2, 1), width=4)
    side.set_aspect("equal")
    side.invert_yaxis()
    side.set_xlabel("depth, mm")
    side.set_title("from the side" if groundtruth is None else "from the side; grey: true")
    for axes in (image, heat):
        axes.set_xlim(-0.5, size - 0.5)
        axes.set_ylim(size - 0.5, -0.5)
        axes.set_axis_off()
    return figure


def save_attention(path: str | Path, attention: np.ndarray, title: str = "") -> None:
    """Writes a picture of one layer's attention ``(heads, 14, 14)``: every head, and their mean (thesis, figures 5.4 to 5.9).

    Raises:
        ValueError: another shape. ImportError: matplotlib is missing.
    """
    figure = attention_figure(attention, title)
    figure.savefig(path, dpi=110)
    pyplot_without_display().close(figure)


def save_attention_layers(folder: str | Path, attention: np.ndarray) -> list[Path]:
    """Writes a picture of every 2nd layer of ``(layers, heads, 14, 14)``, or of a single layer; returns the paths.

    Raises:
        ValueError: another shape. ImportError: matplotlib is missing.
    """
    joints = len(JOINT_NAMES)
    if np.ndim(attention) != 4 or np.shape(attention)[2:] != (joints, joints) or not np.size(attention):
        raise ValueError(f"attention: got the shape {np.shape(attention)}; expected (layers, heads, {joints}, {joints})")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = {layer: folder / f"attention-{layer:02d}.png" for layer in range(min(2, len(attention)), len(attention) + 1, 2)}
    for layer, path in paths.items():
        save_attention(path, attention[layer - 1], f"layer {layer}")
    return list(paths.values())


def attention_figure(attention: np.ndarray, title: str = "") -> Any:
    """The matplotlib figure of :func:`save_attention`; the joints of the rows attend to those of the columns.

    Raises:
        ValueError: another shape. ImportError: matplotlib is missing.
    """
    attention = np.asarray(attention, np.float64)
    joints = len(JOINT_NAMES)
    if attention.ndim != 3 or attention.shape[1:] != (joints, joints) or not len(attention):
        raise ValueError(f"attention: got the shape {attention.shape}; expected (heads, {joints}, {joints})")
    plt = pyplot_without_display()
    panels = [(f"head {i}", head) for i, head in enumerate(attention, 1)] + [("mean of the heads", attention.mean(0))]
    columns = int(np.ceil(np.sqrt(len(panels))))
    rows = -(-len(panels) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(3.2 * columns, 3.1 * rows), constrained_layout=True, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for i, (axes, (name, matrix)) in enumerate(zip(grid.flat, panels, strict=False)):
        axes.set_axis_on()
        shown = axes.imshow(matrix, cmap="magma", vmin=0, vmax=max(0.01, float(matrix.max())))
        axes.set_title(name, fontsize=10)
        axes.set_xticks(range(joints))
        axes.set_yticks(range(joints))
        axes.set_yticklabels(JOINT_NAMES if i % columns == 0 else [], fontsize=6)
        lowest = i + columns >= len(panels)  # nothing is drawn below it
        axes.set_xticklabels(JOINT_NAMES if lowest else [], rotation=90, fontsize=6)
        figure.colorbar(shown, ax=axes, shrink=0.8).ax.tick_params(labelsize=6)
    figure.suptitle(title)
    figure.supylabel("from", fontsize=9)
    figure.supxlabel("to", fontsize=9)
    return figure


def save_joint_errors(path: str | Path, errors: Mapping[str, np.ndarray]) -> None:
    """Writes a bar chart of the mean error of each joint and of all joints, for each name's ``(frames, 14)`` errors in mm.

    Whiskers show the standard errors of the means (thesis, figure 5.3).

    Raises:
        ValueError: no names, another shape, errors that are not finite. ImportError: matplotlib is missing.
    """
    figure = joint_errors_figure(errors)
    figure.savefig(path, dpi=110)
    pyplot_without_display().close(figure)


def joint_errors_figure(errors: Mapping[str, np.ndarray]) -> Any:
    """The matplotlib figure of :func:`save_joint_errors`.

    Raises:
        ValueError, ImportError: as there.
    """
    if not errors:
        raise ValueError("errors: expected at least one name with its errors")
    for name, values in errors.items():
        if np.ndim(values) != 2 or np.shape(values)[1] != len(JOINT_NAMES) or not len(values):
            raise ValueError(f"errors: {name!r} has the shape {np.shape(values)}; expected (frames, {len(JOINT_NAMES)})")
        if not np.isfinite(values).all():
            raise ValueError(f"errors: {name!r} has values that are not finite")
    plt = pyplot_without_display()
    figure, axes = plt.subplots(figsize=(11, 4.2), constrained_layout=True)
    places = np.arange(len(JOINT_NAMES) + 1)
    width = 0.8 / len(errors)
    for i, (name, values) in enumerate(errors.items()):
        every = np.concatenate([values, values.mean(1, keepdims=True)], 1)
        spread = every.std(0) / np.sqrt(len(every))
        label = f"{name}: {every[:, -1].mean():.2f} mm"
        axes.bar(places + (i - (len(errors) - 1) / 2) * width, every.mean(0), width, yerr=spread, label=label, capsize=2)
    axes.set_xticks(places, [*JOINT_NAMES, "mean"], rotation=45, ha="right")
    axes.set_ylabel("mean error, mm")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure
