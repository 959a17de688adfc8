// The refiner's weights on a device, and its launches there.
#pragma once

#include <cstddef>

#include "error.h"
#include "refiner.h"

namespace jointbert::cuda {

// Nothing changes after construction: any number of threads and streams may share one.
class DeviceRefiner {
  public:
    // `ends` and `chunks` are those of refiner.h, in the host's memory. Throws std::runtime_error with the CUDA call
    // that failed, std::invalid_argument for sizes that are not those of `layers` layers or a precision that the device
    // lacks.
    DeviceRefiner(const void* ends, std::size_t ends_bytes, const void* chunks, std::size_t chunks_bytes, int layers,
                  Precision precision, int device);

    int device() const { return number_; }
    const Device& properties() const { return device_; }

    // Enqueues one launch on the stream; all pointers are the device's.
    void run(const Poses& poses, const Refined& refined, Variant variant, cudaStream_t stream) const;
    Variant choose(int poses) const { return cuda::choose(device_, poses); }

  private:
    // Destroyed where the constructor throws, too.
    struct Pool {
        cudaMemPool_t pool = nullptr;
        Pool() = default;
        ~Pool() {
            if (pool) cudaMemPoolDestroy(pool);
        }
        Pool(const Pool&) = delete;
        Pool& operator=(const Pool&) = delete;
    };

    int number_;
    Device device_{};
    Pool pool_;
    Memory ends_, chunks_;
    Network network_;
};

}  // namespace jointbert::cuda
