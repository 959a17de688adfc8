#include "pose.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace jointbert {
namespace {

// Signed side of the hand in millimetres, negative for a right hand; the reference implementation is
// the PyTorch backend's chirality.
double chirality(const CanonicalPose& pose) {
    for (const int joint : {0, 1, 2, 3, 4, 5, 6, 7, 9, 11, 12, 13})
        if (!pose.observed[joint]) return kNan;
    const auto& joints = pose.joints;
    double across[3], up[3], toward[3];
    for (int i = 0; i < 3; ++i) {
        const double mids = (joints[1][i] + joints[3][i] + joints[5][i] + joints[7][i]) / 4;
        double curl = 0;
        for (int finger = 0; finger < 4; ++finger) curl += joints[2 * finger][i] - joints[2 * finger + 1][i];
        across[i] = joints[1][i] - joints[7][i];
        up[i] = mids - (joints[11][i] + joints[12][i]) / 2;
        toward[i] = curl / 4 + joints[9][i] - joints[13][i];
    }
    double dot = 0, square = 0;
    for (int i = 0; i < 3; ++i) {
        const int j = (i + 1) % 3, k = (i + 2) % 3;
        const double normal = across[j] * up[k] - across[k] * up[j];
        dot += normal * toward[i];
        square += normal * normal;
    }
    const double value = dot / std::sqrt(square);
    return std::isfinite(value) ? value : kNan;
}

}  // namespace

template <typename T>
Status encode(const Poses<T>& poses, std::size_t index, CanonicalPose& pose, float* features,
              const RefinedPoses<T>& refined) {
    const T* given = poses.joints + index * kJoints * 3;
    pose.sign = poses.mirror && poses.mirror[index] ? -1.0 : 1.0;
    std::size_t count = 0;
    double sum[3] = {};
    for (std::size_t j = 0; j < kJoints; ++j) {
        const std::size_t from = poses.permutation[j];
        double* joint = pose.joints[j];
        bool finite = true;
        for (int i = 0; i < 3; ++i) {
            joint[i] = double(given[from * 3 + i]) * poses.mm_per_unit;
            finite = finite && std::isfinite(joint[i]);
        }
        joint[0] *= pose.sign;
        pose.observed[j] = finite && !(poses.visible && !poses.visible[index * kJoints + from]);
        if (!pose.observed[j]) continue;
        ++count;
        for (int i = 0; i < 3; ++i) sum[i] += joint[i];
    }
    for (int i = 0; i < 3; ++i) pose.mean[i] = sum[i] / double(count);

    std::fill_n(features, kJoints * kFeatures, 0.0f);
    double spread = 0;
    for (std::size_t j = 0; j < kJoints; ++j) {
        if (!pose.observed[j]) continue;
        const std::size_t at = index * kJoints + poses.permutation[j];
        float* feature = features + j * kFeatures;
        for (int i = 0; i < 3; ++i) {
            const double centred = pose.joints[j][i] - pose.mean[i];
            spread += centred * centred;
            feature[i] = float(centred / kScaleMm);
        }
        feature[3] = 1;
        if (poses.confidence && poses.confidence[at] >= 0 && poses.confidence[at] <= 1) {
            feature[4] = poses.confidence[at];
            feature[5] = 1;
        }
        if (poses.error_mm && std::isfinite(poses.error_mm[at])) {
            const double error = std::clamp(double(poses.error_mm[at]), kErrorRangeMm[0], kErrorRangeMm[1]);
            feature[6] = float(std::log(error / kErrorUnitMm));
            feature[7] = 1;
        }
    }
    const double size = std::sqrt(spread / double(count));

    Status status = Status::kRefined;
    if (!(size >= kHandSizeMm[0] && size <= kHandSizeMm[1])) status = Status::kNotAHand;
    if (count < kMinJoints) status = Status::kTooFewJoints;
    refined.status[index] = std::uint8_t(status);
    refined.size_mm[index] = float(size);
    refined.chirality[index] = float(chirality(pose));
    if (status != Status::kRefined) {
        std::memcpy(refined.joints + index * kJoints * 3, given, kJoints * 3 * sizeof(T));  // bit for bit, NaN too
        std::fill_n(refined.sigma + index * kJoints, kJoints, float(kNan));
    }
    return status;
}

void correct(const CanonicalPose& pose, const float* output, Points& refined) {
    Points start;
    for (std::size_t j = 0; j < kJoints; ++j) std::copy_n(pose.observed[j] ? pose.joints[j] : pose.mean, 3, start[j]);
    correct(start, output, refined);
}

void correct(const Points& joints, const float* output, Points& refined) {
    for (std::size_t j = 0; j < kJoints; ++j)
        for (std::size_t i = 0; i < 3; ++i) refined[j][i] = joints[j][i] + kScaleMm * double(output[j * kOutputs + i]);
}

template <typename T>
void decode(const Poses<T>& poses, std::size_t index, const Points& joints, double sign, const float* output,
            const RefinedPoses<T>& refined) {
    for (std::size_t j = 0; j < kJoints; ++j, output += kOutputs) {
        const std::size_t at = index * kJoints + poses.permutation[j];
        for (int i = 0; i < 3; ++i)
            refined.joints[at * 3 + i] = T(joints[j][i] * (i == 0 ? sign : 1.0) / poses.mm_per_unit);
        const double log_sigma = std::clamp(double(output[3]), kLogSigmaRange[0], kLogSigmaRange[1]);
        refined.sigma[at] = float(kScaleMm * std::exp(log_sigma) / poses.mm_per_unit);
    }
}

template Status encode(const Poses<float>&, std::size_t, CanonicalPose&, float*, const RefinedPoses<float>&);
template Status encode(const Poses<double>&, std::size_t, CanonicalPose&, float*, const RefinedPoses<double>&);
template void decode(const Poses<float>&, std::size_t, const Points&, double, const float*, const RefinedPoses<float>&);
template void decode(const Poses<double>&, std::size_t, const Points&, double, const float*,
                     const RefinedPoses<double>&);

}  // namespace jointbert
