"""The Python examples of README.md and docs/*.md, found by a label: an HTML comment on the line before the block."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def python_block(label: str) -> str:
    """The code of the block behind ``<!-- example: LABEL -->``.

    Raises:
        LookupError: there is no such label, or no Python block right behind it.
    """
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    examples = dict(re.findall(r"<!-- example: (\S+) -->\n```python\n(.*?)```", text, flags=re.DOTALL))
    if label not in examples:
        known = ", ".join(map(repr, examples)) or "none"
        raise LookupError(f"no Python block behind '<!-- example: {label} -->'; there are {known}")
    return str(examples[label])
