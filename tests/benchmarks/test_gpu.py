"""The arithmetic of the GPU benchmarks on a fake GPU, and their message without a GPU."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import typer  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

from benchmarks import estimator_gpu, gpu, refiner_gpu, soft_argmax_gpu  # noqa: E402

LAUNCHES = 7
"""Launches that fit into the queue of the fake GPU."""


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A fake queue. ``waiting``: the ms of each launch that waits behind the sleeping kernel; ``append`` enqueues a launch."""
    waiting: list[int] = []
    begun = SimpleNamespace(value=False)

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            self.at = -1

        def record(self) -> None:
            self.at = len(waiting)

        def query(self) -> bool:
            return begun.value

        def elapsed_time(self, end: Event) -> float:
            return float(sum(waiting[self.at : end.at]))

    def sleep(_: int) -> None:
        waiting.clear()
        begun.value = False

    def settle() -> None:
        begun.value = False

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", sleep)
    monkeypatch.setattr(torch.cuda, "synchronize", settle)

    def append(ms: int) -> None:
        waiting.append(ms)
        begun.value |= len(waiting) > LAUNCHES

    return SimpleNamespace(append=append, waiting=waiting)


@pytest.mark.parametrize("together", [50, 6, 1])
def test_only_as_many_calls_are_enqueued_as_the_queue_holds(queue: SimpleNamespace, together: int) -> None:
    asked: list[int] = []

    def call(k: int) -> None:
        asked.append(k)
        queue.append(1)
        queue.append(2)

    assert gpu.percentiles(call, repeats=9, warmup=2, together=together) == (3e3, 3e3)
    assert len(queue.waiting) <= LAUNCHES


def test_a_call_that_the_queue_can_t_hold_is_an_error(queue: SimpleNamespace) -> None:
    with pytest.raises(RuntimeError, match="before the call was enqueued"):
        gpu.percentiles(lambda _: [queue.append(1) for _ in range(LAUNCHES + 1)], repeats=3, warmup=1)


def test_a_row_replaces_the_one_with_the_same_keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu, "RESULTS", tmp_path)
    monkeypatch.setattr(gpu, "device", lambda: {"device": "NVIDIA Fast"})
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA Fast")
    for batch, us in ((1, 5.0), (2, 6.0), (1, 4.0)):
        path = gpu.write("refiner", {"batch": batch, "p50_us": us}, ("batch",), {"clusters": 16})
    assert path == tmp_path / "nvidia-fast.json"
    assert list(tmp_path.iterdir()) == [path]
    rows = [{"batch": 2, "p50_us": 6.0}, {"batch": 1, "p50_us": 4.0}]
    assert json.loads(path.read_text()) == {"refiner": {"device": "NVIDIA Fast", "clusters": 16, "rows": rows}}


def test_the_refiner_s_share(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    rows: list[dict[str, Any]] = []
    monkeypatch.setattr(gpu, "write", lambda question, row, keys: rows.append(row))
    whole: dict[tuple[int, str], float] = {}

    def fails() -> tuple[float, float]:
        raise RuntimeError("no room")

    timed: list[tuple[str, str, Any]] = [
        ("ours", "with refiner", lambda: (200.0, 300.0)),
        ("ours", "without refiner", lambda: (190.0, 300.0)),
        ("ours", "NumPy to NumPy", lambda: (900.0, 990.0)),
        ("torch", "with refiner", fails),
        ("torch", "without refiner", lambda: (190.0, 300.0)),
    ]
    for runtime, what, call in timed:
        estimator_gpu.report({"batch": 1, "runtime": runtime, "what": what}, call, whole)
    assert [row["share"] for row in rows] == [1.0, 0.95, None, None]
    assert "failed: no room" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("module", [estimator_gpu, refiner_gpu, soft_argmax_gpu])
def test_without_a_gpu_there_is_one_sentence(module: Any) -> None:
    app = typer.Typer()
    app.command()(module.main)
    result = CliRunner().invoke(app, [])
    assert (result.exit_code, result.output) == (2, "Error: torch finds no GPU\n")
