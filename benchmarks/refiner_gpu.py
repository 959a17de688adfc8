"""How long does the refiner take on a GPU?

    python -m benchmarks.refiner_gpu

Each variant of this library's kernel is compared with the same network in torch, eager and compiled with CUDA graphs, in
float16. Times are the device's, between two events; poses and weights are in GPU memory. ``of product`` is the rate of the
network's 45 million operations per pose, as a share of the rate that a large float16 matrix product reaches in the same run.
The second table times whole calls of refine() from Python, with a tensor on the GPU and with a NumPy array.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import torch
import typer

from benchmarks import gpu
from benchmarks.common import Batches, numbers

OPERATIONS = 45.3e6
"""Multiplications and additions per pose: 14 joints, 12 layers."""


def main(
    batches: Batches = "1,2,4,8,16,32,64,128,256,512,1024,2048,4096",
    compiled: Annotated[bool, typer.Option(help="Measure torch.compile, too.")] = True,
) -> None:
    """Print the tables and add them to benchmarks/results/<device>.json."""
    from jointbert import Refiner, load_demo
    from jointbert.cuda.arrays import read
    from jointbert.models.refiner import JointRefiner
    from jointbert.runtimes.cuda import CudaBackend, DeviceBatch, DeviceResult
    from jointbert.weights import load_weights

    gpu.require()
    rate = matrix_rate()
    print(f"{gpu.device()['device']}, a product of float16 reaches {rate / 1e12:.0f} TFLOP/s")
    backends = {p: CudaBackend(load_weights(), precision=p) for p in ("f16", "bf16")}
    model = JointRefiner.load().cuda().half()
    chosen = {0: "cluster", 1: "grid", 2: "tiles"}
    poses = load_demo().predictions
    on_device = backends["f16"].refiner(0)
    measured = [{"poses": n, "variant": chosen[v], "us": us} for n, v, us in on_device.measured]
    more = {"matrix_flop_per_s": rate, "clusters": on_device.clusters, "chosen": measured}
    print(f"{'batch':>6s} {'runtime':28s}{'p50 us':>10s}{'p99 us':>10s}{'of product':>12s}")
    for batch in numbers(batches):
        joints = torch.from_numpy(np.resize(poses, (batch, 14, 3))).cuda()
        given, library = read(joints, "joints")
        out = DeviceResult(
            library.empty((batch, 14, 3), "float32"),
            library.empty((batch, 14), "float32"),
            library.empty((batch,), "uint8"),
            None,
            None,
        )
        asked = DeviceBatch(given, np.arange(14, dtype=np.int32), 1.0, False, None, None, None)
        runtimes: dict[str, Any] = {}
        for precision, backend in backends.items():
            for variant in (0, 1, 2) if precision == "f16" else (-1,):
                try:
                    backend.enqueue(asked, out, library.cuda_stream, variant)
                except (RuntimeError, ValueError):  # the variant does not run on this GPU, or not with this batch size
                    continue
                name = f"ours {precision} {chosen.get(variant, 'chosen')}"
                runtimes[name] = lambda _, b=backend, v=variant, o=out, a=asked: b.enqueue(
                    a, o, torch.cuda.current_stream().cuda_stream, v
                )
        features = torch.randn(batch, 14, 8, device="cuda", dtype=torch.half)
        with torch.inference_mode():
            runtimes["torch f16"] = lambda _, f=features: model(f)
            for name, run in runtimes.items():
                eager = name == "torch f16"  # about 180 launches per call
                row = {"batch": batch, "runtime": name, "chosen": name.endswith(chosen[on_device.choose(batch)])}
                report(row, run, (60, 3, 3) if eager else (500, 20, 50), rate, more)

    for batch in (1, 4096) if compiled else ():  # each batch size compiles for seconds
        torch._dynamo.reset()
        fast = torch.compile(model, mode="reduce-overhead", dynamic=False)
        features = torch.randn(batch, 14, 8, device="cuda", dtype=torch.half)
        row = {"batch": batch, "runtime": "torch.compile f16, graphs", "chosen": False}
        with torch.inference_mode():
            report(row, lambda _, f=features, m=fast: m(f), (500, 20, 50), rate, more)  # type: ignore[misc]

    print(f"{'call':40s}{'p50 us':>10s}{'p99 us':>10s}")
    refiner, on_cpu = Refiner(backend="cuda"), Refiner()
    tensor = torch.from_numpy(poses[:1]).cuda()
    waits = {
        "tensor, until it is enqueued": lambda: refiner(tensor),
        "tensor, until it is done": lambda: (refiner(tensor), torch.cuda.synchronize()),
        "NumPy, through pinned memory": lambda: refiner(poses[:1]),
        "NumPy, native on one core": lambda: on_cpu(poses[:1]),
        "NumPy, 256 poses": lambda: refiner(poses),
        "NumPy, 256 poses, native on one core": lambda: on_cpu(poses),
    }
    for name, call in waits.items():
        p50, p99 = gpu.wall_clock(call, *((20, 2) if "256 poses, native" in name else (500, 50)))
        print(f"{name:40s}{p50:10.1f}{p99:10.1f}")
        path = gpu.write("refine_call", {"call": name, "p50_us": p50, "p99_us": p99}, ("call",))
    print(f"wrote {path}")


def report(row: dict[str, Any], run: Any, how: tuple[int, int, int], rate: float, more: dict[str, Any]) -> None:
    """Measures, prints and writes one row; ``how``: repeats, warm-up and ``together`` of :func:`benchmarks.gpu.percentiles`."""
    line = f"{row['batch']:6d} {row['runtime']:28s}"
    times = gpu.attempt(line, lambda: gpu.percentiles(run, *how))
    if times is None:
        return
    p50, p99 = times
    share = row["batch"] * OPERATIONS / (p50 * 1e-6) / rate
    print(f"{line}{p50:10.1f}{p99:10.1f}{100 * share:10.1f} %", flush=True)
    gpu.write("refiner", {**row, "p50_us": p50, "p99_us": p99, "of_matrix_rate": share}, ("batch", "runtime"), more)


def matrix_rate() -> float:
    """Operations per second of a float16 product of two 8192 x 8192 matrices, accumulated in float32."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.half) for _ in range(2))
    out = torch.empty_like(a)
    p50, _ = gpu.percentiles(lambda _: torch.mm(a, b, out=out), repeats=50, warmup=10)
    return 2 * 8192**3 / (p50 * 1e-6)


if __name__ == "__main__":
    typer.run(main)
