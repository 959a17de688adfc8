#include <atomic>
#include <random>

#include "soft_argmax.cuh"

namespace jointbert::cuda {
namespace {

constexpr int kTile = 16;  // poses of a block: each weight is read once for them
constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kPartial = kTile * kMapsOfPose;
// Whether tensor cores take the values as they are; others are multiplied one by one.
template <class T>
constexpr bool kProducts = std::is_same_v<T, __half> || (std::is_same_v<T, __nv_bfloat16> && kHasWideProducts);

// What was seen of a map: its highest value, where, and sums under the softmax, places relative to that one.
struct Seen {
    float peak = -INFINITY;
    int u = 0, v = 0;
    Sums sums{};

    __device__ std::uint64_t key(int width) const { return key_of(peak, unsigned(v * width + u)); }

    // The same sums, from a place with another value.
    __device__ void move(float to, int to_u, int to_v, float scale) {
        const float factor = peak == to ? 1 : power_of_2(scale * (peak - to));
        sums.u = factor * (sums.u + sums.weight * float(u - to_u));
        sums.v = factor * (sums.v + sums.weight * float(v - to_v));
        sums.weight *= factor;
        peak = to, u = to_u, v = to_v;
    }

    // Another part of the map.
    __device__ void add(Seen other, int width, float scale) {
        if (other.key(width) > key(width))
            move(other.peak, other.u, other.v, scale);
        else
            other.move(peak, u, v, scale);
        sums.add(other.sums);
    }
};

__device__ inline Seen shuffle_xor(const Seen& seen, int lanes) {
    return {__shfl_xor_sync(kFull, seen.peak, lanes),
            __shfl_xor_sync(kFull, seen.u, lanes),
            __shfl_xor_sync(kFull, seen.v, lanes),
            {__shfl_xor_sync(kFull, seen.sums.weight, lanes), __shfl_xor_sync(kFull, seen.sums.u, lanes),
             __shfl_xor_sync(kFull, seen.sums.v, lanes)}};
}

// kCount values from `column` on, zeros from `size` on. kVector: they are aligned, and in one row of the map.
template <class T, bool kVector>
__device__ inline Pack<T> load(const T* from, int column, int size) {
    Pack<T> pack{};
    if constexpr (kVector) {
        if (column < size) pack = *reinterpret_cast<const Pack<T>*>(from + column);
    } else {
#pragma unroll
        for (int e = 0; e < Pack<T>::kCount; ++e)
            if (column + e < size) pack.values[e] = from[column + e];
    }
    return pack;
}

template <class T, bool kVector>
__device__ inline void look(Seen& seen, const Pack<T>& pack, int column, int size, const Rows& rows, bool sums,
                            float scale) {
    constexpr int kCount = Pack<T>::kCount;
    float values[kCount];
    bool higher = false;
#pragma unroll
    for (int e = 0; e < kCount; ++e) {
        values[e] = column + e < size ? Stored<T>::load(pack.values[e]) : -INFINITY;
        higher |= !(values[e] <= seen.peak);  // or NaN
    }
    if (higher) {
        const int width = int(rows.width);
        std::uint64_t best = seen.key(width);
#pragma unroll
        for (int e = 0; e < kCount; ++e) best = highest(best, key_of(values[e], unsigned(column + e)));
        const int v = int(rows.row(index_of(best)));
        seen.move(value_of(best), int(index_of(best)) - v * width, v, scale);
    }
    if (!sums || seen.peak == -INFINITY) return;
    int v = int(rows.row(unsigned(column))), u = column - v * int(rows.width);
#pragma unroll
    for (int e = 0; e < kCount; ++e) {
        seen.sums.add(power_of_2(scale * (values[e] - seen.peak)), float(u - seen.u), float(v - seen.v));
        ++u;
        if (!kVector && u == int(rows.width)) u = 0, ++v;
    }
}

// Counts the blocks of a launch in a word that may hold anything before: a count is worth something under the launch's
// own number only, whose last 8 bits are 0. The last block leaves another number there.
__device__ inline bool last_of(unsigned long long* word, unsigned long long launch, unsigned blocks) {
    unsigned long long before, seen = __ldcg(word);
    unsigned count;
    do {
        before = seen;
        count = 1 + ((before & ~0xffull) == launch ? unsigned(before & 0xff) : 0u);
        seen = atomicCAS(word, before, count == blocks ? 0ull : launch | count);
    } while (seen != before);
    return count == blocks;
}

struct Shared {
    Seen seen[kWarps][kTile];
    float dots[kWarps][kTile][kMapsOfPose];
    bool last;
};

template <class T>
struct Head {
    const T* weight;    // [14, 14 * height * width]
    const float* bias;  // [14]
    float* depth;       // [poses, 14]
    unsigned long long* arrived;
    float* partial;  // of each tile and map: [kTile, 14]
    unsigned long long launch;
};

// One block for a map of 16 poses. A lane holds the same columns of poses g and g + 8 and of outputs g and g + 8: with
// columns taken in the order in which lanes have them, these are the factors of tensor-core products as they come from
// memory, and no value passes through shared memory. While they are here, the lane looks at its values for the
// soft-argmax.
template <class T, bool kVector>
__global__ void __launch_bounds__(kThreads, kProducts<T> ? 2 : 1)
    depth_kernel(const T* values, int poses, int height, int width, SoftArgmaxOptions options, Head<T> head,
                 Keypoints out) {
    constexpr int kCount = Pack<T>::kCount, kColumns = 4 * kCount;  // a warp's at a time
    Shared& shared = *reinterpret_cast<Shared*>(shared_memory());
    const int map = int(blockIdx.x) % kMapsOfPose, tile = int(blockIdx.x) / kMapsOfPose, size = height * width;
    const int thread = int(threadIdx.x), warp = thread / 32, g = thread % 32 / 4, t = thread % 4;
    const Rows rows(width);
    const bool soft = options.mode == Peak::kSoft, windowed = soft && options.window >= 0;
    const float scale = scale_of(options);

    const T* maps[2];
    const T* weights[2];
    bool pose_there[2], output_there[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const int pose = tile * kTile + g + 8 * r, output = g + 8 * r;
        pose_there[r] = pose < poses;
        output_there[r] = output < kMapsOfPose;
        maps[r] = values + (std::size_t(pose_there[r] ? pose : 0) * kMapsOfPose + map) * size;
        weights[r] = head.weight + (std::size_t(output_there[r] ? output : 0) * kMapsOfPose + map) * size;
    }
    Seen seen[2];
    Sum sums[2] = {};
    float one_by_one[2][kMapsOfPose] = {};
#pragma unroll(kProducts<T> ? 2 : 1)
    for (int base = warp * kColumns; base < size; base += kWarps * kColumns) {
        const int column = base + t * kCount;
        Pack<T> x[2], w[2];
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            x[r] = load<T, kVector>(maps[r], column, pose_there[r] ? size : 0);
            if constexpr (kProducts<T>) w[r] = load<T, kVector>(weights[r], column, output_there[r] ? size : 0);
        }
        if constexpr (kProducts<T>) {
            __syncwarp();  // lanes may have parted where one of them saw a higher value
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
                    multiply_add<T>(sums[r], Left{{a[0][step], a[1][step], a[0][step + 1], a[1][step + 1]}},
                                    Right{{b[r][step], b[r][step + 1]}});
        } else {
#pragma unroll
            for (int output = 0; output < kMapsOfPose; ++output) {
                const T* row = head.weight + (std::size_t(output) * kMapsOfPose + map) * size;
                const Pack<T> w_of = load<T, kVector>(row, column, size);
#pragma unroll
                for (int e = 0; e < kCount; ++e)
#pragma unroll
                    for (int r = 0; r < 2; ++r)
                        one_by_one[r][output] += Stored<T>::load(x[r].values[e]) * Stored<T>::load(w_of.values[e]);
            }
        }
#pragma unroll
        for (int r = 0; r < 2; ++r)
            if (pose_there[r]) look<T, kVector>(seen[r], x[r], column, size, rows, soft && !windowed, scale);
    }

#pragma unroll
    for (int r = 0; r < 2; ++r) {
        for (int lanes = 1; lanes < 4; lanes *= 2) seen[r].add(shuffle_xor(seen[r], lanes), width, scale);
        if (t == 0) shared.seen[warp][g + 8 * r] = seen[r];
        if constexpr (kProducts<T>) {
#pragma unroll
            for (int i = 0; i < 4; ++i)
                if (8 * r + 2 * t + i % 2 < kMapsOfPose)
                    shared.dots[warp][g + i / 2 * 8][8 * r + 2 * t + i % 2] = sums[r].values[i];
        } else {
#pragma unroll
            for (int output = 0; output < kMapsOfPose; ++output) {
                float sum = one_by_one[r][output];
                for (int lanes = 1; lanes < 4; lanes *= 2) sum += __shfl_xor_sync(kFull, sum, lanes);
                if (t == 0) shared.dots[warp][g + 8 * r][output] = sum;
            }
        }
    }
    __syncthreads();

    float* partial = head.partial + std::size_t(blockIdx.x) * kPartial;
    if (thread < kPartial) {
        const int pose = thread / kMapsOfPose, output = thread % kMapsOfPose;
        float sum = 0;
#pragma unroll
        for (int i = 0; i < kWarps; ++i) sum += shared.dots[i][pose][output];
        __stcg(partial + thread, sum);
    }
    for (int row = warp; row < kTile; row += kWarps) {
        const int pose = tile * kTile + row;
        if (pose >= poses) break;
        Seen all = shared.seen[0][row];
        for (int i = 1; i < kWarps; ++i) all.add(shared.seen[i][row], width, scale);
        Sums found = all.sums;
        if (windowed) {  // few pixels, and only now it is known which
            const Around around(all.key(width), width, options);
            const int u0 = max(all.u - around.reach, 0), v0 = max(all.v - around.reach, 0);
            const int across = min(all.u + around.reach, width - 1) - u0 + 1;
            const int count = across * (min(all.v + around.reach, height - 1) - v0 + 1);
            const Rows window(across);
            const T* from = values + (std::size_t(pose) * kMapsOfPose + map) * size;
            found = Sums{};
            for (int i = thread % 32; i < count; i += 32) {
                const int dv = int(window.row(unsigned(i))), du = i - dv * across;
                found.add(around.weight(Stored<T>::load(from[(v0 + dv) * width + u0 + du])), float(u0 + du - all.u),
                          float(v0 + dv - all.v));
            }
            found = warp_sum(found);
        }
        if (thread % 32 == 0) write(out, pose * kMapsOfPose + map, all.key(width), found, width, options.mode);
    }

    // The tile's last block adds what all have found, in the order of the maps.
    __threadfence();
    __syncthreads();
    if (thread == 0) shared.last = last_of(head.arrived + tile, head.launch, kMapsOfPose);
    __syncthreads();
    if (!shared.last || thread >= kPartial || tile * kTile + thread / kMapsOfPose >= poses) return;
    __threadfence();
    const float* all = head.partial + std::size_t(tile) * kMapsOfPose * kPartial;
    float sum = head.bias[thread % kMapsOfPose];
#pragma unroll
    for (int i = 0; i < kMapsOfPose; ++i) sum += __ldcg(all + i * kPartial + thread);
    head.depth[std::size_t(tile) * kPartial + thread] = sum;
}

unsigned tiles_of(int poses) { return unsigned((poses + kTile - 1) / kTile); }

// Another number for every launch, with zeros in the last 8 bits, and by chance in no memory: where it is counted,
// anything may stand.
unsigned long long number_of_launch() {
    static std::atomic<unsigned long long> next = [] {
        std::random_device random;
        return (unsigned long long)(random()) << 32 | random();
    }();
    const unsigned long long number = next.fetch_add(0x9e3779b97f4a7c15ull) & ~0xffull;
    return number ? number : 0x100;
}

template <class T>
cudaError_t forward(const Heatmaps& maps, const SoftArgmaxOptions& options, const DepthHead& head, const Keypoints& out,
                    void* memory, cudaStream_t stream) {
    const T* values = static_cast<const T*>(maps.values);
    const T* weight = static_cast<const T*>(head.weight);
    const unsigned tiles = tiles_of(maps.poses);
    auto* arrived = static_cast<unsigned long long*>(memory);
    const Head<T> given{
        weight, head.bias, head.depth, arrived, reinterpret_cast<float*>(arrived + tiles), number_of_launch()};
    const auto aligned = [](const T* at) { return reinterpret_cast<std::uintptr_t>(at) % sizeof(Pack<T>) == 0; };
    const bool vector = maps.width % Pack<T>::kCount == 0 && aligned(values) && aligned(weight);
    const Shape shape{dim3(tiles * kMapsOfPose), dim3(kThreads), sizeof(Shared)};
    return launch(vector ? depth_kernel<T, true> : depth_kernel<T, false>, shape, stream, values, maps.poses,
                  maps.height, maps.width, options, given, out);
}

}  // namespace

std::size_t soft_argmax_depth_memory(int poses) {
    return tiles_of(poses) * (sizeof(unsigned long long) + sizeof(float) * kMapsOfPose * kPartial);
}

cudaError_t soft_argmax_depth(const Heatmaps& maps, const SoftArgmaxOptions& options, const DepthHead& head,
                              const Keypoints& out, void* memory, cudaStream_t stream) {
    if (maps.channels_last) return cudaErrorInvalidValue;
    if (!maps.poses) return cudaSuccess;
    switch (maps.element) {
        case Element::kFloat32:
            return forward<float>(maps, options, head, out, memory, stream);
        case Element::kFloat16:
            return forward<__half>(maps, options, head, out, memory, stream);
        case Element::kBFloat16:
            return forward<__nv_bfloat16>(maps, options, head, out, memory, stream);
    }
    return cudaErrorInvalidValue;
}

}  // namespace jointbert::cuda
