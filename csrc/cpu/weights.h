// Weights by name, as a file holds them, and packed, as a kernel reads them.
#pragma once

#include <cstddef>
#include <map>
#include <string>
#include <vector>

#include "kernel.h"

namespace jointbert {

// A float32 tensor in C order, which the caller owns.
struct Tensor {
    const float* data;
    std::vector<std::size_t> shape;
};

class PackedWeights {
  public:
    // `tensors` are those of JointRefiner's state dict; `panel` is the kernel's. Throws std::invalid_argument, naming
    // the tensor, for one that is missing, unknown, of another shape or not finite.
    PackedWeights(const std::map<std::string, Tensor>& tensors, std::size_t panel);

    NetworkWeights view() const { return {&ends_, layers_.data(), layers_.size()}; }

  private:
    EndWeights ends_{};
    std::vector<LayerWeights> layers_;
};

class PackedSequenceWeights {
  public:
    // The same for the tensors of SequenceRefiner's state dict.
    PackedSequenceWeights(const std::map<std::string, Tensor>& tensors, std::size_t panel);

    SequenceNetworkWeights view() const { return {&ends_, layers_.data(), layers_.size()}; }

  private:
    SequenceEndWeights ends_{};
    std::vector<LayerWeights> layers_;
};

}  // namespace jointbert
