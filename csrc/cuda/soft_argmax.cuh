// What the kernels that read heatmaps share: how values are stored, which is the highest, and sums under the softmax.
#pragma once

#include "soft_argmax.h"
#include "warp.cuh"

namespace jointbert::cuda {
namespace {

// What a difference from the peak is multiplied by, for a power of 2; finite, so that the peak's own weight is 1.
__device__ inline float scale_of(const SoftArgmaxOptions& options) {
    return fminf(options.beta * 1.4426950408889634f, 3.4e38f);
}

// The ways a value is stored.
template <class T>
struct Stored;
template <>
struct Stored<float> {
    static __device__ float load(float x) { return x; }
    static __device__ float store(float x) { return x; }
};
template <>
struct Stored<__half> {
    static __device__ float load(__half x) { return __half2float(x); }
    static __device__ __half store(float x) { return __float2half_rn(x); }
};
template <>
struct Stored<__nv_bfloat16> {
    static __device__ float load(__nv_bfloat16 x) { return __bfloat162float(x); }
    static __device__ __nv_bfloat16 store(float x) { return __float2bfloat16_rn(x); }
};

// 16 bytes of a map.
template <class T>
struct alignas(16) Pack {
    static constexpr int kCount = 16 / sizeof(T);
    T values[kCount];
};

// A value and where it stands, so that the larger key is the higher value or, among equals, the lower index; NaN is
// above everything. Floats in the order of integers: negative ones with all bits flipped, the others with the sign set.
__device__ inline std::uint64_t key_of(float value, unsigned index) {
    unsigned bits = value != value ? 0x7fc00000u : __float_as_uint(value == 0 ? 0.0f : value);  // -0 equals 0
    bits = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return std::uint64_t(bits) << 32 | (kFull - index);
}
__device__ inline float value_of(std::uint64_t key) {
    const unsigned bits = unsigned(key >> 32);
    return __uint_as_float(bits & 0x80000000u ? bits & 0x7fffffffu : ~bits);
}
__device__ inline unsigned index_of(std::uint64_t key) { return kFull - unsigned(key); }

__device__ inline bool finite(float value) { return (__float_as_uint(value) & 0x7f800000u) != 0x7f800000u; }

// index / width and the rest, for indices below 2^16.
struct Rows {
    unsigned width, magic;
    __device__ explicit Rows(int width) : width(unsigned(width)), magic(width == 1 ? 0 : kFull / unsigned(width) + 1) {}
    __device__ unsigned row(unsigned index) const { return width == 1 ? index : __umulhi(index, magic); }
};

// Sums under the softmax, places relative to the peak's.
struct Sums {
    float weight, u, v;
    __device__ void add(float w, float du, float dv) {
        weight += w;
        u += w * du;
        v += w * dv;
    }
    __device__ void add(const Sums& other) {
        weight += other.weight;
        u += other.u;
        v += other.v;
    }
};

__device__ inline std::uint64_t highest(std::uint64_t a, std::uint64_t b) { return a > b ? a : b; }

__device__ inline std::uint64_t warp_highest(std::uint64_t key) {
    for (int step = 16; step > 0; step /= 2) key = highest(key, __shfl_xor_sync(kFull, key, step));
    return key;
}
__device__ inline Sums warp_sum(Sums sums) {
    for (int step = 16; step > 0; step /= 2)
        sums.add(Sums{__shfl_xor_sync(kFull, sums.weight, step), __shfl_xor_sync(kFull, sums.u, step),
                      __shfl_xor_sync(kFull, sums.v, step)});
    return sums;
}

// The softmax around a map's peak.
struct Around {
    Rows rows;
    int u, v, reach;
    float peak, scale;
    __device__ Around(std::uint64_t best, int width, const SoftArgmaxOptions& options)
        : rows(width),
          v(int(rows.row(index_of(best)))),
          reach(options.window < 0 ? kMaxSide : options.window),
          peak(value_of(best)),
          scale(scale_of(options)) {
        u = int(index_of(best)) - v * width;
    }
    // Where a pixel stands from the peak; whether it counts.
    __device__ bool place(unsigned index, int& du, int& dv) const {
        const int row = int(rows.row(index));
        dv = row - v;
        du = int(index) - row * int(rows.width) - u;
        return abs(du) <= reach && abs(dv) <= reach;
    }
    __device__ float weight(float value) const { return exp2f(scale * (value - peak)); }
};

__device__ inline void write(const Keypoints& out, int map, std::uint64_t best, const Sums& sums, int width,
                             Peak mode) {
    const Rows rows(width);
    const float peak = value_of(best), nan = __uint_as_float(0x7fc00000u);
    const bool valid = finite(peak);
    const unsigned v = rows.row(index_of(best)), u = index_of(best) - v * rows.width;
    const bool soft = mode == Peak::kSoft;
    const std::size_t at = 2 * std::size_t(map);
    out.uv[at] = valid ? float(u) + (soft ? sums.u / sums.weight : 0) : nan;
    out.uv[at + 1] = valid ? float(v) + (soft ? sums.v / sums.weight : 0) : nan;
    out.confidence[map] = valid ? fminf(fmaxf(peak, 0), 1) : 0;
    out.status[map] = !valid;
}

}  // namespace
}  // namespace jointbert::cuda
