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
constexpr float kHopeless = 2;  // a split variant that takes so many times the tiles' time is not tried with more poses

// Two events on a stream.
class Clock {
  public:
    explicit Clock(const Stream& stream) : stream_(stream) {
        try {
            check(cudaEventCreate(&begin_), "cudaEventCreate");
            check(cudaEventCreate(&end_), "cudaEventCreate");
        } catch (...) {
            release();
            throw;
        }
    }
    ~Clock() { release(); }
    Clock(const Clock&) = delete;
    Clock& operator=(const Clock&) = delete;

    // Microseconds of one launch, the best of some rounds; infinite where it can't be launched.
    template <class Launch>
    float time(const Launch& launch) {
        float best = std::numeric_limits<float>::infinity();
        for (int round = 0; round <= kRounds; ++round) {  // the first to warm up
            check(cudaEventRecord(begin_, stream_), "cudaEventRecord");
            for (int i = 0; i < (round ? kLaunches : 1); ++i)
                if (launch() != cudaSuccess) {
                    cudaGetLastError();
                    return std::numeric_limits<float>::infinity();
                }
            check(cudaEventRecord(end_, stream_), "cudaEventRecord");
            stream_.wait();
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

    const Stream& stream_;
    cudaEvent_t begin_ = nullptr, end_ = nullptr;
};

// Points of a hand's extent: what can't be a hand would take less time.
std::vector<float> some_hands(int count) {
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
    : number_(device), ends_(ends_bytes, device), chunks_(chunks_bytes, device) {
    if (ends_bytes != sizeof(Ends) || layers < 1 || chunks_bytes != std::size_t(layers) * kChunks * sizeof(Chunk))
        throw std::invalid_argument("weights: packed for other kernels");
    const OnDevice on(device);
    const BesideCaptures beside;
    const cudaError_t asked = ask_device(device, device_);
    pool_.pool = device_.pool;
    check(asked, "the kernels of the refiner");
    if (precision == Precision::kBFloat16 && device_.capability < 80)
        throw std::invalid_argument(
            "precision: this GPU, of compute capability " + std::to_string(device_.capability / 10) + "." +
            std::to_string(device_.capability % 10) + ", multiplies no bfloat16 (8.0 and later do); take 'f16'");
    const Stream stream;
    stream.send(ends_.data(), ends, ends_bytes);
    stream.send(chunks_.data(), chunks, chunks_bytes);
    stream.wait();
    network_ = {ends_.data<const Ends>(), chunks_.data<const Chunk>(), layers, precision};
}

void DeviceRefiner::measure(const std::vector<int>& sizes) {
    if (sizes.empty()) return;
    for (std::size_t i = 0; i < sizes.size(); ++i)
        if (sizes[i] <= (i ? sizes[i - 1] : 0))
            throw std::invalid_argument("sizes: expected positive numbers of poses that rise");
    const OnDevice on(number_);
    const BesideCaptures beside;
    const std::size_t most = std::size_t(sizes.back());
    const std::vector<float> hands = some_hands(sizes.back());
    const Memory joints(hands.size() * sizeof(float), number_), refined(hands.size() * sizeof(float), number_);
    const Memory sigma(most * kJoints * sizeof(float), number_), status(most, number_);
    const Stream stream;
    stream.send(joints.data(), hands.data(), hands.size() * sizeof(float));
    stream.wait();
    Poses poses{};
    poses.joints = joints.data();
    for (std::size_t j = 0; j < kJoints; ++j) poses.order[j] = static_cast<unsigned char>(j);
    poses.mm_per_unit = 1;
    poses.error_all_mm = std::numeric_limits<float>::quiet_NaN();
    const Refined out{refined.data(), sigma.data<float>(), status.data<std::uint8_t>(), nullptr, nullptr};
    Clock clock(stream);
    poses.count = sizes.back();
    const auto launch = [&](Variant variant) { return cuda::refine(device_, network_, poses, out, variant, stream); };
    float spent = 0;  // an idle GPU's clocks are low
    for (int i = 0; i < kWarmUps && spent < kWarmUpUs; ++i)
        spent += kRounds * kLaunches * clock.time([&] { return launch(Variant::kTiles); });
    constexpr Variant kAll[] = {Variant::kTiles, Variant::kCluster, Variant::kGrid};
    bool hopeless[std::size(kAll)] = {};
    std::vector<Fastest> table;
    for (const int size : sizes) {
        poses.count = size;
        Fastest fastest{size, Variant::kTiles, std::numeric_limits<float>::infinity()};
        float tiles = 0;
        for (std::size_t i = 0; i < std::size(kAll); ++i) {
            if (hopeless[i] || !has(device_, kAll[i], size)) continue;
            const float us = clock.time([&] { return launch(kAll[i]); });
            if (i == 0) tiles = us;
            hopeless[i] = i > 0 && us > kHopeless * tiles;
            if (us < fastest.us) fastest = {size, kAll[i], us};
        }
        table.push_back(fastest);
    }
    measured_ = std::move(table);
}

Variant DeviceRefiner::choose(int poses) const {
    const auto larger =
        std::find_if(measured_.begin(), measured_.end(), [&](const Fastest& f) { return f.poses >= poses; });
    if (measured_.empty()) return cuda::choose(device_, poses);
    const Variant fastest = larger == measured_.end() ? measured_.back().variant : larger->variant;
    return has(device_, fastest, poses) ? fastest : cuda::choose(device_, poses);
}

void DeviceRefiner::run(const Poses& poses, const Refined& refined, Variant variant, cudaStream_t stream) const {
    if (!has(device_, variant, poses.count)) {
        const char* kinds[] = {"clusters (compute capability 9.0 and later have them)",
                               "cooperative grid for so many poses", "tiles"};
        throw std::invalid_argument("variant: this GPU runs no " + std::string(kinds[int(variant)]) + "; got " +
                                    std::to_string(poses.count) + " poses");
    }
    const OnDevice on(number_);
    check(cuda::refine(device_, network_, poses, refined, variant, stream), "refine");
}

}  // namespace jointbert::cuda
