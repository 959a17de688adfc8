"""The GPU figures of docs/gpu.md come from the results files, and from nowhere else."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = runpy.run_path(str(ROOT / "scripts" / "gpu_figures.py"))


def test_the_page_says_what_was_measured() -> None:
    page = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    assert SCRIPT["replaced"](page, ROOT / "benchmarks" / "results") == page


def test_figures_of_a_device(tmp_path: Path) -> None:
    assert "Not yet measured" in SCRIPT["figures"](tmp_path)
    (tmp_path / "cpu.json").write_text(json.dumps({"rows": [1], "device": "a CPU"}))
    (tmp_path / "list.json").write_text("[]")
    assert "Not yet measured" in SCRIPT["figures"](tmp_path)
    times = {"p50_us": 36.5, "p99_us": 41.25}
    fast = {"device": "Tesla Fast", "compute_capability": "7.5"}
    content = {
        "refiner": {
            **fast,
            "rows": [
                {"batch": 1, "runtime": "ours f16 cluster", "chosen": True, **times},
                {"batch": 1, "runtime": "ours f16 tiles", "chosen": False, **times},
                {"batch": 1, "runtime": "torch f16", "chosen": False, **times},
                {"batch": 2, "runtime": "torch f16", "chosen": False, **times},
            ],
        },
        "estimator": {**fast, "rows": [{"batch": 8, "runtime": "ours", "what": "with refiner", **times}]},
        "soft_argmax": {
            **fast,
            "rows": [
                {
                    "batch": 256,
                    "runtime": "ours",
                    "dtype": "float16",
                    "layout": "contiguous_format",
                    "of_bandwidth": 0.87,
                    **times,
                }
            ],
        },
    }
    (tmp_path / "tesla-fast.json").write_text(json.dumps(content))
    text = SCRIPT["figures"](tmp_path)
    assert "Tesla Fast (`benchmarks/results/tesla-fast.json`)" in text
    assert [line.split()[:3] for line in text.splitlines() if "36.5" in line] == [
        ["1", "ours", "f16"],
        ["1", "torch", "f16"],
        ["256", "ours", "float16"],
    ]
    assert "87 %" in text
    assert [line.split() for line in text.splitlines() if "with refiner" in line] == [
        ["8", "ours,", "with", "refiner", "36", "41"]
    ]


def test_a_readme_without_the_marks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the marks of the GPU figures are missing"):
        SCRIPT["replaced"]("# nothing", tmp_path)
