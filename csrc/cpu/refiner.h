// The refiner on CPU: poses in, refined poses out, on one thread or many.
#pragma once

#include <cstddef>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "blocks.h"
#include "kernel.h"
#include "pose.h"
#include "weights.h"

namespace jointbert {

// Constant after construction, and each call has its own scratch memory: any number of threads may share one.
class Refiner {
  public:
    // Throws std::invalid_argument for bad weights (see PackedWeights) and for an instruction set this machine lacks.
    Refiner(const std::map<std::string, Tensor>& tensors, const std::string& isa);

    const char* isa() const { return kernel_.isa; }
    std::size_t layers() const { return weights_.view().layer_count; }
    const Kernel& kernel() const { return kernel_; }
    NetworkWeights weights() const { return weights_.view(); }

    // The network alone: features [poses, 14, 8] to outputs [poses, 14, 4].
    void forward(const float* features, std::size_t poses, float* outputs, std::size_t threads) const;

    // Encodes, refines and decodes. T is float or double.
    template <typename T>
    void run(const Poses<T>& poses, const RefinedPoses<T>& refined, std::size_t threads) const;

    // Encodes every pose and runs the network on those that can be refined. For each of these it calls, from any of the
    // threads, done(index, pose, hidden, output) with the hidden states [14, 128] and the output [14, 4]. `refined` of
    // the others is complete; see encode.
    template <typename T, class Done>
    void run_network(const Poses<T>& poses, const RefinedPoses<T>& refined, std::size_t threads,
                     const Done& done) const;

  private:
    // One thread's memory for a block of poses.
    struct Scratch {
        explicit Scratch(std::size_t poses)
            : hidden(poses),
              features(poses * kJoints * kFeatures),
              outputs(poses * kJoints * kOutputs),
              poses(poses),
              indices(poses) {}

        float* residual() { return hidden.front().values; }

        std::vector<HiddenState> hidden;
        std::vector<float> features, outputs;
        std::vector<CanonicalPose> poses;
        std::vector<std::size_t> indices;
    };

    const Kernel& kernel_;
    PackedWeights weights_;
};

// Runs a network on features [poses, 14, 8] of another runtime, into outputs [poses, 14, 4].
using ExternalNetwork = std::function<void(const float* features, std::size_t poses, float* outputs)>;

// Refiner::run with an external network, which is called once with all poses that can be refined, or not at all where
// there are none. T is float or double.
template <typename T>
void run_external(const Poses<T>& poses, const RefinedPoses<T>& refined, const ExternalNetwork& network);

template <typename T, class Done>
void Refiner::run_network(const Poses<T>& poses, const RefinedPoses<T>& refined, std::size_t threads,
                          const Done& done) const {
    for_blocks<Scratch>(poses.count, threads, [&](Scratch& scratch, std::size_t begin, std::size_t end) {
        std::size_t count = 0;
        for (std::size_t i = begin; i < end; ++i) {
            float* features = scratch.features.data() + count * kJoints * kFeatures;
            if (encode(poses, i, scratch.poses[count], features, refined) == Status::kRefined)
                scratch.indices[count++] = i;
        }
        kernel_.forward(weights_.view(), scratch.features.data(), count, scratch.residual(), scratch.outputs.data());
        for (std::size_t i = 0; i < count; ++i)
            done(scratch.indices[i], scratch.poses[i], scratch.hidden[i],
                 scratch.outputs.data() + i * kJoints * kOutputs);
    });
}

}  // namespace jointbert
