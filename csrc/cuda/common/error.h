// A failed CUDA call becomes an exception that names the call.
#pragma once

#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>

namespace jointbert::cuda {

inline void check(cudaError_t code, const char* call) {
    if (code == cudaSuccess) return;
    throw std::runtime_error(std::string(call) + ": " + cudaGetErrorString(code) + " (CUDA error " +
                             std::to_string(int(code)) + ")");
}

}  // namespace jointbert::cuda
