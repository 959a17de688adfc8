#include "online_sequence.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace jointbert {
namespace {

// Roughness is summed in integers: a floating-point sum would keep the rounding errors of frames that are removed
// again. A logarithm of a double is below 710, so that 512 of them fit.
constexpr double kRoughnessSteps = double(std::int64_t(1) << 40);

std::int64_t steps(double log_roughness) { return std::llrint(log_roughness * kRoughnessSteps); }

template <typename T>
RefinedPoses<T> into(OnlineResult::Joints<T>& joints, OnlineResult& result) {
    return {joints.data(), result.sigma.data(), &result.status, &result.size_mm, &result.chirality};
}

}  // namespace

void RunningTraits::clear() {
    std::fill_n(length_counts_, kRigidBoneCount, std::size_t(0));
    std::fill_n(roughness_, kJoints, std::int64_t(0));
    std::fill_n(roughness_counts_, kJoints, std::size_t(0));
}

void RunningTraits::add(const Traits& traits) {
    for (std::size_t bone = 0; bone < kRigidBoneCount; ++bone) {
        const double length = traits.lengths[bone];
        if (std::isnan(length)) continue;
        const auto end = lengths_[bone].begin() + length_counts_[bone]++;
        const auto at = std::upper_bound(lengths_[bone].begin(), end, length);
        std::copy_backward(at, end, end + 1);
        *at = length;
    }
    for (std::size_t j = 0; j < kJoints; ++j) {
        if (std::isnan(traits.log_roughness[j])) continue;
        roughness_[j] += steps(traits.log_roughness[j]);
        ++roughness_counts_[j];
    }
}

void RunningTraits::remove(const Traits& traits) {
    for (std::size_t bone = 0; bone < kRigidBoneCount; ++bone) {
        const double length = traits.lengths[bone];
        if (std::isnan(length)) continue;
        const auto end = lengths_[bone].begin() + length_counts_[bone]--;
        const auto at = std::lower_bound(lengths_[bone].begin(), end, length);
        std::copy(at + 1, end, at);
    }
    for (std::size_t j = 0; j < kJoints; ++j) {
        if (std::isnan(traits.log_roughness[j])) continue;
        roughness_[j] -= steps(traits.log_roughness[j]);
        --roughness_counts_[j];
    }
}

Traits RunningTraits::typical() const {
    Traits result = kUnknown;
    for (std::size_t bone = 0; bone < kRigidBoneCount; ++bone)
        if (const std::size_t count = length_counts_[bone]; count >= kKnownFrames)
            result.lengths[bone] = lengths_[bone][(count - 1) / 2];
    for (std::size_t j = 0; j < kJoints; ++j)
        if (const std::size_t count = roughness_counts_[j]; count >= kKnownFrames)
            result.log_roughness[j] = double(roughness_[j]) / kRoughnessSteps / double(count);
    return result;
}

OnlineSequence::OnlineSequence(std::shared_ptr<const SequenceRefiner> refiner, const OnlineOptions& options)
    : refiner_(std::move(refiner)),
      options_(options),
      frames_(kReach + 1 + options.look_ahead),
      pending_(1 + options.look_ahead),
      history_(kHistoryFrames) {}

template <typename T>
std::optional<OnlineResult> OnlineSequence::push(const OnlineFrame<T>& given) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const std::size_t t = received_;
    Frame& now = frame(t);
    OnlineResult& result = pending(t).result;

    auto& joints = result.joints.template emplace<OnlineResult::Joints<T>>();
    const std::uint8_t mirror = options_.mirror;
    const Poses<T> poses{
        given.joints,  1, options_.permutation, options_.mm_per_unit, &mirror, given.visible, given.confidence,
        given.error_mm};
    float features[kJoints * kFeatures], output[kJoints * kOutputs];
    now.usable = encode(poses, 0, now.pose, features, into<T>(joints, result)) == Status::kRefined;
    if (now.usable) {
        const Refiner& first = refiner_->first();
        first.kernel().forward(first.weights(), features, 1, pending(t).hidden.values, output);
        correct(now.pose, output, now.refined);
    } else {
        std::fill_n(now.pose.observed, kJoints, false);
    }
    now.segment = cuts_.next(now);

    if (t >= kHistoryFrames && history(t).segment == running_segment_) running_.remove(history(t).traits);
    history(t) = {now.segment, traits(now, t >= 1 ? &frame(t - 1) : nullptr, t >= 2 ? &frame(t - 2) : nullptr)};
    if (now.segment == running_segment_) running_.add(history(t).traits);
    ++received_;
    if (received_ <= options_.look_ahead) return std::nullopt;
    return emit();
}

OnlineResult OnlineSequence::emit() {
    const std::size_t t = emitted_++;
    const Frame& now = frame(t);
    if (now.segment != running_segment_) {  // t is that segment's first frame
        running_.clear();
        running_segment_ = now.segment;
        for (std::size_t i = t; i < received_; ++i)
            if (history(i).segment == running_segment_) running_.add(history(i).traits);
    }
    OnlineResult& result = pending(t).result;
    if (!now.usable) return result;

    Traits known = running_.typical();
    set_lengths(options_.lengths_mm, known);
    Around around{};
    for (std::size_t i = t - std::min(t, kReach); i < received_ && i <= t + kReach; ++i)
        if (frame(i).segment == now.segment) around[kReach + i - t] = &frame(i);
    float features[kJoints * kSequenceFeatures], output[kJoints * kOutputs];
    sequence_features(around, known, features);
    refiner_->first().kernel().forward_sequence(refiner_->weights(), features, 1, pending(t).hidden.values, output);
    Points refined;
    correct(now.refined, output, refined);
    std::visit(
        [&](auto& joints) {
            using T = typename std::decay_t<decltype(joints)>::value_type;
            const Poses<T> one{nullptr, 1,      options_.permutation, options_.mm_per_unit, nullptr, nullptr,
                               nullptr, nullptr};
            decode(one, 0, refined, now.pose.sign, output, into<T>(joints, result));
        },
        result.joints);
    return result;
}

std::vector<OnlineResult> OnlineSequence::flush() {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::vector<OnlineResult> rest;
    rest.reserve(received_ - emitted_);
    while (emitted_ < received_) rest.push_back(emit());
    clear();
    return rest;
}

void OnlineSequence::reset() {
    const std::lock_guard<std::mutex> lock(mutex_);
    clear();
}

void OnlineSequence::clear() {
    received_ = emitted_ = 0;
    cuts_ = Cuts{};
    running_.clear();
    running_segment_ = 0;
}

BoneLengths OnlineSequence::bone_lengths() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::vector<Traits> same;
    for (std::size_t t = received_ - std::min(received_, kHistoryFrames); t < received_; ++t)
        if (history(t).segment == history(received_ - 1).segment) same.push_back(history(t).traits);
    Traits known = typical(same.data(), same.size());
    set_lengths(options_.lengths_mm, known);
    return known.lengths;
}

template std::optional<OnlineResult> OnlineSequence::push(const OnlineFrame<float>&);
template std::optional<OnlineResult> OnlineSequence::push(const OnlineFrame<double>&);

}  // namespace jointbert
