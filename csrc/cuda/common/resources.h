// CUDA resources as C++ objects: each is given back when its owner is destroyed.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "error.h"

namespace jointbert::cuda {

// Makes a device the thread's current one for as long as the guard lives.
class DeviceGuard {
  public:
    explicit DeviceGuard(int device) {
        check(cudaGetDevice(&before_), "cudaGetDevice");
        if (device != before_) check(cudaSetDevice(device), "cudaSetDevice");
        changed_ = device != before_;
    }
    ~DeviceGuard() {
        if (changed_) cudaSetDevice(before_);
    }
    DeviceGuard(const DeviceGuard&) = delete;
    DeviceGuard& operator=(const DeviceGuard&) = delete;

  private:
    int before_ = 0;
    bool changed_ = false;
};

// Sets the thread's stream capture mode to relaxed for as long as the guard lives: the thread may then allocate and
// free memory while a stream is captured, by itself or by another thread, which would otherwise invalidate the capture.
// It does not help against cudaDeviceSynchronize, nor against use of the legacy stream beside a blocking stream.
class RelaxedCaptureGuard {
  public:
    RelaxedCaptureGuard() { cudaThreadExchangeStreamCaptureMode(&mode_); }
    ~RelaxedCaptureGuard() { cudaThreadExchangeStreamCaptureMode(&mode_); }
    RelaxedCaptureGuard(const RelaxedCaptureGuard&) = delete;
    RelaxedCaptureGuard& operator=(const RelaxedCaptureGuard&) = delete;

  private:
    cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

// Device memory. Freeing it waits for the work that uses it.
class Memory {
  public:
    Memory() = default;
    Memory(std::size_t bytes, int device) {
        const DeviceGuard guard(device);
        const RelaxedCaptureGuard relaxed;
        check(cudaMalloc(&data_, bytes ? bytes : 1), "cudaMalloc");
    }
    ~Memory() {
        const RelaxedCaptureGuard relaxed;
        cudaFree(data_);
    }
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;

    template <class T = void>
    T* data() const {
        return static_cast<T*>(data_);
    }

  private:
    void* data_ = nullptr;
};

// Marks the work that a stream has been given so far.
class Event {
  public:
    Event(cudaStream_t cuda_stream, int device) {
        const DeviceGuard guard(device);
        check(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "cudaEventCreateWithFlags");
        const cudaError_t code = cudaEventRecord(event_, cuda_stream);
        if (code != cudaSuccess) cudaEventDestroy(event_);
        check(code, "cudaEventRecord");
    }
    ~Event() { cudaEventDestroy(event_); }
    Event(const Event&) = delete;
    Event& operator=(const Event&) = delete;

    // Whether that work is done. Not for an event of a stream under capture: the query invalidates the capture.
    bool passed() const {
        const RelaxedCaptureGuard relaxed;
        const cudaError_t code = cudaEventQuery(event_);
        if (code != cudaSuccess) cudaGetLastError();
        return code != cudaErrorNotReady;
    }

  private:
    cudaEvent_t event_ = nullptr;
};

// A non-blocking stream of the current device.
class CudaStream {
  public:
    CudaStream() { check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreateWithFlags"); }
    ~CudaStream() { cudaStreamDestroy(stream_); }
    CudaStream(const CudaStream&) = delete;
    CudaStream& operator=(const CudaStream&) = delete;

    operator cudaStream_t() const { return stream_; }
    void synchronize() const { check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize"); }
    // Copies from the host. `from` has to live until the stream has been synchronised.
    void copy_to_device(void* to, const void* from, std::size_t bytes) const {
        check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream_), "cudaMemcpyAsync");
    }

  private:
    cudaStream_t stream_ = nullptr;
};

}  // namespace jointbert::cuda
