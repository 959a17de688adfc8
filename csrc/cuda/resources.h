// What is taken from CUDA, and given back when its owner goes.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "error.h"

namespace jointbert::cuda {

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

// For as long as it lives, this thread may take and free memory while somebody captures a stream, the thread itself or
// another one, which breaks a capture otherwise. Waiting for a device as a whole breaks captures always, and so does
// the legacy stream those of streams that wait for it.
class BesideCaptures {
  public:
    BesideCaptures() { cudaThreadExchangeStreamCaptureMode(&mode_); }
    ~BesideCaptures() { cudaThreadExchangeStreamCaptureMode(&mode_); }
    BesideCaptures(const BesideCaptures&) = delete;
    BesideCaptures& operator=(const BesideCaptures&) = delete;

  private:
    cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

// Memory of a device. Freed when nothing on the device uses it any more.
class Memory {
  public:
    Memory() = default;
    Memory(std::size_t bytes, int device) {
        const OnDevice on(device);
        const BesideCaptures beside;
        check(cudaMalloc(&data_, bytes ? bytes : 1), "cudaMalloc");
    }
    ~Memory() {
        const BesideCaptures beside;
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

// What a stream has been asked for until now.
class Event {
  public:
    Event(cudaStream_t stream, int device) {
        const OnDevice on(device);
        check(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "cudaEventCreateWithFlags");
        const cudaError_t code = cudaEventRecord(event_, stream);
        if (code != cudaSuccess) cudaEventDestroy(event_);
        check(code, "cudaEventRecord");
    }
    ~Event() { cudaEventDestroy(event_); }
    Event(const Event&) = delete;
    Event& operator=(const Event&) = delete;

    // Whether it is done. Not for streams that are captured: to ask breaks a capture.
    bool passed() const {
        const BesideCaptures beside;
        const cudaError_t code = cudaEventQuery(event_);
        if (code != cudaSuccess) cudaGetLastError();
        return code != cudaErrorNotReady;
    }

  private:
    cudaEvent_t event_ = nullptr;
};

// A stream of the current device that waits for no other.
class Stream {
  public:
    Stream() { check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreateWithFlags"); }
    ~Stream() { cudaStreamDestroy(stream_); }
    Stream(const Stream&) = delete;
    Stream& operator=(const Stream&) = delete;

    operator cudaStream_t() const { return stream_; }
    void wait() const { check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize"); }
    // From the host, which may forget `from` once this has waited.
    void send(void* to, const void* from, std::size_t bytes) const {
        check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream_), "cudaMemcpyAsync");
    }

  private:
    cudaStream_t stream_ = nullptr;
};

}  // namespace jointbert::cuda
