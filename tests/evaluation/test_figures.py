from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")
image = pytest.importorskip("PIL.Image")

from jointbert.evaluation.figures import save_attention, save_joint_errors  # noqa: E402


@pytest.mark.parametrize("heads", [1, 4, 8])
def test_every_head_is_drawn(tmp_path: Path, heads: int) -> None:
    attention = np.random.default_rng(0).dirichlet(np.ones(14), (heads, 14))
    save_attention(tmp_path / "a.png", attention, "layer 2")
    picture = np.asarray(image.open(tmp_path / "a.png").convert("RGB"))
    assert picture.std() > 20
    other = attention.copy()
    other[-1] = np.eye(14)
    save_attention(tmp_path / "b.png", other, "layer 2")
    assert (np.asarray(image.open(tmp_path / "b.png").convert("RGB")) != picture).any()


def test_bars_are_as_high_as_the_errors(tmp_path: Path) -> None:
    """Errors of one size leave bars of one height, whose colour is as frequent in the picture as they are high."""

    def blue(errors: float) -> int:
        save_joint_errors(tmp_path / "e.png", {"a": np.full((5, 14), 10.0), "b": np.full((5, 14), errors)})
        picture = np.asarray(image.open(tmp_path / "e.png").convert("RGB")).astype(int)
        return int((np.abs(picture - [255, 127, 14]).sum(-1) < 10).sum())  # matplotlib's second colour

    full, half = blue(10), blue(5)
    assert half == pytest.approx(full / 2, rel=0.1)
