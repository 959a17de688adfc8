// The joint refinement module on a GPU, in one launch: the user's millimetres in, refined millimetres and status out.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "../../cpu/contract.h"

namespace jointbert::cuda {

// The type of the weights and of products' operands; sums, LayerNorm, softmax and the residual are float32.
enum class Precision : int { kFloat16 = 0, kBFloat16 = 1 };
// The type of the user's coordinates.
enum class CoordinateType : int { kFloat32 = 0, kFloat64 = 1, kFloat16 = 2, kBFloat16 = 3 };

// The weights on the device, as the Python side packs them (`pack`): the ends, then 16 chunks a layer. The first 8
// chunks are an attention head each: its query, key and value matrices and its part of the projection. The other 8 are
// 32 hidden columns each of the feed-forward network. LayerNorm's own weights, the attention's scale, and the biases of
// keys and values are folded into their neighbours.
struct Ends {
    float embed[kFeatures][kWidth];
    float observed[kJoints][kWidth], masked[kJoints][kWidth];  // joint embedding plus bias; plus [MASK]
    float head[kOutputs][kWidth], head_bias[kOutputs];
    float gain, padding[3];
};
constexpr int kChunkInner = 32, kChunkOuter = int(kWidth);
struct alignas(16) Chunk {
    // As fragments (mma.cuh), 16 bytes a lane.
    unsigned weights[16][8 * 32];
    float inner_bias[kChunkInner];   // of the queries, or of the hidden columns
    float output_bias[kChunkOuter];  // of the update of the residual; 0 but in the first chunk of each 8
};
constexpr int kChunks = 16;
static_assert(kJoints == 14, "the kernels, and their callers' arrays, are for 14 joints");
static_assert(sizeof(Chunk) == 16384 + 640 && sizeof(Ends) % 16 == 0);

struct Network {
    const Ends* ends;
    const Chunk* chunks;  // [layers, kChunks]
    int layers;
    Precision precision;
};

// Poses on the device, in the user's order and unit: Python's Batch. A null pointer stands for None.
struct DevicePoses {
    const void* joints;  // [count, 14, 3]
    CoordinateType type;
    int count;
    unsigned char order[kJoints];  // the user's index of each canonical joint
    double mm_per_unit;
    bool mirror_all;
    const std::uint8_t* mirror;   // [count]
    const std::uint8_t* visible;  // [count, 14]
    const float* confidence;      // [count, 14]; outside [0, 1]: unknown
    const float* error_mm;        // [count, 14]; not positive: unknown
    float error_all_mm;           // where error_mm is null; NaN: unknown
};
struct DeviceRefinedPoses {
    void* joints;          // [count, 14, 3], as the input
    float* sigma;          // [count, 14]
    std::uint8_t* status;  // [count]
    float* size_mm;        // [count], may be null
    float* chirality;      // [count], may be null
};

// All variants give the same bits.
enum class Variant : int {
    kCluster = 0,  // a cluster of 8 blocks takes a few poses; compute capability 9.0 and later
    kGrid = 1,     // 8 blocks of a cooperative grid do, through global memory
    kTiles = 2,    // a warp takes a pose or two; every block reads all weights
};

struct DeviceProperties {
    int processors, shared_bytes, cooperative;
    int capability;      // 10 * major + minor, of the device or of the kernels, whichever is less
    int clusters;        // of 8 blocks, resident at once; 0: none
    cudaMemPool_t pool;  // for the grid variant's memory; null: not supported
};
// Queries the current device, number `ordinal`, and loads its kernels. The caller destroys `device.pool`.
cudaError_t query_device(int ordinal, DeviceProperties& device);

// Whether the device runs a variant with so many poses.
bool supports(const DeviceProperties& device, Variant variant, int poses);
// The variant that is likely to be fastest; DeviceRefiner::measure times them.
Variant choose_variant(const DeviceProperties& device, int poses);

// Launches on a stream. All pointers are device pointers. Returns the launch's error code; cudaErrorInvalidValue for a
// variant that the device does not support, cudaErrorNotSupported for bfloat16 before compute capability 8.0.
cudaError_t refine(const DeviceProperties& device, const Network& network, const DevicePoses& poses,
                   const DeviceRefinedPoses& refined, Variant variant, cudaStream_t cuda_stream);

}  // namespace jointbert::cuda
