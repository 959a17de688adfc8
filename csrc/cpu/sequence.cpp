#include "sequence.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "blocks.h"

namespace jointbert {

// One thread's memory for a block of poses.
struct SequenceRefiner::Scratch {
    explicit Scratch(std::size_t poses)
        : hidden(poses),
          features(poses * kJoints * kSequenceFeatures),
          outputs(poses * kJoints * kOutputs),
          indices(poses) {}

    std::vector<HiddenState> hidden;
    std::vector<float> features, outputs;
    std::vector<std::size_t> indices;
};

SequenceRefiner::SequenceRefiner(std::shared_ptr<const Refiner> first, const std::map<std::string, Tensor>& tensors)
    : first_(std::move(first)), weights_(tensors, first_->kernel().panel) {}

void SequenceRefiner::forward(const float* hidden, const float* features, std::size_t poses, float* outputs,
                              std::size_t threads) const {
    for_blocks<Scratch>(poses, threads, [&](Scratch& scratch, std::size_t begin, std::size_t end) {
        float* residual = scratch.hidden.front().values;
        std::copy(hidden + begin * kJoints * kWidth, hidden + end * kJoints * kWidth, residual);
        first_->kernel().forward_sequence(weights(), features + begin * kJoints * kSequenceFeatures, end - begin,
                                          residual, outputs + begin * kJoints * kOutputs);
    });
}

template <typename T>
void SequenceRefiner::run(const Poses<T>& poses, const SequenceOptions& options, const RefinedPoses<T>& refined,
                          std::size_t threads) const {
    const std::size_t count = poses.count;
    std::vector<Frame> frames(count);  // zeroed: not usable until the first stage has refined it
    const std::unique_ptr<HiddenState[]> hidden(new HiddenState[count]);
    first_->run_network(
        poses, refined, threads,
        [&](std::size_t index, const CanonicalPose& pose, const HiddenState& state, const float* output) {
            Frame& frame = frames[index];
            frame.pose = pose;
            frame.usable = true;
            correct(pose, output, frame.refined);
            hidden[index] = state;
        });

    std::vector<Traits> known;  // of each segment
    if (options.alone) {
        known.push_back(kUnknown);
    } else {
        Cuts cuts;
        std::vector<Traits> frame_traits(count);
        for (std::size_t t = 0; t < count; ++t) {
            frames[t].segment = cuts.next(frames[t]);
            frame_traits[t] = traits(frames[t], t >= 1 ? &frames[t - 1] : nullptr, t >= 2 ? &frames[t - 2] : nullptr);
        }
        for (std::size_t begin = 0, end; begin < count; begin = end) {
            end = begin + 1;
            while (end < count && frames[end].segment == frames[begin].segment) ++end;
            known.push_back(typical(&frame_traits[begin], end - begin));
        }
    }
    for (Traits& segment : known) set_lengths(options.lengths_mm, segment);

    const std::size_t behind = options.alone ? 0 : options.look_behind, ahead = options.alone ? 0 : options.look_ahead;
    for_blocks<Scratch>(count, threads, [&](Scratch& scratch, std::size_t begin, std::size_t end) {
        std::size_t size = 0;
        for (std::size_t t = begin; t < end; ++t) {
            if (!frames[t].usable) continue;
            Around around{};
            for (std::size_t i = t - std::min(t, behind); i < count && i <= t + ahead; ++i)
                if (frames[i].segment == frames[t].segment) around[kReach + i - t] = &frames[i];
            sequence_features(around, known[frames[t].segment],
                              scratch.features.data() + size * kJoints * kSequenceFeatures);
            scratch.hidden[size] = hidden[t];
            scratch.indices[size++] = t;
        }
        first_->kernel().forward_sequence(weights(), scratch.features.data(), size, scratch.hidden.front().values,
                                          scratch.outputs.data());
        for (std::size_t i = 0; i < size; ++i) {
            const std::size_t t = scratch.indices[i];
            const float* output = scratch.outputs.data() + i * kJoints * kOutputs;
            Points joints;
            correct(frames[t].refined, output, joints);
            decode(poses, t, joints, frames[t].pose.sign, output, refined);
        }
    });
}

template <typename T>
Calibration SequenceRefiner::calibrate(const Poses<T>& poses, const RefinedPoses<T>& refined,
                                       std::size_t threads) const {
    std::vector<Traits> frame_traits(poses.count, kUnknown);
    first_->run_network(poses, refined, threads,
                        [&](std::size_t index, const CanonicalPose& pose, const HiddenState&, const float* output) {
                            Frame frame{pose, {}, 0, true};
                            correct(pose, output, frame.refined);
                            frame_traits[index] = traits(frame, nullptr, nullptr);
                        });
    Calibration result{typical(frame_traits.data(), frame_traits.size()).lengths, {}};
    for (const Traits& frame : frame_traits)
        for (std::size_t bone = 0; bone < kRigidBoneCount; ++bone)
            result.counts[bone] += !std::isnan(frame.lengths[bone]);
    return result;
}

template void SequenceRefiner::run(const Poses<float>&, const SequenceOptions&, const RefinedPoses<float>&,
                                   std::size_t) const;
template void SequenceRefiner::run(const Poses<double>&, const SequenceOptions&, const RefinedPoses<double>&,
                                   std::size_t) const;
template Calibration SequenceRefiner::calibrate(const Poses<float>&, const RefinedPoses<float>&, std::size_t) const;
template Calibration SequenceRefiner::calibrate(const Poses<double>&, const RefinedPoses<double>&, std::size_t) const;

}  // namespace jointbert
