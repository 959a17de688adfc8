#include <atomic>
#include <random>

#include "../common/mma.cuh"
#include "soft_argmax.cuh"

namespace jointbert::cuda {
namespace {

constexpr int kTile = 16;  // poses of a block, which share its reads of the weights
constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kPartial = kTile * kMaps;
// Whether the products run on tensor cores.
template <class T>
constexpr bool kUsesMma = std::is_same_v<T, __half> || (std::is_same_v<T, __nv_bfloat16> && kHasMmaK16);

// A part of a map: its highest value, where that is, and sums under the softmax, relative to that value and place.
struct MapSummary {
    float peak = -INFINITY;
    int u = 0, v = 0;
    SoftmaxSums sums{};

    __device__ std::uint64_t key(int width) const { return peak_key(peak, unsigned(v * width + u)); }

    // Makes the sums relative to another value and place.
    __device__ void rebase(float to, int to_u, int to_v, float scale) {
        const float factor = peak == to ? 1 : exp2_approx(scale * (peak - to));
        sums.u = factor * (sums.u + sums.weight * float(u - to_u));
        sums.v = factor * (sums.v + sums.weight * float(v - to_v));
        sums.weight *= factor;
        peak = to, u = to_u, v = to_v;
    }

    // Adds another part of the map.
    __device__ void merge(MapSummary other, int width, float scale) {
        if (other.key(width) > key(width))
            rebase(other.peak, other.u, other.v, scale);
        else
            other.rebase(peak, u, v, scale);
        sums.add(other.sums);
    }
};

__device__ inline MapSummary shuffle_xor(const MapSummary& summary, int lanes) {
    return {__shfl_xor_sync(kFullMask, summary.peak, lanes),
            __shfl_xor_sync(kFullMask, summary.u, lanes),
            __shfl_xor_sync(kFullMask, summary.v, lanes),
            {__shfl_xor_sync(kFullMask, summary.sums.weight, lanes), __shfl_xor_sync(kFullMask, summary.sums.u, lanes),
             __shfl_xor_sync(kFullMask, summary.sums.v, lanes)}};
}

// kCount values from `column` on, zeros from `size` on. kVector: they are aligned and lie in one row of the map.
template <class T, bool kVector>
__device__ inline Vector16<T> load(const T* from, int column, int size) {
    Vector16<T> loaded{};
    if constexpr (kVector) {
        if (column < size) loaded = *reinterpret_cast<const Vector16<T>*>(from + column);
    } else {
#pragma unroll
        for (int e = 0; e < Vector16<T>::kCount; ++e)
            if (column + e < size) loaded.values[e] = from[column + e];
    }
    return loaded;
}

template <class T, bool kVector>
__device__ inline void update(MapSummary& summary, const Vector16<T>& loaded, int column, int size,
                              const RowDivider& rows, bool sums, float scale) {
    constexpr int kCount = Vector16<T>::kCount;
    float values[kCount];
    bool higher = false;
#pragma unroll
    for (int e = 0; e < kCount; ++e) {
        values[e] = column + e < size ? Storage<T>::load(loaded.values[e]) : -INFINITY;
        higher |= !(values[e] <= summary.peak);  // or NaN
    }
    if (higher) {
        const int width = int(rows.width);
        std::uint64_t best = summary.key(width);
#pragma unroll
        for (int e = 0; e < kCount; ++e) best = max_key(best, peak_key(values[e], unsigned(column + e)));
        const int v = int(rows.row(peak_index(best)));
        summary.rebase(peak_value(best), int(peak_index(best)) - v * width, v, scale);
    }
    if (!sums || summary.peak == -INFINITY) return;
    int v = int(rows.row(unsigned(column))), u = column - v * int(rows.width);
#pragma unroll
    for (int e = 0; e < kCount; ++e) {
        summary.sums.add(exp2_approx(scale * (values[e] - summary.peak)), float(u - summary.u), float(v - summary.v));
        ++u;
        if (!kVector && u == int(rows.width)) u = 0, ++v;
    }
}

// Counts the blocks of a launch in a word with any initial contents, and returns true for the last block. The word
// holds the launch's id, whose last 8 bits are 0, plus the count; under another id the count starts from 0. The last
// block clears the id.
__device__ inline bool is_last_block(unsigned long long* word, unsigned long long launch_id, unsigned blocks) {
    unsigned long long before, summary = __ldcg(word);
    unsigned count;
    do {
        before = summary;
        count = 1 + ((before & ~0xffull) == launch_id ? unsigned(before & 0xff) : 0u);
        summary = atomicCAS(word, before, count == blocks ? 0ull : launch_id | count);
    } while (summary != before);
    return count == blocks;
}

struct Shared {
    MapSummary summary[kWarps][kTile];
    float dots[kWarps][kTile][kMaps];
    bool last;
};

template <class T>
struct DepthArguments {
    const T* weight;    // [14, 14 * height * width]
    const float* bias;  // [14]
    float* depth;       // [poses, 14]
    unsigned long long* arrived;
    float* partial;  // of each tile and map: [kTile, 14]
    unsigned long long launch_id;
};

// One block for one map of 16 poses. A lane loads the same columns of poses g and g + 8 and of outputs g and g + 8. A
// sum over columns may take them in any order; in the order in which the lanes hold them, the loaded vectors are
// fragments already, and nothing passes through shared memory. The soft-argmax uses the same loaded values.
template <class T, bool kVector>
__global__ void __launch_bounds__(kThreads, kUsesMma<T> ? 2 : 1)
    depth_kernel(const T* values, int poses, int height, int width, SoftArgmaxOptions options, DepthArguments<T> head,
                 KeypointPointers out) {
    constexpr int kCount = Vector16<T>::kCount, kColumns = 4 * kCount;  // a warp's at a time
    Shared& shared = *reinterpret_cast<Shared*>(dynamic_shared_memory());
    const int map = int(blockIdx.x) % kMaps, tile = int(blockIdx.x) / kMaps, size = height * width;
    const int thread = int(threadIdx.x), warp = thread / 32, g = thread % 32 / 4, t = thread % 4;
    const RowDivider rows(width);
    const bool soft = options.mode == PeakMode::kSoft, windowed = soft && options.window >= 0;
    const float scale = scale_of(options);

    const T* maps[2];
    const T* weights[2];
    bool pose_valid[2], output_valid[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const int pose = tile * kTile + g + 8 * r, output = g + 8 * r;
        pose_valid[r] = pose < poses;
        output_valid[r] = output < kMaps;
        maps[r] = values + (std::size_t(pose_valid[r] ? pose : 0) * kMaps + map) * size;
        weights[r] = head.weight + (std::size_t(output_valid[r] ? output : 0) * kMaps + map) * size;
    }
    MapSummary summary[2];
    Accumulator sums[2] = {};
    float one_by_one[2][kMaps] = {};
#pragma unroll(kUsesMma<T> ? 2 : 1)
    for (int base = warp * kColumns; base < size; base += kWarps * kColumns) {
        const int column = base + t * kCount;
        Vector16<T> x[2], w[2];
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            x[r] = load<T, kVector>(maps[r], column, pose_valid[r] ? size : 0);
            if constexpr (kUsesMma<T>) w[r] = load<T, kVector>(weights[r], column, output_valid[r] ? size : 0);
        }
        if constexpr (kUsesMma<T>) {
            __syncwarp();  // lanes may have diverged where one found a higher value
            unsigned a[2][4], b[2][4];
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                memcpy(a[r], &x[r], 16);
                memcpy(b[r], &w[r], 16);
            }
#pragma unroll
            for (int step = 0; step < 4; step += 2)
#pragma unroll
                for (int r = 0; r < 2; ++r)
                    mma<T>(sums[r], FragmentA{{a[0][step], a[1][step], a[0][step + 1], a[1][step + 1]}},
                           FragmentB{{b[r][step], b[r][step + 1]}});
        } else {
#pragma unroll
            for (int output = 0; output < kMaps; ++output) {
                const T* row = head.weight + (std::size_t(output) * kMaps + map) * size;
                const Vector16<T> w_of = load<T, kVector>(row, column, size);
#pragma unroll
                for (int e = 0; e < kCount; ++e)
#pragma unroll
                    for (int r = 0; r < 2; ++r)
                        one_by_one[r][output] += Storage<T>::load(x[r].values[e]) * Storage<T>::load(w_of.values[e]);
            }
        }
#pragma unroll
        for (int r = 0; r < 2; ++r)
            if (pose_valid[r]) update<T, kVector>(summary[r], x[r], column, size, rows, soft && !windowed, scale);
    }

#pragma unroll
    for (int r = 0; r < 2; ++r) {
        for (int lanes = 1; lanes < 4; lanes *= 2) summary[r].merge(shuffle_xor(summary[r], lanes), width, scale);
        if (t == 0) shared.summary[warp][g + 8 * r] = summary[r];
        if constexpr (kUsesMma<T>) {
#pragma unroll
            for (int i = 0; i < 4; ++i)
                if (8 * r + 2 * t + i % 2 < kMaps)
                    shared.dots[warp][g + i / 2 * 8][8 * r + 2 * t + i % 2] = sums[r].values[i];
        } else {
#pragma unroll
            for (int output = 0; output < kMaps; ++output) {
                float sum = one_by_one[r][output];
                for (int lanes = 1; lanes < 4; lanes *= 2) sum += __shfl_xor_sync(kFullMask, sum, lanes);
                if (t == 0) shared.dots[warp][g + 8 * r][output] = sum;
            }
        }
    }
    __syncthreads();

    float* partial = head.partial + std::size_t(blockIdx.x) * kPartial;
    if (thread < kPartial) {
        const int pose = thread / kMaps, output = thread % kMaps;
        float sum = 0;
#pragma unroll
        for (int i = 0; i < kWarps; ++i) sum += shared.dots[i][pose][output];
        __stcg(partial + thread, sum);
    }
    for (int row = warp; row < kTile; row += kWarps) {
        const int pose = tile * kTile + row;
        if (pose >= poses) break;
        MapSummary all = shared.summary[0][row];
        for (int i = 1; i < kWarps; ++i) all.merge(shared.summary[i][row], width, scale);
        SoftmaxSums found = all.sums;
        if (windowed) {  // the window's few pixels are read again, now that the peak is known
            const SoftmaxWindow window(all.key(width), width, options);
            const int u0 = max(all.u - window.reach, 0), v0 = max(all.v - window.reach, 0);
            const int across = min(all.u + window.reach, width - 1) - u0 + 1;
            const int count = across * (min(all.v + window.reach, height - 1) - v0 + 1);
            const RowDivider box(across);
            const T* from = values + (std::size_t(pose) * kMaps + map) * size;
            found = SoftmaxSums{};
            for (int i = thread % 32; i < count; i += 32) {
                const int dv = int(box.row(unsigned(i))), du = i - dv * across;
                found.add(window.weight(Storage<T>::load(from[(v0 + dv) * width + u0 + du])), float(u0 + du - all.u),
                          float(v0 + dv - all.v));
            }
            found = warp_sum(found);
        }
        if (thread % 32 == 0) write_keypoint(out, pose * kMaps + map, all.key(width), found, width, options.mode);
    }

    // The last block of the tile adds up the partial sums, in the order of the maps.
    __threadfence();
    __syncthreads();
    if (thread == 0) shared.last = is_last_block(head.arrived + tile, head.launch_id, kMaps);
    __syncthreads();
    if (!shared.last || thread >= kPartial || tile * kTile + thread / kMaps >= poses) return;
    __threadfence();
    const float* all = head.partial + std::size_t(tile) * kMaps * kPartial;
    float sum = head.bias[thread % kMaps];
#pragma unroll
    for (int i = 0; i < kMaps; ++i) sum += __ldcg(all + i * kPartial + thread);
    head.depth[std::size_t(tile) * kPartial + thread] = sum;
}

unsigned tiles_of(int poses) { return unsigned((poses + kTile - 1) / kTile); }

// A new id for every launch, its last 8 bits 0. It starts from a random number: uninitialised memory will not hold it.
unsigned long long next_launch_id() {
    static std::atomic<unsigned long long> next = [] {
        std::random_device random;
        return (unsigned long long)(random()) << 32 | random();
    }();
    const unsigned long long number = next.fetch_add(0x9e3779b97f4a7c15ull) & ~0xffull;
    return number ? number : 0x100;
}

template <class T>
cudaError_t forward(const Heatmaps& maps, const SoftArgmaxOptions& options, const DepthHead& head,
                    const KeypointPointers& out, void* memory, cudaStream_t cuda_stream) {
    const T* values = static_cast<const T*>(maps.values);
    const T* weight = static_cast<const T*>(head.weight);
    const unsigned tiles = tiles_of(maps.poses);
    auto* arrived = static_cast<unsigned long long*>(memory);
    const DepthArguments<T> given{
        weight, head.bias, head.depth, arrived, reinterpret_cast<float*>(arrived + tiles), next_launch_id()};
    const auto aligned = [](const T* at) { return reinterpret_cast<std::uintptr_t>(at) % sizeof(Vector16<T>) == 0; };
    const bool vector = maps.width % Vector16<T>::kCount == 0 && aligned(values) && aligned(weight);
    const LaunchShape shape{dim3(tiles * kMaps), dim3(kThreads), sizeof(Shared)};
    return launch(vector ? depth_kernel<T, true> : depth_kernel<T, false>, shape, cuda_stream, values, maps.poses,
                  maps.height, maps.width, options, given, out);
}

}  // namespace

std::size_t soft_argmax_depth_memory(int poses) {
    return tiles_of(poses) * (sizeof(unsigned long long) + sizeof(float) * kMaps * kPartial);
}

cudaError_t soft_argmax_depth(const Heatmaps& maps, const SoftArgmaxOptions& options, const DepthHead& head,
                              const KeypointPointers& out, void* memory, cudaStream_t cuda_stream) {
    if (maps.channels_last) return cudaErrorInvalidValue;
    if (!maps.poses) return cudaSuccess;
    switch (maps.element) {
        case ElementType::kFloat32:
            return forward<float>(maps, options, head, out, memory, cuda_stream);
        case ElementType::kFloat16:
            return forward<__half>(maps, options, head, out, memory, cuda_stream);
        case ElementType::kBFloat16:
            return forward<__nv_bfloat16>(maps, options, head, out, memory, cuda_stream);
    }
    return cudaErrorInvalidValue;
}

}  // namespace jointbert::cuda
