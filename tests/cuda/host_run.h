// What the harnesses share: a run under a schedule. Included after the kernels.
#pragma once

#include <stdexcept>

// Barriers of blocks and of gangs (clusters) so far.
extern "C" void host_meetings(unsigned long* blocks_and_gangs) {
    blocks_and_gangs[0] = jointbert::fibers::meetings().blocks;
    blocks_and_gangs[1] = jointbert::fibers::meetings().gangs;
}

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
