#include "device_refiner.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>

namespace jointbert::cuda {
namespace {

constexpr int kRounds = 3, kLaunches = 5;
constexpr int kWarmUps = 100;
constexpr float kWarmUpUs = 30e3f;
constexpr float kTooSlow = 2;  // a variant that takes so many times the tiles' time is not timed with more poses

// Times launches by two events on a stream.
class LaunchTimer {
  public:
    explicit LaunchTimer(const CudaStream& cuda_stream) : cuda_stream_(cuda_stream) {
        try {
            check(cudaEventCreate(&begin_), "cudaEventCreate");
            check(cudaEventCreate(&end_), "cudaEventCreate");
        } catch (...) {
            release();
            throw;
        }
    }
    ~LaunchTimer() { release(); }
    LaunchTimer(const LaunchTimer&) = delete;
    LaunchTimer& operator=(const LaunchTimer&) = delete;

    // Microseconds a launch, the best of some rounds; infinite where the launch fails.
    template <class Launch>
    float time(const Launch& launch) {
        float best = std::numeric_limits<float>::infinity();
        for (int round = 0; round <= kRounds; ++round) {  // the first round warms up
            check(cudaEventRecord(begin_, cuda_stream_), "cudaEventRecord");
            for (int i = 0; i < (round ? kLaunches : 1); ++i)
                if (launch() != cudaSuccess) {
                    cudaGetLastError();
                    return std::numeric_limits<float>::infinity();
                }
            check(cudaEventRecord(end_, cuda_stream_), "cudaEventRecord");
            cuda_stream_.synchronize();
            if (!round) continue;
            float ms = 0;
            check(cudaEventElapsedTime(&ms, begin_, end_), "cudaEventElapsedTime");
            best = std::min(best, 1000 * ms / kLaunches);
        }
        return best;
    }

  private:
    void release() {
        if (begin_) cudaEventDestroy(begin_);
        if (end_) cudaEventDestroy(end_);
    }

    const CudaStream& cuda_stream_;
    cudaEvent_t begin_ = nullptr, end_ = nullptr;
};

// Points with a hand's extent: poses that are not refined would take less time.
std::vector<float> sample_hands(int count) {
    std::vector<float> joints(std::size_t(count) * kJoints * 3);
    for (std::size_t i = 0; i < joints.size(); i += 3) {
        const float j = float(i / 3 % kJoints);
        joints[i] = 60 * std::cos(j);
        joints[i + 1] = 60 * std::sin(2 * j);
        joints[i + 2] = 500 + 10 * j;
    }
    return joints;
}

}  // namespace

DeviceRefiner::DeviceRefiner(const void* ends, std::size_t ends_bytes, const void* chunks, std::size_t chunks_bytes,
                             int layers, Precision precision, int device)
    : ordinal_(device), ends_(ends_bytes, device), chunks_(chunks_bytes, device) {
    if (ends_bytes != sizeof(Ends) || layers < 1 || chunks_bytes != std::size_t(layers) * kChunks * sizeof(Chunk))
        throw std::invalid_argument(
            "weights: got " + std::to_string(ends_bytes) + " and " + std::to_string(chunks_bytes) + " bytes for " +
            std::to_string(layers) + " layers; the kernels, for " + std::to_string(kJoints) + " joints, take " +
            std::to_string(sizeof(Ends)) + " and " + std::to_string(kChunks * sizeof(Chunk)) + " a layer");
    const DeviceGuard guard(device);
    const RelaxedCaptureGuard relaxed;
    const cudaError_t queried = query_device(device, properties_);
    pool_.pool = properties_.pool;
    check(queried, "the kernels of the refiner");
    if (precision == Precision::kBFloat16 && properties_.capability < 80)
        throw std::invalid_argument(
            "precision: this GPU, of compute capability " + std::to_string(properties_.capability / 10) + "." +
            std::to_string(properties_.capability % 10) + ", multiplies no bfloat16 (8.0 and later do); take 'f16'");
    const CudaStream cuda_stream;
    cuda_stream.copy_to_device(ends_.data(), ends, ends_bytes);
    cuda_stream.copy_to_device(chunks_.data(), chunks, chunks_bytes);
    cuda_stream.synchronize();
    network_ = {ends_.data<const Ends>(), chunks_.data<const Chunk>(), layers, precision};
}

void DeviceRefiner::measure(const std::vector<int>& sizes) {
    if (sizes.empty()) return;
    for (std::size_t i = 0; i < sizes.size(); ++i)
        if (sizes[i] <= (i ? sizes[i - 1] : 0))
            throw std::invalid_argument("sizes: expected positive numbers of poses that rise");
    const DeviceGuard guard(ordinal_);
    const RelaxedCaptureGuard relaxed;
    const std::size_t most = std::size_t(sizes.back());
    const std::vector<float> hands = sample_hands(sizes.back());
    const Memory joints(hands.size() * sizeof(float), ordinal_), refined(hands.size() * sizeof(float), ordinal_);
    const Memory sigma(most * kJoints * sizeof(float), ordinal_), status(most, ordinal_);
    const CudaStream cuda_stream;
    cuda_stream.copy_to_device(joints.data(), hands.data(), hands.size() * sizeof(float));
    cuda_stream.synchronize();
    DevicePoses poses{};
    poses.joints = joints.data();
    for (std::size_t j = 0; j < kJoints; ++j) poses.order[j] = static_cast<unsigned char>(j);
    poses.mm_per_unit = 1;
    poses.error_all_mm = std::numeric_limits<float>::quiet_NaN();
    const DeviceRefinedPoses out{refined.data(), sigma.data<float>(), status.data<std::uint8_t>(), nullptr, nullptr};
    LaunchTimer timer(cuda_stream);
    poses.count = sizes.back();
    const auto launch = [&](Variant variant) {
        return cuda::refine(properties_, network_, poses, out, variant, cuda_stream);
    };
    float spent = 0;  // raises the clocks of an idle GPU
    for (int i = 0; i < kWarmUps && spent < kWarmUpUs; ++i)
        spent += kRounds * kLaunches * timer.time([&] { return launch(Variant::kTiles); });
    constexpr Variant kAll[] = {Variant::kTiles, Variant::kCluster, Variant::kGrid};
    bool too_slow[std::size(kAll)] = {};
    std::vector<Fastest> table;
    for (const int size : sizes) {
        poses.count = size;
        Fastest fastest{size, Variant::kTiles, std::numeric_limits<float>::infinity()};
        float tiles = 0;
        for (std::size_t i = 0; i < std::size(kAll); ++i) {
            if (too_slow[i] || !supports(properties_, kAll[i], size)) continue;
            const float us = timer.time([&] { return launch(kAll[i]); });
            if (i == 0) tiles = us;
            too_slow[i] = i > 0 && us > kTooSlow * tiles;
            if (us < fastest.us) fastest = {size, kAll[i], us};
        }
        table.push_back(fastest);
    }
    measured_ = std::move(table);
}

Variant DeviceRefiner::choose(int poses) const {
    const auto larger =
        std::find_if(measured_.begin(), measured_.end(), [&](const Fastest& f) { return f.poses >= poses; });
    if (measured_.empty()) return choose_variant(properties_, poses);
    const Variant fastest = larger == measured_.end() ? measured_.back().variant : larger->variant;
    return supports(properties_, fastest, poses) ? fastest : choose_variant(properties_, poses);
}

void DeviceRefiner::run(const DevicePoses& poses, const DeviceRefinedPoses& refined, Variant variant,
                        cudaStream_t cuda_stream) const {
    if (!supports(properties_, variant, poses.count)) {
        const char* kinds[] = {"clusters (compute capability 9.0 and later have them)",
                               "cooperative grid for so many poses", "tiles"};
        throw std::invalid_argument("variant: this GPU runs no " + std::string(kinds[int(variant)]) + "; got " +
                                    std::to_string(poses.count) + " poses");
    }
    const DeviceGuard guard(ordinal_);
    check(cuda::refine(properties_, network_, poses, refined, variant, cuda_stream), "refine");
}

}  // namespace jointbert::cuda
