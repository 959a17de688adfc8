// What every kernel file includes: CUDA under nvcc, fibers on the host under any other compiler.
#pragma once

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#else
#include "fibers.h"
#endif

#include <cstddef>
#include <utility>

namespace jointbert {

// Which blocks may wait for each other: none; those of a cluster of 8 (compute capability 9.0 and later); all of the
// grid, which then has to fit on the device at once.
enum class Together { kNone, kCluster, kGrid };
constexpr unsigned kClusterBlocks = 8;

struct Shape {
    dim3 grid, block;
    std::size_t shared_bytes = 0;  // dynamic; see allow_shared
    Together together = Together::kNone;
};

// Once for a kernel and device, before launches with more than 48 KiB of dynamic shared memory; loads the kernel.
template <class... P>
cudaError_t allow_shared(void (*kernel)(P...), std::size_t most) {
#if defined(__CUDACC__)
    return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(most));
#else
    (void)kernel, (void)most;
    return cudaSuccess;
#endif
}

// The compute capability (10 * major + minor) that a kernel on this device was compiled for.
template <class... P>
cudaError_t compiled_for(void (*kernel)(P...), int& capability) {
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

// kernel<<<grid, block, shared_bytes, stream>>>(arguments...), and what became of it.
template <class... P, class... A>
cudaError_t launch(void (*kernel)(P...), const Shape& shape, cudaStream_t stream, A&&... arguments) {
#if defined(__CUDACC__)
    cudaLaunchAttribute attribute{};
    cudaLaunchConfig_t config{};
    config.gridDim = shape.grid;
    config.blockDim = shape.block;
    config.dynamicSmemBytes = shape.shared_bytes;
    config.stream = stream;
    config.attrs = &attribute;
    config.numAttrs = shape.together == Together::kNone ? 0 : 1;
    if (shape.together == Together::kCluster) {
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
        const unsigned together = shape.together == Together::kNone      ? fibers::settings().overlap
                                  : shape.together == Together::kCluster ? kClusterBlocks
                                                                         : all;
        fibers::run_grid(shape.grid, shape.block, together, shape.shared_bytes, [&] { kernel(P(arguments)...); });
    };
    if (const cudaError_t code = fibers::refusal().next(); code != cudaSuccess) return code;
    fibers::in_order(stream, run);
    return cudaSuccess;
#endif
}

template <class... P, class... A>
cudaError_t launch(void (*kernel)(P...), dim3 grid, dim3 block, cudaStream_t stream, A&&... arguments) {
    return launch(kernel, Shape{grid, block}, stream, std::forward<A>(arguments)...);
}

// Memory for one launch: there when the stream comes to it, its first bytes of every `pitch` cleared.
inline cudaError_t take_memory(void** memory, cudaMemPool_t pool, std::size_t pitch, std::size_t count,
                               std::size_t cleared, cudaStream_t stream) {
#if defined(__CUDACC__)
    const cudaError_t code = cudaMallocFromPoolAsync(memory, pitch * count, pool, stream);
    return code == cudaSuccess ? cudaMemset2DAsync(*memory, pitch, 0, cleared, count, stream) : code;
#else
    (void)pool;
    auto* bytes = static_cast<unsigned char*>(*memory = std::aligned_alloc(256, (pitch * count + 255) / 256 * 256));
    fibers::in_order(stream, [=] {
        std::memset(bytes, 0xff, pitch * count);
        for (std::size_t i = 0; i < count; ++i) std::memset(bytes + i * pitch, 0, cleared);
    });
    return cudaSuccess;
#endif
}
inline cudaError_t give_memory(void* memory, cudaStream_t stream) {
#if defined(__CUDACC__)
    return memory ? cudaFreeAsync(memory, stream) : cudaSuccess;
#else
    // A stream that is played may not have begun with it, or replay it: it stays until the end.
    if (fibers::launcher())
        fibers::keep(memory);
    else
        std::free(memory);
    (void)stream;
    return cudaSuccess;
#endif
}

}  // namespace jointbert
