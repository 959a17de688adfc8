#include "sequence_features.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace jointbert {
namespace {

double norm(const double (&vector)[3]) {
    return std::sqrt(vector[0] * vector[0] + vector[1] * vector[1] + vector[2] * vector[2]);
}

double distance(const double (&a)[3], const double (&b)[3]) {
    const double difference[3] = {a[0] - b[0], a[1] - b[1], a[2] - b[2]};
    return norm(difference);
}

// Changes the order of the values.
double lower_median(double* values, std::size_t count) {
    double* middle = values + (count - 1) / 2;
    std::nth_element(values, middle, values + count);
    return *middle;
}

struct BonesOfJoint {
    struct {
        int bone = -1;  // none
        std::size_t other_end = 0;
    } of[kJoints][kBonesPerJoint];
};

constexpr BonesOfJoint bones_of_joint() {
    BonesOfJoint bones{};
    std::size_t counts[kJoints] = {};
    for (std::size_t i = 0; i < kRigidBoneCount; ++i)
        for (std::size_t end = 0; end < 2; ++end) {
            const std::size_t joint = kRigidBones[i][end];
            bones.of[joint][counts[joint]].bone = int(i);
            bones.of[joint][counts[joint]++].other_end = kRigidBones[i][1 - end];
        }
    return bones;
}

constexpr BonesOfJoint kBonesOfJoint = bones_of_joint();

// Millimetres over 10, with the length's asinh for the length.
void compress(const double (&vector)[3], float* to) {
    const double length = norm(vector) / kStepUnitMm;
    const double factor = (length > 1e-6 ? std::asinh(length) / length : 1.0) / kStepUnitMm;
    for (int i = 0; i < 3; ++i) to[i] = float(vector[i] * factor);
}

}  // namespace

const Traits kUnknown = [] {
    Traits traits;
    traits.lengths.fill(kNan);
    traits.log_roughness.fill(kNan);
    return traits;
}();

std::size_t Cuts::next(const Frame& frame) {
    if (!frame.usable) {
        ++age_;
        return segment_;
    }
    double moves[kJoints];
    std::size_t count = 0;
    for (std::size_t j = 0; j < kJoints; ++j)
        if (last_.observed[j] && frame.pose.observed[j])
            moves[count++] = distance(frame.pose.joints[j], last_.joints[j]);
    if (count >= kMinJoints && lower_median(moves, count) > kCutMm * double(age_)) ++segment_;
    last_ = frame.pose;
    age_ = 1;
    return segment_;
}

Traits traits(const Frame& frame, const Frame* before, const Frame* before_that) {
    Traits result = kUnknown;
    for (std::size_t i = 0; i < kRigidBoneCount; ++i) {
        const auto& [a, b] = kRigidBones[i];
        const bool seen = frame.pose.observed[a] && frame.pose.observed[b];
        const double length = seen ? distance(frame.refined[a], frame.refined[b]) : kNan;
        if (std::isfinite(length)) result.lengths[i] = length;
    }
    // Segments follow each other: the frame in the middle belongs to that of the two others.
    if (!before || !before_that || before_that->segment != frame.segment) return result;
    for (std::size_t j = 0; j < kJoints; ++j) {
        if (!(frame.pose.observed[j] && before->pose.observed[j] && before_that->pose.observed[j])) continue;
        double acceleration[3];
        for (int i = 0; i < 3; ++i)
            acceleration[i] = frame.refined[j][i] - 2 * before->refined[j][i] + before_that->refined[j][i];
        const double value = std::log(norm(acceleration) + kRoughnessFloorMm);
        if (std::isfinite(value)) result.log_roughness[j] = value;
    }
    return result;
}

Traits typical(const Traits* traits, std::size_t count) {
    Traits result;
    std::vector<double> values(count);
    for (std::size_t bone = 0; bone < kRigidBoneCount; ++bone) {
        std::size_t known = 0;
        for (std::size_t i = 0; i < count; ++i)
            if (!std::isnan(traits[i].lengths[bone])) values[known++] = traits[i].lengths[bone];
        result.lengths[bone] = known < kKnownFrames ? kNan : lower_median(values.data(), known);
    }
    for (std::size_t j = 0; j < kJoints; ++j) {
        double sum = 0;
        std::size_t known = 0;
        for (std::size_t i = 0; i < count; ++i) {
            if (std::isnan(traits[i].log_roughness[j])) continue;
            sum += traits[i].log_roughness[j];
            ++known;
        }
        result.log_roughness[j] = known < kKnownFrames ? kNan : sum / double(known);
    }
    return result;
}

void set_lengths(const BoneLengths& given, Traits& traits) {
    for (std::size_t bone = 0; bone < kRigidBoneCount; ++bone)
        if (!std::isnan(given[bone])) traits.lengths[bone] = given[bone];
}

void sequence_features(const Around& around, const Traits& known, float* features) {
    const Frame& frame = *around[kReach];
    std::fill_n(features, kJoints * kSequenceFeatures, 0.0f);
    float* feature = features;  // of the first joint; the others' stand kSequenceFeatures apart

    // Blocks of neighbours, the past's and the future's: from here to their mean, and the share of them that is there.
    for (const int direction : {-1, 1})
        for (const auto& [near, far] : kBlocks) {
            Points sums = {};
            int counts[kJoints] = {};
            for (std::size_t step = near; step <= far; ++step) {
                const Frame* neighbour = around[direction < 0 ? kReach - step : kReach + step];
                if (!neighbour) continue;
                for (std::size_t j = 0; j < kJoints; ++j) {
                    if (!neighbour->pose.observed[j]) continue;
                    ++counts[j];
                    for (int i = 0; i < 3; ++i) sums[j][i] += neighbour->refined[j][i];
                }
            }
            for (std::size_t j = 0; j < kJoints; ++j) {
                if (!counts[j]) continue;
                double step[3];
                for (int i = 0; i < 3; ++i) step[i] = sums[j][i] / counts[j] - frame.refined[j][i];
                compress(step, feature + j * kSequenceFeatures);
                feature[j * kSequenceFeatures + 3] = float(counts[j]) / float(far - near + 1);
            }
            feature += 4;
        }

    // The first correction of a joint that was there.
    for (std::size_t j = 0; j < kJoints; ++j)
        for (int i = 0; i < 3; ++i)
            if (frame.pose.observed[j])
                feature[j * kSequenceFeatures + i] =
                    float((frame.refined[j][i] - frame.pose.joints[j][i]) / kStepUnitMm);
    feature += 3;

    // A joint's rigid bones: the step along the bone that gives it the person's length, and that length.
    for (std::size_t slot = 0; slot < kBonesPerJoint; ++slot) {
        for (std::size_t j = 0; j < kJoints; ++j) {
            const auto& [bone, other_end] = kBonesOfJoint.of[j][slot];
            if (bone < 0 || std::isnan(known.lengths[std::size_t(bone)])) continue;
            const double rest = known.lengths[std::size_t(bone)];
            const double length = std::max(distance(frame.refined[other_end], frame.refined[j]), 1e-3);
            double step[3];
            for (int i = 0; i < 3; ++i)
                step[i] = (frame.refined[other_end][i] - frame.refined[j][i]) / length * (length - rest);
            float* to = feature + j * kSequenceFeatures;
            compress(step, to);
            to[3] = float(rest / kScaleMm);
            to[4] = 1;
        }
        feature += 5;
    }

    for (std::size_t j = 0; j < kJoints; ++j) {
        if (std::isnan(known.log_roughness[j])) continue;
        feature[j * kSequenceFeatures] = float(known.log_roughness[j]);
        feature[j * kSequenceFeatures + 1] = 1;
    }
}

}  // namespace jointbert
