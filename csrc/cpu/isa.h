// Which kernel runs on this machine.
#pragma once

#include <string>
#include <vector>

#include "kernel.h"

namespace jointbert {

// The kernels that this machine runs, best first; the portable one is always among them.
std::vector<const Kernel*> supported_kernels();

// The kernel of that name, or the best for "auto". Throws std::invalid_argument for a name that this machine does not
// support.
const Kernel& find_kernel(const std::string& isa);

}  // namespace jointbert
