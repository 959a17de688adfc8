// Shared by the heatmap kernels: types of values, the order of peaks, sums under the softmax.
#pragma once

#include "../common/intrinsics.cuh"
#include "soft_argmax.h"

namespace jointbert::cuda {
namespace {

// exp(beta x) = exp2(scale x). Finite, so that the peak's own weight exp2(0) is 1.
__device__ inline float scale_of(const SoftArgmaxOptions& options) {
    return fminf(options.beta * 1.4426950408889634f, 3.4e38f);
}

// A heatmap value in memory, and as float.
template <class T>
struct Storage;
template <>
struct Storage<float> {
    static __device__ float load(float x) { return x; }
    static __device__ float store(float x) { return x; }
};
template <>
struct Storage<__half> {
    static __device__ float load(__half x) { return __half2float(x); }
    static __device__ __half store(float x) { return __float2half_rn(x); }
};
template <>
struct Storage<__nv_bfloat16> {
    static __device__ float load(__nv_bfloat16 x) { return __bfloat162float(x); }
    static __device__ __nv_bfloat16 store(float x) { return __float2bfloat16_rn(x); }
};

// 16 bytes of a map.
template <class T>
struct alignas(16) Vector16 {
    static constexpr int kCount = 16 / sizeof(T);
    T values[kCount];
};

// A value and its index as one integer: the larger key is the higher value or, among equals, the lower index. NaN is
// above all. Floats compare as integers once negative ones have all bits flipped and the others the sign bit set.
__device__ inline std::uint64_t peak_key(float value, unsigned index) {
    unsigned bits = value != value ? 0x7fc00000u : __float_as_uint(value == 0 ? 0.0f : value);  // -0 equals 0
    bits = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return std::uint64_t(bits) << 32 | (kFullMask - index);
}
__device__ inline float peak_value(std::uint64_t key) {
    const unsigned bits = unsigned(key >> 32);
    return __uint_as_float(bits & 0x80000000u ? bits & 0x7fffffffu : ~bits);
}
__device__ inline unsigned peak_index(std::uint64_t key) { return kFullMask - unsigned(key); }

__device__ inline bool is_finite(float value) { return (__float_as_uint(value) & 0x7f800000u) != 0x7f800000u; }

// index / width by a multiplication, for indices below 2^16.
struct RowDivider {
    unsigned width, magic;
    __device__ explicit RowDivider(int width)
        : width(unsigned(width)), magic(width == 1 ? 0 : kFullMask / unsigned(width) + 1) {}
    __device__ unsigned row(unsigned index) const { return width == 1 ? index : __umulhi(index, magic); }
};

// Sums under the softmax: of weights, and of weighted offsets from the peak.
struct SoftmaxSums {
    float weight, u, v;
    __device__ void add(float w, float du, float dv) {
        weight += w;
        u += w * du;
        v += w * dv;
    }
    __device__ void add(const SoftmaxSums& other) {
        weight += other.weight;
        u += other.u;
        v += other.v;
    }
};

__device__ inline std::uint64_t max_key(std::uint64_t a, std::uint64_t b) { return a > b ? a : b; }

__device__ inline std::uint64_t warp_max_key(std::uint64_t key) {
    for (int step = 16; step > 0; step /= 2) key = max_key(key, __shfl_xor_sync(kFullMask, key, step));
    return key;
}
__device__ inline SoftmaxSums warp_sum(SoftmaxSums sums) {
    for (int step = 16; step > 0; step /= 2)
        sums.add(SoftmaxSums{__shfl_xor_sync(kFullMask, sums.weight, step), __shfl_xor_sync(kFullMask, sums.u, step),
                             __shfl_xor_sync(kFullMask, sums.v, step)});
    return sums;
}

// The softmax around a map's peak, whose key is `best`.
struct SoftmaxWindow {
    RowDivider rows;
    int u, v, reach;
    float peak, scale;
    __device__ SoftmaxWindow(std::uint64_t best, int width, const SoftArgmaxOptions& options)
        : rows(width),
          v(int(rows.row(peak_index(best)))),
          reach(options.window < 0 ? kMaxSide : options.window),
          peak(peak_value(best)),
          scale(scale_of(options)) {
        u = int(peak_index(best)) - v * width;
    }
    // A pixel's offset from the peak. Returns whether it lies in the window.
    __device__ bool offset(unsigned index, int& du, int& dv) const {
        const int row = int(rows.row(index));
        dv = row - v;
        du = int(index) - row * int(rows.width) - u;
        return abs(du) <= reach && abs(dv) <= reach;
    }
    __device__ float weight(float value) const { return exp2f(scale * (value - peak)); }
};

__device__ inline void write_keypoint(const KeypointPointers& out, int map, std::uint64_t best, const SoftmaxSums& sums,
                                      int width, PeakMode mode) {
    const RowDivider rows(width);
    const float peak = peak_value(best), nan = quiet_nan();
    const bool valid = is_finite(peak);
    const unsigned v = rows.row(peak_index(best)), u = peak_index(best) - v * rows.width;
    const bool soft = mode == PeakMode::kSoft;
    const std::size_t at = 2 * std::size_t(map);
    out.uv[at] = valid ? float(u) + (soft ? sums.u / sums.weight : 0) : nan;
    out.uv[at + 1] = valid ? float(v) + (soft ? sums.v / sums.weight : 0) : nan;
    out.confidence[map] = valid ? fminf(fmaxf(peak, 0), 1) : 0;
    out.status[map] = !valid;
}

}  // namespace
}  // namespace jointbert::cuda
