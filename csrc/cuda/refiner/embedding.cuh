// The network's first and last layer: features to the residual, the residual to outputs.
#pragma once

#include "layer_norm.cuh"
#include "pose.cuh"
#include "reductions.cuh"
#include "tensors.cuh"

namespace jointbert::cuda {
namespace {

// A joint's embedding: the first residual, columns `column` and `column` + 1.
__device__ inline float2 embed(const Ends& ends, const float (&features)[kFeatures], int joint, int column) {
    const bool observed = features[3] > 0.5f;
    const float* added = observed ? ends.observed[joint] : ends.masked[joint];
    float2 sum = __ldg(reinterpret_cast<const float2*>(added + column));
    if (!observed) return sum;
#pragma unroll
    for (int k = 0; k < int(kFeatures); ++k) {
        const float2 weight = __ldg(reinterpret_cast<const float2*>(ends.embed[k] + column));
        sum.x = fmaf(features[k], weight.x, sum.x);
        sum.y = fmaf(features[k], weight.y, sum.y);
    }
    return sum;
}

__device__ inline float output_of(const Ends& ends, const float (&features)[kFeatures], int i, float sum) {
    const float value = sum + __ldg(&ends.head_bias[i]);
    return i < 3 && features[3] > 0.5f ? value * __ldg(&ends.gain) : value;
}

// Fills the joints' rows of the residual.
__device__ inline void embed_joints(const Ends& ends, const PoseScratch& scratch, Residual& residual) {
    const int g = int(threadIdx.x) % 32 / 4, t = int(threadIdx.x) % 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int row = g + 8 * half;
        if (row >= int(kJoints)) continue;
#pragma unroll
        for (int n = 0; n < kColumns; ++n) {
            const float2 value = embed(ends, scratch.features[row], row, 8 * n + 2 * t);
            residual[n].values[2 * half] = value.x;
            residual[n].values[2 * half + 1] = value.y;
        }
    }
}

// The last LayerNorm and the output layer, into scratch.outputs.
__device__ inline void read_out(const Ends& ends, const Residual& residual, PoseScratch& scratch) {
    const int g = int(threadIdx.x) % 32 / 4, t = int(threadIdx.x) % 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int row = g + 8 * half;
        const RowStatistics statistics(residual, half);
#pragma unroll
        for (int o = 0; o < int(kOutputs); ++o) {
            const float sum = quad_sum(pairwise_sum([&](int n) {
                const float2 w = __ldg(reinterpret_cast<const float2*>(ends.head[o] + 8 * n + 2 * t));
                const float (&values)[4] = residual[n].values;
                return dot_2(statistics.normalise(values[2 * half]), w.x, statistics.normalise(values[2 * half + 1]),
                             w.y);
            }));
            if (t == 0 && row < int(kJoints)) scratch.outputs[row][o] = output_of(ends, scratch.features[row], o, sum);
        }
    }
}

}  // namespace
}  // namespace jointbert::cuda
