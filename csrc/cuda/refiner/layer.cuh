// A layer of the Transformer, a chunk at a time: one attention head, or 32 hidden columns of the feed-forward network.
#pragma once

#include "../common/mma.cuh"
#include "chunk.cuh"
#include "reductions.cuh"
#include "tensors.cuh"

namespace jointbert::cuda {
namespace {

// GELU, x Phi(x), with an error of at most 1e-4: Phi(x) is taken as 1/2 + x P(x^2) for |x| < 4.1.
__device__ inline float gelu(float x) {
    const float y = fminf(fmaxf(x, -4.1f), 4.1f), t = y * y;
    float p = -8.290008124411941e-10f;
    p = fmaf(p, t, 7.472441865274959e-08f);
    p = fmaf(p, t, -2.9159771202103e-06f);
    p = fmaf(p, t, 6.525472417706624e-05f);
    p = fmaf(p, t, -0.0009386729216203094f);
    p = fmaf(p, t, 0.009251667186617851f);
    p = fmaf(p, t, -0.06544339656829834f);
    p = fmaf(p, t, 0.3984144330024719f);
    return x * fmaf(y, p, 0.5f);
}

// Turns scores into attention weights, row by row. Of the two tiles' 16 columns the last two are no joint's.
__device__ inline void softmax(Accumulator (&scores)[2]) {
    float (&a)[4] = scores[0].values, (&b)[4] = scores[1].values;
    if (threadIdx.x % 4 == 3) b[0] = b[1] = b[2] = b[3] = -INFINITY;
#pragma unroll
    for (int i = 0; i < 4; i += 2) {  // row g, row g + 8
        const float maximum = quad_max(fmaxf(fmaxf(a[i], a[i + 1]), fmaxf(b[i], b[i + 1])));
        a[i] = exp2_approx(a[i] - maximum), a[i + 1] = exp2_approx(a[i + 1] - maximum);
        b[i] = exp2_approx(b[i] - maximum), b[i + 1] = exp2_approx(b[i + 1] - maximum);
        const float inverse = 1 / quad_sum((a[i] + a[i + 1]) + (b[i] + b[i + 1]));
        a[i] *= inverse, a[i + 1] *= inverse, b[i] *= inverse, b[i + 1] *= inverse;
    }
}

// Adds one attention head to the residual: softmax(q k) v, projected.
template <class T, int kPoses>
__device__ inline void attend(const NormalisedRows (&rows)[kPoses], const Chunk& chunk, Residual (&residual)[kPoses]) {
    FragmentA query[kPoses];  // later the attention weights, then the head's output
    FragmentB key_or_value[kPoses][2];
#pragma unroll
    for (int n = 0; n < 2; ++n) {
        Accumulator sums[kPoses];
#pragma unroll
        for (int p = 0; p < kPoses; ++p) sums[p] = bias_accumulator(chunk.inner_bias, n);
        multiply_columns<T, kPoses>(rows, chunk, n * kSteps / 2, sums);
#pragma unroll
        for (int p = 0; p < kPoses; ++p) to_fragment<T>(sums[p], n, query[p]);
    }
#pragma unroll
    for (int n = 0; n < 2; ++n) {
        Accumulator sums[kPoses]{};
        multiply_columns<T, kPoses>(rows, chunk, kSteps + n * kSteps / 2, sums);
#pragma unroll
        for (int p = 0; p < kPoses; ++p) to_fragment<T>(sums[p], n, key_or_value[p]);
    }
#pragma unroll
    for (int p = 0; p < kPoses; ++p) {
        Accumulator scores[2]{};
#pragma unroll
        for (int i = 0; i < 2; ++i) mma<T>(scores[i], query[p], key_or_value[p][i]);
        softmax(scores);
#pragma unroll
        for (int i = 0; i < 2; ++i) to_fragment<T>(scores[i], i, query[p]);
    }
    // Values are computed transposed, dimensions by joints: the weights are fragment A, the rows fragment B.
    Accumulator values[kPoses][2]{};
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
        const uint4 w = lane_weights(chunk, 2 * kSteps + k);
#pragma unroll
        for (int p = 0; p < kPoses; ++p)
#pragma unroll
            for (int i = 0; i < 2; ++i)
                mma<T>(values[p][i], FragmentA{{w.x, w.y, w.z, w.w}},
                       FragmentB{{rows[p][k].values[i], rows[p][k].values[i + 2]}});
    }
#pragma unroll
    for (int p = 0; p < kPoses; ++p) {
        Accumulator head_output[2]{};
#pragma unroll
        for (int i = 0; i < 2; ++i) to_fragment<T>(values[p][i], i, key_or_value[p]);
#pragma unroll
        for (int i = 0; i < 2; ++i) mma<T>(head_output[i], query[p], key_or_value[p][i]);
#pragma unroll
        for (int i = 0; i < 2; ++i) to_fragment<T>(head_output[i], i, query[p]);
    }
#pragma unroll
    for (int n = 0; n < kColumns; n += 2) {
        const uint4 w = lane_weights(chunk, 3 * kSteps + n / 2);
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
            for (int p = 0; p < kPoses; ++p) {
                Accumulator sum{};
                mma<T>(sum, query[p], i ? FragmentB{{w.z, w.w}} : FragmentB{{w.x, w.y}});
#pragma unroll
                for (int e = 0; e < 4; ++e) residual[p][n + i].values[e] += sum.values[e];
            }
    }
}

// Adds the part of the feed-forward network that goes through 32 of its hidden columns.
template <class T, int kPoses>
__device__ inline void feed_forward(const NormalisedRows (&rows)[kPoses], const Chunk& chunk,
                                    Residual (&residual)[kPoses]) {
    FragmentA hidden[kPoses][2];
#pragma unroll
    for (int n = 0; n < 4; ++n) {
        Accumulator sums[kPoses];
#pragma unroll
        for (int p = 0; p < kPoses; ++p) sums[p] = bias_accumulator(chunk.inner_bias, n);
        multiply_columns<T, kPoses>(rows, chunk, n * kSteps / 2, sums);
#pragma unroll
        for (int p = 0; p < kPoses; ++p) {
#pragma unroll
            for (float& value : sums[p].values) value = gelu(value);
            to_fragment<T>(sums[p], n % 2, hidden[p][n / 2]);
        }
    }
#pragma unroll
    for (int n = 0; n < kColumns; ++n) {
        const uint4 w = lane_weights(chunk, 2 * kSteps + n);
#pragma unroll
        for (int p = 0; p < kPoses; ++p) {
            Accumulator sum{};
            mma<T>(sum, hidden[p][0], FragmentB{{w.x, w.y}});
            mma<T>(sum, hidden[p][1], FragmentB{{w.z, w.w}});
#pragma unroll
            for (int e = 0; e < 4; ++e) residual[p][n].values[e] += sum.values[e];
        }
    }
}

}  // namespace
}  // namespace jointbert::cuda
