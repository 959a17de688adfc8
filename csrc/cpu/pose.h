// From a user's pose to the refiner's features and back: the C++ twin of encode, decode and chirality in
// jointbert/models/refiner.py and jointbert/backends/torch.py, one pose at a time and in double.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "contract.h"

namespace jointbert {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

// Poses as the user gave them: jointbert.backends.base.Batch. T is float or double; a null pointer stands for None.
template <typename T>
struct Poses {
    const T* joints;  // [count, 14, 3]
    std::size_t count;
    std::array<std::size_t, kJoints> permutation;  // where each canonical joint stands in the user's order
    double mm_per_unit;
    const std::uint8_t* mirror;   // [count]
    const std::uint8_t* visible;  // [count, 14]
    const float* confidence;      // [count, 14]
    const float* error_mm;        // [count, 14]
};

// Where the results go: jointbert.backends.base.Result.
template <typename T>
struct Refined {
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

// Fills `features` [14, 8] and `pose` from pose `index`, and of `refined` all that is known before the network has run:
// status, size and chirality, and for a pose that is not to be refined its joints as they came, with sigma NaN.
template <typename T>
Status encode(const Poses<T>& poses, std::size_t index, CanonicalPose& pose, float* features,
              const Refined<T>& refined);

// The pose after the first stage's output [14, 4]: a missing joint starts from the mean of the observed ones.
void correct(const CanonicalPose& pose, const float* output, Points& refined);

// The same of joints that are all there: those of another stage.
void correct(const Points& joints, const float* output, Points& refined);

// Fills joints and sigma of `refined` at `index` from canonical joints, that pose's sign and the log sigma of the
// output.
template <typename T>
void decode(const Poses<T>& poses, std::size_t index, const Points& joints, double sign, const float* output,
            const Refined<T>& refined);

}  // namespace jointbert
