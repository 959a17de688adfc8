// From a user's pose to the refiner's features and back, one pose at a time and in double. The reference implementation
// is encode, decode and chirality of the PyTorch refiner (jointbert/models/refiner.py).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "contract.h"

namespace jointbert {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

// Poses in the user's order and unit: Python's Batch. T is float or double; a null pointer stands for None.
template <typename T>
struct Poses {
    const T* joints;  // [count, 14, 3]
    std::size_t count;
    std::array<std::size_t, kJoints> permutation;  // the user's index of each canonical joint
    double mm_per_unit;
    const std::uint8_t* mirror;   // [count]
    const std::uint8_t* visible;  // [count, 14]
    const float* confidence;      // [count, 14]; unknown outside [0, 1]
    const float* error_mm;        // [count, 14]
};

// Arrays for the results: Python's Result.
template <typename T>
struct RefinedPoses {
    T* joints;             // [count, 14, 3]
    float* sigma;          // [count, 14]
    std::uint8_t* status;  // [count]
    float* size_mm;        // [count]
    float* chirality;      // [count]
};

using Points = double[kJoints][3];

// A pose in millimetres, canonical order, right hand.
struct CanonicalPose {
    Points joints;
    bool observed[kJoints];
    double mean[3];  // of the observed joints
    double sign;     // -1 for a mirrored hand
};

// Fills `features` [14, 8] and `pose` from pose `index`. Of `refined` it fills the fields that are known before the
// network runs: status, size and chirality; for a pose that will not be refined, also joints (unchanged) and sigma
// (NaN).
template <typename T>
Status encode(const Poses<T>& poses, std::size_t index, CanonicalPose& pose, float* features,
              const RefinedPoses<T>& refined);

// The pose after the first stage's output [14, 4]: a missing joint starts from the mean of the observed ones.
void correct(const CanonicalPose& pose, const float* output, Points& refined);

// The same for joints of which none is missing: another stage's.
void correct(const Points& joints, const float* output, Points& refined);

// Fills joints and sigma of `refined` at `index` from canonical joints, the pose's sign, and log sigma in the output.
template <typename T>
void decode(const Poses<T>& poses, std::size_t index, const Points& joints, double sign, const float* output,
            const RefinedPoses<T>& refined);

}  // namespace jointbert
