// What a CUDA call says of itself, as an exception with the call's name.
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

// Makes a device the thread's current one for as long as it lives.
class OnDevice {
  public:
    explicit OnDevice(int device) {
        check(cudaGetDevice(&before_), "cudaGetDevice");
        if (device != before_) check(cudaSetDevice(device), "cudaSetDevice");
        changed_ = device != before_;
    }
    ~OnDevice() {
        if (changed_) cudaSetDevice(before_);
    }
    OnDevice(const OnDevice&) = delete;
    OnDevice& operator=(const OnDevice&) = delete;

  private:
    int before_ = 0;
    bool changed_ = false;
};

// Memory of a device. Freed when nothing on the device uses it any more.
class Memory {
  public:
    Memory() = default;
    Memory(std::size_t bytes, int device) {
        const OnDevice on(device);
        check(cudaMalloc(&data_, bytes ? bytes : 1), "cudaMalloc");
    }
    ~Memory() { cudaFree(data_); }
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;

    template <class T = void>
    T* data() const {
        return static_cast<T*>(data_);
    }

  private:
    void* data_ = nullptr;
};

}  // namespace jointbert::cuda
