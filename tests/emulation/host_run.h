// Shared by the harnesses: a run under a schedule. Included after the kernels.
#pragma once

#include <stdexcept>

// Barriers so far: of blocks, and of clusters.
extern "C" void host_barrier_counts(unsigned long* blocks_and_clusters) {
    blocks_and_clusters[0] = jointbert::emulator::barrier_counts().blocks;
    blocks_and_clusters[1] = jointbert::emulator::barrier_counts().clusters;
}

// Leaves out one synchronisation from now on, in sources that tests/support/cuda_builds.py made droppable; -1: none.
extern "C" void host_drop_synchronisation(int index) { jointbert::emulator::dropped_synchronisation() = index; }

// Runs work under a schedule. Returns 0, a CUDA error code, or -1 where a thread never reached a barrier.
template <class Work>
int run(int schedule, unsigned seed, const Work& work, unsigned resident_blocks = 1) {
    jointbert::emulator::settings() = {jointbert::emulator::Schedule(schedule), seed, resident_blocks};
    try {
        return int(work());
    } catch (const std::runtime_error&) {
        return -1;
    }
}
