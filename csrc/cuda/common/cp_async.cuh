// Asynchronous copies from global to shared memory (cp.async). Before compute capability 8.0 they are ordinary copies.
#pragma once

#include "launch.cuh"

namespace jointbert::cuda {

// Starts a copy of 16 bytes, both addresses aligned. It has arrived after cp_async_wait_group.
__device__ inline void cp_async(void* shared, const void* global) {
#if !defined(__CUDACC__)
    emulator::ResidentBlocks::current().cp_async(shared, global, 16);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(unsigned(__cvta_generic_to_shared(shared))),
                 "l"(global)
                 : "memory");
#else
    *static_cast<uint4*>(shared) = *static_cast<const uint4*>(global);
#endif
}

// Ends a group: the copies that this thread has started since the group before.
__device__ inline void cp_async_commit_group() {
#if !defined(__CUDACC__)
    emulator::ResidentBlocks::current().cp_async_commit_group();
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most the last kPending groups of this thread are under way. A barrier makes them visible to others.
template <int kPending>
__device__ inline void cp_async_wait_group() {
#if !defined(__CUDACC__)
    emulator::ResidentBlocks::current().cp_async_wait_group(kPending);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}

}  // namespace jointbert::cuda
