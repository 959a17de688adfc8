// The refiner on CPU: poses in, refined poses out, on one thread or many.
#pragma once

#include <cstddef>
#include <map>
#include <string>

#include "kernel.h"
#include "pose.h"
#include "weights.h"

namespace jointbert {

// Nothing changes after construction and every call has its own scratch memory, so any number of threads may share one.
class Refiner {
  public:
    // Throws std::invalid_argument for bad weights (see PackedWeights) and for an instruction set this machine lacks.
    Refiner(const std::map<std::string, Tensor>& tensors, const std::string& isa);

    const char* isa() const { return kernel_.isa; }
    std::size_t layers() const { return weights_.view().layer_count; }

    // The network alone: features [poses, 14, 8] to outputs [poses, 14, 4].
    void forward(const float* features, std::size_t poses, float* outputs, std::size_t threads) const;

    // Encodes, refines and decodes. T is float or double.
    template <typename T>
    void run(const Poses<T>& poses, const Refined<T>& refined, std::size_t threads) const;

  private:
    const Kernel& kernel_;
    PackedWeights weights_;
};

}  // namespace jointbert
