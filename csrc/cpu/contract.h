// The tensor contract and the sizes: the C++ copy of jointbert/backends/layout.py and of RefinerConfig's defaults.
// The module exports every value, and a test holds them against the Python side.
#pragma once

#include <cstddef>

namespace jointbert {

constexpr std::size_t kJoints = 14;

// Sizes the kernels are compiled for; only the number of layers is read from the weights.
constexpr std::size_t kHeads = 8;
constexpr std::size_t kWidth = 128;
constexpr std::size_t kHeadWidth = kWidth / kHeads;
constexpr std::size_t kFfn = 256;
constexpr std::size_t kFeatures = 8;
constexpr std::size_t kOutputs = 4;

constexpr double kScaleMm = 100.0;
constexpr double kErrorUnitMm = 10.0;
constexpr double kErrorRangeMm[2] = {0.1, 200.0};
constexpr double kLogSigmaRange[2] = {-9.0, 3.0};
constexpr std::size_t kMinJoints = 4;
constexpr double kHandSizeMm[2] = {8.0, 150.0};

// jointbert.backends.base.Status
enum class Status : unsigned char { kRefined = 0, kTooFewJoints = 1, kNotAHand = 2 };

}  // namespace jointbert
