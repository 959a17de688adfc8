"""``jointbert bench``: measures the latency of refine() on this machine for each backend."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from jointbert.cli.common import ThreadsOption, WeightsOption, check_folder, one_sentence


def command(
    batch: Annotated[str, typer.Option(help="Batch sizes, with commas.")] = "1,16,256",
    threads: ThreadsOption = 1,
    seconds: Annotated[float, typer.Option(help="How long to measure each batch size.", min=0)] = 3.0,
    weights: WeightsOption = "nyu14",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures to this file.")] = None,
) -> None:
    """Time refine() here by every backend, warmed up and interleaved."""
    with one_sentence():
        from jointbert.bench import bench as measure

        check_folder(json_file)
        try:
            sizes = [int(size) for size in batch.split(",")]
        except ValueError:
            raise ValueError(f"batch: got {batch!r}; expected sizes with commas, as in 1,16,256") from None
        report = measure(weights, sizes, threads, seconds)
        typer.echo(", ".join(f"{key} {value}" for key, value in report.where.items()))
        first = report.rows[0].call if report.rows else ""
        typer.echo(f"{'batch':>6s} {'backend':26s}{'p50 us':>11s}{'p99 us':>11s}{f'p50 over {first}':>18s}")
        base = {row.batch: row.p50_us for row in report.rows if row.call == first}
        for row in report.rows:
            ratio = row.p50_us / base[row.batch]
            typer.echo(f"{row.batch:6d} {row.call:26s}{row.p50_us:11.1f}{row.p99_us:11.1f}{ratio:18.2f}")
        for name, why in report.missing.items():
            typer.echo(f"not available: {name}: {why}")
        if json_file is not None:
            content = {**report.where, "rows": [row._asdict() for row in report.rows], "missing": report.missing}
            json_file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
