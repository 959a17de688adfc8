"""scripts/gpu_check.sh with fake tools: parts that fail or hang do not stop the others."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

PYTHON = """#!/bin/sh
case "$*" in
  *benchmarks.refiner_gpu*) echo '{"refiner": {"compute_capability": "9.0"}}' >benchmarks/results/fake.json ;;
  *benchmarks.soft_argmax_gpu*) echo "no such kernel" >&2; exit 3 ;;
  *benchmarks.estimator_gpu*) exec sleep 60 ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the script, tools that do nothing, and a Python with which one benchmark fails and one hangs."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "gpu_check.sh", tmp_path / "scripts")
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    (tmp_path / "benchmarks" / "results" / "cpu.json").write_text("{}")
    (tmp_path / "bin").mkdir()
    nothing = "#!/bin/sh\n"
    for name, text in (
        ("python3", PYTHON),
        ("nvidia-smi", "#!/bin/sh\necho Fake\n"),
        *((tool, nothing) for tool in ("cmake", "nvcc", "compute-sanitizer", "ninja")),
    ):
        tool = tmp_path / "bin" / name
        tool.write_text(text)
        tool.chmod(0o755)
    return tmp_path


def run(checkout: Path, *parts: str, seconds: int = 525) -> tuple[int, list[str], Path]:
    """Exit status, lines of output, and the output folder."""
    path = f"{checkout / 'bin'}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OUT": str(checkout / "out"), "GPU_CHECK_SECONDS": str(seconds)}
    environment.pop("PYTHON", None)
    done = subprocess.run(
        ["bash", "scripts/gpu_check.sh", *parts], cwd=checkout, env=environment, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout.splitlines(), checkout / "out"


def test_a_part_that_fails_or_hangs_stops_no_other(checkout: Path) -> None:
    # The last 10 of 16 seconds are reserved for stopping a part: 6 remain.
    code, lines, out = run(checkout, "build", "refiner", "soft_argmax", "estimator", "memcheck", seconds=16)
    assert lines[0] == "Fake"
    said = {line.split()[1].rstrip(":"): line for line in lines[1:-1]}
    assert said["build"].startswith("ok")
    assert said["refiner"].startswith("ok")
    assert said["soft_argmax"].startswith("FAILED")
    assert said["soft_argmax"].endswith("no such kernel")
    assert said["estimator"].startswith("FAILED")
    assert said["memcheck"] == "FAILED  memcheck: no time is left"
    assert lines[-1] == "3 parts failed"
    assert code == 3
    # The output folder holds the measurements and the log, nothing else.
    assert json.loads((out / "fake.json").read_text()) == {"refiner": {"compute_capability": "9.0"}}
    assert sorted(p.name for p in out.iterdir()) == ["fake.json", "log.txt"]
    assert "=== soft_argmax:" in (out / "log.txt").read_text()


def test_only_named_parts_run(checkout: Path) -> None:
    code, lines, _ = run(checkout, "configure", "module")
    assert code == 0
    assert [line.split()[:2] for line in lines[1:]] == [["ok", "configure"], ["ok", "module"], ["0", "parts"]]
