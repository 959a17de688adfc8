"""What the documentation shows is run as it stands."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[1] / "README.md"


def test_the_readme_s_example_runs() -> None:
    block, _ = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)  # the other needs a GPU
    names: dict[str, object] = {}
    exec(compile(block, "README.md", "exec"), names)
    assert names["status"].shape == (256,)  # type: ignore[attr-defined]
    assert names["better"].shape == (60, 14, 3)  # type: ignore[attr-defined]
    assert len(names["online"]) == 60  # type: ignore[arg-type]
    assert (names["status"] == 0).all()  # type: ignore[attr-defined]


@pytest.mark.parametrize("module", ["jointbert", "jointbert.refine"])
def test_examples_in_docstrings(module: str) -> None:
    result = doctest.testmod(importlib.import_module(module))

    assert result.attempted > 0
    assert result.failed == 0
