// The refiner's weights on a device, and its launches there.
#pragma once

#include <cstddef>
#include <vector>

#include "refiner.h"
#include "resources.h"

namespace jointbert::cuda {

// Nothing changes after construction and measure: any number of threads and streams may share one from then on.
class DeviceRefiner {
  public:
    // `ends` and `chunks` are those of refiner.h, in the host's memory. Throws std::runtime_error with the CUDA call
    // that failed, std::invalid_argument for sizes that are not those of `layers` layers or a precision that the device
    // lacks. This and measure may be called while streams are captured.
    DeviceRefiner(const void* ends, std::size_t ends_bytes, const void* chunks, std::size_t chunks_bytes, int layers,
                  Precision precision, int device);

    int device() const { return number_; }
    const Device& properties() const { return device_; }

    // The variant that took the least time for so many poses.
    struct Fastest {
        int poses;
        Variant variant;
        float us;
    };
    // Times what the device has for each number of poses, and keeps the fastest. The sizes rise.
    void measure(const std::vector<int>& sizes);
    const std::vector<Fastest>& measured() const { return measured_; }

    // Enqueues one launch on the stream; all pointers are the device's. Throws std::invalid_argument for a variant that
    // the device does not run.
    void run(const Poses& poses, const Refined& refined, Variant variant, cudaStream_t stream) const;
    // What was fastest for the next larger number of poses that was measured; without a measurement, what is likely to
    // be.
    Variant choose(int poses) const;

  private:
    // Destroyed where the constructor throws, too.
    struct Pool {
        cudaMemPool_t pool = nullptr;
        Pool() = default;
        ~Pool() {
            const BesideCaptures beside;
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
    std::vector<Fastest> measured_;
};

}  // namespace jointbert::cuda
