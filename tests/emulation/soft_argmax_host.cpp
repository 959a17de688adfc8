// The kernels of soft_argmax.cu on the host, behind a C interface for ctypes. SOURCE is the file to test.
#include SOURCE

#include "host_run.h"

using namespace jointbert;

extern "C" int host_soft_argmax(const void* values, int element, int poses, int height, int width, int channels_last,
                                int mode, float beta, int window, float* uv, float* confidence, std::uint8_t* status,
                                int schedule, unsigned seed) {
    return run(schedule, seed, [&] {
        return cuda::soft_argmax({values, cuda::ElementType(element), poses, height, width, channels_last != 0},
                                 {cuda::PeakMode(mode), beta, window}, {uv, confidence, status}, nullptr);
    });
}

extern "C" int host_soft_argmax_backward(const void* values, int element, int poses, int height, int width,
                                         int channels_last, int mode, float beta, int window, float* uv,
                                         float* confidence, std::uint8_t* status, const float* to_uv,
                                         const float* to_confidence, void* result, int schedule, unsigned seed) {
    return run(schedule, seed, [&] {
        return cuda::soft_argmax_backward(
            {values, cuda::ElementType(element), poses, height, width, channels_last != 0},
            {cuda::PeakMode(mode), beta, window}, {uv, confidence, status}, {to_uv, to_confidence}, result, nullptr);
    });
}
