"""Writes the GPU figures of docs/gpu.md from benchmarks/results.

    python scripts/gpu_figures.py

The figures are written between the two marks in docs/gpu.md. Without results the text says that nothing was measured yet.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- GPU figures: scripts/gpu_figures.py writes them -->\n", "<!-- end of GPU figures -->\n"
NOTHING = (
    "Not yet measured: no GPU was at hand. What a model of an H100 predicts is [below](#what-a-model-of-an-h100-predicts).\n"
)
REFINER_BATCHES, HEATMAP_BATCHES = (1, 16, 256, 4096), (1, 256)


def figures(results: Path) -> str:
    """The text between the marks, from a folder of results."""
    found = {f.name: json.loads(f.read_text(encoding="utf-8")) for f in sorted(results.glob("*.json"))}
    of_gpus = {name: content for name, content in found.items() if is_of_a_gpu(content)}
    return "\n".join(of_device(content, name) for name, content in of_gpus.items()) if of_gpus else NOTHING


def is_of_a_gpu(content: Any) -> bool:
    """Whether a file was written by benchmarks/gpu.py: each of its entries names the device."""
    answers = list(content.values()) if isinstance(content, dict) else []
    return bool(answers) and all(isinstance(a, dict) and "compute_capability" in a for a in answers)


def of_device(content: dict[str, Any], file: str) -> str:
    """The tables of one device."""
    name = next(iter(content.values()))["device"]
    lines = [f"{name} (`benchmarks/results/{file}`), p50 and p99 in microseconds:", "", "```"]
    if "refiner" in content:
        lines += [f"{'refiner, batch':>16s} {'runtime':40s}{'p50':>9s}{'p99':>9s}"]
        for row in in_order(content["refiner"]):
            if row["batch"] in REFINER_BATCHES and (row.get("chosen") or not row["runtime"].startswith("ours")):
                lines.append(f"{row['batch']:16d} {row['runtime']:40s}{row['p50_us']:9.1f}{row['p99_us']:9.1f}")
    for row in content.get("refine_call", {}).get("rows", []):
        lines.append(f"{'refine(), 1 or n':>16s} {row['call']:40s}{row['p50_us']:9.1f}{row['p99_us']:9.1f}")
    if "soft_argmax" in content:
        lines += [f"{'maps, batch':>16s} {'runtime':40s}{'p50':>9s}{'p99':>9s}{'of bandwidth':>14s}"]
        for row in in_order(content["soft_argmax"]):
            if row["batch"] in HEATMAP_BATCHES and row["layout"].startswith("contiguous"):
                runtime = f"{row['runtime']} {row['dtype']}"
                share = f"{100 * row['of_bandwidth']:.0f} %"
                lines.append(f"{row['batch']:16d} {runtime:40s}{row['p50_us']:9.1f}{row['p99_us']:9.1f}{share:>14s}")
    if "estimator" in content:
        lines += [f"{'images, batch':>16s} {'runtime':40s}{'p50':>9s}{'p99':>9s}"]
        for row in in_order(content["estimator"]):
            runtime = f"{row['runtime']}, {row['what']}"
            lines.append(f"{row['batch']:16d} {runtime:40s}{row['p50_us']:9.0f}{row['p99_us']:9.0f}")
    return "\n".join([*lines, "```", ""])


def in_order(question: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows in the order of batch sizes, not of measurement."""
    return sorted(question["rows"], key=lambda row: row["batch"])


def replaced(page: str, results: Path) -> str:
    """The page with the figures of the results folder.

    Raises:
        ValueError: the page has no marks.
    """
    before, _, rest = page.partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise ValueError("docs/gpu.md: the marks of the GPU figures are missing")
    return before + BEGIN + figures(results) + END + after


if __name__ == "__main__":
    path = ROOT / "docs" / "gpu.md"
    path.write_text(replaced(path.read_text(encoding="utf-8"), ROOT / "benchmarks" / "results"), encoding="utf-8")
