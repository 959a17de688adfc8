// Sums over a row of the residual. Every variant adds in the same order, so that all of them give the same bits.
#pragma once

#include "../common/intrinsics.cuh"
#include "refiner.h"

namespace jointbert::cuda {
namespace {

constexpr float kLayerNormEpsilon = 1e-5f;  // torch.nn.LayerNorm's default

// The sum of value(0) to value(15), a lane's values, as a binary tree; half_warp_sum is the same tree over 16 lanes.
template <class Value>
__device__ inline float pairwise_sum(const Value& value) {
    float eight[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) eight[i] = value(2 * i) + value(2 * i + 1);
    return ((eight[0] + eight[1]) + (eight[2] + eight[3])) + ((eight[4] + eight[5]) + (eight[6] + eight[7]));
}
__device__ inline float half_warp_sum(float value) {
#pragma unroll
    for (int step = 1; step < 16; step *= 2) value += __shfl_xor_sync(kFullMask, value, step);
    return value;
}

// Over the four lanes that share a row of a tile (a quad); sum_of_4 is the same tree over a lane's values.
__device__ inline float quad_sum(float value) {
    value += __shfl_xor_sync(kFullMask, value, 1);
    return value + __shfl_xor_sync(kFullMask, value, 2);
}
__device__ inline float sum_of_4(const float (&values)[4]) { return (values[0] + values[1]) + (values[2] + values[3]); }
__device__ inline float quad_max(float value) {
    value = fmaxf(value, __shfl_xor_sync(kFullMask, value, 1));
    return fmaxf(value, __shfl_xor_sync(kFullMask, value, 2));
}

__device__ inline double warp_sum(double value) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(kFullMask, value, step);
    return value;
}

__device__ inline float square_sum_2(float a, float b) { return fmaf(b, b, a * a); }
__device__ inline float dot_2(float a, float x, float b, float y) { return fmaf(b, y, a * x); }

// 1 / standard deviation, from the sum of a row's squared deviations from its mean.
__device__ inline float inverse_deviation(float square_sum) {
    return rsqrtf(fmaf(square_sum, 1.0f / kWidth, kLayerNormEpsilon));
}

}  // namespace
}  // namespace jointbert::cuda
