// A sequence that comes frame by frame, refined while it comes.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <variant>
#include <vector>

#include "blocks.h"
#include "pose.h"
#include "sequence.h"
#include "sequence_features.h"

namespace jointbert {

struct StreamOptions {
    std::array<std::size_t, kJoints> permutation;
    double mm_per_unit;
    bool mirror;
    BoneLengths lengths_mm;  // as SequenceOptions'
    std::size_t look_ahead;
};

// A frame as the user gave it; null pointers as in Poses.
template <typename T>
struct StreamFrame {
    const T* joints;              // [14, 3]
    const std::uint8_t* visible;  // [14]
    const float* confidence;      // [14]
    const float* error_mm;        // [14]
};

struct StreamResult {
    template <typename T>
    using Joints = std::array<T, kJoints * 3>;

    std::variant<Joints<float>, Joints<double>> joints;  // of the type in which the frame came
    std::array<float, kJoints> sigma;
    std::uint8_t status;
    float size_mm, chirality;
};

// The typical traits of frames that come and go.
class Tally {
  public:
    void clear();
    void add(const Traits& traits);
    void remove(const Traits& traits);  // of a frame that was added
    Traits typical() const;

  private:
    std::array<double, kHistoryFrames> lengths_[kRigidBoneCount];  // in order
    std::size_t length_counts_[kRigidBoneCount] = {};
    std::int64_t roughness_[kJoints] = {};  // sums; see stream.cpp
    std::size_t roughness_counts_[kJoints] = {};
};

// One sequence. Each frame goes through the first stage when it comes, and through the second when the `look_ahead`
// frames after it have come, or when the sequence ends. What is known of the person and of the roughness comes from the
// last kHistoryFrames frames of that frame's segment. All memory is allocated at construction. Calls from several
// threads come one after the other.
class Stream {
  public:
    Stream(std::shared_ptr<const SequenceRefiner> refiner, const StreamOptions& options);

    // Takes the next frame and gives the one `look_ahead` frames before it, once that is there.
    template <typename T>
    std::optional<StreamResult> push(const StreamFrame<T>& frame);

    // Gives the frames that have not been given yet, and begins anew.
    std::vector<StreamResult> flush();

    void reset();

    // The current person's, as of the last frame.
    BoneLengths bone_lengths() const;

  private:
    // A frame that has been through the first stage.
    struct Pending {
        Hidden hidden;
        StreamResult result;
    };
    struct Told {
        std::size_t segment;
        Traits traits;
    };

    // Rings, in which frame t stands at t modulo the size.
    Frame& frame(std::size_t t) { return frames_[t % frames_.size()]; }
    Pending& pending(std::size_t t) { return pending_[t % pending_.size()]; }
    Told& told(std::size_t t) { return told_[t % kHistoryFrames]; }
    const Told& told(std::size_t t) const { return told_[t % kHistoryFrames]; }

    StreamResult give();
    void clear();

    const std::shared_ptr<const SequenceRefiner> refiner_;
    const StreamOptions options_;
    mutable std::mutex mutex_;

    std::size_t taken_ = 0, given_ = 0;  // frames
    std::vector<Frame> frames_;
    std::vector<Pending> pending_;
    std::vector<Told> told_;
    Cuts cuts_;
    Tally tally_;  // of the told frames in the segment of the next frame that is given
    std::size_t tally_segment_ = 0;
};

}  // namespace jointbert
