// The kernel of soft_argmax_depth.cu on the host, behind a C interface for ctypes. SOURCE is the file to test.
#include SOURCE

#include "host_run.h"

using namespace jointbert;

extern "C" std::size_t host_memory(int poses) { return cuda::soft_argmax_depth_memory(poses); }

extern "C" int host_soft_argmax_depth(const void* values, int element, int poses, int height, int width,
                                      int channels_last, int mode, float beta, int window, const void* weight,
                                      const float* bias, float* uv, float* confidence, std::uint8_t* status,
                                      float* depth, void* memory, int schedule, unsigned seed,
                                      unsigned resident_blocks) {
    const auto work = [&] {
        return cuda::soft_argmax_depth({values, cuda::ElementType(element), poses, height, width, channels_last != 0},
                                       {cuda::PeakMode(mode), beta, window}, {weight, bias, depth},
                                       {uv, confidence, status}, memory, nullptr);
    };
    return run(schedule, seed, work, resident_blocks);
}
