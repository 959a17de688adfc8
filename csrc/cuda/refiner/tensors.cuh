// How a pose lies in a warp: 16 rows, one a joint and two unused, spread over mma fragments.
#pragma once

#include "../common/mma.cuh"
#include "refiner.h"

namespace jointbert::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
constexpr int kTileRows = 16;
constexpr int kSteps = int(kWidth) / 16;   // mma steps of a product over the width
constexpr int kColumns = int(kWidth) / 8;  // tiles of 8 columns
constexpr int kHalves = 2;                 // of a layer: attention, feed-forward
constexpr int kHalfChunks = kChunks / kHalves;

static_assert(kJoints == 14, "the kernels' tiles, masks and indices are written for 14 joints");
static_assert(kJoints <= kTileRows && kJoints % 2 == 0, "a block of the split variants owns two rows");
static_assert(kWidth == 128 && kHeads == 8 && kHeadWidth == 16 && kFfn == 256, "as Chunk in refiner.h lays them out");
static_assert(kClusterBlocks == kHeads && kHalfChunks == kHeads, "the split variants give each block one chunk a half");

using NormalisedRows = FragmentA[kSteps];  // 16 x 128, after LayerNorm
using Residual = Accumulator[kColumns];    // 16 x 128

// An accumulator becomes half of a fragment of the next product: columns 8 i to 8 i + 7 of an A fragment, or,
// transposed, rows 8 i to 8 i + 7 of two B fragments.
template <class T>
__device__ inline void to_fragment(const Accumulator& accumulator, int i, FragmentA& fragment) {
    fragment.values[2 * i] = pack<T>(accumulator.values[0], accumulator.values[1]);
    fragment.values[2 * i + 1] = pack<T>(accumulator.values[2], accumulator.values[3]);
}
template <class T>
__device__ inline void to_fragment(const Accumulator& accumulator, int i, FragmentB (&fragments)[2]) {
    fragments[0].values[i] = pack<T>(accumulator.values[0], accumulator.values[1]);
    fragments[1].values[i] = pack<T>(accumulator.values[2], accumulator.values[3]);
}

}  // namespace
}  // namespace jointbert::cuda
