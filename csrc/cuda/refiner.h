// The joint refinement module on a GPU, in one launch: the user's millimetres in, refined millimetres and status out.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "../cpu/contract.h"

namespace jointbert::cuda {

// The type of the weights and of the products' factors; sums, LayerNorm, softmax and the residual stream are float32.
enum class Precision : int { kFloat16 = 0, kBFloat16 = 1 };
// The type of the user's coordinates.
enum class Number : int { kFloat32 = 0, kFloat64 = 1, kFloat16 = 2, kBFloat16 = 3 };

// The weights on the device, as jointbert/backends/cuda.py packs them: the ends, then 16 chunks a layer. A head's chunk
// holds what makes its queries, keys and values, and its part of the projection; there follow 8 chunks of 32 columns of
// the feed-forward network each. LayerNorm's own weights, the attention's scale, and the biases of keys and values are
// folded into their neighbours.
struct Ends {
    float embed[kFeatures][kWidth];
    float observed[kJoints][kWidth], masked[kJoints][kWidth];  // what is added: joint embedding with bias, with [MASK]
    float head[kOutputs][kWidth], head_bias[kOutputs];
    float gain, padding[3];
};
struct alignas(16) Chunk {
    // In the order in which the lanes of a warp want them (warp.cuh): 16 bytes a lane.
    unsigned weights[16][8 * 32];
    float inner[32];      // biases of the queries, or of the feed-forward's columns
    float outer[kWidth];  // biases of what is added to the residual stream; 0 but in a layer's first chunk of a kind
};
constexpr int kChunks = 16;
static_assert(sizeof(Chunk) == 16384 + 640 && sizeof(Ends) % 16 == 0);

struct Network {
    const Ends* ends;
    const Chunk* chunks;  // [layers, kChunks]
    int layers;
    Precision precision;
};

// Poses as the user gave them, on the device: jointbert.backends.base.Batch. A null pointer stands for None.
struct Poses {
    const void* joints;  // [count, 14, 3]
    Number number;
    int count;
    unsigned char order[kJoints];  // where each canonical joint stands in the user's order
    double mm_per_unit;
    bool mirror_all;
    const std::uint8_t* mirror;   // [count]
    const std::uint8_t* visible;  // [count, 14]
    const float* confidence;      // [count, 14]; what is not in [0, 1] is unknown
    const float* error_mm;        // [count, 14]; what is not positive is unknown
    float error_all_mm;           // where error_mm is null; NaN: unknown
};
struct Refined {
    void* joints;          // [count, 14, 3], as the input
    float* sigma;          // [count, 14]
    std::uint8_t* status;  // [count]
    float* size_mm;        // [count], may be null
    float* chirality;      // [count], may be null
};

// Three ways to the same result, bit for bit.
enum class Variant : int {
    kCluster = 0,  // 8 blocks a few poses, meeting in distributed shared memory; compute capability 9.0 and later
    kGrid = 1,     // the same through global memory, for GPUs without clusters
    kTiles = 2,    // a warp a pose or two, weights streaming through every block
};

// What a device can do, asked once.
struct Device {
    int processors, shared_bytes, cooperative;
    int capability;      // 10 * major + minor, of the device or of the kernels, whichever is less
    int clusters;        // of 8 blocks, at once; 0: none
    cudaMemPool_t pool;  // where a cooperative grid's memory comes from; null: there are no pools
};
// Asks the current device, and makes its kernels ready. `device.pool` is the caller's to destroy.
cudaError_t ask_device(int number, Device& device);

// Whether the device runs a variant for so many poses, and the one that is likely to be fastest; what is fastest is
// measured (device_refiner.h).
bool has(const Device& device, Variant variant, int poses);
Variant choose(const Device& device, int poses);

// All pointers are the device's. Returns what the launch said; cudaErrorInvalidValue
// for a variant that the device does not have, cudaErrorNotSupported for bfloat16 before compute capability 8.0.
cudaError_t refine(const Device& device, const Network& network, const Poses& poses, const Refined& refined,
                   Variant variant, cudaStream_t stream);

}  // namespace jointbert::cuda
