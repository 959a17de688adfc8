from __future__ import annotations

import numpy as np
import pytest

from jointbert.evaluation.attention import BY_BONE, BY_INDEX, UNIFORM, AttentionShares, attention_shares, print_shares


def test_shares_by_hand() -> None:
    """Everybody looks at joint 13, the palm: it has bones to four mids, the thumb's base, two wrist sides."""
    attention = np.zeros((2, 14, 14))
    attention[:, :, 13] = 1
    distances = sum(13 - i for i in range(14)) / 14
    assert attention_shares(attention) == AttentionShares(7 / 14, 1 / 14, 1 / 14, 1 / 14, pytest.approx(distances))  # type: ignore[arg-type]


def test_uniform_attention() -> None:
    found = attention_shares(np.full((3, 14, 14), 1 / 14))
    for name in ("bone", "index", "both", "itself", "span"):
        assert getattr(found, name) == pytest.approx(getattr(UNIFORM, name)), name
    assert BY_BONE.sum() == 28  # 14 bones, both ways
    assert BY_INDEX.sum() == 26


def test_what_is_no_attention_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(14, 13\)"):
        attention_shares(np.ones((14, 13)))
    with pytest.raises(ValueError, match="add up to 1"):
        attention_shares(np.ones((14, 14)))


def test_nothing_has_no_mean() -> None:
    with pytest.raises(ValueError, match="nothing to take a mean of"):
        attention_shares(np.ones((0, 14, 14)))
    with pytest.raises(ValueError, match="there are no layers"):
        print_shares(np.ones((0, 2, 14, 14)))


def test_a_line_a_layer(capsys: pytest.CaptureFixture[str]) -> None:
    print_shares(np.stack([np.eye(14), np.full((14, 14), 1 / 14)]))
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["1", "0.0", "%", "0.0", "%", "0.0", "%", "100.0", "%", "0.00"]
    assert lines[2].split()[1:] == lines[3].split()[1:]  # the second layer is uniform
