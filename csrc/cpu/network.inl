// The network, for one instruction set: included by network_<isa>.cpp, which defines
//   JOINTBERT_ISA    the namespace and name of the kernel
//   JOINTBERT_LANES  floats in a vector register: 4, 8 or 16
//   JOINTBERT_ROWS   joints whose sums a matrix product keeps in registers
//
// Vectors are GCC's and Clang's: their operators become the instructions of whatever set the file is compiled for,
// which keeps one source for all. Nothing here may have external linkage but the kernel itself, and nothing of std::
// that holds code may be used (see kernel.h).

#include <cstddef>
#include <cstdint>

#include "kernel.h"

#define JOINTBERT_INLINE inline __attribute__((always_inline))

namespace jointbert {
namespace JOINTBERT_ISA {
namespace {

constexpr int kLanes = JOINTBERT_LANES;
constexpr int kVectors = 2;  // in a row of a weight panel
constexpr int kPanel = kLanes * kVectors;
constexpr int kRows = JOINTBERT_ROWS;
constexpr int J = kJoints;
constexpr int D = kWidth;
constexpr int kKeys = 16;  // joints, filled up to whole vectors

// Floats from a weight in use to the one that is fetched meanwhile. The weights are larger than the L2 cache
// when poses come one by one, and the hardware's own reading ahead stops at every page; 2 to 8 KB ahead measured alike,
// 16 KB and none slower.
constexpr int kReadAhead = 1024;
constexpr int kCacheLine = 16;  // in floats

static_assert(D % kPanel == 0 && kPanel <= int(kMaxPanel) && kKeys % kLanes == 0 && kHeadWidth % kLanes == 0);

typedef float Vec __attribute__((vector_size(4 * kLanes)));
typedef std::uint32_t Bits __attribute__((vector_size(4 * kLanes)));
typedef float Unaligned __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));

JOINTBERT_INLINE Vec load(const float* from) { return *reinterpret_cast<const Unaligned*>(from); }
JOINTBERT_INLINE void store(float* to, Vec v) { *reinterpret_cast<Unaligned*>(to) = v; }
JOINTBERT_INLINE Vec splat(float x) { return x - Vec{}; }
JOINTBERT_INLINE Vec max(Vec a, Vec b) { return a > b ? a : b; }  // b where one of them is NaN
JOINTBERT_INLINE Vec min(Vec a, Vec b) { return a < b ? a : b; }

template <int... I>
struct Indices {};
template <int N, int... I>
struct MakeIndices : MakeIndices<N - 1, N - 1, I...> {};
template <int... I>
struct MakeIndices<0, I...> {
    using type = Indices<I...>;
};
using Lanes = typename MakeIndices<kLanes>::type;

// Lane i is lane pick(i) of a, or lane pick(i) - kLanes of b.
template <class Pick, int... I>
JOINTBERT_INLINE Vec shuffle(Vec a, Vec b, Pick, Indices<I...>) {
#if defined(__clang__)
    return __builtin_shufflevector(a, b, Pick::lane(I)...);
#else
    return __builtin_shuffle(a, b, Bits{Pick::lane(I)...});
#endif
}

template <int BY>
struct Rotate {
    static constexpr int lane(int i) { return (i + BY) % kLanes; }
};

template <int BY = kLanes / 2>
JOINTBERT_INLINE float sum(Vec v) {
    v += shuffle(v, v, Rotate<BY>{}, Lanes{});
    if constexpr (BY > 1)
        return sum<BY / 2>(v);
    else
        return v[0];
}

// One step of a transposition: of a pair of rows BY apart, the blocks off the diagonal change places.
template <int BY>
struct UpperRow {
    static constexpr int lane(int i) { return i & BY ? kLanes + i - BY : i; }
};
template <int BY>
struct LowerRow {
    static constexpr int lane(int i) { return i & BY ? kLanes + i : i + BY; }
};

template <int BY = 1>
JOINTBERT_INLINE void transpose(Vec (&rows)[kLanes]) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
        if (i & BY) continue;
        const Vec upper = rows[i], lower = rows[i + BY];
        rows[i] = shuffle(upper, lower, UpperRow<BY>{}, Lanes{});
        rows[i + BY] = shuffle(upper, lower, LowerRow<BY>{}, Lanes{});
    }
    if constexpr (2 * BY < kLanes) transpose<2 * BY>(rows);
}

// 2^x for x <= 127; below 2^-126 it stays there. The polynomial is the minimax fit on [-0.5, 0.5], of relative error
// 1.9e-9.
JOINTBERT_INLINE Vec exp2(Vec x) {
    x = max(x, splat(-126.0f));
    const Vec shifted = x + 12582912.0f;  // 1.5 * 2^23: the sum's last bit counts ones, so it is rounded to an integer
    const Vec r = x - (shifted - 12582912.0f);
    Vec p = splat(1.53457898e-4f);
    p = p * r + 1.33999577e-3f;
    p = p * r + 9.61848924e-3f;
    p = p * r + 5.55032871e-2f;
    p = p * r + 2.40226469e-1f;
    p = p * r + 6.93147206e-1f;
    p = p * r + 1.0f;
    // The integer stands in the low bits of `shifted`; moved to the exponent's place, the rest of them falls off.
    return reinterpret_cast<Vec>(reinterpret_cast<Bits>(p) + (reinterpret_cast<Bits>(shifted) << 23));
}

// x Phi(x), Phi being the normal distribution (erf's form of GELU), as max(x, 0) - |x| Phi(-|x|): without the
// cancellation of 1 + erf(x) for negative x. log2 Phi(-y) is smooth; the polynomial is the minimax fit on [0, 6],
// weighted so that Phi's error stays below 7.6e-9. Beyond 6 the second term is held at 6e-9.
JOINTBERT_INLINE Vec gelu(Vec x) {
    const Vec y = min(reinterpret_cast<Vec>(reinterpret_cast<Bits>(x) & 0x7fffffff), splat(6.0f));
    Vec p = splat(-2.77205195e-6f);
    p = p * y + 3.86207810e-5f;
    p = p * y - 1.82547574e-4f;
    p = p * y - 1.45869730e-4f;
    p = p * y + 7.07547128e-3f;
    p = p * y - 5.25050275e-2f;
    p = p * y - 4.59204912e-1f;
    p = p * y - 1.15110576f;
    p = p * y - 1.0f;
    return max(Vec{}, x) - y * exp2(p);
}

// sums[r] += sum over k of a(r, k) * b(k, :), where a(r, k) = a[r * A_ROW + k * A_STEP] and b's rows stand B_ROW apart.
// This is the inner loop of every product. With AVX-512, 14 rows of 2 vectors are 28 sums in the 32 registers, and a
// step's 28 multiply-adds need 16 loads, so that loading keeps up with two multipliers.
template <int ROWS, int VECTORS, int A_ROW, int A_STEP, int B_ROW, int K, bool READ_AHEAD>
JOINTBERT_INLINE void accumulate(Vec (&sums)[ROWS][VECTORS], const float* a, const float* b) {
#pragma GCC unroll 4
    for (int k = 0; k < K; ++k) {
        Vec column[VECTORS];
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; ++v) column[v] = load(b + v * kLanes);
        if constexpr (READ_AHEAD)
            for (int i = 0; i < B_ROW; i += kCacheLine) __builtin_prefetch(b + i + kReadAhead);
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; ++r) {
            const Vec x = splat(a[r * A_ROW + k * A_STEP]);
#pragma GCC unroll 8
            for (int v = 0; v < VECTORS; ++v) sums[r][v] += x * column[v];
        }
        b += B_ROW;
    }
}

// Hands the sums of all 14 rows to `finish(row, vector, sum)`, a tile of rows after the other.
template <int FIRST, int VECTORS, int A_ROW, int A_STEP, int B_ROW, int K, bool READ_AHEAD, class Finish>
JOINTBERT_INLINE void tiles(const float* a, const float* b, const Finish& finish) {
    constexpr int ROWS = J - FIRST < kRows ? J - FIRST : kRows;
    Vec sums[ROWS][VECTORS] = {};
    accumulate<ROWS, VECTORS, A_ROW, A_STEP, B_ROW, K, READ_AHEAD && FIRST == 0>(sums, a + FIRST * A_ROW, b);
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; ++v) finish(FIRST + r, v, sums[r][v]);
    if constexpr (FIRST + ROWS < J) tiles<FIRST + ROWS, VECTORS, A_ROW, A_STEP, B_ROW, K, READ_AHEAD>(a, b, finish);
}

// finish(row, column, sum) for the product of a [14, K] with a packed matrix [K, N]; `column` is that of the sum's
// first lane.
template <int K, int N, class Finish>
JOINTBERT_INLINE void multiply(const float* a, const float* matrix, const Finish& finish) {
    for (int first = 0; first < N; first += kPanel)
        tiles<0, kVectors, K, 1, kPanel, K, true>(
            a, matrix + first * K, [&](int row, int v, Vec sum) { finish(row, first + v * kLanes, sum); });
}

// LayerNorm over the last axis of [14, 128]; eps as torch's default.
JOINTBERT_INLINE void normalise(const float* x, const float* weight, const float* bias, float* out) {
    for (int row = 0; row < J; ++row, x += D, out += D) {
        Vec v[D / kLanes], total = {}, squares = {};
#pragma GCC unroll 32
        for (int i = 0; i < D / kLanes; ++i) total += v[i] = load(x + i * kLanes);
        const float mean = sum(total) * (1.0f / D);
#pragma GCC unroll 32
        for (int i = 0; i < D / kLanes; ++i) {
            v[i] -= mean;
            squares += v[i] * v[i];
        }
        const float scale = 1.0f / __builtin_sqrtf(sum(squares) * (1.0f / D) + 1e-5f);
#pragma GCC unroll 32
        for (int i = 0; i < D / kLanes; ++i)
            store(out + i * kLanes, v[i] * scale * load(weight + i * kLanes) + load(bias + i * kLanes));
    }
}

// Self-attention of one head. Queries stand in the lanes and keys in the rows, so that softmax needs no sum across
// lanes and the two lanes of no joint can hold anything. `qkv` is [14, 3 * 128] from the head's first column, `out`
// [14, 128] likewise.
JOINTBERT_INLINE void attend(const float* qkv, float* out) {
    alignas(64) float queries[kHeadWidth * kKeys], scores[J * kKeys];
    for (int column = 0; column < int(kHeadWidth); column += kLanes)
        for (int row = 0; row < kKeys; row += kLanes) {
            Vec block[kLanes];
#pragma GCC unroll 16
            for (int i = 0; i < kLanes; ++i) block[i] = row + i < J ? load(qkv + (row + i) * 3 * D + column) : Vec{};
            transpose(block);
#pragma GCC unroll 16
            for (int i = 0; i < kLanes; ++i) store(queries + (column + i) * kKeys + row, block[i]);
        }
    // Both products are 16 columns wide: one vector with AVX-512, and as many as a tile takes elsewhere.
    constexpr int COLUMNS = kLanes < 16 ? kPanel : 16;
    for (int lane = 0; lane < kKeys; lane += COLUMNS)
        tiles<0, COLUMNS / kLanes, 3 * D, 1, kKeys, kHeadWidth, false>(
            qkv + D, queries + lane,
            [&](int key, int v, Vec sum) { store(scores + key * kKeys + lane + v * kLanes, sum); });

    for (int lane = 0; lane < kKeys; lane += kLanes) {
        Vec p[J], highest, total = {};
#pragma GCC unroll 16
        for (int key = 0; key < J; ++key) p[key] = load(scores + key * kKeys + lane);
        highest = p[0];
#pragma GCC unroll 16
        for (int key = 1; key < J; ++key) highest = max(highest, p[key]);
#pragma GCC unroll 16
        for (int key = 0; key < J; ++key) total += p[key] = exp2((p[key] - highest) * 1.44269504f);
        const Vec scale = 1.0f / total;
#pragma GCC unroll 16
        for (int key = 0; key < J; ++key) store(scores + key * kKeys + lane, p[key] * scale);
    }

    for (int column = 0; column < int(kHeadWidth); column += COLUMNS)
        tiles<0, COLUMNS / kLanes, 1, kKeys, 3 * D, J, false>(
            scores, qkv + 2 * D + column,
            [&](int row, int v, Vec sum) { store(out + row * D + column + v * kLanes, sum); });
}

// One layer on one pose's residual x, [14, 128].
void run_layer(const LayerWeights& layer, float* x) {
    alignas(64) float normed[J * D], wide[J * 3 * D];
    const auto add_to_x = [&](const float* bias) {
        return [x, bias](int row, int column, Vec sum) {
            store(x + row * D + column, load(x + row * D + column) + (sum + load(bias + column)));
        };
    };
    normalise(x, layer.norm1_weight, layer.norm1_bias, normed);
    multiply<D, 3 * D>(normed, layer.qkv, [&](int row, int column, Vec sum) {
        store(wide + row * 3 * D + column, sum + load(layer.qkv_bias + column));
    });
    for (int head = 0; head < int(kHeads); ++head)
        attend(wide + head * int(kHeadWidth), normed + head * int(kHeadWidth));
    multiply<D, D>(normed, layer.proj, add_to_x(layer.proj_bias));

    normalise(x, layer.norm2_weight, layer.norm2_bias, normed);
    constexpr int FFN = kFfn;
    multiply<D, FFN>(normed, layer.fc1, [&](int row, int column, Vec sum) {
        store(wide + row * FFN + column, sum + load(layer.fc1_bias + column));
    });
    for (int i = 0; i < J * FFN; i += kLanes) store(wide + i, gelu(load(wide + i)));
    multiply<FFN, D>(wide, layer.fc2, add_to_x(layer.fc2_bias));
}

// Features [14, 8] to the residual x [14, 128]. The fourth feature is `observed`.
void embed(const EndWeights& ends, const float* features, float* x) {
    multiply<int(kFeatures), D>(features, ends.embed, [&](int row, int column, Vec sum) {
        const int at = row * D + column;
        store(x + at, features[row * int(kFeatures) + 3] > 0.5f ? sum + load(ends.seen + at) : load(ends.masked + at));
    });
}

// Features [14, 63] are added to the hidden states x [14, 128].
void embed_sequence(const SequenceEndWeights& ends, const float* features, float* x) {
    constexpr int K = kSequenceFeatures, FFN = kFfn;
    alignas(64) float wide[J * FFN];
    multiply<K, FFN>(features, ends.embed1, [&](int row, int column, Vec sum) {
        store(wide + row * FFN + column, sum + load(ends.embed1_bias + column));
    });
    for (int i = 0; i < J * FFN; i += kLanes) store(wide + i, gelu(load(wide + i)));
    multiply<FFN, D>(wide, ends.embed2, [&](int row, int column, Vec sum) {
        store(x + row * D + column, load(x + row * D + column) + (sum + load(ends.embed2_bias + column)));
    });
}

void run_layers(const LayerWeights* layers, std::size_t layer_count, std::size_t poses, float* residual) {
    for (std::size_t i = 0; i < layer_count; ++i)
        for (std::size_t p = 0; p < poses; ++p) run_layer(layers[i], residual + p * kJoints * kWidth);
}

// The residual x [14, 128] to outputs [14, 4], the corrections times gain(joint).
template <class Gain>
JOINTBERT_INLINE void read_out(const OutputWeights& weights, const float* x, float* outputs, const Gain& gain) {
    alignas(64) float normed[J * D], panel[J * kPanel];
    normalise(x, weights.norm_weight, weights.norm_bias, normed);
    multiply<D, kPanel>(normed, weights.head, [&](int row, int column, Vec sum) {
        store(panel + row * kPanel + column, sum + load(weights.head_bias + column));
    });
    for (int row = 0; row < J; ++row)
        for (int i = 0; i < int(kOutputs); ++i)
            outputs[row * int(kOutputs) + i] = panel[row * kPanel + i] * (i < 3 ? gain(row) : 1.0f);
}

void forward(const NetworkWeights& weights, const float* features, std::size_t poses, float* residual, float* outputs) {
    const EndWeights& ends = *weights.ends;
    for (std::size_t p = 0; p < poses; ++p)
        embed(ends, features + p * kJoints * kFeatures, residual + p * kJoints * kWidth);
    run_layers(weights.layers, weights.layer_count, poses, residual);
    for (std::size_t p = 0; p < poses; ++p) {
        const float* pose = features + p * kJoints * kFeatures;
        read_out(ends.output, residual + p * kJoints * kWidth, outputs + p * kJoints * kOutputs,
                 [&](int row) { return pose[row * int(kFeatures) + 3] > 0.5f ? ends.output.gain : 1.0f; });
    }
}

void forward_sequence(const SequenceNetworkWeights& weights, const float* features, std::size_t poses, float* residual,
                      float* outputs) {
    const SequenceEndWeights& ends = *weights.ends;
    for (std::size_t p = 0; p < poses; ++p)
        embed_sequence(ends, features + p * kJoints * kSequenceFeatures, residual + p * kJoints * kWidth);
    run_layers(weights.layers, weights.layer_count, poses, residual);
    for (std::size_t p = 0; p < poses; ++p)
        read_out(ends.output, residual + p * kJoints * kWidth, outputs + p * kJoints * kOutputs,
                 [&](int) { return ends.output.gain; });
}

}  // namespace

#define JOINTBERT_TEXT_OF(name) #name
#define JOINTBERT_TEXT(name) JOINTBERT_TEXT_OF(name)
extern const Kernel kernel;
const Kernel kernel = {JOINTBERT_TEXT(JOINTBERT_ISA), kPanel, forward, forward_sequence};

}  // namespace JOINTBERT_ISA
}  // namespace jointbert
