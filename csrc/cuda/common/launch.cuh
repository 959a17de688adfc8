// Kernel launches, and memory for one launch.
#pragma once

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#else
// tests/emulation/cuda_emulator.h, found by include path: it runs the kernels on the host, so that tests without a GPU
// can compile every .cu file with an ordinary C++ compiler.
#include "cuda_emulator.h"
#endif

#include <cstddef>
#include <cstdint>
#include <utility>

namespace jointbert::cuda {

// The threads that a kernel synchronises: those of a block; of a cluster of kClusterBlocks blocks (compute capability
// 9.0 and later); of blocks of a cooperative grid, which then has to be resident on the device as a whole.
enum class SyncScope { kBlock, kCluster, kGrid };
constexpr unsigned kClusterBlocks = 8;

struct LaunchShape {
    dim3 grid, block;
    std::size_t shared_bytes = 0;  // dynamic; see allow_shared_memory
    SyncScope scope = SyncScope::kBlock;
};

// Needed once for a kernel and device before launches with more than 48 KiB of dynamic shared memory; loads the kernel.
template <class... P>
cudaError_t allow_shared_memory(void (*kernel)(P...), std::size_t max_bytes) {
#if defined(__CUDACC__)
    return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(max_bytes));
#else
    (void)kernel, (void)max_bytes;
    return cudaSuccess;
#endif
}

// The compute capability (10 * major + minor) that a kernel on this device was compiled for.
template <class... P>
cudaError_t compiled_capability(void (*kernel)(P...), int& capability) {
#if defined(__CUDACC__)
    cudaFuncAttributes attributes{};
    const cudaError_t code = cudaFuncGetAttributes(&attributes, kernel);
    if (attributes.ptxVersion) capability = attributes.ptxVersion;
    return code;
#else
    (void)kernel, (void)capability;
    return cudaSuccess;
#endif
}

// kernel<<<grid, block, shared_bytes, cuda_stream>>>(arguments...); returns the launch's error code.
template <class... P, class... A>
cudaError_t launch(void (*kernel)(P...), const LaunchShape& shape, cudaStream_t cuda_stream, A&&... arguments) {
#if defined(__CUDACC__)
    cudaLaunchAttribute attribute{};
    cudaLaunchConfig_t config{};
    config.gridDim = shape.grid;
    config.blockDim = shape.block;
    config.dynamicSmemBytes = shape.shared_bytes;
    config.stream = cuda_stream;
    config.attrs = &attribute;
    config.numAttrs = shape.scope == SyncScope::kBlock ? 0 : 1;
    if (shape.scope == SyncScope::kCluster) {
        attribute.id = cudaLaunchAttributeClusterDimension;
        attribute.val.clusterDim.x = kClusterBlocks;
        attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    } else {
        attribute.id = cudaLaunchAttributeCooperative;
        attribute.val.cooperative = 1;
    }
    return cudaLaunchKernelEx(&config, kernel, P(std::forward<A>(arguments))...);
#else
    const auto run = [=] {
        const unsigned all = shape.grid.x * shape.grid.y * shape.grid.z;
        const unsigned resident = shape.scope == SyncScope::kBlock     ? emulator::settings().resident_blocks
                                  : shape.scope == SyncScope::kCluster ? kClusterBlocks
                                                                       : all;
        emulator::run_grid(shape.grid, shape.block, resident, shape.shared_bytes, [&] { kernel(P(arguments)...); });
    };
    if (const cudaError_t code = emulator::launch_failure().next(); code != cudaSuccess) return code;
    emulator::enqueue(cuda_stream, run);
    return cudaSuccess;
#endif
}

template <class... P, class... A>
cudaError_t launch(void (*kernel)(P...), dim3 grid, dim3 block, cudaStream_t cuda_stream, A&&... arguments) {
    return launch(kernel, LaunchShape{grid, block}, cuda_stream, std::forward<A>(arguments)...);
}

// Memory for one launch, allocated in the stream's order: `count` parts of `pitch` bytes, the first `cleared` bytes of
// each part zero.
inline cudaError_t allocate_async(void** memory, cudaMemPool_t pool, std::size_t pitch, std::size_t count,
                                  std::size_t cleared, cudaStream_t cuda_stream) {
#if defined(__CUDACC__)
    const cudaError_t code = cudaMallocFromPoolAsync(memory, pitch * count, pool, cuda_stream);
    return code == cudaSuccess ? cudaMemset2DAsync(*memory, pitch, 0, cleared, count, cuda_stream) : code;
#else
    (void)pool;
    auto* bytes = static_cast<unsigned char*>(*memory = std::aligned_alloc(256, (pitch * count + 255) / 256 * 256));
    emulator::enqueue(cuda_stream, [=] {
        std::memset(bytes, 0xff, pitch * count);
        for (std::size_t i = 0; i < count; ++i) std::memset(bytes + i * pitch, 0, cleared);
    });
    return cudaSuccess;
#endif
}

inline cudaError_t free_async(void* memory, cudaStream_t cuda_stream) {
#if defined(__CUDACC__)
    return memory ? cudaFreeAsync(memory, cuda_stream) : cudaSuccess;
#else
    // A stream of the fake runtime may run the launch later, or replay it: the memory stays until the process ends.
    if (emulator::stream_queue())
        emulator::free_at_exit(memory);
    else
        std::free(memory);
    (void)cuda_stream;
    return cudaSuccess;
#endif
}

}  // namespace jointbert::cuda
