// Barriers across blocks: of a cluster, with its distributed shared memory, and of a cooperative grid.
#pragma once

#include "launch.cuh"

namespace jointbert::cuda {

// The address in the shared memory of the cluster's block `rank` that corresponds to `local` in this block's.
template <class T>
__device__ inline T* map_shared_rank(T* local, unsigned rank) {
#if !defined(__CUDACC__)
    emulator::ResidentBlocks& blocks = emulator::ResidentBlocks::current();
    return reinterpret_cast<T*>(blocks.shared(rank) + (reinterpret_cast<char*>(local) - blocks.shared(blocks.rank())));
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    return static_cast<T*>(__cluster_map_shared_rank(local, rank));
#else
    (void)rank;
    return local;
#endif
}

// All threads of the cluster; makes their writes to each other's shared memory visible.
__device__ inline void cluster_barrier() {
#if !defined(__CUDACC__)
    emulator::ResidentBlocks::current().barrier();
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    __cluster_barrier_arrive();
    __cluster_barrier_wait();
#endif
}

// All threads of `blocks` resident blocks, through a counter in global memory that is 0 when the kernel starts; makes
// their writes to global memory visible.
__device__ inline void grid_barrier(unsigned* arrived, unsigned blocks) {
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        const unsigned target = (atomicAdd(arrived, 1u) / blocks + 1) * blocks;
#if !defined(__CUDACC__)
        while (int(*arrived - target) < 0) emulator::ResidentBlocks::current().spin();
#else
        while (int(*static_cast<volatile unsigned*>(arrived) - target) < 0) {
        }
#endif
        __threadfence();
    }
    __syncthreads();
}

}  // namespace jointbert::cuda
