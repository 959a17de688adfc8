"""What should the one-launch refiner take on an H100? A model, written before there was one to measure on.

    python benchmarks/latency_model.py

Counts (bytes, operations, instructions, barriers) are the kernels' own. Clock, processors, shared memory: NVIDIA's white paper
on the H100. All else are estimates. Those of mma.sync and of the network between processors (180 cycles) are meant to be of the
order that microbenchmarks of Hopper report (Luo et al., arXiv:2402.13499), but were not compared with its tables. Where
benchmarks/results holds a measurement, that is what counts, not this.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

LAYERS, CHUNKS, CHUNK_BYTES = 12, 16, 17024
OPERATIONS = 45.3e6
"""Of one pose: 2 for each weight of a product and joint, and attention."""
PADDED = 16 / 14
"""A pose takes 16 rows of a tensor-core tile."""


@dataclass(frozen=True)
class Processor:
    """An H100 SXM: latencies in cycles, rates a processor and cycle."""

    clock: float = 1.755e9
    processors: int = 132
    clusters: int = 16
    """Of 8 blocks at once, one a processor: two for each group of 16 to 18 processors."""
    mma_cycles: float = 1.6
    """Between two m16n8k16 products: mma.sync at some 62 % of the tensor cores' rate: an estimate."""
    mma_latency: int = 33
    """An estimate."""
    warp_mma_cycles: int = 8
    """Between two of one warp: an estimate."""
    issue: int = 4
    """Instructions a cycle."""
    shared_bytes: int = 128
    l2_bytes_per_s: float = 5.5e12
    """An estimate: what reading benchmarks show lies about it."""
    barrier: int = 250
    """A barrier of a cluster, and the write before it that has to arrive: the network's latency, the rest an estimate."""
    launch: float = 2.5e-6
    """An estimate."""
    ends: float = 2.5e-6
    """Reading and checking a pose, the first and the last layer: two trips to memory and some hundred instructions; an
    estimate."""


def split(batch: int, gpu: Processor) -> dict[str, float]:
    """8 blocks a few poses, a warp a pose: everything waits for one warp's chain and for two barriers each half of a layer.
    Seconds by what takes them."""
    load_rows = 30 + 32 * 4
    query_key_value = 48 * gpu.warp_mma_cycles + gpu.mma_latency  # 6 chains of 8 products
    softmax = 2 * gpu.mma_latency + 250  # scores, maximum, powers, sum, mixing
    project = 16 * gpu.warp_mma_cycles + gpu.mma_latency
    feed_forward = 2 * (32 * gpu.warp_mma_cycles + gpu.mma_latency) + 16 * 13  # 16 values of GELU a lane
    tell = 32 * 8 + 8 * 8 + 2 * gpu.barrier  # 8 bytes a lane and column pair, to the owner of the row; its rows, to all
    own = 16 * 8 + 300  # sums of 8 blocks, LayerNorm
    layer = {
        "barriers, what is sent before them": 2 * tell,
        "products that wait for each other": query_key_value + softmax + project + feed_forward,
        "sums of 8 blocks, LayerNorm": 2 * own,
        "rows back into registers": 2 * load_rows,
    }
    together = min(8, math.ceil(batch / gpu.clusters))
    # Warps of a processor hide each other's latencies; beyond 4 they share its issue slots and tensor cores.
    crowding = max(1.0, together / 4)
    waves = math.ceil(batch / (gpu.clusters * together))
    parts = {name: waves * LAYERS * cycles * crowding / gpu.clock for name, cycles in layer.items()}
    return {**parts, "launch, ends": gpu.launch + gpu.ends}


def chunk_cycles(batch: int, gpu: Processor) -> dict[str, float]:
    """What each thing that a processor's 8 warps share takes for a chunk of weights, if it were alone."""
    each = 2 if batch > 8 * gpu.processors else 1
    blocks = math.ceil(batch / (8 * each))
    products = (68 + 64) / 2 * each * 8
    instructions = (699 + 852) / 2 * (8 if each == 2 else 8 * 0.62)  # of two poses, as nvdisasm counts them; of one
    return {
        "tensor cores": products * gpu.mma_cycles,
        "instruction issue": instructions / gpu.issue,
        "shared memory": 8 * CHUNK_BYTES / gpu.shared_bytes,
        "L2": min(blocks, gpu.processors) * CHUNK_BYTES / gpu.l2_bytes_per_s * gpu.clock,
        # Half of a warp's own chain is hidden by the other warp of its scheduler: an estimate.
        "a warp's own chain": 0.5 * (each * 66 * gpu.warp_mma_cycles + 500),
    }


def tiles(batch: int, gpu: Processor) -> float:
    """Seconds; a warp one pose or two, 8 warps a processor, through all chunks: whatever is slowest of what they share."""
    each = 2 if batch > 8 * gpu.processors else 1
    norms = 2 * 8 * each * 450 / gpu.issue  # twice a layer, 450 instructions a pose
    waves = math.ceil(batch / (8 * each) / gpu.processors)
    chunk = max(chunk_cycles(batch, gpu).values())
    return gpu.launch + gpu.ends + waves * LAYERS * (CHUNKS * chunk + norms) / gpu.clock


def measuring(gpu: Processor) -> float:
    """Seconds that ``DeviceRefiner::measure`` takes for 1, 2, 4 ... 4096 poses: its warm-up, then rounds of launches."""
    warm_up, launches = 30e-3, 3 * 5 + 1
    spent = warm_up
    for batch in (1 << k for k in range(13)):
        of_tiles, of_clusters = tiles(batch, gpu), sum(split(batch, gpu).values())
        spent += launches * (of_tiles + (of_clusters if of_clusters < 4 * of_tiles else 0))  # beyond twice the tiles' time once
    return spent


def main() -> None:
    gpu = Processor()
    weights = LAYERS * CHUNKS * CHUNK_BYTES
    print(f"weights {weights / 1e6:.2f} MB (f16, with biases); one pose {OPERATIONS / 1e6:.1f} MFLOP, {PADDED:.2f} of it done")
    print("cluster: 2 barriers each half of a layer and one before, 49; tiles: one a chunk and one each half of a layer, 216")
    print(f"{'batch':>6s}{'cluster, us':>13s}{'tiles, us':>11s}{'TFLOP/s':>9s}")
    for batch in (1, 16, 256, 4096):
        a, b = sum(split(batch, gpu).values()), tiles(batch, gpu)
        print(f"{batch:6d}{1e6 * a:13.0f}{1e6 * b:11.0f}{batch * OPERATIONS / min(a, b) / 1e12:9.1f}")
    print("one pose, us:")
    for name, seconds in split(1, gpu).items():
        print(f"  {name:36s}{1e6 * seconds:6.1f}")
    print("4096 poses, cycles a chunk, each as if alone:")
    for name, cycles in chunk_cycles(4096, gpu).items():
        print(f"  {name:36s}{cycles:6.0f}")
    print(f"to find the fastest variant for 13 batches: {1e3 * measuring(gpu):.0f} ms")


if __name__ == "__main__":
    main()
