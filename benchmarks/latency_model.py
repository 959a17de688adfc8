"""What should the one-launch refiner take on an H100? A model, written before there was one to measure on.

    python benchmarks/latency_model.py

Counts (bytes, operations, instructions, barriers) are the kernels' own; what a count costs is from NVIDIA's data sheets and
from measurements that others published. Where benchmarks/results holds a measurement, that is what counts, not this.
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
    """An H100 SXM: clock and counts from the data sheet; latencies in cycles, rates a processor and cycle."""

    clock: float = 1.755e9
    processors: int = 132
    clusters: int = 16
    """Of 8 blocks at once, one a processor: two for each cluster of 16 to 18 processors."""
    mma_cycles: float = 1.6
    """Between two m16n8k16 products: mma.sync reaches some 62 % of the data sheet's rate."""
    mma_latency: int = 33
    warp_mma_cycles: int = 8
    """Between two of one warp."""
    issue: int = 4
    """Instructions a cycle."""
    shared_bytes: int = 128
    l2_bytes_per_s: float = 5.5e12
    barrier: int = 250
    """A barrier of a cluster, and the write before it that has to arrive."""
    launch: float = 2.5e-6
    ends: float = 2.5e-6
    """Reading and checking a pose, the first and the last layer: two trips to memory and some hundred instructions."""


def split(batch: int, gpu: Processor) -> float:
    """8 blocks a few poses, a warp a pose: everything waits for one warp's chain and for two barriers each half of a layer."""
    load_rows = 30 + 32 * 4
    query_key_value = 48 * gpu.warp_mma_cycles + gpu.mma_latency  # 6 chains of 8 products
    softmax = 2 * gpu.mma_latency + 250  # scores, maximum, powers, sum, mixing
    project = 16 * gpu.warp_mma_cycles + gpu.mma_latency
    feed_forward = 2 * (32 * gpu.warp_mma_cycles + gpu.mma_latency) + 16 * 13  # 16 values of GELU a lane
    tell = 32 * 8 + gpu.barrier  # 8 bytes a lane and column pair, to the owner of the row
    own = 16 * 8 + 300 + 8 * 8 + gpu.barrier  # sums of 8 blocks, LayerNorm, to all
    halves = 2 * (load_rows + tell + own) + query_key_value + softmax + project + feed_forward
    together = min(8, math.ceil(batch / gpu.clusters))
    # Warps of a processor hide each other's latencies; beyond 4 they share its issue slots and tensor cores.
    crowding = max(1.0, together / 4)
    waves = math.ceil(batch / (gpu.clusters * together))
    return gpu.launch + gpu.ends + waves * LAYERS * halves * crowding / gpu.clock


def tiles(batch: int, gpu: Processor) -> float:
    """A warp one pose or two, 8 warps a processor, through all chunks: whatever is slowest of what they share."""
    each = 2 if batch > 8 * gpu.processors else 1
    blocks = math.ceil(batch / (8 * each))
    products = (68 + 64) / 2 * each * 8
    instructions = (699 + 852) / 2 * (8 if each == 2 else 8 * 0.62)  # of two poses, as nvdisasm counts them; of one
    by_tensor_cores = products * gpu.mma_cycles
    by_issue = instructions / gpu.issue
    by_shared = 8 * CHUNK_BYTES / gpu.shared_bytes
    by_l2 = min(blocks, gpu.processors) * CHUNK_BYTES / gpu.l2_bytes_per_s * gpu.clock
    alone = 0.5 * (each * 66 * gpu.warp_mma_cycles + 500)  # a warp's own chain, half of it hidden by the other of its scheduler
    chunk = max(by_tensor_cores, by_issue, by_shared, by_l2, alone)
    norms = 2 * 8 * each * 450 / gpu.issue  # twice a layer, 450 instructions a pose
    waves = math.ceil(blocks / gpu.processors)
    return gpu.launch + gpu.ends + waves * LAYERS * (CHUNKS * chunk + norms) / gpu.clock


def main() -> None:
    gpu = Processor()
    weights = LAYERS * CHUNKS * CHUNK_BYTES
    print(f"weights {weights / 1e6:.2f} MB (f16, with biases); one pose {OPERATIONS / 1e6:.1f} MFLOP, {PADDED:.2f} of it done")
    print("cluster: 2 barriers each half of a layer and one before, 49; tiles: one a chunk and one each half of a layer, 216")
    print(f"{'batch':>6s}{'cluster, us':>13s}{'tiles, us':>11s}{'TFLOP/s':>9s}")
    for batch in (1, 16, 256, 4096):
        a, b = split(batch, gpu), tiles(batch, gpu)
        print(f"{batch:6d}{1e6 * a:13.0f}{1e6 * b:11.0f}{batch * OPERATIONS / min(a, b) / 1e12:9.1f}")


if __name__ == "__main__":
    main()
