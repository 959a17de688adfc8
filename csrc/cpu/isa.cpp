#include "isa.h"

#include <stdexcept>

namespace jointbert {

std::vector<const Kernel*> supported_kernels() {
    std::vector<const Kernel*> kernels;
#if defined(JOINTBERT_X86)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
        kernels.push_back(&avx512::kernel);
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) kernels.push_back(&avx2::kernel);
#endif
    kernels.push_back(&portable::kernel);
    return kernels;
}

const Kernel& find_kernel(const std::string& isa) {
    const auto kernels = supported_kernels();
    if (isa == "auto") return *kernels.front();
    std::string names = "'auto'";
    for (const Kernel* kernel : kernels) {
        if (isa == kernel->isa) return *kernel;
        names += std::string(", '") + kernel->isa + "'";
    }
    throw std::invalid_argument("isa: got '" + isa + "'; this machine runs " + names);
}

}  // namespace jointbert
