// What every kernel file includes: CUDA under nvcc, fibers on the host under any other compiler.
#pragma once

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#else
#include "fibers.h"
#endif

#include <utility>

namespace jointbert {

// kernel<<<grid, block, 0, stream>>>(arguments...), and what became of it.
template <class... P, class... A>
cudaError_t launch(void (*kernel)(P...), dim3 grid, dim3 block, cudaStream_t stream, A&&... arguments) {
#if defined(__CUDACC__)
    kernel<<<grid, block, 0, stream>>>(P(std::forward<A>(arguments))...);
    return cudaGetLastError();
#else
    (void)stream;
    fibers::run_grid(grid, block, [&] { kernel(P(arguments)...); });
    return cudaSuccess;
#endif
}

}  // namespace jointbert
