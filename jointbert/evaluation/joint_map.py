"""Draws the picture of docs/joints.md, which shows the position of each of the 14 joints in a hand.

    python -m jointbert.evaluation.joint_map docs/joints.png

matplotlib is imported when the picture is drawn (``pip install "jointbert[viz]"``).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jointbert.evaluation.figures import pyplot_without_display
from jointbert.skeletons import NYU14

KNUCKLES_MM = np.array([[-33.0, -30, 0], [-14, -34, 0], [3, -33, 0], [21, -31, 0], [22, 46, 0]])
"""Base joints of pinky, ring, middle, index (knuckles) and thumb (saddle joint), which the protocol does not contain."""

POSE_MM = np.array(
    [
        [-63.0, -100, 0],
        [-47, -60, 0],
        [-33, -123, 0],
        [-23, -74, 0],
        [7, -138, 0],
        [5, -82, 0],
        [45, -122, 0],
        [33, -74, 0],
        [103, -27, -20],
        [91, -4, -20],
        [62, 32, -12],
        [-18, 79, 0],
        [18, 79, 0],
        [0, 0, 0],
    ]
)
"""``(14, 3)`` an open right hand whose palm faces the camera: camera frame (x right, y down, z away), origin at the palm."""


class _Label(NamedTuple):
    side: int  # -1: left of the hand, 1: right
    height: float  # of its text, mm
    caption: str


_LABELS = (
    _Label(-1, -104, "little finger, tip"),
    _Label(-1, -52, "little finger, PIP joint"),
    _Label(-1, -130, "ring finger, tip"),
    _Label(-1, -78, "ring finger, PIP joint"),
    _Label(1, -152, "middle finger, tip"),
    _Label(1, -98, "middle finger, PIP joint"),
    _Label(1, -125, "index finger, tip"),
    _Label(1, -70, "index finger, PIP joint"),
    _Label(1, -36, "thumb, tip"),
    _Label(1, -8, "thumb, IP joint"),
    _Label(1, 32, "thumb, MCP joint"),
    _Label(-1, 79, "little finger's side of the wrist"),
    _Label(1, 79, "thumb's side of the wrist"),
    _Label(-1, 8, "centre of the palm"),
)
_COLOURS = {"pinky": "#3b6ea5", "ring": "#3f8f45", "middle": "#b8860b", "index": "#d9731a", "thumb": "#c8393e"}
_PALM_COLOUR, _SKIN, _OUTLINE = "#6d5a50", "#f6e3d5", "#d8b9a3"
_WIDTHS_MM = {"pinky": (10.5, 8.5, 6.5), "ring": (11.5, 9, 7.5), "middle": (12, 9.5, 7.5), "index": (12, 9.5, 7.5)}
_THUMB_WIDTHS_MM = (15.0, 12, 9.5, 8)
_MARGIN_MM = 142.0


def save_joint_map(path: str | Path) -> None:
    """Writes the picture: a right hand, its palm towards the viewer, with the 14 joints numbered and named.

    Raises:
        ImportError: matplotlib is missing.
    """
    figure = joint_map_figure()
    figure.savefig(path, dpi=110)
    pyplot_without_display().close(figure)


def joint_map_figure() -> Any:
    """The matplotlib figure of :func:`save_joint_map`.

    Raises:
        ImportError: as there.
    """
    plt = pyplot_without_display()
    figure, axes = plt.subplots(figsize=(10, 7.6), constrained_layout=True)
    _draw_skin(axes)
    _draw_other_joints(axes)
    axes.fill(*POSE_MM[list(NYU14.palm), :2].T, color=_PALM_COLOUR, alpha=0.18, lw=0, zorder=4)
    for a, b in NYU14.bones:
        axes.plot(*POSE_MM[[a, b], :2].T, color=_colour(a), lw=2.6, solid_capstyle="round", zorder=5)
    for joint, label in enumerate(_LABELS):
        _draw_joint(axes, joint, label)
    axes.text(0, -178, "The 14 joints of the NYU protocol", fontsize=15, ha="center", va="center", color="#222222")
    axes.text(0, -166, "right hand, its palm towards you", fontsize=10, ha="center", va="center", color="#666666")
    axes.plot([-132], [119], "o", ms=5, mfc="white", mec="#9a9a9a", mew=1.2, zorder=5)
    axes.text(-126, 119, "joints that are not among the 14", fontsize=9, va="center", color="#666666")
    axes.plot([-135, -129], [109, 109], color="#666666", lw=2.6)
    axes.text(
        -126, 109, "bones as pictures draw them; shaded: the palm's rigid triangle", fontsize=9, va="center", color="#666666"
    )
    _draw_axes(axes, 118, 102)
    axes.set_aspect("equal")
    axes.set_xlim(-_MARGIN_MM - 74, _MARGIN_MM + 66)
    axes.set_ylim(128, -186)
    axes.set_axis_off()
    return figure


def _colour(joint: int) -> str:
    return next((_COLOURS[finger] for finger, joints in NYU14.fingers.items() if joint in joints), _PALM_COLOUR)


def _draw_joint(axes: Any, joint: int, label: _Label) -> None:
    """Draws a numbered dot, and a line to its name beside the hand."""
    x, y = POSE_MM[joint, :2]
    end = label.side * (_MARGIN_MM - 10)
    bend = end - label.side * 12
    axes.plot([x, bend, end], [y, label.height, label.height], color="#555555", lw=0.8, zorder=6)
    axes.plot([x], [y], "o", ms=17, mfc="white", mec=_colour(joint), mew=2.4, zorder=7)
    axes.text(
        x,
        y,
        str(joint),
        fontsize=9.5,
        ha="center",
        va="center_baseline",
        weight="bold",
        color="#222222",
        zorder=8,
        family="DejaVu Sans",
    )
    where = {"x": label.side * (_MARGIN_MM - 7), "ha": "left" if label.side > 0 else "right"}
    axes.text(
        y=label.height - 0.5, s=NYU14.names[joint], va="bottom", fontsize=11, weight="bold", color=_colour(joint), **where
    )
    axes.text(y=label.height + 1.5, s=label.caption, va="top", fontsize=8.5, color="#666666", **where)


def _draw_skin(axes: Any) -> None:
    """Draws the hand's outline, the boundary of a smooth union of capsules around the bones."""
    capsules = []
    for (finger, widths), root in zip(_WIDTHS_MM.items(), KNUCKLES_MM, strict=False):
        chain = [root, *POSE_MM[list(NYU14.fingers[finger])[::-1]]]
        capsules += [(chain[i], chain[i + 1], widths[i], widths[i + 1]) for i in range(2)]
    thumb = [KNUCKLES_MM[4], *POSE_MM[list(NYU14.fingers["thumb"])[::-1]]]
    capsules += [(thumb[i], thumb[i + 1], _THUMB_WIDTHS_MM[i], _THUMB_WIDTHS_MM[i + 1]) for i in range(3)]
    sides = POSE_MM[list(NYU14.palm[:2])]
    capsules += [(knuckle, sides[int(i > 1)], 11.0, 12.0) for i, knuckle in enumerate(KNUCKLES_MM[:4])]
    capsules += [(KNUCKLES_MM[i], KNUCKLES_MM[i + 1], 11.0, 11.0) for i in range(3)]
    capsules += [(KNUCKLES_MM[3], KNUCKLES_MM[4], 10.0, 14.0), (KNUCKLES_MM[4], sides[1], 14.0, 12.0)]
    capsules += [(POSE_MM[13], sides.mean(0), 26.0, 24.0), (KNUCKLES_MM[3] + [6, 26, 0], thumb[1], 9.0, 9.0)]
    capsules += [(side, side + [0, 60, 0], 13.0, 15.0) for side in sides]
    x, y = np.meshgrid(np.arange(-90, 131, 0.5), np.arange(-160, 97, 0.5))
    points = np.stack([x, y], -1)
    softness = 3.0  # mm: how round the corners between two capsules are
    distance = -softness * np.log(sum(np.exp(-_capsule_distance(points, *c) / softness) for c in capsules))
    axes.contourf(x, y, distance, levels=[-1e3, 0], colors=[_SKIN], zorder=1)
    axes.contour(x, y, distance, levels=[0], colors=[_OUTLINE], linewidths=2, zorder=2)


def _draw_other_joints(axes: Any) -> None:
    tips, mids = POSE_MM[[0, 2, 4, 6], :2], POSE_MM[[1, 3, 5, 7], :2]
    others = np.concatenate([KNUCKLES_MM[:, :2], mids + 0.52 * (tips - mids)])
    axes.plot(*others.T, "o", ms=5, mfc="white", mec="#9a9a9a", mew=1.2, zorder=6)


def _draw_axes(axes: Any, x: float, y: float) -> None:
    """Draws the camera's axes."""
    for dx, dy, name, at in ((22, 0, "x", (27, 0)), (0, 22, "y", (0, 27))):
        axes.annotate("", (x + dx, y + dy), (x, y), arrowprops={"arrowstyle": "->", "color": "#444444", "lw": 1.3})
        axes.text(x + at[0], y + at[1], name, fontsize=10, ha="center", va="center", color="#444444")
    axes.plot([x], [y], "o", ms=9, mfc="white", mec="#444444", mew=1.3)
    axes.plot([x], [y], "x", ms=5, color="#444444", mew=1.3)
    axes.text(x + 6, y + 9, "z away from you", fontsize=9, va="center", color="#444444")


def _capsule_distance(points: np.ndarray, start: np.ndarray, end: np.ndarray, at_start: float, at_end: float) -> np.ndarray:
    """Signed distance of points ``(..., 2)`` from a capsule with radii ``at_start`` and ``at_end``; negative inside."""
    start, along = start[:2], (end - start)[:2]
    share = np.clip((points - start) @ along / (along @ along), 0, 1)
    radius = at_start + share * (at_end - at_start)
    return np.asarray(np.linalg.norm(points - start - share[..., None] * along, axis=-1) - radius)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("Usage: python -m jointbert.evaluation.joint_map FILE.png")
    save_joint_map(sys.argv[1])
