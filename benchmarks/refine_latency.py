"""How long does a call of refine() take on a CPU, compared with the same weights in ONNX Runtime and torch?

    python -m benchmarks.refine_latency --threads 1

All runtimes are measured in one run after a warm-up, interleaved round by round, so that a slow moment of the machine affects
each of them. The table gives p50 and p99. ``refine()`` is the whole call from NumPy millimetres to NumPy millimetres; ONNX
Runtime and torch get prepared features and run the network alone, so the comparison favours them.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from benchmarks.common import Weights


def main(
    threads: Annotated[int, typer.Option(help="Threads of every runtime.", min=1)] = 1,
    batch: Annotated[list[int] | None, typer.Option(help="Batch sizes; may be given several times.")] = None,
    seconds: Annotated[float, typer.Option(help="Duration of the measurement of each batch size.")] = 10.0,
    weights: Weights = "nyu14",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures to this file.")] = None,
) -> None:
    """Print the latency of refine(), ONNX Runtime and torch."""
    from jointbert.bench import cpu_name, interleaved, pin

    cores = pin(threads)
    import onnxruntime as ort
    import torch

    import jointbert
    from jointbert.export.onnx import export_refiner
    from jointbert.models.refiner import JointRefiner, encode
    from jointbert.runtimes import load, runtime
    from jointbert.weights import load_weights

    torch.set_num_threads(threads)
    refiner = jointbert.Refiner(weights, "native", threads)
    isa = load(runtime("native"), load_weights(weights), 1).detail
    model = JointRefiner.load(weights)
    with tempfile.TemporaryDirectory() as folder:
        export_refiner(Path(folder) / "refiner.onnx", weights)
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        session = ort.InferenceSession(Path(folder) / "refiner.onnx", options, providers=["CPUExecutionProvider"])
    poses = jointbert.load_demo().predictions
    rows = {}
    where = f"{cpu_name()}, cores {cores or 'not pinned'}, {threads} thread(s)"
    print(f"{where}; native: {isa}; ONNX Runtime {ort.__version__}, torch {torch.__version__}")
    print(f"{'batch':>6s} {'runtime':22s}{'p50 us':>11s}{'p99 us':>11s}{'p50 over refine()':>20s}")
    for size in batch or [1, 16, 256]:
        given = np.resize(poses, (size, 14, 3))
        unknown = torch.full((size, 14), torch.nan)
        features = encode(torch.from_numpy(given), torch.ones(size, 14, dtype=torch.bool), unknown, unknown)[0]
        array = features.numpy()

        def run_torch(features: torch.Tensor = features) -> object:
            with torch.inference_mode():
                return model(features)

        def run_native(given: np.ndarray = given) -> object:
            return refiner(given)

        def run_ort(array: np.ndarray = array) -> object:
            return session.run(None, {"features": array})

        calls: dict[str, Callable[[], object]] = {"refine(), native": run_native}
        if size == 1:
            stream, pose = refiner.stream(), given[0]
            calls["stream, native"] = lambda stream=stream, pose=pose: stream(pose)  # type: ignore[misc]
        else:
            calls["sequence, native"] = lambda given=given: refiner(given, sequence=True)  # type: ignore[misc]
        times = interleaved({**calls, "ONNX Runtime": run_ort, "torch": run_torch}, seconds)
        base = np.median(times["refine(), native"])
        for name, values in times.items():
            p50, p99 = np.percentile(values, [50, 99])
            rows[f"{size}/{name}"] = {"p50_us": p50, "p99_us": p99, "runs": len(values)}
            print(f"{size:6d} {name:22s}{p50:11.1f}{p99:11.1f}{p50 / base:20.2f}")
    if json_file is not None:
        content = {"device": cpu_name(), "cores": cores, "threads": threads, "isa": isa, "rows": rows}
        json_file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
