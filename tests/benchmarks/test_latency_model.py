"""docs/gpu.md shows the output of the model of an H100."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import latency_model

DOCS = Path(__file__).resolve().parents[2] / "docs" / "gpu.md"


def test_docs_show_the_model_s_output(capsys: pytest.CaptureFixture[str]) -> None:
    latency_model.main()
    assert f"```\n{capsys.readouterr().out}```\n" in DOCS.read_text(encoding="utf-8")


def test_limits_of_the_model() -> None:
    """Twice the processors take the same time for twice the poses; more poses never take less time."""
    gpu = latency_model.Processor()
    twice = latency_model.Processor(
        processors=2 * gpu.processors, clusters=2 * gpu.clusters, l2_bytes_per_s=2 * gpu.l2_bytes_per_s
    )
    for batch in (1056, 4224):
        assert latency_model.tiles(2 * batch, twice) == pytest.approx(latency_model.tiles(batch, gpu))
        assert sum(latency_model.split(2 * batch, twice).values()) == pytest.approx(
            sum(latency_model.split(batch, gpu).values())
        )
    times = [latency_model.tiles(1 << k, gpu) for k in range(13)]
    assert times == sorted(times)
    # The products at the tensor cores' peak rate are a lower bound of every time.
    for batch in (1, 4096):
        products = batch * latency_model.OPERATIONS * latency_model.PADDED / (1024 * 4 * gpu.processors * gpu.clock)
        assert latency_model.tiles(batch, gpu) > products
