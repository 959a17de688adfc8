// The refiner's weights on a device, and launches there.
#pragma once

#include <cstddef>
#include <vector>

#include "../common/resources.h"
#include "refiner.h"

namespace jointbert::cuda {

// Constant after construction and measure: threads and streams may then share one.
class DeviceRefiner {
  public:
    // Copies `ends` and `chunks` (refiner.h) from the host. Throws std::runtime_error, naming the CUDA call that
    // failed; std::invalid_argument for sizes that do not fit `layers`, and for a precision that the device lacks. This
    // and measure may be called while streams are captured.
    DeviceRefiner(const void* ends, std::size_t ends_bytes, const void* chunks, std::size_t chunks_bytes, int layers,
                  Precision precision, int device);

    int device() const { return ordinal_; }
    const DeviceProperties& properties() const { return properties_; }

    // The variant that took the least time for a number of poses.
    struct Fastest {
        int poses;
        Variant variant;
        float us;
    };
    // Times the variants that the device supports for each number of poses, in rising order, and stores the fastest.
    void measure(const std::vector<int>& sizes);
    const std::vector<Fastest>& measured() const { return measured_; }

    // Enqueues one launch on the stream; all pointers are device pointers. Throws std::invalid_argument for a variant
    // that the device does not support.
    void run(const DevicePoses& poses, const DeviceRefinedPoses& refined, Variant variant,
             cudaStream_t cuda_stream) const;
    // The fastest variant for the next larger number of poses that was measured; without measurements,
    // choose_variant's.
    Variant choose(int poses) const;

  private:
    // A member of its own, so that it is destroyed where the constructor throws.
    struct Pool {
        cudaMemPool_t pool = nullptr;
        Pool() = default;
        ~Pool() {
            const RelaxedCaptureGuard relaxed;
            if (pool) cudaMemPoolDestroy(pool);
        }
        Pool(const Pool&) = delete;
        Pool& operator=(const Pool&) = delete;
    };

    int ordinal_;
    DeviceProperties properties_{};
    Pool pool_;
    Memory ends_, chunks_;
    Network network_;
    std::vector<Fastest> measured_;
};

}  // namespace jointbert::cuda
