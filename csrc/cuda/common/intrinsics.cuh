// Small device functions behind single instructions, with their host versions for the emulator.
#pragma once

#include <cstring>
#include <type_traits>

#include "launch.cuh"

namespace jointbert::cuda {

constexpr unsigned kFullMask = 0xffffffffu;

// Kernels that are never launched on an architecture are compiled to nothing there.
#if defined(__CUDA_ARCH__)
constexpr bool kHasMmaK16 = __CUDA_ARCH__ >= 800, kHasClusters = __CUDA_ARCH__ >= 900;
#else
constexpr bool kHasMmaK16 = true, kHasClusters = true;
#endif

// Two 16-bit values in one register, the first in the low half.
template <class T>
__device__ inline unsigned pack(float low, float high) {
    unsigned bits;
    if constexpr (std::is_same_v<T, __half>) {
        const __half2 both = __floats2half2_rn(low, high);
        memcpy(&bits, &both, 4);
    } else {
        const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
        memcpy(&bits, &both, 4);
    }
    return bits;
}

// 2^x with a relative error of about 2^-22; 0 for x far below -126.
__device__ inline float exp2_approx(float x) {
#if defined(__CUDA_ARCH__)
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return exp2f(x);
#endif
}

__device__ inline float quiet_nan() { return __uint_as_float(0x7fc00000u); }

// threadIdx.x, read from its special register again: the compiler keeps no register for it in between.
__device__ inline int reread_thread_index() {
#if defined(__CUDA_ARCH__)
    int thread;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
    return thread;
#else
    return int(threadIdx.x);
#endif
}

// The block's dynamic shared memory.
__device__ inline char* dynamic_shared_memory() {
#if defined(__CUDACC__)
    extern __shared__ __align__(128) char memory[];
    return memory;
#else
    return emulator::ResidentBlocks::current().shared(emulator::ResidentBlocks::current().rank());
#endif
}

}  // namespace jointbert::cuda
