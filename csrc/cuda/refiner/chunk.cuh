// A chunk of weights (refiner.h): its way into shared memory, and products with it.
#pragma once

#include "../common/cp_async.cuh"
#include "tensors.cuh"

namespace jointbert::cuda {
namespace {

// A ring of chunks in shared memory, up to kStages copies under way. All threads of the block take part in a copy.
template <int kStages>
struct ChunkRing {
    Chunk* stages;
    // Starts the copy of a chunk; of null: an empty group.
    __device__ void fetch(int stage, const Chunk* chunk) const {
        if (chunk)
#pragma unroll 1  // saves registers
            for (int i = reread_thread_index(); i < int(sizeof(Chunk) / 16); i += kThreads)
                cp_async(reinterpret_cast<uint4*>(stages + stage) + i, reinterpret_cast<const uint4*>(chunk) + i);
        __syncwarp();             // lanes may have diverged: the last round is not full
        cp_async_commit_group();  // of no copies, too, so that a group's number is its chunk's
    }
};

// This lane's 16 bytes of weights, the i-th of the chunk's 32.
__device__ inline uint4 lane_weights(const Chunk& chunk, int i) {
    return *reinterpret_cast<const uint4*>(&chunk.weights[i / 2][(i % 2) * 128 + threadIdx.x % 32 * 4]);
}

// An accumulator of tile n that starts from the biases.
__device__ inline Accumulator bias_accumulator(const float* bias, int n) {
    const float2 b = *reinterpret_cast<const float2*>(bias + 8 * n + threadIdx.x % 4 * 2);
    return Accumulator{{b.x, b.y, b.x, b.y}};
}

// Adds the output biases of half a layer to the residual.
template <int kPoses>
__device__ inline void add_output_bias(const Chunk& chunk, Residual (&residual)[kPoses]) {
#pragma unroll
    for (int n = 0; n < kColumns; ++n) {
        const Accumulator bias = bias_accumulator(chunk.output_bias, n);
#pragma unroll
        for (int p = 0; p < kPoses; ++p)
#pragma unroll
            for (int e = 0; e < 4; ++e) residual[p][n].values[e] += bias.values[e];
    }
}

// Adds 8 columns of the product of normalised rows and weights, for each pose; their weights begin at lane_weights
// number `first`.
template <class T, int kPoses>
__device__ inline void multiply_columns(const NormalisedRows (&rows)[kPoses], const Chunk& chunk, int first,
                                        Accumulator (&sums)[kPoses]) {
#pragma unroll
    for (int pair = 0; pair < kSteps / 2; ++pair) {
        const uint4 w = lane_weights(chunk, first + pair);
#pragma unroll
        for (int p = 0; p < kPoses; ++p) {
            mma<T>(sums[p], rows[p][2 * pair], FragmentB{{w.x, w.y}});
            mma<T>(sums[p], rows[p][2 * pair + 1], FragmentB{{w.z, w.w}});
        }
    }
}

}  // namespace
}  // namespace jointbert::cuda
