// The tiles variant: a warp takes one or two poses through all chunks, which every block reads as a stream of weights.
#pragma once

#include "../common/cp_async.cuh"
#include "chunk.cuh"
#include "embedding.cuh"
#include "layer.cuh"
#include "layer_norm.cuh"
#include "pose.cuh"
#include "tensors.cuh"

namespace jointbert::cuda {
namespace {

constexpr int kTileStages = 3;

template <int kPoses>
struct TileMemory {
    Chunk stages[kTileStages];
    PoseScratch scratch[kWarps][kPoses];
};

template <class T, int kPoses>
__global__ void __launch_bounds__(kThreads, 1)
    tiles_kernel(const __grid_constant__ DevicePoses poses, const __grid_constant__ Network network,
                 const __grid_constant__ DeviceRefinedPoses refined) {
    if (kPoses > 1 && !kHasMmaK16) return;  // poses_per_warp never asks for it
    auto& memory = *reinterpret_cast<TileMemory<kPoses>*>(dynamic_shared_memory());
    const int warp = int(threadIdx.x) / 32, first = (int(blockIdx.x) * kWarps + warp) * kPoses;
    PoseScratch* scratch = memory.scratch[warp];
    const ChunkRing<kTileStages> ring{memory.stages};
    const int chunks = network.layers * kChunks;
    const auto fetch = [&](int i) { ring.fetch(i % kTileStages, i < chunks ? network.chunks + i : nullptr); };
    for (int i = 0; i < kTileStages - 1; ++i) fetch(i);

    const int count = min(kPoses, poses.count - first);
#pragma unroll 1
    for (int p = 0; p < count; ++p) encode(poses, first + p, scratch[p], refined, true);
    Residual residual[kPoses]{};  // 0 in unused rows and poses
#pragma unroll
    for (int p = 0; p < kPoses; ++p)
        if (p < count) embed_joints(*network.ends, scratch[p], residual[p]);
    NormalisedRows rows[kPoses];
    const auto wait = [&](int i) -> const Chunk& {
        cp_async_wait_group<kTileStages - 2>();
        __syncthreads();  // chunk i has arrived, and no thread reads chunk i - 1 any more: its stage is free
        return memory.stages[i % kTileStages];
    };
    const auto begin_half = [&](int first_chunk) {
#pragma unroll
        for (int p = 0; p < kPoses; ++p) layer_norm<T>(residual[p], rows[p]);
        add_output_bias<kPoses>(wait(first_chunk), residual);
    };
#pragma unroll 1
    for (int at = 0; at < chunks;) {
        begin_half(at);
#pragma unroll 1
        do {
            const Chunk& chunk = wait(at);
            fetch(at + kTileStages - 1);
            attend<T, kPoses>(rows, chunk, residual);
        } while (++at % kHalfChunks);
        begin_half(at);
#pragma unroll 1
        do {
            const Chunk& chunk = wait(at);
            fetch(at + kTileStages - 1);
            feed_forward<T, kPoses>(rows, chunk, residual);
        } while (++at % kHalfChunks);
    }
    // Computed again: kept through the layers, these values would need registers that are not there.
    const int thread = reread_thread_index(), joint = thread % 32;
    const int pose = (int(blockIdx.x) * kWarps + thread / 32) * kPoses;
    PoseScratch* mine = memory.scratch[thread / 32];
#pragma unroll
    for (int p = 0; p < kPoses; ++p)
        if (pose + p < poses.count) read_out(*network.ends, residual[p], mine[p]);
    __syncwarp();
#pragma unroll 1
    for (int p = 0; p < min(kPoses, poses.count - pose); ++p)
        if (mine[p].status == int(Status::kRefined) && joint < int(kJoints))
            decode(poses, pose + p, joint, mine[p], refined);
}

}  // namespace
}  // namespace jointbert::cuda
