// The cluster and grid variants: 8 blocks take a few poses together, each block one chunk of every half layer.
#pragma once

#include "../common/cluster.cuh"
#include "../common/cp_async.cuh"
#include "chunk.cuh"
#include "embedding.cuh"
#include "layer.cuh"
#include "pose.cuh"
#include "reductions.cuh"
#include "tensors.cuh"

namespace jointbert::cuda {
namespace {

constexpr int kSplitPoses = kWarps;          // of a group of 8 blocks at most, a warp each
constexpr int kRowStride = int(kWidth) + 8;  // in 16-bit values: rows start in different memory banks

// What the blocks exchange of a pose. Each block sends its part of a row's update to the block that owns the row; the
// owner sends the row, normalised, to all.
struct alignas(16) PoseExchange {
    float updates[kClusterBlocks][2][kWidth];
    unsigned short rows[kTileRows][kRowStride];
};

// The exchange among the blocks of a cluster, in distributed shared memory.
struct ClusterGroup {
    PoseExchange* local;
    __device__ int row_copies() const { return int(kClusterBlocks); }  // every block reads its own
    __device__ PoseExchange* at(int rank, int pose) const { return map_shared_rank(local, unsigned(rank)) + pose; }
    __device__ const PoseExchange& own(int, int pose) const { return local[pose]; }
    __device__ const PoseExchange& rows(int pose) const { return local[pose]; }
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

// The exchange among 8 blocks of a cooperative grid, in global memory.
struct GridGroup {
    PoseExchange* all;  // [8, poses]
    unsigned* arrived;
    int poses;
    __device__ int row_copies() const { return 1; }  // block 0's, which all read
    __device__ PoseExchange* at(int rank, int pose) const { return all + rank * poses + pose; }
    __device__ const PoseExchange& own(int rank, int pose) const { return all[rank * poses + pose]; }
    __device__ const PoseExchange& rows(int pose) const { return all[pose]; }
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

// A row of the residual that half a warp owns, 8 columns a lane.
struct OwnedRow {
    float values[8];
    __device__ void add(const float4& a, const float4& b) {
        values[0] += a.x, values[1] += a.y, values[2] += a.z, values[3] += a.w;
        values[4] += b.x, values[5] += b.y, values[6] += b.z, values[7] += b.w;
    }
    __device__ float mean() const {
        float pairs[4];
#pragma unroll
        for (int t = 0; t < 4; ++t) pairs[t] = half_warp_sum(values[2 * t] + values[2 * t + 1]);
        return sum_of_4(pairs) * (1.0f / kWidth);
    }
    __device__ OwnedRow normalised() const {
        const float m = mean();
        float pairs[4];
#pragma unroll
        for (int t = 0; t < 4; ++t) pairs[t] = half_warp_sum(square_sum_2(values[2 * t] - m, values[2 * t + 1] - m));
        const float inverse = inverse_deviation(sum_of_4(pairs));
        OwnedRow out;
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

// The network on the poses of a group. In each half of a layer, block r computes chunk r's update of all rows; then it
// adds up all blocks' updates of its own rows, 2 r and 2 r + 1, and publishes their LayerNorm.
template <class T, int kStages, class Group>
__device__ inline void split_layers(const DevicePoses& poses, const Network& network, const DeviceRefinedPoses& refined,
                                    const Group& group, int poses_per_group) {
    auto& memory = *reinterpret_cast<SplitMemory<kStages>*>(dynamic_shared_memory());
    const int rank = int(blockIdx.x % kClusterBlocks), warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
    const int g = lane / 4, t = lane % 4;
    const int pose = int(blockIdx.x / kClusterBlocks) * poses_per_group + warp;
    const bool has_pose = warp < poses_per_group && pose < poses.count;
    const int row = 2 * rank + lane / 16, column = lane % 16 * 8;
    const bool owns_row = has_pose && rank < int(kJoints) / 2;
    PoseScratch& scratch = memory.scratch[warp];
    const ChunkRing<kStages> ring{memory.stages};
    const int halves = network.layers * kHalves;
    const auto chunk_at = [&](int i) { return i < halves ? network.chunks + i * kHalfChunks + rank : nullptr; };
    for (int i = 0; i < kStages; ++i) ring.fetch(i, chunk_at(i));

    if (has_pose) {
        encode(poses, pose, scratch, refined, rank == 0);
        if (rank < group.row_copies()) {  // the two unused rows
            auto& exchange = *group.at(rank, warp);
            for (int i = lane; i < 2 * kRowStride; i += 32)
                Group::store(&exchange.rows[kJoints][0] + i, (unsigned short)(0));
        }
    }
    // The warp of a pose that is not refined takes part in the barriers only.
    const bool active = has_pose && scratch.status == int(Status::kRefined);
    OwnedRow row_values{};
    const auto publish_row = [&] {
        const OwnedRow normal = row_values.normalised();
        uint4 packed;
        packed.x = pack<T>(normal.values[0], normal.values[1]);
        packed.y = pack<T>(normal.values[2], normal.values[3]);
        packed.z = pack<T>(normal.values[4], normal.values[5]);
        packed.w = pack<T>(normal.values[6], normal.values[7]);
        for (int to = 0; to < group.row_copies(); ++to)
            Group::store(reinterpret_cast<uint4*>(&group.at(to, warp)->rows[row][column]), packed);
    };
    // A block may write to another block's shared memory only once that block has started.
    group.barrier();
    if (active && owns_row) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float2 value = embed(*network.ends, scratch.features[row], row, column + 2 * i);
            row_values.values[2 * i] = value.x;
            row_values.values[2 * i + 1] = value.y;
        }
        publish_row();
    }
    float4 bias[2]{};
    for (int half = 0; half < halves; ++half) {
        cp_async_wait_group<kStages - 1>();
        group.barrier();  // rows and chunk have arrived
        if (owns_row) {   // loaded early, used after the next barrier
            const float* output_bias = network.chunks[half * kHalfChunks].output_bias + column;
            bias[0] = __ldg(reinterpret_cast<const float4*>(output_bias));
            bias[1] = __ldg(reinterpret_cast<const float4*>(output_bias) + 1);
        }
        if (active) {
            NormalisedRows rows[1];
            Residual update[1]{};
            const auto& published = group.rows(warp).rows;
#pragma unroll
            for (int k = 0; k < kSteps; ++k)
#pragma unroll
                for (int part = 0; part < 4; ++part)
                    rows[0][k].values[part] = Group::load(
                        reinterpret_cast<const unsigned*>(&published[g + part % 2 * 8][16 * k + part / 2 * 8 + 2 * t]));
            const Chunk& chunk = memory.stages[half % kStages];
            if (half % 2 == 0)
                attend<T, 1>(rows, chunk, update);
            else
                feed_forward<T, 1>(rows, chunk, update);
#pragma unroll
            for (int part = 0; part < 2; ++part) {
                const int target = g + 8 * part;
                if (target >= int(kJoints)) continue;
                float* to = group.at(target / 2, warp)->updates[rank][target % 2];
#pragma unroll
                for (int n = 0; n < kColumns; ++n)
                    Group::store(reinterpret_cast<float2*>(to + 8 * n + 2 * t),
                                 float2{update[0][n].values[2 * part], update[0][n].values[2 * part + 1]});
            }
        }
        group.barrier();  // all updates have arrived, and rows and chunk are free
        ring.fetch(half % kStages, chunk_at(half + kStages));
        if (active && owns_row) {
            const PoseExchange& exchange = group.own(rank, warp);
            row_values.add(bias[0], bias[1]);
#pragma unroll
            for (int from = 0; from < int(kClusterBlocks); ++from) {
                const auto* updates = reinterpret_cast<const float4*>(&exchange.updates[from][lane / 16][column]);
                row_values.add(Group::load(updates), Group::load(updates + 1));
            }
            if (half + 1 < halves) publish_row();
        }
    }
    if (!active || !owns_row) return;
    const OwnedRow normal = row_values.normalised();
#pragma unroll
    for (int o = 0; o < int(kOutputs); ++o) {
        float pairs[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float2 w = __ldg(reinterpret_cast<const float2*>(network.ends->head[o] + column + 2 * i));
            pairs[i] = half_warp_sum(dot_2(normal.values[2 * i], w.x, normal.values[2 * i + 1], w.y));
        }
        if (lane % 16 == 0)
            scratch.outputs[row][o] = output_of(*network.ends, scratch.features[row], o, sum_of_4(pairs));
    }
    if (lane % 16 == 0) decode(poses, pose, row, scratch, refined);  // the lane that wrote the outputs
}

template <class T, int kStages>
__global__ void __launch_bounds__(kThreads, 1)
    cluster_kernel(const __grid_constant__ DevicePoses poses, const __grid_constant__ Network network,
                   const __grid_constant__ DeviceRefinedPoses refined, int poses_per_group) {
    const ClusterGroup group{reinterpret_cast<PoseExchange*>(dynamic_shared_memory() + sizeof(SplitMemory<kStages>))};
    if (kHasClusters) split_layers<T, kStages>(poses, network, refined, group, poses_per_group);
}

// `memory`: for each group its barrier's counter in 128 bytes, 0 at the start, then a PoseExchange for each block and
// pose.
template <class T, int kStages>
__global__ void __launch_bounds__(kThreads, 1)
    grid_kernel(const __grid_constant__ DevicePoses poses, const __grid_constant__ Network network,
                const __grid_constant__ DeviceRefinedPoses refined, int poses_per_group, char* memory,
                std::size_t group_bytes) {
    char* group_memory = memory + blockIdx.x / kClusterBlocks * group_bytes;
    const GridGroup group{reinterpret_cast<PoseExchange*>(group_memory + 128),
                          reinterpret_cast<unsigned*>(group_memory), poses_per_group};
    split_layers<T, kStages>(poses, network, refined, group, poses_per_group);
}

}  // namespace
}  // namespace jointbert::cuda
