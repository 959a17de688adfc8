// Online refinement: a sequence that arrives frame by frame.
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

struct OnlineOptions {
    std::array<std::size_t, kJoints> permutation;
    double mm_per_unit;
    bool mirror;
    BoneLengths lengths_mm;  // as SequenceOptions'
    std::size_t look_ahead;
};

// A frame as the user gave it; null pointers as in Poses.
template <typename T>
struct OnlineFrame {
    const T* joints;              // [14, 3]
    const std::uint8_t* visible;  // [14]
    const float* confidence;      // [14]
    const float* error_mm;        // [14]
};

struct OnlineResult {
    template <typename T>
    using Joints = std::array<T, kJoints * 3>;

    std::variant<Joints<float>, Joints<double>> joints;  // of the type in which the frame came
    std::array<float, kJoints> sigma;
    std::uint8_t status;
    float size_mm, chirality;
};

// Typical traits of a set of frames, kept up to date as frames are added and removed.
class RunningTraits {
  public:
    void clear();
    void add(const Traits& traits);
    void remove(const Traits& traits);  // of a frame that was added
    Traits typical() const;

  private:
    std::array<double, kHistoryFrames> lengths_[kRigidBoneCount];  // sorted
    std::size_t length_counts_[kRigidBoneCount] = {};
    std::int64_t roughness_[kJoints] = {};  // sums; see online_sequence.cpp
    std::size_t roughness_counts_[kJoints] = {};
};

// One sequence. Each frame goes through the first stage when it arrives, and through the second when `look_ahead` more
// frames have arrived, or when the sequence ends. Bone lengths and roughness are those of the last kHistoryFrames
// frames of the frame's segment. All memory is allocated at construction. A mutex serialises calls from several
// threads.
class OnlineSequence {
  public:
    OnlineSequence(std::shared_ptr<const SequenceRefiner> refiner, const OnlineOptions& options);

    // Takes the next frame. Returns the frame `look_ahead` frames before it, if there is one.
    template <typename T>
    std::optional<OnlineResult> push(const OnlineFrame<T>& frame);

    // Ends the sequence: returns the frames that push has not returned, and resets.
    std::vector<OnlineResult> flush();

    void reset();

    // The person's, as known after the last frame.
    BoneLengths bone_lengths() const;

  private:
    // A frame that has been through the first stage.
    struct Pending {
        HiddenState hidden;
        OnlineResult result;
    };
    struct FrameTraits {
        std::size_t segment;
        Traits traits;
    };

    // Ring buffers: frame t is at t modulo the size.
    Frame& frame(std::size_t t) { return frames_[t % frames_.size()]; }
    Pending& pending(std::size_t t) { return pending_[t % pending_.size()]; }
    FrameTraits& history(std::size_t t) { return history_[t % kHistoryFrames]; }
    const FrameTraits& history(std::size_t t) const { return history_[t % kHistoryFrames]; }

    OnlineResult emit();
    void clear();

    const std::shared_ptr<const SequenceRefiner> refiner_;
    const OnlineOptions options_;
    mutable std::mutex mutex_;

    std::size_t received_ = 0, emitted_ = 0;  // frames
    std::vector<Frame> frames_;
    std::vector<Pending> pending_;
    std::vector<FrameTraits> history_;
    Cuts cuts_;
    RunningTraits running_;            // of the frames in history_ of segment running_segment_
    std::size_t running_segment_ = 0;  // that of the next frame to be emitted
};

}  // namespace jointbert
