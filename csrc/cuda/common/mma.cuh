// Warp-wide matrix products on tensor cores: D (16 x 8) += A (16 x 16) * B (16 x 8).
#pragma once

#include <cstring>
#include <type_traits>

#include "intrinsics.cuh"

namespace jointbert::cuda {

// Operands of mma.m16n8k16, spread over the warp. Lane 4 g + t holds:
// A, two values a register: row g, columns 2t and 2t + 1; row g + 8, the same; then both rows, columns 2t + 8, 2t + 9;
// B, two values a register: column g, rows 2t and 2t + 1; then rows 2t + 8 and 2t + 9;
// the accumulator: row g, columns 2t and 2t + 1; row g + 8, the same.
struct FragmentA {
    unsigned values[4];
};
struct FragmentB {
    unsigned values[2];
};
struct Accumulator {
    float values[4];
};

// accumulator += a * b: products of T are exact and summed in float32. Compute capability 7.5 has no bfloat16 products
// (the caller refuses it), and takes 8 of A's columns at a time.
template <class T>
__device__ inline void mma(Accumulator& accumulator, const FragmentA& fragment_a, const FragmentB& fragment_b) {
    float (&d)[4] = accumulator.values;
    const unsigned (&a)[4] = fragment_a.values;
    const unsigned (&b)[2] = fragment_b.values;
#if !defined(__CUDACC__)
    struct Operands {
        FragmentA a;
        FragmentB b;
    };
    const unsigned lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const char* lanes = emulator::ResidentBlocks::current().exchange(Operands{fragment_a, fragment_b});
    const auto operands_of = [&](unsigned from) {
        Operands operands;
        std::memcpy(&operands, lanes + from * emulator::ResidentBlocks::kSlotBytes, sizeof(Operands));
        return operands;
    };
    const auto value = [](unsigned pair, unsigned high) {
        const auto bits = static_cast<unsigned short>(high ? pair >> 16 : pair);
        if constexpr (std::is_same_v<T, __half>)
            return double(__half2float(__ushort_as_half(bits)));
        else
            return double(__bfloat162float(__ushort_as_bfloat16(bits)));
    };
    FragmentA rows[4];
    FragmentB columns[2][4];
    for (unsigned i = 0; i < 4; ++i) {
        rows[i] = operands_of(4 * g + i).a;
        for (unsigned c = 0; c < 2; ++c) columns[c][i] = operands_of(4 * (2 * t + c) + i).b;
    }
    for (unsigned i = 0; i < 4; ++i) {
        double products = 0;
        for (unsigned k = 0; k < 16; ++k) {
            const unsigned pair = k % 8 / 2;
            products +=
                value(rows[pair].values[i / 2 + k / 8 * 2], k % 2) * value(columns[i % 2][pair].values[k / 8], k % 2);
        }
        d[i] = float(double(d[i]) + products);
    }
    (void)a;
    (void)b;
#elif defined(__CUDA_ARCH__)
    if constexpr (std::is_same_v<T, __half>) {
#if __CUDA_ARCH__ >= 800
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
#pragma unroll
        for (int half = 0; half < 2; ++half)
            asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                         : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                         : "r"(a[2 * half]), "r"(a[2 * half + 1]), "r"(b[half]));
#endif
    } else {
#if __CUDA_ARCH__ >= 800
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
        __trap();
#endif
    }
#endif
}

}  // namespace jointbert::cuda
