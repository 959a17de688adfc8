// Instructions that C++ has no word for, each with its twin on the host: tensor-core products, copies that nobody waits
// for, the memory and the barrier of blocks that work together.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "launch.cuh"

namespace jointbert::cuda {

constexpr unsigned kFull = 0xffffffffu;

// What kernels that an architecture is never asked for are left out by.
#if defined(__CUDA_ARCH__)
constexpr bool kHasWideProducts = __CUDA_ARCH__ >= 800, kHasClusters = __CUDA_ARCH__ >= 900;
#else
constexpr bool kHasWideProducts = true, kHasClusters = true;
#endif

// Two values of 16 bits in a register, the first in the low half.
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

// Tiles of a product over the lanes of a warp, lane 4 g + t. The left factor, 16 x 16, in pairs of columns 2t and 2t +
// 1: row g, row g + 8, and both again 8 columns further. The right factor, 16 x 8: column g, rows 2t and 2t + 1, and
// again 8 rows further. Sums, 16 x 8: row g, columns 2t and 2t + 1; row g + 8, the same.
struct Left {
    unsigned values[4];
};
struct Right {
    unsigned values[2];
};
struct Sum {
    float values[4];
};

// sum += left * right, the products of T exact and added in float32. Compute capability 7.5 has no bfloat16 (the caller
// refuses it) and takes 8 columns of the left factor at a time.
template <class T>
__device__ inline void multiply_add(Sum& sum, const Left& left, const Right& right) {
    float (&d)[4] = sum.values;
    const unsigned (&a)[4] = left.values;
    const unsigned (&b)[2] = right.values;
#if !defined(__CUDACC__)
    struct Given {
        Left left;
        Right right;
    };
    const unsigned lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const char* lanes = fibers::Gang::current().exchange(Given{left, right});
    const auto of = [&](unsigned from) {
        Given given;
        std::memcpy(&given, lanes + from * fibers::Gang::kSlot, sizeof(Given));
        return given;
    };
    const auto value = [](unsigned pair, unsigned high) {
        const auto bits = static_cast<unsigned short>(high ? pair >> 16 : pair);
        if constexpr (std::is_same_v<T, __half>)
            return double(__half2float(__ushort_as_half(bits)));
        else
            return double(__bfloat162float(__ushort_as_bfloat16(bits)));
    };
    Left rows[4];
    Right columns[2][4];
    for (unsigned i = 0; i < 4; ++i) {
        rows[i] = of(4 * g + i).left;
        for (unsigned c = 0; c < 2; ++c) columns[c][i] = of(4 * (2 * t + c) + i).right;
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

// 2^x, to some 2^-22; 0 for what is far below 1.
__device__ inline float power_of_2(float x) {
#if defined(__CUDA_ARCH__)
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return exp2f(x);
#endif
}

// threadIdx.x, in an instruction of its own.
__device__ inline int thread_again() {
#if defined(__CUDA_ARCH__)
    int thread;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
    return thread;
#else
    return int(threadIdx.x);
#endif
}

// The block's dynamic shared memory.
__device__ inline char* shared_memory() {
#if defined(__CUDACC__)
    extern __shared__ __align__(128) char memory[];
    return memory;
#else
    return fibers::Gang::current().shared(fibers::Gang::current().rank());
#endif
}

// 16 bytes from global to shared memory, both aligned, under way until wait_copies; commit_copies ends a group.
__device__ inline void copy_later(void* shared, const void* global) {
#if !defined(__CUDACC__)
    fibers::Gang::current().copy_later(shared, global, 16);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(unsigned(__cvta_generic_to_shared(shared))),
                 "l"(global)
                 : "memory");
#else
    *static_cast<uint4*>(shared) = *static_cast<const uint4*>(global);
#endif
}
__device__ inline void commit_copies() {
#if !defined(__CUDACC__)
    fibers::Gang::current().commit_copies();
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Until all but the last kAllBut groups of this thread are there; others see them after a barrier.
template <int kAllBut>
__device__ inline void wait_copies() {
#if !defined(__CUDACC__)
    fibers::Gang::current().wait_copies(kAllBut);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(kAllBut) : "memory");
#endif
}

// Blocks of a cluster: where a place in this block's shared memory lies in another's, and their barrier, before which
// all that was written there can be read behind it.
template <class T>
__device__ inline T* in_block(T* here, unsigned rank) {
#if !defined(__CUDACC__)
    fibers::Gang& gang = fibers::Gang::current();
    return reinterpret_cast<T*>(gang.shared(rank) + (reinterpret_cast<char*>(here) - gang.shared(gang.rank())));
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    return static_cast<T*>(__cluster_map_shared_rank(here, rank));
#else
    (void)rank;
    return here;
#endif
}
__device__ inline void cluster_barrier() {
#if !defined(__CUDACC__)
    fibers::Gang::current().gang_barrier();
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    __cluster_barrier_arrive();
    __cluster_barrier_wait();
#endif
}

// The same for blocks of a cooperative grid, through global memory: `arrived` is 0 when the kernel starts.
__device__ inline void grid_barrier(unsigned* arrived, unsigned blocks) {
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        const unsigned target = (atomicAdd(arrived, 1u) / blocks + 1) * blocks;
#if !defined(__CUDACC__)
        while (int(*arrived - target) < 0) fibers::Gang::current().pause();
#else
        while (int(*static_cast<volatile unsigned*>(arrived) - target) < 0) {
        }
#endif
        __threadfence();
    }
    __syncthreads();
}

}  // namespace jointbert::cuda
