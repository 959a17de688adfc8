// An emulator that runs CUDA kernels on the host, for tests: each CUDA thread is a fiber (ucontext), all fibers share
// one thread of the system, and barriers and shuffles switch between them. The same .cu files are compiled by nvcc for
// GPUs and by g++ with this header.
//
// It tests indexing, reductions and synchronisation: without a barrier that is needed, a thread reads values that are
// not written yet in at least one schedule (forward, reverse, random, uneven). It tests neither speed nor the memory
// model.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "resident_blocks.h"

#undef __shared__
#define __shared__ static  // right where one block is resident at a time
#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __global__
#define __global__
#undef __device__
#define __device__
#undef __grid_constant__
#define __grid_constant__
#undef __restrict__
#define __restrict__ __restrict

namespace jointbert::emulator {

// Runs a grid, `resident` blocks at a time.
inline void run_grid(dim3 grid, dim3 block, unsigned resident, std::size_t shared_bytes,
                     const std::function<void()>& body) {
    gridDim = grid;
    blockDim = block;
    const unsigned blocks = grid.x * grid.y * grid.z, groups = (blocks + resident - 1) / resident;
    for (unsigned i = 0; i < groups; ++i) {
        const unsigned first = (settings().schedule == Schedule::kReverse ? groups - 1 - i : i) * resident;
        ResidentBlocks(first, std::min(resident, blocks - first), grid, block, shared_bytes, body).run();
    }
}

// Puts work on a stream of the fake CUDA runtime. Empty without that runtime: work is then done at once.
inline std::function<void(cudaStream_t, std::function<void()>)>& stream_queue() {
    static std::function<void(cudaStream_t, std::function<void()>)> queue;
    return queue;
}
inline void enqueue(cudaStream_t cuda_stream, const std::function<void()>& work) {
    if (stream_queue())
        stream_queue()(cuda_stream, work);
    else
        work();
}

// Frees memory when the process ends.
inline void free_at_exit(void* memory) {
    static std::mutex mutex;
    static std::vector<std::unique_ptr<void, FreeDeleter>> kept;
    const std::lock_guard<std::mutex> lock(mutex);
    kept.emplace_back(memory);
}

// A launch that fails, counted from the next one; -1: none.
struct LaunchFailure {
    int countdown = -1;
    cudaError_t next() { return countdown < 0 || countdown-- ? cudaSuccess : cudaErrorUnknown; }
};
inline LaunchFailure& launch_failure() {
    static LaunchFailure value;
    return value;
}

}  // namespace jointbert::emulator

inline void __syncthreads() { jointbert::emulator::ResidentBlocks::current().block_barrier(); }
inline void __syncwarp(unsigned = 0xffffffffu) { jointbert::emulator::ResidentBlocks::current().warp_barrier(); }

template <class T>
T jointbert_emulated_shuffle(T value, unsigned source) {
    const char* slots = jointbert::emulator::ResidentBlocks::current().exchange(value);
    T result;
    std::memcpy(&result, slots + source * jointbert::emulator::ResidentBlocks::kSlotBytes, sizeof(T));
    return result;
}

template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
    return jointbert_emulated_shuffle(value,
                                      jointbert::emulator::ResidentBlocks::current().thread() % 32 ^ unsigned(mask));
}

inline void __threadfence() {}
inline unsigned atomicAdd(unsigned* to, unsigned value) {  // one thread runs at a time
    const unsigned before = *to;
    *to += value;
    return before;
}
inline unsigned long long atomicCAS(unsigned long long* at, unsigned long long expected, unsigned long long value) {
    const unsigned long long before = *at;
    if (before == expected) *at = value;
    return before;
}
template <class T>
T __ldg(const T* from) {
    return *from;
}
template <class T>
T __ldcg(const T* from) {
    return *from;
}
template <class T>
void __stcg(T* to, T value) {
    *to = value;
}
inline float rsqrtf(float x) { return 1 / std::sqrt(x); }

inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((std::uint64_t(a) * b) >> 32); }
inline unsigned __float_as_uint(float x) {
    unsigned bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}
inline float __uint_as_float(unsigned bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}

using std::max;
using std::min;
