// The interface between the library and its kernels: packed weights and features in, outputs out.
//
// A kernel's source is compiled once per instruction set, with that set's compiler flags. This header is all that those
// translation units share with the rest, so it holds plain data only: an inline function here would be compiled with
// AVX-512, and the linker would be free to pick that copy for a machine without it.
#pragma once

#include <cstddef>

#include "contract.h"

namespace jointbert {

// A matrix [inputs, outputs] lies in panels of the kernel's `panel` columns, each [inputs, panel]: the order in which a
// kernel reads it. Members stand in the order of use, so that reading ahead runs into what comes next.
struct alignas(64) LayerWeights {
    float norm1_weight[kWidth];
    float norm1_bias[kWidth];
    float qkv_bias[3 * kWidth];  // the query's part carries the attention's scale, here and in qkv
    float qkv[kWidth * 3 * kWidth];
    float proj_bias[kWidth];
    float proj[kWidth * kWidth];
    float norm2_weight[kWidth];
    float norm2_bias[kWidth];
    float fc1_bias[kFfn];
    float fc1[kWidth * kFfn];
    float fc2_bias[kWidth];
    float fc2[kFfn * kWidth];
};

constexpr std::size_t kMaxPanel = 32;  // the head's four columns are filled up to a panel

struct alignas(64) OutputWeights {
    float norm_weight[kWidth];
    float norm_bias[kWidth];
    float head_bias[kMaxPanel];
    float head[kWidth * kMaxPanel];
    float gain;  // factor of a correction; in the first stage, of an observed joint's alone
};

struct alignas(64) EndWeights {
    float embed[kFeatures * kWidth];
    float seen[kJoints * kWidth];    // embed.bias + joint_embedding: what an observed joint's embedding starts from
    float masked[kJoints * kWidth];  // mask + joint_embedding: all there is of a missing joint
    OutputWeights output;
};

struct NetworkWeights {
    const EndWeights* ends;
    const LayerWeights* layers;
    std::size_t layer_count;
};

struct alignas(64) SequenceEndWeights {
    float embed1_bias[kFfn];
    float embed1[kSequenceFeatures * kFfn];
    float embed2_bias[kWidth];
    float embed2[kFfn * kWidth];
    OutputWeights output;
};

struct SequenceNetworkWeights {
    const SequenceEndWeights* ends;
    const LayerWeights* layers;
    std::size_t layer_count;
};

struct Kernel {
    const char* isa;
    std::size_t panel;  // columns of a weight panel

    // Runs the network on `poses` poses: features [poses, 14, 8] to outputs [poses, 14, 4]. The caller provides
    // `residual`, [poses, 14, 128] floats. Layers are outermost: a layer's 0.5 MB of weights comes from memory once for
    // all poses, so give it as many poses as the cache holds beside a layer. A pose's result does not depend on its
    // neighbours. Afterwards `residual` holds the hidden states: the last layer's output, before the final norm.
    void (*forward)(const NetworkWeights& weights, const float* features, std::size_t poses, float* residual,
                    float* outputs);

    // Runs the second stage: features [poses, 14, 63] and the first stage's hidden states, which lie in `residual`
    // and are overwritten, to outputs [poses, 14, 4].
    void (*forward_sequence)(const SequenceNetworkWeights& weights, const float* features, std::size_t poses,
                             float* residual, float* outputs);
};

namespace avx512 {
extern const Kernel kernel;
}
namespace avx2 {
extern const Kernel kernel;
}
namespace portable {
extern const Kernel kernel;
}

}  // namespace jointbert
