// The refiner on CPU: poses in, refined poses out, on one thread or many.
#pragma once

#include <cstddef>
#include <map>
#include <string>
#include <vector>

#include "blocks.h"
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
    const Kernel& kernel() const { return kernel_; }
    NetworkWeights weights() const { return weights_.view(); }

    // The network alone: features [poses, 14, 8] to outputs [poses, 14, 4].
    void forward(const float* features, std::size_t poses, float* outputs, std::size_t threads) const;

    // Encodes, refines and decodes. T is float or double.
    template <typename T>
    void run(const Poses<T>& poses, const Refined<T>& refined, std::size_t threads) const;

    // Encodes every pose and runs the network on those that are to be refined; for them it calls, from any of the
    // threads, done(index, pose, hidden, output) with the hidden states [14, 128] and the output [14, 4]. Of the rest
    // everything is known, and in `refined`; see encode.
    template <typename T, class Done>
    void run_network(const Poses<T>& poses, const Refined<T>& refined, std::size_t threads, const Done& done) const;

  private:
    // One thread's memory for a block of poses.
    struct Scratch {
        explicit Scratch(std::size_t poses)
            : streams(poses),
              features(poses * kJoints * kFeatures),
              outputs(poses * kJoints * kOutputs),
              poses(poses),
              indices(poses) {}

        float* stream() { return streams.front().values; }

        std::vector<Hidden> streams;
        std::vector<float> features, outputs;
        std::vector<CanonicalPose> poses;
        std::vector<std::size_t> indices;
    };

    const Kernel& kernel_;
    PackedWeights weights_;
};

template <typename T, class Done>
void Refiner::run_network(const Poses<T>& poses, const Refined<T>& refined, std::size_t threads,
                          const Done& done) const {
    for_blocks<Scratch>(poses.count, threads, [&](Scratch& scratch, std::size_t begin, std::size_t end) {
        std::size_t count = 0;
        for (std::size_t i = begin; i < end; ++i) {
            float* features = scratch.features.data() + count * kJoints * kFeatures;
            if (encode(poses, i, scratch.poses[count], features, refined) == Status::kRefined)
                scratch.indices[count++] = i;
        }
        kernel_.forward(weights_.view(), scratch.features.data(), count, scratch.stream(), scratch.outputs.data());
        for (std::size_t i = 0; i < count; ++i)
            done(scratch.indices[i], scratch.poses[i], scratch.streams[i],
                 scratch.outputs.data() + i * kJoints * kOutputs);
    });
}

}  // namespace jointbert
