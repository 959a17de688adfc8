from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pyplot = pytest.importorskip("matplotlib.pyplot")
image = pytest.importorskip("PIL.Image")

from jointbert import JOINT_NAMES  # noqa: E402
from jointbert.evaluation.figures import (  # noqa: E402
    attention_figure,
    draw_hand,
    joint_errors_figure,
    save_attention,
    save_attention_layers,
    save_estimate,
    save_joint_errors,
)
from jointbert.skeletons import PalmFrame, Skeleton  # noqa: E402


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    pyplot.close("all")


def panels(figure: Any) -> dict[str, Any]:
    return {axes.get_title(): axes for axes in figure.axes if axes.get_title()}


@pytest.mark.parametrize("heads", [1, 4, 8])
def test_every_head_is_drawn(heads: int) -> None:
    attention = np.random.default_rng(0).dirichlet(np.ones(14), (heads, 14))
    found = panels(attention_figure(attention, "layer 2"))
    assert list(found) == [*(f"head {i}" for i in range(1, heads + 1)), "mean of the heads"]
    for axes, matrix in zip(found.values(), [*attention, attention.mean(0)], strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), matrix)  # rows look at columns
    # Every column of panels is named below, every row at its left.
    named = [[bool(label.get_text()) for label in axes.get_xticklabels()].count(True) for axes in found.values()]
    left = [[bool(label.get_text()) for label in axes.get_yticklabels()].count(True) for axes in found.values()]
    columns = {1: 2, 4: 3, 8: 3}[heads]
    assert named == [14 if i + columns > heads else 0 for i in range(heads + 1)]
    assert left == [14 if i % columns == 0 else 0 for i in range(heads + 1)]


@pytest.mark.parametrize("layers", [1, 2, 3, 12])
def test_pictures_of_every_second_layer(tmp_path: Path, layers: int) -> None:
    attention = np.random.default_rng(0).dirichlet(np.ones(14), (layers, 1, 14))
    paths = save_attention_layers(tmp_path / "new", attention)
    expected = {1: [1], 2: [2], 3: [2], 12: [2, 4, 6, 8, 10, 12]}[layers]
    assert [path.name for path in paths] == [f"attention-{i:02d}.png" for i in expected]
    for path in paths:
        assert np.asarray(image.open(path).convert("RGB")).std() > 20
    assert not pyplot.get_fignums()


def test_bars_are_as_high_as_the_errors(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    errors = {"before": rng.gamma(4, 3, (50, 14)), "after": rng.gamma(4, 2, (50, 14))}
    figure = joint_errors_figure(errors)
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == [*JOINT_NAMES, "mean"]
    bars = [c for c in axes.containers if type(c).__name__ == "BarContainer"]
    for container, values in zip(bars, errors.values(), strict=True):
        heights = [bar.get_height() for bar in container]
        np.testing.assert_allclose(heights, [*values.mean(0), values.mean()])
        spread = [*values.std(0), values.mean(1).std()] / np.sqrt(50)
        whiskers = np.array([segment[:, 1] for segment in container.errorbar.lines[2][0].get_segments()])
        np.testing.assert_allclose(whiskers, np.stack([heights - spread, heights + spread], 1))
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == [f"{name}: {values.mean():.2f} mm" for name, values in errors.items()]
    pyplot.close(figure)
    save_joint_errors(tmp_path / "e.png", errors)
    with image.open(tmp_path / "e.png") as picture:
        assert picture.size[0] > 800
    assert not pyplot.get_fignums()


def test_an_estimate_s_picture(tmp_path: Path, poses: np.ndarray) -> None:
    crop, heatmaps, uv = np.ones((64, 64)), np.zeros((14, 16, 16)), np.full((14, 2), 30.0)
    save_estimate(tmp_path / "a.png", crop, heatmaps, uv, poses[0])
    save_estimate(tmp_path / "b.png", crop, heatmaps, uv, poses[0], poses[1])
    a, b = (np.asarray(image.open(tmp_path / name).convert("RGB")).astype(int) for name in ("a.png", "b.png"))
    grey = [(np.abs(picture - 0xC9).sum(-1) < 6).sum() for picture in (a, b)]
    assert grey[1] > 4 * grey[0] + 100  # the true hand
    assert not pyplot.get_fignums()


@pytest.mark.parametrize(
    ("draw", "given", "message"),
    [
        (save_attention, np.eye(14), r"attention: got the shape \(14, 14\); expected \(heads, 14, 14\)"),
        (save_attention, np.ones((2, 13, 13)), r"attention: got the shape \(2, 13, 13\)"),
        (save_attention, np.ones((0, 14, 14)), r"attention: got the shape \(0, 14, 14\)"),
        (save_attention_layers, np.ones((2, 14, 14)), r"attention: got the shape \(2, 14, 14\); expected \(layers, heads"),
        (save_attention_layers, np.ones((2, 3, 13, 13)), r"attention: got the shape \(2, 3, 13, 13\)"),
        (save_attention_layers, np.ones((0, 2, 14, 14)), r"attention: got the shape \(0, 2, 14, 14\)"),
        (save_joint_errors, {}, "errors: expected at least one name"),
        (save_joint_errors, {"a": np.ones((5, 13))}, r"errors: 'a' has the shape \(5, 13\); expected \(frames, 14\)"),
        (save_joint_errors, {"a": np.ones((0, 14))}, r"errors: 'a' has the shape \(0, 14\)"),
        (save_joint_errors, {"a": np.full((5, 14), np.nan)}, "errors: 'a' has values that are not finite"),
    ],
)
def test_what_can_t_be_drawn_is_said(tmp_path: Path, draw: Any, given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw(tmp_path / "x.png", given)
    assert not (tmp_path / "x.png").exists()


def test_a_hand_of_any_skeleton_can_be_drawn() -> None:
    two = Skeleton(
        name="two",
        names=("tip", "palm"),
        parents=(1, -1),
        bones=((0, 1),),
        rigid_bones=((0, 1),),
        fingers={f"finger {i}": (0,) for i in range(7)},  # more than there are colours
        palm=(1,),
        palm_frame=PalmFrame(across=(0, 1), up=((0,), (1,)), curl=((0, 1),), thumb=(0, 1)),
        anatomy=("A tip.", "A palm."),
    )
    _, axes = pyplot.subplots()
    draw_hand(axes, np.array([[0.0, 0, 0], [0, 50, 0]]), skeleton=two)
    assert sum(len(line.get_xdata()) == 2 for line in axes.lines) == 7
    with pytest.raises(ValueError, match=r"joints: got the shape \(14, 3\); expected \(2, 3\) for two"):
        draw_hand(axes, np.zeros((14, 3)), skeleton=two)
