// The second stage's input beside the hidden states: cuts, bone lengths, roughness, neighbours; one frame at a time and
// in double. The reference implementation is find_segments, statistics and sequence_features in
// jointbert/models/sequence.py.
#pragma once

#include <array>
#include <cstddef>

#include "contract.h"
#include "pose.h"

namespace jointbert {

// A frame between the two stages. One that the first stage did not refine has no observed joint.
struct Frame {
    CanonicalPose pose;
    Points refined;       // after the first stage
    std::size_t segment;  // a cut begins a new one
    bool usable;
};

// Numbers the segments of a sequence. A cut is where the median joint, among those observed in a frame and in the last
// usable one before it, moved by more than kCutMm for each frame between them.
class Cuts {
  public:
    // The segment of the next frame; of it, only pose and `usable` are read.
    std::size_t next(const Frame& frame);

  private:
    CanonicalPose last_{};  // the last usable frame's; without observed joints: none yet
    std::size_t age_ = 1;   // in frames
    std::size_t segment_ = 0;
};

using BoneLengths = std::array<double, kRigidBoneCount>;  // millimetres; NaN: not known

// Properties of the person and of the predictions, measured in one frame or many. NaN: not known.
struct Traits {
    BoneLengths lengths;
    std::array<double, kJoints> log_roughness;  // logarithm of the acceleration, mm per frame squared
};

extern const Traits kUnknown;

// The traits of a frame, given the two before it (null where there are none). The three frames' acceleration is the
// last one's trait, so that it is known without looking ahead.
Traits traits(const Frame& frame, const Frame* before, const Frame* before_that);

// Median bone lengths (of an even number the lower one) and mean log roughness, of `count` frames' traits; not known
// where it is known in fewer than kKnownFrames frames.
Traits typical(const Traits* traits, std::size_t count);

// Replaces measured lengths by given ones, where these are known.
void set_lengths(const BoneLengths& given, Traits& traits);

// Frames around the one at kReach; null where there is none, or none that may be used.
using Around = std::array<const Frame*, 2 * kReach + 1>;

// The features [14, 63] of the frame in the middle.
void sequence_features(const Around& around, const Traits& known, float* features);

}  // namespace jointbert
