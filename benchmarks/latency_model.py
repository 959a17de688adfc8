"""How long should the one-launch refiner take on an H100? A model, written before an H100 was available for measurements.

    python -m benchmarks.latency_model

Bytes, operations, instructions and barriers are counted in the kernels. Clock, number of processors and shared memory are those
of NVIDIA's white paper on the H100. Everything else is an estimate. The estimates for mma.sync and for the network between
processors (180 cycles) should have the order of magnitude that microbenchmarks of Hopper report (Luo et al., arXiv:2402.13499),
but were not compared with the paper's tables. Where benchmarks/results holds a measurement, the measurement supersedes this
model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

LAYERS, CHUNKS, CHUNK_BYTES = 12, 16, 17024
OPERATIONS = 45.3e6
"""Operations of one pose: 2 for each weight of a matrix product and each joint, and those of attention."""
PADDED = 16 / 14
"""Ratio of work done to work needed: a pose of 14 joints takes 16 rows of a tensor-core tile."""


@dataclass(frozen=True)
class Processor:
    """An H100 SXM: latencies in cycles, rates per processor and cycle."""

    clock: float = 1.755e9
    processors: int = 132
    clusters: int = 16
    """Clusters of 8 blocks that run at once, one block on a processor: two in each group of 16 to 18 processors."""
    mma_cycles: float = 1.6
    """Between two m16n8k16 products of a processor. An estimate: mma.sync reaches about 62 % of the tensor cores' rate."""
    mma_latency: int = 33
    """An estimate."""
    warp_mma_cycles: int = 8
    """Between two products of one warp. An estimate."""
    issue: int = 4
    """Instructions per cycle."""
    shared_bytes: int = 128
    l2_bytes_per_s: float = 5.5e12
    """An estimate of the order that published bandwidth benchmarks report."""
    barrier: int = 250
    """A cluster barrier with the remote write that has to arrive before it: the network's latency, and an estimate of the
    rest."""
    launch: float = 2.5e-6
    """An estimate."""
    ends: float = 2.5e-6
    """Reading and checking a pose, the first and the last layer. An estimate: two accesses to memory and some hundred
    instructions."""


def split(batch: int, gpu: Processor) -> dict[str, float]:
    """Seconds of the cluster variant, by cause. 8 blocks share a few poses, with one warp for each pose: the time is that of
    one warp's chain of dependent instructions and of two barriers in each half of a layer."""
    load_rows = 30 + 32 * 4
    query_key_value = 48 * gpu.warp_mma_cycles + gpu.mma_latency  # 6 chains of 8 products
    softmax = 2 * gpu.mma_latency + 250  # scores, maximum, powers, sum, mixing
    project = 16 * gpu.warp_mma_cycles + gpu.mma_latency
    feed_forward = 2 * (32 * gpu.warp_mma_cycles + gpu.mma_latency) + 16 * 13  # 16 values of GELU per lane
    # Partial sums go to the block that owns the row, 8 bytes per lane and column pair; that block's rows then go to all blocks.
    exchange = 32 * 8 + 8 * 8 + 2 * gpu.barrier
    reduce = 16 * 8 + 300  # sums of 8 blocks, LayerNorm
    layer = {
        "cluster barriers and exchanges": 2 * exchange,
        "chain of dependent products": query_key_value + softmax + project + feed_forward,
        "sums over 8 blocks, LayerNorm": 2 * reduce,
        "loading rows into registers": 2 * load_rows,
    }
    together = min(8, math.ceil(batch / gpu.clusters))
    # Up to 4 warps of a processor hide each other's latencies; more compete for issue slots and tensor cores.
    crowding = max(1.0, together / 4)
    waves = math.ceil(batch / (gpu.clusters * together))
    parts = {name: waves * LAYERS * cycles * crowding / gpu.clock for name, cycles in layer.items()}
    return {**parts, "launch, first and last layer": gpu.launch + gpu.ends}


def chunk_cycles(batch: int, gpu: Processor) -> dict[str, float]:
    """Cycles for one chunk of weights by resource that a processor's 8 warps share, each as if it were the only limit."""
    each = 2 if batch > 8 * gpu.processors else 1
    blocks = math.ceil(batch / (8 * each))
    products = (68 + 64) / 2 * each * 8
    instructions = (699 + 852) / 2 * (8 if each == 2 else 8 * 0.62)  # counted by nvdisasm for two poses; one pose takes 62 %
    return {
        "tensor cores": products * gpu.mma_cycles,
        "instruction issue": instructions / gpu.issue,
        "shared memory": 8 * CHUNK_BYTES / gpu.shared_bytes,
        "L2": min(blocks, gpu.processors) * CHUNK_BYTES / gpu.l2_bytes_per_s * gpu.clock,
        # An estimate: the other warp of the scheduler hides half of a warp's latency.
        "latency of one warp": 0.5 * (each * 66 * gpu.warp_mma_cycles + 500),
    }


def tiles(batch: int, gpu: Processor) -> float:
    """Seconds of the tiles variant: 8 warps per processor, one or two poses per warp; the slowest shared resource limits each
    chunk."""
    each = 2 if batch > 8 * gpu.processors else 1
    norms = 2 * 8 * each * 450 / gpu.issue  # twice per layer, 450 instructions per pose
    waves = math.ceil(batch / (8 * each) / gpu.processors)
    chunk = max(chunk_cycles(batch, gpu).values())
    return gpu.launch + gpu.ends + waves * LAYERS * (CHUNKS * chunk + norms) / gpu.clock


def measuring(gpu: Processor) -> float:
    """Seconds that ``DeviceRefiner::measure`` takes for 1, 2, 4, ..., 4096 poses: a warm-up, then rounds of launches."""
    warm_up, launches = 30e-3, 3 * 5 + 1
    spent = warm_up
    for batch in (1 << k for k in range(13)):
        of_tiles, of_clusters = tiles(batch, gpu), sum(split(batch, gpu).values())
        spent += launches * (of_tiles + (of_clusters if of_clusters < 4 * of_tiles else 0))
    return spent


def main() -> None:
    gpu = Processor()
    weights = LAYERS * CHUNKS * CHUNK_BYTES
    pose = f"one pose {OPERATIONS / 1e6:.1f} MFLOP, {PADDED:.2f} times that with padding"
    print(f"weights {weights / 1e6:.2f} MB (f16, with biases); {pose}")
    print("barriers: cluster 49 (2 per half layer, one before the first); tiles 216 (one per chunk, one per half layer)")
    print(f"{'batch':>6s}{'cluster, us':>13s}{'tiles, us':>11s}{'TFLOP/s':>9s}")
    for batch in (1, 16, 256, 4096):
        a, b = sum(split(batch, gpu).values()), tiles(batch, gpu)
        print(f"{batch:6d}{1e6 * a:13.0f}{1e6 * b:11.0f}{batch * OPERATIONS / min(a, b) / 1e12:9.1f}")
    print("one pose, us:")
    for name, seconds in split(1, gpu).items():
        print(f"  {name:36s}{1e6 * seconds:6.1f}")
    print("4096 poses, cycles per chunk, each as if it were the only limit:")
    for name, cycles in chunk_cycles(4096, gpu).items():
        print(f"  {name:36s}{cycles:6.0f}")
    print(f"measuring the fastest variant at 13 batch sizes: {1e3 * measuring(gpu):.0f} ms")


if __name__ == "__main__":
    main()
