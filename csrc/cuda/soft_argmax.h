// Heatmaps to (u, v), confidence and status, in one launch: jointbert/models/heatmap.py is the reference.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace jointbert::cuda {

constexpr int kMaxSide = 128;
constexpr int kMapsOfPose = 14;

enum class Element : int { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2 };
enum class Peak : int { kArgmax = 0, kSoft = 1 };

struct Heatmaps {
    const void* values;
    Element element;
    int poses, height, width;
    // Of each pose: 14 maps, one after the other, or pixels of 14 values (channels last).
    bool channels_last;
};

struct SoftArgmaxOptions {
    Peak mode;
    float beta;
    int window;  // in pixels, soft mode; negative: none
};

struct Keypoints {
    float* uv;             // [poses, 14, 2]: heatmap pixels, NaN where the map is not valid
    float* confidence;     // [poses, 14]
    std::uint8_t* status;  // [poses, 14]: 0 found, 1 not valid
};

// All pointers are the device's. Returns what the launch said; sizes are the caller's to check.
cudaError_t soft_argmax(const Heatmaps& maps, const SoftArgmaxOptions& options, const Keypoints& out,
                        cudaStream_t stream);

// The linear layer of the 3D regression: each joint's depth offset from all of a pose's heatmaps.
struct DepthHead {
    const void* weight;  // [14, 14 * height * width], the heatmaps' element
    const float* bias;   // [14]
    float* depth;        // [poses, 14], the result: sums in float32, in an order that does not change
};

// Both in one launch, the maps being read once; not for channels last. `memory`: soft_argmax_depth_memory(poses) bytes
// of the device, aligned to 8, whatever they hold, for this launch alone.
cudaError_t soft_argmax_depth(const Heatmaps& maps, const SoftArgmaxOptions& options, const DepthHead& head,
                              const Keypoints& out, void* memory, cudaStream_t stream);
std::size_t soft_argmax_depth_memory(int poses);

struct KeypointGradients {
    const float* uv;          // [poses, 14, 2], of the loss
    const float* confidence;  // [poses, 14]
};

// The gradient of the maps, in their element and layout, from that of the keypoints (NaN and status 1 as in the
// forward: such maps get zero). `found` is the forward's result.
cudaError_t soft_argmax_backward(const Heatmaps& maps, const SoftArgmaxOptions& options, const Keypoints& found,
                                 const KeypointGradients& gradients, void* maps_gradient, cudaStream_t stream);

}  // namespace jointbert::cuda
