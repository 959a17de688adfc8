// What the harnesses share: a run under a schedule. Included after the kernels.
#pragma once

#include <stdexcept>

// Runs work under a schedule; 0, what CUDA said, or -1 where a barrier was never reached.
template <class Work>
int run(int schedule, unsigned seed, const Work& work, unsigned overlap = 1) {
    jointbert::fibers::settings() = {jointbert::fibers::Schedule(schedule), seed, overlap};
    try {
        return int(work());
    } catch (const std::runtime_error&) {
        return -1;
    }
}
