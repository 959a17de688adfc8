// The second stage on CPU: sequences, single frames of a known person, and measurement of a person's bones.
#pragma once

#include <array>
#include <cstddef>
#include <map>
#include <memory>
#include <string>

#include "pose.h"
#include "refiner.h"
#include "sequence_features.h"
#include "weights.h"

namespace jointbert {

struct SequenceOptions {
    BoneLengths lengths_mm;               // the person's, NaN where they are to be measured
    std::size_t look_behind, look_ahead;  // in frames; at most kReach
    bool alone;  // frames stand alone: none uses another, and only the given lengths are known of the person
};

struct Calibration {
    BoneLengths lengths_mm;
    std::array<std::size_t, kRigidBoneCount> counts;  // frames in which each length was measured
};

// Constant after construction, as Refiner.
class SequenceRefiner {
  public:
    // Runs on the first stage's instruction set. Throws std::invalid_argument for bad weights.
    SequenceRefiner(std::shared_ptr<const Refiner> first, const std::map<std::string, Tensor>& tensors);

    const Refiner& first() const { return *first_; }
    std::size_t layers() const { return weights_.view().layer_count; }
    SequenceNetworkWeights weights() const { return weights_.view(); }

    // The second network alone: hidden states [poses, 14, 128] and features [poses, 14, 63] to outputs [poses, 14, 4].
    void forward(const float* hidden, const float* features, std::size_t poses, float* outputs,
                 std::size_t threads) const;

    // Both stages. The result does not depend on the number of threads.
    template <typename T>
    void run(const Poses<T>& poses, const SequenceOptions& options, const RefinedPoses<T>& refined,
             std::size_t threads) const;

    // Median bone lengths after the first stage, of frames of one person in any order. Of `refined` it fills the fields
    // that encode fills.
    template <typename T>
    Calibration calibrate(const Poses<T>& poses, const RefinedPoses<T>& refined, std::size_t threads) const;

  private:
    struct Scratch;

    std::shared_ptr<const Refiner> first_;
    PackedSequenceWeights weights_;
};

}  // namespace jointbert
