// Heatmaps to (u, v), confidence and status, in one launch: jointbert/models/heatmap.py is the reference.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "../../cpu/contract.h"

namespace jointbert::cuda {

constexpr int kMaxSide = 128;  // of a map, in pixels
constexpr int kMaps = 14;      // of a pose, one a joint; the kernels' tiles are written for 14
static_assert(kMaps == int(kJoints));

enum class ElementType : int { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2 };
enum class PeakMode : int { kArgmax = 0, kSoft = 1 };

struct Heatmaps {
    const void* values;
    ElementType element;
    int poses, height, width;
    // The maps of a pose are interleaved: [poses, height, width, 14], not [poses, 14, height, width].
    bool channels_last;
};

struct SoftArgmaxOptions {
    PeakMode mode;
    float beta;
    int window;  // soft mode: the farthest pixel from the peak that counts, along either axis; negative: all count
};

struct KeypointPointers {
    float* uv;             // [poses, 14, 2]: heatmap pixels, NaN where status is 1
    float* confidence;     // [poses, 14]
    std::uint8_t* status;  // [poses, 14]: 0 found, 1 not valid (a value is NaN or +inf, or all are -inf)
};

// All pointers are device pointers. Returns the launch's error code. The caller checks sizes.
cudaError_t soft_argmax(const Heatmaps& maps, const SoftArgmaxOptions& options, const KeypointPointers& out,
                        cudaStream_t cuda_stream);

// The linear layer of the 3D regression: each joint's depth offset from all of a pose's heatmaps.
struct DepthHead {
    const void* weight;  // [14, 14 * height * width], the heatmaps' type
    const float* bias;   // [14]
    float* depth;        // [poses, 14], the result: sums in float32, in an order that does not change
};

// soft_argmax and the linear layer in one launch that reads the maps once; not for channels last. `memory`:
// soft_argmax_depth_memory(poses) device bytes with any contents, aligned to 8, for this launch alone.
cudaError_t soft_argmax_depth(const Heatmaps& maps, const SoftArgmaxOptions& options, const DepthHead& head,
                              const KeypointPointers& out, void* memory, cudaStream_t cuda_stream);
std::size_t soft_argmax_depth_memory(int poses);

struct KeypointGradients {
    const float* uv;          // [poses, 14, 2], of the loss
    const float* confidence;  // [poses, 14]
};

// The gradient of the maps, in their type and layout, from that of the keypoints. `found` is the forward's result; maps
// with status 1 get zeros.
cudaError_t soft_argmax_backward(const Heatmaps& maps, const SoftArgmaxOptions& options, const KeypointPointers& found,
                                 const KeypointGradients& gradients, void* maps_gradient, cudaStream_t cuda_stream);

}  // namespace jointbert::cuda
