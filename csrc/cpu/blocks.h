// A batch's work in blocks of poses, on one thread or many.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <functional>
#include <system_error>
#include <thread>
#include <vector>

#include "contract.h"

namespace jointbert {

// Poses that go through a layer together. A layer's weights (0.5 MB) and 16 poses' residuals (0.1 MB) fit in a core's
// L2 cache.
constexpr std::size_t kPosesPerBlock = 16;

// Starting a thread costs about as much as a tenth of a pose, and a thread should be worth it.
constexpr std::size_t kPosesPerThread = 4;

// A larger number is a mistake, which should not cost its memory.
constexpr std::size_t kMaxThreads = 256;

// A pose's hidden states: the residual, [14, 128].
struct alignas(64) HiddenState {
    float values[kJoints * kWidth];
};

// Calls work(scratch, begin, end) for blocks that cover [0, count), on up to `threads` threads, this one included.
// Each thread takes the next block when it is free, so that a thread that other programs slow down does not delay the
// rest. Each thread has its own Scratch, constructed from the number of poses in a block.
template <class Scratch, class Work>
void for_blocks(std::size_t count, std::size_t threads, const Work& work) {
    if (count == 0) return;
    threads = std::clamp<std::size_t>(count / kPosesPerThread, 1, std::min(threads, kMaxThreads));
    const std::size_t block = std::min(kPosesPerBlock, (count + threads - 1) / threads);
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
        // The system has no more threads: those that were started do the work.
    }
    run(scratch[0]);
    for (std::thread& other : others) other.join();
}

}  // namespace jointbert
