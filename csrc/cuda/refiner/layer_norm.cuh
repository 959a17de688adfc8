// LayerNorm of a pose that one warp holds.
#pragma once

#include "reductions.cuh"
#include "tensors.cuh"

namespace jointbert::cuda {
namespace {

// Mean and deviation of row g (half 0) or g + 8 (half 1) of the residual.
struct RowStatistics {
    float mean, inverse;
    __device__ RowStatistics(const Residual& residual, int half) {
        const auto at = [&](int n, int e) { return residual[n].values[2 * half + e]; };
        const float m = quad_sum(pairwise_sum([&](int n) { return at(n, 0) + at(n, 1); })) * (1.0f / kWidth);
        mean = m;
        inverse =
            inverse_deviation(quad_sum(pairwise_sum([&](int n) { return square_sum_2(at(n, 0) - m, at(n, 1) - m); })));
    }
    __device__ float normalise(float value) const { return (value - mean) * inverse; }
};

// LayerNorm as A fragments. Its weight and bias are folded into the matrices that follow it.
template <class T>
__device__ inline void layer_norm(const Residual& residual, NormalisedRows& rows) {
    const RowStatistics statistics[2] = {{residual, 0}, {residual, 1}};
    const auto normal = [&](int n, int i) { return statistics[i / 2].normalise(residual[n].values[i]); };
#pragma unroll
    for (int k = 0; k < kSteps; ++k)
#pragma unroll
        for (int part = 0; part < 4; ++part) {
            const int n = 2 * k + part / 2, i = part % 2 * 2;
            rows[k].values[part] = pack<T>(normal(n, i), normal(n, i + 1));
        }
}

}  // namespace
}  // namespace jointbert::cuda
