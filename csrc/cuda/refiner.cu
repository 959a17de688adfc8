// The joint refinement module (jointbert/models/refiner.py) in one launch. A pose is a tile of 16 rows, 14 joints and
// two rows that nobody reads, and a warp holds it in registers: the residual stream as sums of products, its LayerNorm
// as their left factor. Each of a layer's 16 chunks (refiner.h) turns the latter into what it adds to the former.
// Either one warp goes through all chunks (tiles), or 8 blocks take the chunk of their own number and meet after each
// half of a layer (split): there, block r owns rows 2r and 2r + 1, adds up what all have found for them, and tells all
// their LayerNorm. Both take sums in the same order, so the results are the same.
#include <algorithm>

#include "refiner.h"
#include "warp.cuh"

namespace jointbert::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
constexpr int kTileRows = 16;
constexpr int kSteps = int(kWidth) / 16;   // of a product over the width
constexpr int kColumns = int(kWidth) / 8;  // tiles of 8 columns
constexpr int kHalves = 2;                 // of a layer: attention, feed-forward
constexpr float kEpsilon = 1e-5f;          // torch.nn.LayerNorm's

using Rows = Left[kSteps];     // 16 x 128
using Stream = Sum[kColumns];  // 16 x 128

// --- sums in one order ---------------------------------------------------------------------------------------------

// Over a lane's 16 values, in pairs of pairs; `butterfly` is the same over 16 lanes.
template <class Value>
__device__ inline float tree(const Value& value) {
    float eight[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) eight[i] = value(2 * i) + value(2 * i + 1);
    return ((eight[0] + eight[1]) + (eight[2] + eight[3])) + ((eight[4] + eight[5]) + (eight[6] + eight[7]));
}
__device__ inline float butterfly(float value) {
#pragma unroll
    for (int step = 1; step < 16; step *= 2) value += __shfl_xor_sync(kFull, value, step);
    return value;
}
// Over the four lanes that share a row of a tile; `four` is the same over a lane's values.
__device__ inline float quad_sum(float value) {
    value += __shfl_xor_sync(kFull, value, 1);
    return value + __shfl_xor_sync(kFull, value, 2);
}
__device__ inline float four(const float (&values)[4]) { return (values[0] + values[1]) + (values[2] + values[3]); }
__device__ inline float quad_max(float value) {
    value = fmaxf(value, __shfl_xor_sync(kFull, value, 1));
    return fmaxf(value, __shfl_xor_sync(kFull, value, 2));
}

__device__ inline float two_squares(float a, float b) { return fmaf(b, b, a * a); }
__device__ inline float two_products(float a, float x, float b, float y) { return fmaf(b, y, a * x); }
__device__ inline float inverse_deviation(float squares) { return rsqrtf(fmaf(squares, 1.0f / kWidth, kEpsilon)); }

// --- a pose, as the user gave it -----------------------------------------------------------------------------------

struct PoseScratch {
    float features[kJoints][kFeatures];
    float outputs[kJoints][kOutputs];
    float centred[kJoints][3];
    double mean[3];
    int status;
};

__device__ inline double load_number(const void* from, Number number, std::size_t i) {
    switch (number) {
        case Number::kFloat64:
            return static_cast<const double*>(from)[i];
        case Number::kFloat16:
            return double(__half2float(static_cast<const __half*>(from)[i]));
        case Number::kBFloat16:
            return double(__bfloat162float(static_cast<const __nv_bfloat16*>(from)[i]));
        default:
            return double(static_cast<const float*>(from)[i]);
    }
}
__device__ inline void store_number(void* to, Number number, std::size_t i, double value) {
    switch (number) {
        case Number::kFloat64:
            static_cast<double*>(to)[i] = value;
            break;
        case Number::kFloat16:
            static_cast<__half*>(to)[i] = __float2half_rn(float(value));
            break;
        case Number::kBFloat16:
            static_cast<__nv_bfloat16*>(to)[i] = __float2bfloat16_rn(float(value));
            break;
        default:
            static_cast<float*>(to)[i] = float(value);
    }
}
// Bit for bit, NaN too.
__device__ inline void copy_number(void* to, const void* from, Number number, std::size_t i) {
    if (number == Number::kFloat64)
        static_cast<std::uint64_t*>(to)[i] = static_cast<const std::uint64_t*>(from)[i];
    else if (number == Number::kFloat32)
        static_cast<unsigned*>(to)[i] = static_cast<const unsigned*>(from)[i];
    else
        static_cast<unsigned short*>(to)[i] = static_cast<const unsigned short*>(from)[i];
}

__device__ inline double warp_sum(double value) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(kFull, value, step);
    return value;
}
__device__ inline bool finite(double value) { return fabs(value) <= 1.7976931348623157e308; }

// A joint in millimetres, right hand.
struct Joint {
    double place[3];
    bool observed;
    std::size_t at;  // its number among all joints of all poses
};
__device__ inline double side_of(const Poses& poses, int pose) {
    return poses.mirror_all || (poses.mirror && poses.mirror[pose]) ? -1.0 : 1.0;
}
__device__ inline Joint read_joint(const Poses& poses, int pose, int joint) {
    Joint out;
    out.at = std::size_t(pose) * kJoints + poses.order[joint];
    out.observed = !(poses.visible && !poses.visible[out.at]);
#pragma unroll
    for (int i = 0; i < 3; ++i) {
        out.place[i] = load_number(poses.joints, poses.number, 3 * out.at + i) * poses.mm_per_unit;
        out.observed = out.observed && finite(out.place[i]);
    }
    out.place[0] *= side_of(poses, pose);
    return out;
}

// The hand's side in millimetres; see chirality in jointbert/backends/torch.py.
__device__ inline float chirality(const float (&joints)[kJoints][3], unsigned observed) {
    constexpr unsigned needed = 0x3aff;  // all but the thumb's tip and base
    if ((observed & needed) != needed) return __uint_as_float(0x7fc00000u);
    float across[3], up[3], toward[3];
    for (int i = 0; i < 3; ++i) {
        const float mids = (joints[1][i] + joints[3][i] + joints[5][i] + joints[7][i]) / 4;
        float curl = 0;
        for (int finger = 0; finger < 4; ++finger) curl += joints[2 * finger][i] - joints[2 * finger + 1][i];
        across[i] = joints[1][i] - joints[7][i];
        up[i] = mids - (joints[11][i] + joints[12][i]) / 2;
        toward[i] = curl / 4 + joints[9][i] - joints[13][i];
    }
    float dot = 0, square = 0;
    for (int i = 0; i < 3; ++i) {
        const int j = (i + 1) % 3, k = (i + 2) % 3;
        const float normal = across[j] * up[k] - across[k] * up[j];
        dot += normal * toward[i];
        square += normal * normal;
    }
    return dot / sqrtf(square);  // NaN where the normal is 0
}

// Features and status into `scratch`, and of `refined` all that is known before the network has run, if this warp is
// the one that `writes`: csrc/cpu/pose.cpp's encode. The whole warp calls it; lane j has joint j.
__device__ inline void encode(const Poses& poses, int pose, PoseScratch& scratch, const Refined& refined, bool writes) {
    const int lane = int(threadIdx.x) % 32;
    const bool has_joint = lane < int(kJoints);
    Joint joint{};
    if (has_joint) joint = read_joint(poses, pose, lane);
    const bool observed = has_joint && joint.observed;
    const double count = warp_sum(observed ? 1.0 : 0.0);
    double spread = 0;
#pragma unroll
    for (int i = 0; i < 3; ++i) {
        const double mean = warp_sum(observed ? joint.place[i] : 0.0) / count;
        const double centred = observed ? joint.place[i] - mean : 0.0;
        spread += centred * centred;
        if (has_joint) scratch.centred[lane][i] = float(centred);
        if (has_joint) scratch.features[lane][i] = float(centred / kScaleMm);
        if (lane == 0) scratch.mean[i] = mean;
    }
    const double size = sqrt(warp_sum(spread) / count);
    unsigned bits = observed ? 1u << lane : 0;
#pragma unroll
    for (int step = 16; step > 0; step /= 2) bits |= __shfl_xor_sync(kFull, bits, step);
    if (has_joint) {
        const float confidence = poses.confidence ? poses.confidence[joint.at] : -1;
        const bool sure = observed && confidence >= 0 && confidence <= 1;
        const float error = poses.error_mm ? poses.error_mm[joint.at] : poses.error_all_mm;
        const bool sized = observed && error > 0;
        const double clamped = fmin(fmax(double(error), kErrorRangeMm[0]), kErrorRangeMm[1]);
        float* features = scratch.features[lane];
        features[3] = observed;
        features[4] = sure ? confidence : 0;
        features[5] = sure;
        features[6] = sized ? float(log(clamped / kErrorUnitMm)) : 0;
        features[7] = sized;
    }
    Status status = Status::kRefined;
    constexpr double smallest = kHandSizeMm[0], largest = kHandSizeMm[1];  // device code knows no arrays of the host
    if (!(size >= smallest && size <= largest)) status = Status::kNotAHand;
    if (count < double(kMinJoints)) status = Status::kTooFewJoints;
    if (lane == 0) scratch.status = int(status);
    __syncwarp();
    if (!writes) return;
    if (lane == 0) {
        refined.status[pose] = std::uint8_t(status);
        if (refined.size_mm) refined.size_mm[pose] = float(size);
        if (refined.chirality) refined.chirality[pose] = chirality(scratch.centred, bits);
    }
    if (status != Status::kRefined && has_joint) {
        for (int i = 0; i < 3; ++i) copy_number(refined.joints, poses.joints, poses.number, 3 * joint.at + i);
        refined.sigma[joint.at] = __uint_as_float(0x7fc00000u);
    }
}

// The refined joint from scratch.outputs; a missing one starts from the mean of the others.
__device__ inline void decode(const Poses& poses, int pose, int number, const PoseScratch& scratch,
                              const Refined& refined) {
    const Joint joint = read_joint(poses, pose, number);
    const float* output = scratch.outputs[number];
    const double side = side_of(poses, pose);
#pragma unroll
    for (int i = 0; i < 3; ++i) {
        const double start = joint.observed ? joint.place[i] : scratch.mean[i];
        const double place = (start + kScaleMm * double(output[i])) * (i == 0 ? side : 1.0);
        store_number(refined.joints, poses.number, 3 * joint.at + i, place / poses.mm_per_unit);
    }
    const double log_sigma = fmin(fmax(double(output[3]), kLogSigmaRange[0]), kLogSigmaRange[1]);
    refined.sigma[joint.at] = float(kScaleMm * exp(log_sigma) / poses.mm_per_unit);
}

// --- the network's ends --------------------------------------------------------------------------------------------

// A joint's value in two neighbouring columns of the residual stream.
__device__ inline float2 embed(const Ends& ends, const float (&features)[kFeatures], int joint, int column) {
    const bool observed = features[3] > 0.5f;
    const float* added = observed ? ends.observed[joint] : ends.masked[joint];
    float2 sum = __ldg(reinterpret_cast<const float2*>(added + column));
    if (!observed) return sum;
#pragma unroll
    for (int k = 0; k < int(kFeatures); ++k) {
        const float2 weight = __ldg(reinterpret_cast<const float2*>(ends.embed[k] + column));
        sum.x = fmaf(features[k], weight.x, sum.x);
        sum.y = fmaf(features[k], weight.y, sum.y);
    }
    return sum;
}

__device__ inline float output_of(const Ends& ends, const float (&features)[kFeatures], int i, float sum) {
    const float value = sum + __ldg(&ends.head_bias[i]);
    return i < 3 && features[3] > 0.5f ? value * __ldg(&ends.gain) : value;
}

// --- what a chunk does ---------------------------------------------------------------------------------------------

// x times the normal distribution's integral, with max error 1e-4: the integral is 1/2 + x P(x^2) for |x| < 4.1.
__device__ inline float gelu(float x) {
    const float y = fminf(fmaxf(x, -4.1f), 4.1f), t = y * y;
    float p = -8.290008124411941e-10f;
    p = fmaf(p, t, 7.472441865274959e-08f);
    p = fmaf(p, t, -2.9159771202103e-06f);
    p = fmaf(p, t, 6.525472417706624e-05f);
    p = fmaf(p, t, -0.0009386729216203094f);
    p = fmaf(p, t, 0.009251667186617851f);
    p = fmaf(p, t, -0.06544339656829834f);
    p = fmaf(p, t, 0.3984144330024719f);
    return x * fmaf(y, p, 0.5f);
}

__device__ inline uint4 lanes(const Chunk& chunk, int i) {  // the i-th of the chunk's 32
    return *reinterpret_cast<const uint4*>(&chunk.weights[i / 2][(i % 2) * 128 + threadIdx.x % 32 * 4]);
}

// Sums that begin with biases, of columns 8 n + 2 t and the next.
__device__ inline Sum biased(const float* bias, int n) {
    const float2 b = *reinterpret_cast<const float2*>(bias + 8 * n + threadIdx.x % 4 * 2);
    return Sum{{b.x, b.y, b.x, b.y}};
}

// The biases of what half a layer adds, ahead of it.
template <int kPoses>
__device__ inline void add_outer(const Chunk& chunk, Stream (&stream)[kPoses]) {
#pragma unroll
    for (int n = 0; n < kColumns; ++n) {
        const Sum bias = biased(chunk.outer, n);
#pragma unroll
        for (int p = 0; p < kPoses; ++p)
#pragma unroll
            for (int e = 0; e < 4; ++e) stream[p][n].values[e] += bias.values[e];
    }
}

// A sum as half a left factor, its columns 8 i and on, or, transposed, as two halves of right ones, their rows 8 i and
// on.
template <class T>
__device__ inline void put(const Sum& sum, int i, Left& left) {
    left.values[2 * i] = pack<T>(sum.values[0], sum.values[1]);
    left.values[2 * i + 1] = pack<T>(sum.values[2], sum.values[3]);
}
template <class T>
__device__ inline void put(const Sum& sum, int i, Right (&right)[2]) {
    right[0].values[i] = pack<T>(sum.values[0], sum.values[1]);
    right[1].values[i] = pack<T>(sum.values[2], sum.values[3]);
}

// Adds 8 columns of a product over the width, for each pose; `first` is the place of their weights in the chunk.
template <class T, int kPoses>
__device__ inline void multiply(const Rows (&rows)[kPoses], const Chunk& chunk, int first, Sum (&sums)[kPoses]) {
#pragma unroll
    for (int pair = 0; pair < kSteps / 2; ++pair) {
        const uint4 w = lanes(chunk, first + pair);
#pragma unroll
        for (int p = 0; p < kPoses; ++p) {
            multiply_add<T>(sums[p], rows[p][2 * pair], Right{{w.x, w.y}});
            multiply_add<T>(sums[p], rows[p][2 * pair + 1], Right{{w.z, w.w}});
        }
    }
}

// A row's scores to the weights of their softmax; two tiles of 8 columns, the last two of which are no joint's.
__device__ inline void softmax(Sum (&scores)[2]) {
    float (&a)[4] = scores[0].values, (&b)[4] = scores[1].values;
    if (threadIdx.x % 4 == 3) b[0] = b[1] = b[2] = b[3] = -INFINITY;
#pragma unroll
    for (int i = 0; i < 4; i += 2) {  // row g, row g + 8
        const float highest = quad_max(fmaxf(fmaxf(a[i], a[i + 1]), fmaxf(b[i], b[i + 1])));
        a[i] = power_of_2(a[i] - highest), a[i + 1] = power_of_2(a[i + 1] - highest);
        b[i] = power_of_2(b[i] - highest), b[i + 1] = power_of_2(b[i + 1] - highest);
        const float inverse = 1 / quad_sum((a[i] + a[i + 1]) + (b[i] + b[i + 1]));
        a[i] *= inverse, a[i + 1] *= inverse, b[i] *= inverse, b[i + 1] *= inverse;
    }
}

// Adds what a head finds: softmax(q k) v, projected.
template <class T, int kPoses>
__device__ inline void attend(const Rows (&rows)[kPoses], const Chunk& chunk, Stream (&stream)[kPoses]) {
    Left query[kPoses];  // later the softmax's weights, then what is found
    Right other[kPoses][2];
#pragma unroll
    for (int n = 0; n < 2; ++n) {
        Sum sums[kPoses];
#pragma unroll
        for (int p = 0; p < kPoses; ++p) sums[p] = biased(chunk.inner, n);
        multiply<T, kPoses>(rows, chunk, n * kSteps / 2, sums);
#pragma unroll
        for (int p = 0; p < kPoses; ++p) put<T>(sums[p], n, query[p]);
    }
#pragma unroll
    for (int n = 0; n < 2; ++n) {
        Sum sums[kPoses]{};
        multiply<T, kPoses>(rows, chunk, kSteps + n * kSteps / 2, sums);
#pragma unroll
        for (int p = 0; p < kPoses; ++p) put<T>(sums[p], n, other[p]);
    }
#pragma unroll
    for (int p = 0; p < kPoses; ++p) {
        Sum scores[2]{};
#pragma unroll
        for (int i = 0; i < 2; ++i) multiply_add<T>(scores[i], query[p], other[p][i]);
        softmax(scores);
#pragma unroll
        for (int i = 0; i < 2; ++i) put<T>(scores[i], i, query[p]);
    }
    // Values lie transposed, dimensions by joints: the weights are the left factor, the rows the right one.
    Sum values[kPoses][2]{};
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
        const uint4 w = lanes(chunk, 2 * kSteps + k);
#pragma unroll
        for (int p = 0; p < kPoses; ++p)
#pragma unroll
            for (int i = 0; i < 2; ++i)
                multiply_add<T>(values[p][i], Left{{w.x, w.y, w.z, w.w}},
                                Right{{rows[p][k].values[i], rows[p][k].values[i + 2]}});
    }
#pragma unroll
    for (int p = 0; p < kPoses; ++p) {
        Sum found[2]{};
#pragma unroll
        for (int i = 0; i < 2; ++i) put<T>(values[p][i], i, other[p]);
#pragma unroll
        for (int i = 0; i < 2; ++i) multiply_add<T>(found[i], query[p], other[p][i]);
#pragma unroll
        for (int i = 0; i < 2; ++i) put<T>(found[i], i, query[p]);
    }
#pragma unroll
    for (int n = 0; n < kColumns; n += 2) {
        const uint4 w = lanes(chunk, 3 * kSteps + n / 2);
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
            for (int p = 0; p < kPoses; ++p) {
                Sum sum{};
                multiply_add<T>(sum, query[p], i ? Right{{w.z, w.w}} : Right{{w.x, w.y}});
#pragma unroll
                for (int e = 0; e < 4; ++e) stream[p][n + i].values[e] += sum.values[e];
            }
    }
}

// Adds what 32 columns of the feed-forward network find.
template <class T, int kPoses>
__device__ inline void feed_forward(const Rows (&rows)[kPoses], const Chunk& chunk, Stream (&stream)[kPoses]) {
    Left hidden[kPoses][2];
#pragma unroll
    for (int n = 0; n < 4; ++n) {
        Sum sums[kPoses];
#pragma unroll
        for (int p = 0; p < kPoses; ++p) sums[p] = biased(chunk.inner, n);
        multiply<T, kPoses>(rows, chunk, n * kSteps / 2, sums);
#pragma unroll
        for (int p = 0; p < kPoses; ++p) {
#pragma unroll
            for (float& value : sums[p].values) value = gelu(value);
            put<T>(sums[p], n % 2, hidden[p][n / 2]);
        }
    }
#pragma unroll
    for (int n = 0; n < kColumns; ++n) {
        const uint4 w = lanes(chunk, 2 * kSteps + n);
#pragma unroll
        for (int p = 0; p < kPoses; ++p) {
            Sum sum{};
            multiply_add<T>(sum, hidden[p][0], Right{{w.x, w.y}});
            multiply_add<T>(sum, hidden[p][1], Right{{w.z, w.w}});
#pragma unroll
            for (int e = 0; e < 4; ++e) stream[p][n].values[e] += sum.values[e];
        }
    }
}

// Chunks on their way from global memory, kStages at a time; all threads of the block carry.
template <int kStages>
struct Ring {
    Chunk* stages;
    __device__ void fetch(int stage, const Chunk* chunk) const {
        if (chunk)
#pragma unroll 1  // registers are scarcer than instructions
            for (int i = thread_again(); i < int(sizeof(Chunk) / 16); i += kThreads)
                copy_later(reinterpret_cast<uint4*>(stages + stage) + i, reinterpret_cast<const uint4*>(chunk) + i);
        __syncwarp();     // lanes may have parted: not all carry equally much
        commit_copies();  // empty groups too, so that their number tells what is there
    }
};

// --- tiles: a warp has its poses to itself -------------------------------------------------------------------------

constexpr int kTileStages = 3;

// What LayerNorm without weights makes of rows g (half 0) or g + 8 of a stream.
struct Moments {
    float mean, inverse;
    __device__ Moments(const Stream& stream, int half) {
        const auto at = [&](int n, int e) { return stream[n].values[2 * half + e]; };
        const float m = quad_sum(tree([&](int n) { return at(n, 0) + at(n, 1); })) * (1.0f / kWidth);
        mean = m;
        inverse = inverse_deviation(quad_sum(tree([&](int n) { return two_squares(at(n, 0) - m, at(n, 1) - m); })));
    }
    __device__ float normal(float value) const { return (value - mean) * inverse; }
};

// LayerNorm without weights, as a left factor.
template <class T>
__device__ inline void normalise(const Stream& stream, Rows& rows) {
    const Moments moments[2] = {{stream, 0}, {stream, 1}};
    const auto normal = [&](int n, int i) { return moments[i / 2].normal(stream[n].values[i]); };
#pragma unroll
    for (int k = 0; k < kSteps; ++k)
#pragma unroll
        for (int part = 0; part < 4; ++part) {
            const int n = 2 * k + part / 2, i = part % 2 * 2;
            rows[k].values[part] = pack<T>(normal(n, i), normal(n, i + 1));
        }
}

// The joints' rows of the residual stream.
__device__ inline void enter(const Ends& ends, const PoseScratch& scratch, Stream& stream) {
    const int g = int(threadIdx.x) % 32 / 4, t = int(threadIdx.x) % 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int row = g + 8 * half;
        if (row >= int(kJoints)) continue;
#pragma unroll
        for (int n = 0; n < kColumns; ++n) {
            const float2 value = embed(ends, scratch.features[row], row, 8 * n + 2 * t);
            stream[n].values[2 * half] = value.x;
            stream[n].values[2 * half + 1] = value.y;
        }
    }
}

__device__ inline void read_out(const Ends& ends, const Stream& stream, PoseScratch& scratch) {
    const int g = int(threadIdx.x) % 32 / 4, t = int(threadIdx.x) % 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int row = g + 8 * half;
        const Moments moments(stream, half);
#pragma unroll
        for (int o = 0; o < int(kOutputs); ++o) {
            const float sum = quad_sum(tree([&](int n) {
                const float2 w = __ldg(reinterpret_cast<const float2*>(ends.head[o] + 8 * n + 2 * t));
                const float (&values)[4] = stream[n].values;
                return two_products(moments.normal(values[2 * half]), w.x, moments.normal(values[2 * half + 1]), w.y);
            }));
            if (t == 0 && row < int(kJoints)) scratch.outputs[row][o] = output_of(ends, scratch.features[row], o, sum);
        }
    }
}

template <int kPoses>
struct TileMemory {
    Chunk stages[kTileStages];
    PoseScratch scratch[kWarps][kPoses];
};

template <class T, int kPoses>
__global__ void __launch_bounds__(kThreads, 1)
    tiles_kernel(const __grid_constant__ Poses poses, const __grid_constant__ Network network,
                 const __grid_constant__ Refined refined) {
    if (kPoses > 1 && !kHasWideProducts) return;  // poses_of_warp never asks for it
    auto& memory = *reinterpret_cast<TileMemory<kPoses>*>(shared_memory());
    const int warp = int(threadIdx.x) / 32, first = (int(blockIdx.x) * kWarps + warp) * kPoses;
    PoseScratch* scratch = memory.scratch[warp];
    const Ring<kTileStages> ring{memory.stages};
    const int chunks = network.layers * kChunks;
    const auto fetch = [&](int i) { ring.fetch(i % kTileStages, i < chunks ? network.chunks + i : nullptr); };
    for (int i = 0; i < kTileStages - 1; ++i) fetch(i);

    const int count = min(kPoses, poses.count - first);
#pragma unroll 1
    for (int p = 0; p < count; ++p) encode(poses, first + p, scratch[p], refined, true);
    Stream stream[kPoses]{};  // rows that are no joint's, and poses that are none, are 0
#pragma unroll
    for (int p = 0; p < kPoses; ++p)
        if (p < count) enter(*network.ends, scratch[p], stream[p]);
    Rows rows[kPoses];
    const auto wait = [&](int i) -> const Chunk& {
        wait_copies<kTileStages - 2>();
        __syncthreads();  // the chunk is there for all, and all are done with the one before it, whose place is free
        return memory.stages[i % kTileStages];
    };
    const auto begin_half = [&](int first_chunk) {
#pragma unroll
        for (int p = 0; p < kPoses; ++p) normalise<T>(stream[p], rows[p]);
        add_outer<kPoses>(wait(first_chunk), stream);
    };
#pragma unroll 1
    for (int at = 0; at < chunks;) {
        begin_half(at);
#pragma unroll 1
        do {
            const Chunk& chunk = wait(at);
            fetch(at + kTileStages - 1);
            attend<T, kPoses>(rows, chunk, stream);
        } while (++at % (kChunks / kHalves));
        begin_half(at);
#pragma unroll 1
        do {
            const Chunk& chunk = wait(at);
            fetch(at + kTileStages - 1);
            feed_forward<T, kPoses>(rows, chunk, stream);
        } while (++at % (kChunks / kHalves));
    }
    // Found anew: kept through the layers they would take the last registers.
    const int thread = thread_again(), joint = thread % 32;
    const int pose = (int(blockIdx.x) * kWarps + thread / 32) * kPoses;
    PoseScratch* mine = memory.scratch[thread / 32];
#pragma unroll
    for (int p = 0; p < kPoses; ++p)
        if (pose + p < poses.count) read_out(*network.ends, stream[p], mine[p]);
    __syncwarp();
#pragma unroll 1
    for (int p = 0; p < min(kPoses, poses.count - pose); ++p)
        if (mine[p].status == int(Status::kRefined) && joint < int(kJoints))
            decode(poses, pose + p, joint, mine[p], refined);
}

// --- split: 8 blocks have a few poses together ---------------------------------------------------------------------

constexpr int kSplitPoses = kWarps;          // at most, a warp each
constexpr int kRowStride = int(kWidth) + 8;  // 16-bit values: rows start in different banks

// What the blocks tell each other of a pose: to the owner of two rows what each block adds to them; to all the rows'
// LayerNorm.
struct alignas(16) Exchange {
    float added[kClusterBlocks][2][kWidth];
    unsigned short rows[kTileRows][kRowStride];
};

struct ClusterTeam {
    Exchange* here;
    __device__ int copies() const { return int(kClusterBlocks); }
    __device__ Exchange* of(int rank, int pose) const { return in_block(here, unsigned(rank)) + pose; }
    __device__ const Exchange& mine(int, int pose) const { return here[pose]; }
    __device__ const Exchange& rows(int pose) const { return here[pose]; }
    template <class V>
    __device__ static void store(V* to, V value) {
        *to = value;
    }
    template <class V>
    __device__ static V load(const V* from) {
        return *from;
    }
    __device__ void barrier() const { cluster_barrier(); }
};

struct GridTeam {
    Exchange* all;  // [8, poses]
    unsigned* arrived;
    int poses;
    __device__ int copies() const { return 1; }  // one copy of the rows is enough, block 0's
    __device__ Exchange* of(int rank, int pose) const { return all + rank * poses + pose; }
    __device__ const Exchange& mine(int rank, int pose) const { return all[rank * poses + pose]; }
    __device__ const Exchange& rows(int pose) const { return all[pose]; }
    template <class V>
    __device__ static void store(V* to, V value) {
        __stcg(to, value);
    }
    template <class V>
    __device__ static V load(const V* from) {
        return __ldcg(from);
    }
    __device__ void barrier() const { grid_barrier(arrived, kClusterBlocks); }
};

// Half a warp has a row: a lane 8 columns of it.
struct OwnRow {
    float values[8];
    __device__ void add(const float4& a, const float4& b) {
        values[0] += a.x, values[1] += a.y, values[2] += a.z, values[3] += a.w;
        values[4] += b.x, values[5] += b.y, values[6] += b.z, values[7] += b.w;
    }
    __device__ float mean() const {
        float pairs[4];
#pragma unroll
        for (int t = 0; t < 4; ++t) pairs[t] = butterfly(values[2 * t] + values[2 * t + 1]);
        return four(pairs) * (1.0f / kWidth);
    }
    __device__ OwnRow normal() const {
        const float m = mean();
        float pairs[4];
#pragma unroll
        for (int t = 0; t < 4; ++t) pairs[t] = butterfly(two_squares(values[2 * t] - m, values[2 * t + 1] - m));
        const float inverse = inverse_deviation(four(pairs));
        OwnRow out;
#pragma unroll
        for (int i = 0; i < 8; ++i) out.values[i] = (values[i] - m) * inverse;
        return out;
    }
};

template <int kStages>
struct alignas(128) SplitMemory {
    Chunk stages[kStages];
    PoseScratch scratch[kSplitPoses];
};

template <class T, int kStages, class Team>
__device__ inline void split(const Poses& poses, const Network& network, const Refined& refined, const Team& team,
                             int together) {
    auto& memory = *reinterpret_cast<SplitMemory<kStages>*>(shared_memory());
    const int rank = int(blockIdx.x % kClusterBlocks), warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
    const int g = lane / 4, t = lane % 4;
    const int pose = int(blockIdx.x / kClusterBlocks) * together + warp;
    const bool has_pose = warp < together && pose < poses.count;
    const int row = 2 * rank + lane / 16, column = lane % 16 * 8;
    const bool owns = has_pose && rank < int(kJoints) / 2;
    PoseScratch& scratch = memory.scratch[warp];
    const Ring<kStages> ring{memory.stages};
    const int halves = network.layers * kHalves;
    const auto chunk_at = [&](int i) { return i < halves ? network.chunks + i * (kChunks / kHalves) + rank : nullptr; };
    for (int i = 0; i < kStages; ++i) ring.fetch(i, chunk_at(i));

    if (has_pose) {
        encode(poses, pose, scratch, refined, rank == 0);
        if (rank < team.copies()) {  // the two rows that are no joint's
            auto& exchange = *team.of(rank, warp);
            for (int i = lane; i < 2 * kRowStride; i += 32)
                Team::store(&exchange.rows[kJoints][0] + i, (unsigned short)(0));
        }
    }
    // A pose that is not refined takes part in nothing but the barriers.
    const bool works = has_pose && scratch.status == int(Status::kRefined);
    OwnRow own{};
    const auto tell_normal = [&] {
        const OwnRow normal = own.normal();
        uint4 packed;
        packed.x = pack<T>(normal.values[0], normal.values[1]);
        packed.y = pack<T>(normal.values[2], normal.values[3]);
        packed.z = pack<T>(normal.values[4], normal.values[5]);
        packed.w = pack<T>(normal.values[6], normal.values[7]);
        for (int to = 0; to < team.copies(); ++to)
            Team::store(reinterpret_cast<uint4*>(&team.of(to, warp)->rows[row][column]), packed);
    };
    // Blocks of a cluster may not write to one that has not begun.
    team.barrier();
    if (works && owns) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float2 value = embed(*network.ends, scratch.features[row], row, column + 2 * i);
            own.values[2 * i] = value.x;
            own.values[2 * i + 1] = value.y;
        }
        tell_normal();
    }
    float4 bias[2]{};
    for (int half = 0; half < halves; ++half) {
        wait_copies<kStages - 1>();
        team.barrier();  // rows and chunk are there
        if (owns) {      // asked for now, there when it is needed
            const float* outer = network.chunks[half * (kChunks / kHalves)].outer + column;
            bias[0] = __ldg(reinterpret_cast<const float4*>(outer));
            bias[1] = __ldg(reinterpret_cast<const float4*>(outer) + 1);
        }
        if (works) {
            Rows rows[1];
            Stream stream[1]{};
            const auto& told = team.rows(warp).rows;
#pragma unroll
            for (int k = 0; k < kSteps; ++k)
#pragma unroll
                for (int part = 0; part < 4; ++part)
                    rows[0][k].values[part] = Team::load(
                        reinterpret_cast<const unsigned*>(&told[g + part % 2 * 8][16 * k + part / 2 * 8 + 2 * t]));
            const Chunk& chunk = memory.stages[half % kStages];
            if (half % 2 == 0)
                attend<T, 1>(rows, chunk, stream);
            else
                feed_forward<T, 1>(rows, chunk, stream);
#pragma unroll
            for (int part = 0; part < 2; ++part) {
                const int of = g + 8 * part;
                if (of >= int(kJoints)) continue;
                float* to = team.of(of / 2, warp)->added[rank][of % 2];
#pragma unroll
                for (int n = 0; n < kColumns; ++n)
                    Team::store(reinterpret_cast<float2*>(to + 8 * n + 2 * t),
                                float2{stream[0][n].values[2 * part], stream[0][n].values[2 * part + 1]});
            }
        }
        team.barrier();  // all that is added is there, and all are done with rows and chunk
        ring.fetch(half % kStages, chunk_at(half + kStages));
        if (works && owns) {
            const Exchange& exchange = team.mine(rank, warp);
            own.add(bias[0], bias[1]);
#pragma unroll
            for (int from = 0; from < int(kClusterBlocks); ++from) {
                const auto* added = reinterpret_cast<const float4*>(&exchange.added[from][lane / 16][column]);
                own.add(Team::load(added), Team::load(added + 1));
            }
            if (half + 1 < halves) tell_normal();
        }
    }
    if (!works || !owns) return;
    const OwnRow normal = own.normal();
#pragma unroll
    for (int o = 0; o < int(kOutputs); ++o) {
        float pairs[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float2 w = __ldg(reinterpret_cast<const float2*>(network.ends->head[o] + column + 2 * i));
            pairs[i] = butterfly(two_products(normal.values[2 * i], w.x, normal.values[2 * i + 1], w.y));
        }
        if (lane % 16 == 0) scratch.outputs[row][o] = output_of(*network.ends, scratch.features[row], o, four(pairs));
    }
    if (lane % 16 == 0) decode(poses, pose, row, scratch, refined);  // which wrote the outputs
}

template <class T, int kStages>
__global__ void __launch_bounds__(kThreads, 1)
    cluster_kernel(const __grid_constant__ Poses poses, const __grid_constant__ Network network,
                   const __grid_constant__ Refined refined, int together) {
    const ClusterTeam team{reinterpret_cast<Exchange*>(shared_memory() + sizeof(SplitMemory<kStages>))};
    if (kHasClusters) split<T, kStages>(poses, network, refined, team, together);
}

// `memory`: for each team 128 bytes that count and start as 0, then an Exchange for each block and pose.
template <class T, int kStages>
__global__ void __launch_bounds__(kThreads, 1)
    grid_kernel(const __grid_constant__ Poses poses, const __grid_constant__ Network network,
                const __grid_constant__ Refined refined, int together, char* memory, std::size_t team_bytes) {
    char* of_team = memory + blockIdx.x / kClusterBlocks * team_bytes;
    const GridTeam team{reinterpret_cast<Exchange*>(of_team + 128), reinterpret_cast<unsigned*>(of_team), together};
    split<T, kStages>(poses, network, refined, team, together);
}

// --- launches ------------------------------------------------------------------------------------------------------

constexpr int kSplitStages = 4;       // two layers ahead
constexpr int kSmallSplitStages = 3;  // where shared memory is 64 KiB

int ceil_divide(int a, int b) { return (a + b - 1) / b; }

// Poses that a team takes, so that as few teams as there is room for take them all.
int poses_of_team(int poses, int teams, int most) { return std::min(most, std::max(1, ceil_divide(poses, teams))); }

int most_of_cluster(const Device& device) {
    const int room = (device.shared_bytes - int(sizeof(SplitMemory<kSplitStages>))) / int(sizeof(Exchange));
    return std::min(room, kSplitPoses);
}
int grid_teams(const Device& device) { return device.processors / int(kClusterBlocks); }

// Two poses a warp share what is read of the weights, where there are enough for all processors and registers enough
// for compute capability 8.0's products.
int poses_of_warp(const Device& device, int poses) {
    return device.capability >= 80 && poses > device.processors * kWarps ? 2 : 1;
}

template <class T>
cudaError_t launch_tiles(const Device& device, const Network& network, const Poses& poses, const Refined& refined,
                         cudaStream_t stream) {
    const int each = poses_of_warp(device, poses.count);
    const int tiles = ceil_divide(poses.count, kWarps * each);
    const Shape shape{dim3(unsigned(tiles)), dim3(kThreads), each == 2 ? sizeof(TileMemory<2>) : sizeof(TileMemory<1>)};
    return launch(each == 2 ? tiles_kernel<T, 2> : tiles_kernel<T, 1>, shape, stream, poses, network, refined);
}

template <class T>
cudaError_t launch_cluster(const Device& device, const Network& network, const Poses& poses, const Refined& refined,
                           cudaStream_t stream) {
    const int together = poses_of_team(poses.count, device.clusters, most_of_cluster(device));
    const Shape shape{dim3(unsigned(ceil_divide(poses.count, together)) * kClusterBlocks), dim3(kThreads),
                      sizeof(SplitMemory<kSplitStages>) + std::size_t(together) * sizeof(Exchange), Together::kCluster};
    return launch(cluster_kernel<T, kSplitStages>, shape, stream, poses, network, refined, together);
}

// What the blocks exchange lives in memory of this launch alone, so that launches on several streams don't meet.
template <class T>
cudaError_t launch_grid(const Device& device, const Network& network, const Poses& poses, const Refined& refined,
                        cudaStream_t stream) {
    const int together = poses_of_team(poses.count, grid_teams(device), kSplitPoses);
    const int teams = ceil_divide(poses.count, together);
    const bool small = device.shared_bytes < int(sizeof(SplitMemory<kSplitStages>));
    const Shape shape{dim3(unsigned(teams) * kClusterBlocks), dim3(kThreads),
                      small ? sizeof(SplitMemory<kSmallSplitStages>) : sizeof(SplitMemory<kSplitStages>),
                      Together::kGrid};
    const std::size_t team_bytes = 128 + kClusterBlocks * std::size_t(together) * sizeof(Exchange);
    void* memory = nullptr;
    cudaError_t code = take_memory(&memory, device.pool, team_bytes, std::size_t(teams), 128, stream);
    if (code == cudaSuccess)
        code = launch(small ? grid_kernel<T, kSmallSplitStages> : grid_kernel<T, kSplitStages>, shape, stream, poses,
                      network, refined, together, static_cast<char*>(memory), team_bytes);
    const cudaError_t freed = give_memory(memory, stream);
    return code == cudaSuccess ? freed : code;
}

template <class T>
cudaError_t launch_variant(const Device& device, const Network& network, const Poses& poses, const Refined& refined,
                           Variant variant, cudaStream_t stream) {
    switch (variant) {
        case Variant::kCluster:
            return launch_cluster<T>(device, network, poses, refined, stream);
        case Variant::kGrid:
            return launch_grid<T>(device, network, poses, refined, stream);
        case Variant::kTiles:
            return launch_tiles<T>(device, network, poses, refined, stream);
    }
    return cudaErrorInvalidValue;
}

}  // namespace

bool has(const Device& device, Variant variant, int poses) {
    switch (variant) {
        case Variant::kCluster:
            return device.clusters > 0 && most_of_cluster(device) > 0;
        case Variant::kGrid:
            return device.cooperative && device.pool && poses <= grid_teams(device) * kSplitPoses;
        case Variant::kTiles:
            return true;
    }
    return false;
}

// Without a measurement: by the count of poses that the split takes at once, whose time grows little with them.
Variant choose(const Device& device, int poses) {
    if (has(device, Variant::kCluster, poses))
        return poses <= device.clusters * most_of_cluster(device) ? Variant::kCluster : Variant::kTiles;
    return has(device, Variant::kGrid, poses) ? Variant::kGrid : Variant::kTiles;
}

cudaError_t refine(const Device& device, const Network& network, const Poses& poses, const Refined& refined,
                   Variant variant, cudaStream_t stream) {
    if (!poses.count) return cudaSuccess;
    if (!has(device, variant, poses.count)) return cudaErrorInvalidValue;
    if (network.precision == Precision::kBFloat16)
        return device.capability < 80 ? cudaErrorNotSupported
                                      : launch_variant<__nv_bfloat16>(device, network, poses, refined, variant, stream);
    return launch_variant<__half>(device, network, poses, refined, variant, stream);
}

namespace {

std::size_t most_cluster_bytes(const Device& device) {
    return sizeof(SplitMemory<kSplitStages>) + std::size_t(most_of_cluster(device)) * sizeof(Exchange);
}

// Loads all kernels of a type that the device runs, with as much shared memory as they may ever ask for. Once, since
// that is a setting of the kernel and not of a launch.
template <class T>
cudaError_t make_ready(const Device& device) {
    cudaError_t code = allow_shared(tiles_kernel<T, 1>, sizeof(TileMemory<1>));
    const auto also = [&](auto kernel, std::size_t bytes) {
        if (code == cudaSuccess) code = allow_shared(kernel, bytes);
    };
    const bool small = device.shared_bytes < int(sizeof(SplitMemory<kSplitStages>));
    if (device.capability >= 80) also(tiles_kernel<T, 2>, sizeof(TileMemory<2>));
    if (small) also(grid_kernel<T, kSmallSplitStages>, sizeof(SplitMemory<kSmallSplitStages>));
    if (!small) also(grid_kernel<T, kSplitStages>, sizeof(SplitMemory<kSplitStages>));
    if (device.capability >= 90 && most_of_cluster(device) > 0)
        also(cluster_kernel<T, kSplitStages>, most_cluster_bytes(device));
    return code;
}

// Clusters of the most poses that can be there at once.
cudaError_t count_clusters(const Device& device, int& clusters) {
#if defined(__CUDACC__)
    cudaLaunchAttribute attribute{};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = kClusterBlocks;
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(kClusterBlocks);
    config.blockDim = dim3(kThreads);
    config.dynamicSmemBytes = most_cluster_bytes(device);
    config.attrs = &attribute;
    config.numAttrs = 1;
    return cudaOccupancyMaxActiveClusters(&clusters, cluster_kernel<__half, kSplitStages>, &config);
#else
    clusters = device.processors / int(kClusterBlocks);
    return cudaSuccess;
#endif
}

// Memory that stays with the pool: a grid's is asked for at every launch.
cudaError_t make_pool(int number, cudaMemPool_t& pool) {
    cudaMemPoolProps properties{};
    properties.allocType = cudaMemAllocationTypePinned;
    properties.location.type = cudaMemLocationTypeDevice;
    properties.location.id = number;
    cudaError_t code = cudaMemPoolCreate(&pool, &properties);
    std::uint64_t all = ~std::uint64_t(0);
    int no = 0;  // a stream must not wait for another one's memory
    if (code == cudaSuccess) code = cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &all);
    if (code == cudaSuccess) code = cudaMemPoolSetAttribute(pool, cudaMemPoolReuseAllowInternalDependencies, &no);
    return code;
}

}  // namespace

cudaError_t ask_device(int number, Device& device) {
    device = Device{};
    int major = 0, minor = 0, pools = 0;
    const std::pair<int*, cudaDeviceAttr> asked[] = {
        {&device.processors, cudaDevAttrMultiProcessorCount},
        {&device.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin},
        {&device.cooperative, cudaDevAttrCooperativeLaunch},
        {&pools, cudaDevAttrMemoryPoolsSupported},
        {&major, cudaDevAttrComputeCapabilityMajor},
        {&minor, cudaDevAttrComputeCapabilityMinor},
    };
    for (const auto& [to, attribute] : asked) {
        const cudaError_t code = cudaDeviceGetAttribute(to, attribute, number);
        if (code != cudaSuccess) return code;
    }
    // A kernel of an older architecture, translated for this one, lacks what it was compiled without.
    int compiled = device.capability = 10 * major + minor;
    cudaError_t code = compiled_for(tiles_kernel<__half, 1>, compiled);
    device.capability = std::min(device.capability, compiled);
    if (code == cudaSuccess) code = make_ready<__half>(device);
    if (code == cudaSuccess && device.capability >= 80) code = make_ready<__nv_bfloat16>(device);
    if (code != cudaSuccess) return code;
    // What the variants for few poses need may be refused (parts of a GPU, virtual ones): tiles do without.
    if (device.capability >= 90 && most_of_cluster(device) > 0 &&
        count_clusters(device, device.clusters) != cudaSuccess)
        device.clusters = 0;
    if (pools && make_pool(number, device.pool) != cudaSuccess) {
        if (device.pool) cudaMemPoolDestroy(device.pool);
        device.pool = nullptr;
    }
    cudaGetLastError();  // not the next call's error
    return cudaSuccess;
}

}  // namespace jointbert::cuda
