#include "device_refiner.h"

#include <stdexcept>
#include <string>

namespace jointbert::cuda {

DeviceRefiner::DeviceRefiner(const void* ends, std::size_t ends_bytes, const void* chunks, std::size_t chunks_bytes,
                             int layers, Precision precision, int device)
    : number_(device), ends_(ends_bytes, device), chunks_(chunks_bytes, device) {
    if (ends_bytes != sizeof(Ends) || layers < 1 || chunks_bytes != std::size_t(layers) * kChunks * sizeof(Chunk))
        throw std::invalid_argument("weights: packed for other kernels");
    const OnDevice on(device);
    const cudaError_t asked = ask_device(device, device_);
    pool_.pool = device_.pool;
    check(asked, "the kernels of the refiner");
    if (precision == Precision::kBFloat16 && device_.capability < 80)
        throw std::invalid_argument(
            "precision: this GPU, of compute capability " + std::to_string(device_.capability / 10) + "." +
            std::to_string(device_.capability % 10) + ", multiplies no bfloat16 (8.0 and later do); take 'f16'");
    check(cudaMemcpy(ends_.data(), ends, ends_bytes, cudaMemcpyHostToDevice), "cudaMemcpy");
    check(cudaMemcpy(chunks_.data(), chunks, chunks_bytes, cudaMemcpyHostToDevice), "cudaMemcpy");
    check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");  // a copy may end later, and streams need not wait for it
    network_ = {ends_.data<const Ends>(), chunks_.data<const Chunk>(), layers, precision};
}

void DeviceRefiner::run(const Poses& poses, const Refined& refined, Variant variant, cudaStream_t stream) const {
    const OnDevice on(number_);
    check(cuda::refine(device_, network_, poses, refined, variant, stream), "refine");
}

}  // namespace jointbert::cuda
