// The kernels of refiner.cu on the host, behind a C interface for ctypes. SOURCE is the file to test.
#include SOURCE

#include "host_run.h"

using namespace jointbert;

// No device is queried here.
extern "C" {
cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaMemPoolDestroy(cudaMemPool_t) { return cudaErrorNotSupported; }
cudaError_t cudaDeviceGetAttribute(int*, cudaDeviceAttr, int) { return cudaErrorNotSupported; }
cudaError_t cudaMemPoolCreate(cudaMemPool_t*, const cudaMemPoolProps*) { return cudaErrorNotSupported; }
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void*) { return cudaErrorNotSupported; }
}

// `processors` and `clusters` are the emulated device's; the most poses of a group follow from them.
extern "C" int host_refine(const void* ends, const void* chunks, int layers, int precision, const void* joints,
                           int type, int count, const unsigned char* order, double mm_per_unit, int mirror_all,
                           const std::uint8_t* mirror, const std::uint8_t* visible, const float* confidence,
                           const float* error_mm, float error_all_mm, void* refined, float* sigma, std::uint8_t* status,
                           float* size_mm, float* chirality, int variant, int processors, int shared_bytes,
                           int capability, int clusters, int schedule, unsigned seed) {
    return run(schedule, seed, [&] {
        const auto pool = reinterpret_cast<cudaMemPool_t>(&schedule);  // not null
        const cuda::DeviceProperties device{processors, shared_bytes, 1, capability, clusters, pool};
        const cuda::Network network{static_cast<const cuda::Ends*>(ends), static_cast<const cuda::Chunk*>(chunks),
                                    layers, cuda::Precision(precision)};
        cuda::DevicePoses poses{joints,      cuda::CoordinateType(type),
                                count,       {},
                                mm_per_unit, mirror_all != 0,
                                mirror,      visible,
                                confidence,  error_mm,
                                error_all_mm};
        std::copy_n(order, kJoints, poses.order);
        const cuda::DeviceRefinedPoses out{refined, sigma, status, size_mm, chirality};
        const cuda::Variant which = variant < 0 ? cuda::choose_variant(device, count) : cuda::Variant(variant);
        return cuda::refine(device, network, poses, out, which, nullptr);
    });
}

extern "C" float host_gelu(float x) { return cuda::gelu(x); }
