// The tensor contract and the model's sizes, as Python's layouts and RefinerConfig have them. jointbert._core exports
// every value, and a test compares them with Python's.
#pragma once

#include <cstddef>

namespace jointbert {

constexpr std::size_t kJoints = 14;  // the kernels are written for the 14 joints of NYU's protocol

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

// The second stage, which looks at a sequence: jointbert/models/sequence.py.
constexpr std::size_t kBlocks[][2] = {{1, 1}, {2, 2}, {3, 3}, {4, 6}, {7, 11}, {12, 20}};
constexpr std::size_t kBlockCount = sizeof kBlocks / sizeof *kBlocks;
constexpr std::size_t kReach = kBlocks[kBlockCount - 1][1];
constexpr std::size_t kRigidBones[][2] = {{0, 1},  {2, 3},   {4, 5},   {6, 7},  {8, 9},
                                          {9, 10}, {11, 12}, {11, 13}, {12, 13}};
constexpr std::size_t kRigidBoneCount = sizeof kRigidBones / sizeof *kRigidBones;
constexpr std::size_t kBonesPerJoint = 2;  // no joint has more rigid bones
constexpr std::size_t kSequenceFeatures = 2 * kBlockCount * 4 + 3 + kBonesPerJoint * 5 + 2;

constexpr double kStepUnitMm = 10.0;
constexpr double kCutMm = 60.0;
constexpr std::size_t kKnownFrames = 8;
constexpr std::size_t kHistoryFrames = 512;
constexpr double kRoughnessFloorMm = 0.1;

// Python's Status.
enum class Status : unsigned char { kRefined = 0, kTooFewJoints = 1, kNotAHand = 2 };

}  // namespace jointbert
