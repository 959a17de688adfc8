// What the second stage looks at beside the hidden states: cuts, bone lengths, roughness, neighbours. The C++ twin of
// find_segments, statistics and sequence_features in jointbert/models/sequence.py, one frame at a time and in double.
#pragma once

#include <array>
#include <cstddef>

#include "contract.h"
#include "pose.h"

namespace jointbert {

// A frame between the two stages. One that the first did not refine has no observed joint, and counts for nothing.
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
    // The segment of the next frame; only its pose and `usable` are looked at.
    std::size_t next(const Frame& frame);

  private:
    CanonicalPose last_{};  // the last usable one: none is without observed joints
    std::size_t age_ = 1;   // in frames
    std::size_t segment_ = 0;
};

using BoneLengths = std::array<double, kRigidBoneCount>;  // millimetres; NaN: not known

// What one frame tells, or many, of the person and of how rough the predictions are. NaN: not known.
struct Traits {
    BoneLengths lengths;
    std::array<double, kJoints> log_roughness;  // logarithm of the acceleration, mm per frame squared
};

extern const Traits kUnknown;

// What a frame and the two before it tell, which are null where there are none. Their acceleration counts as the last
// one's, so that it is known without looking ahead.
Traits traits(const Frame& frame, const Frame* before, const Frame* before_that);

// Median bone lengths (of an even number the lower one) and mean log roughness, of `count` frames' traits; not known
// where fewer than kKnownFrames tell.
Traits typical(const Traits* traits, std::size_t count);

// Lengths that are known beforehand, in place of those that frames tell.
void set_lengths(const BoneLengths& given, Traits& traits);

// Frames around the one at kReach; null where there is none that may be looked at.
using Around = std::array<const Frame*, 2 * kReach + 1>;

// The features [14, 63] of the frame in the middle.
void sequence_features(const Around& around, const Traits& known, float* features);

}  // namespace jointbert
