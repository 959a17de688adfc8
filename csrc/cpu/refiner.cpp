#include "refiner.h"

#include <algorithm>
#include <atomic>
#include <functional>
#include <system_error>
#include <thread>
#include <vector>

#include "isa.h"

namespace jointbert {
namespace {

// Poses that go through a layer together. A layer's weights (0.5 MB) and 16 poses' streams (0.1 MB) fit in a core's L2
// cache.
constexpr std::size_t kBlock = 16;

// Starting a thread costs about as much as a tenth of a pose, and a thread should be worth it.
constexpr std::size_t kPosesPerThread = 4;

// A larger number is a mistake, which should not cost its memory.
constexpr std::size_t kMaxThreads = 256;

// One thread's memory for a block of poses.
struct Scratch {
    struct alignas(64) Stream {
        float values[kJoints * kWidth];
    };
    explicit Scratch(std::size_t poses)
        : streams(poses),
          features(poses * kJoints * kFeatures),
          outputs(poses * kJoints * kOutputs),
          poses(poses),
          indices(poses) {}

    float* stream() { return streams.front().values; }

    std::vector<Stream> streams;
    std::vector<float> features, outputs;
    std::vector<CanonicalPose> poses;
    std::vector<std::size_t> indices;
};

// Calls work(scratch, begin, end) for blocks that cover [0, count), on up to `threads` threads, this one included.
// Blocks go to whichever thread is free, so that one slowed down by other programs does not hold up the rest.
template <class Work>
void for_blocks(std::size_t count, std::size_t threads, const Work& work) {
    if (count == 0) return;
    threads = std::clamp<std::size_t>(count / kPosesPerThread, 1, std::min(threads, kMaxThreads));
    const std::size_t block = std::min(kBlock, (count + threads - 1) / threads);
    threads = std::min(threads, (count + block - 1) / block);
    // Allocated here: an exception could not leave a thread.
    std::vector<Scratch> scratch;
    scratch.reserve(threads);
    while (scratch.size() < threads) scratch.emplace_back(block);
    std::atomic<std::size_t> next{0};
    const auto run = [&](Scratch& mine) {
        for (std::size_t begin; (begin = next.fetch_add(block)) < count;)
            work(mine, begin, std::min(begin + block, count));
    };
    std::vector<std::thread> others;
    others.reserve(threads - 1);
    try {
        for (std::size_t i = 1; i < threads; ++i) others.emplace_back(run, std::ref(scratch[i]));
    } catch (const std::system_error&) {
        // The system gives no more threads: those that there are do the work.
    }
    run(scratch[0]);
    for (std::thread& other : others) other.join();
}

}  // namespace

Refiner::Refiner(const std::map<std::string, Tensor>& tensors, const std::string& isa)
    : kernel_(find_kernel(isa)), weights_(tensors, kernel_.panel) {}

void Refiner::forward(const float* features, std::size_t poses, float* outputs, std::size_t threads) const {
    for_blocks(poses, threads, [&](Scratch& scratch, std::size_t begin, std::size_t end) {
        kernel_.forward(weights_.view(), features + begin * kJoints * kFeatures, end - begin, scratch.stream(),
                        outputs + begin * kJoints * kOutputs);
    });
}

template <typename T>
void Refiner::run(const Poses<T>& poses, const Refined<T>& refined, std::size_t threads) const {
    for_blocks(poses.count, threads, [&](Scratch& scratch, std::size_t begin, std::size_t end) {
        std::size_t count = 0;
        for (std::size_t i = begin; i < end; ++i) {
            float* features = scratch.features.data() + count * kJoints * kFeatures;
            if (encode(poses, i, scratch.poses[count], features, refined) == Status::kRefined)
                scratch.indices[count++] = i;
        }
        kernel_.forward(weights_.view(), scratch.features.data(), count, scratch.stream(), scratch.outputs.data());
        for (std::size_t i = 0; i < count; ++i)
            decode(poses, scratch.indices[i], scratch.poses[i], scratch.outputs.data() + i * kJoints * kOutputs,
                   refined);
    });
}

template void Refiner::run(const Poses<float>&, const Refined<float>&, std::size_t) const;
template void Refiner::run(const Poses<double>&, const Refined<double>&, std::size_t) const;

}  // namespace jointbert
