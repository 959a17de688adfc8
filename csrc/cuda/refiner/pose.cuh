// A pose's way in and out: coordinates in the user's type, unit, order and side to features, and outputs to refined
// coordinates.
#pragma once

#include "../common/intrinsics.cuh"
#include "reductions.cuh"
#include "refiner.h"

namespace jointbert::cuda {
namespace {

// One pose in shared memory, between input and output.
struct PoseScratch {
    float features[kJoints][kFeatures];
    float outputs[kJoints][kOutputs];
    float centred[kJoints][3];
    double mean[3];
    int status;
};

__device__ inline double load_coordinate(const void* from, CoordinateType type, std::size_t i) {
    switch (type) {
        case CoordinateType::kFloat64:
            return static_cast<const double*>(from)[i];
        case CoordinateType::kFloat16:
            return double(__half2float(static_cast<const __half*>(from)[i]));
        case CoordinateType::kBFloat16:
            return double(__bfloat162float(static_cast<const __nv_bfloat16*>(from)[i]));
        default:
            return double(static_cast<const float*>(from)[i]);
    }
}
__device__ inline void store_coordinate(void* to, CoordinateType type, std::size_t i, double value) {
    switch (type) {
        case CoordinateType::kFloat64:
            static_cast<double*>(to)[i] = value;
            break;
        case CoordinateType::kFloat16:
            static_cast<__half*>(to)[i] = __float2half_rn(float(value));
            break;
        case CoordinateType::kBFloat16:
            static_cast<__nv_bfloat16*>(to)[i] = __float2bfloat16_rn(float(value));
            break;
        default:
            static_cast<float*>(to)[i] = float(value);
    }
}
// Keeps every bit, those of a NaN too.
__device__ inline void copy_coordinate(void* to, const void* from, CoordinateType type, std::size_t i) {
    if (type == CoordinateType::kFloat64)
        static_cast<std::uint64_t*>(to)[i] = static_cast<const std::uint64_t*>(from)[i];
    else if (type == CoordinateType::kFloat32)
        static_cast<unsigned*>(to)[i] = static_cast<const unsigned*>(from)[i];
    else
        static_cast<unsigned short*>(to)[i] = static_cast<const unsigned short*>(from)[i];
}

__device__ inline bool is_finite(double value) { return fabs(value) <= 1.7976931348623157e308; }

// A joint in millimetres, as of a right hand.
struct Joint {
    double position[3];
    bool observed;
    std::size_t index;  // among all joints of all poses, in the user's order
};
__device__ inline double side_sign(const DevicePoses& poses, int pose) {
    return poses.mirror_all || (poses.mirror && poses.mirror[pose]) ? -1.0 : 1.0;
}
__device__ inline Joint read_joint(const DevicePoses& poses, int pose, int joint) {
    Joint out;
    out.index = std::size_t(pose) * kJoints + poses.order[joint];
    out.observed = !(poses.visible && !poses.visible[out.index]);
#pragma unroll
    for (int i = 0; i < 3; ++i) {
        out.position[i] = load_coordinate(poses.joints, poses.type, 3 * out.index + i) * poses.mm_per_unit;
        out.observed = out.observed && is_finite(out.position[i]);
    }
    out.position[0] *= side_sign(poses, pose);
    return out;
}

// The hand's side in millimetres: the reference implementation is chirality in csrc/cpu/pose.cpp.
__device__ inline float chirality(const float (&joints)[kJoints][3], unsigned observed) {
    constexpr unsigned needed = 0x3aff;  // all but the thumb's tip and base
    if ((observed & needed) != needed) return quiet_nan();
    float across[3], up[3], toward[3];
    for (int i = 0; i < 3; ++i) {
        const float mids = (joints[1][i] + joints[3][i] + joints[5][i] + joints[7][i]) / 4;
        float curl = 0;
        for (int finger = 0; finger < 4; ++finger) curl += joints[2 * finger][i] - joints[2 * finger + 1][i];
        across[i] = joints[1][i] - joints[7][i];
        up[i] = mids - (joints[11][i] + joints[12][i]) / 2;
        toward[i] = curl / 4 + joints[9][i] - joints[13][i];
    }
    float dot = 0, square = 0;
    for (int i = 0; i < 3; ++i) {
        const int j = (i + 1) % 3, k = (i + 2) % 3;
        const float normal = across[j] * up[k] - across[k] * up[j];
        dot += normal * toward[i];
        square += normal * normal;
    }
    return dot / sqrtf(square);  // NaN where the normal is 0
}

// Fills features and status in `scratch`. If `writes`, also fills the fields of `refined` that are known before the
// network runs: status, size and chirality, and joints and sigma of a pose that is not refined. All lanes of a warp
// call it, lane j for joint j. csrc/cpu/pose.cpp's encode is the reference implementation.
__device__ inline void encode(const DevicePoses& poses, int pose, PoseScratch& scratch,
                              const DeviceRefinedPoses& refined, bool writes) {
    const int lane = int(threadIdx.x) % 32;
    const bool has_joint = lane < int(kJoints);
    Joint joint{};
    if (has_joint) joint = read_joint(poses, pose, lane);
    const bool observed = has_joint && joint.observed;
    const double count = warp_sum(observed ? 1.0 : 0.0);
    double spread = 0;
#pragma unroll
    for (int i = 0; i < 3; ++i) {
        const double mean = warp_sum(observed ? joint.position[i] : 0.0) / count;
        const double centred = observed ? joint.position[i] - mean : 0.0;
        spread += centred * centred;
        if (has_joint) scratch.centred[lane][i] = float(centred);
        if (has_joint) scratch.features[lane][i] = float(centred / kScaleMm);
        if (lane == 0) scratch.mean[i] = mean;
    }
    const double size = sqrt(warp_sum(spread) / count);
    unsigned observed_mask = observed ? 1u << lane : 0;
#pragma unroll
    for (int step = 16; step > 0; step /= 2) observed_mask |= __shfl_xor_sync(kFullMask, observed_mask, step);
    if (has_joint) {
        const float confidence = poses.confidence ? poses.confidence[joint.index] : -1;
        const bool has_confidence = observed && confidence >= 0 && confidence <= 1;
        const float error = poses.error_mm ? poses.error_mm[joint.index] : poses.error_all_mm;
        const bool has_error = observed && error > 0;
        const double clamped = fmin(fmax(double(error), kErrorRangeMm[0]), kErrorRangeMm[1]);
        float* features = scratch.features[lane];
        features[3] = observed;
        features[4] = has_confidence ? confidence : 0;
        features[5] = has_confidence;
        features[6] = has_error ? float(log(clamped / kErrorUnitMm)) : 0;
        features[7] = has_error;
    }
    Status status = Status::kRefined;
    constexpr double smallest = kHandSizeMm[0], largest = kHandSizeMm[1];  // device code can not index a host array
    if (!(size >= smallest && size <= largest)) status = Status::kNotAHand;
    if (count < double(kMinJoints)) status = Status::kTooFewJoints;
    if (lane == 0) scratch.status = int(status);
    __syncwarp();
    if (!writes) return;
    if (lane == 0) {
        refined.status[pose] = std::uint8_t(status);
        if (refined.size_mm) refined.size_mm[pose] = float(size);
        if (refined.chirality) refined.chirality[pose] = chirality(scratch.centred, observed_mask);
    }
    if (status != Status::kRefined && has_joint) {
        for (int i = 0; i < 3; ++i) copy_coordinate(refined.joints, poses.joints, poses.type, 3 * joint.index + i);
        refined.sigma[joint.index] = quiet_nan();
    }
}

// Writes a refined joint from scratch.outputs; a missing one starts from the mean of the observed joints.
__device__ inline void decode(const DevicePoses& poses, int pose, int joint_index, const PoseScratch& scratch,
                              const DeviceRefinedPoses& refined) {
    const Joint joint = read_joint(poses, pose, joint_index);
    const float* output = scratch.outputs[joint_index];
    const double side = side_sign(poses, pose);
#pragma unroll
    for (int i = 0; i < 3; ++i) {
        const double start = joint.observed ? joint.position[i] : scratch.mean[i];
        const double position = (start + kScaleMm * double(output[i])) * (i == 0 ? side : 1.0);
        store_coordinate(refined.joints, poses.type, 3 * joint.index + i, position / poses.mm_per_unit);
    }
    const double log_sigma = fmin(fmax(double(output[3]), kLogSigmaRange[0]), kLogSigmaRange[1]);
    refined.sigma[joint.index] = float(kScaleMm * exp(log_sigma) / poses.mm_per_unit);
}

}  // namespace
}  // namespace jointbert::cuda
