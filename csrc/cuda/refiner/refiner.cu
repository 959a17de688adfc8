// The joint refinement module (jointbert/models/refiner.py is the reference) in one launch, in three variants that give
// the same bits. A pose is a tile of 16 rows, 14 joints and two unused rows, which a warp holds in registers: the
// residual as accumulators, its LayerNorm as A fragments. A layer's weights are 16 chunks (refiner.h): each computes,
// from the LayerNorm, one update of the residual.
// tiles.cuh: one warp goes through all chunks. split.cuh: 8 blocks compute a chunk each and exchange updates.
//
// This file: launches, and the device properties that choose among them.
#include <algorithm>
#include <utility>

#include "../common/launch.cuh"
#include "refiner.h"
#include "split.cuh"
#include "tiles.cuh"

namespace jointbert::cuda {
namespace {

constexpr int kSplitStages = 4;       // chunks of two layers
constexpr int kSmallSplitStages = 3;  // where a block has at most 64 KiB of shared memory

int ceil_divide(int a, int b) { return (a + b - 1) / b; }

// Poses that each of the groups takes, so that all are taken at once if they can be.
int poses_per_group(int poses, int groups, int most) { return std::min(most, std::max(1, ceil_divide(poses, groups))); }

int max_poses_per_cluster(const DeviceProperties& device) {
    const int room = (device.shared_bytes - int(sizeof(SplitMemory<kSplitStages>))) / int(sizeof(PoseExchange));
    return std::min(room, kSplitPoses);
}
int max_grid_groups(const DeviceProperties& device) { return device.processors / int(kClusterBlocks); }

// Two poses a warp halve the reads of weights. That pays with enough poses for all processors, and needs compute
// capability 8.0, whose products leave enough registers.
int poses_per_warp(const DeviceProperties& device, int poses) {
    return device.capability >= 80 && poses > device.processors * kWarps ? 2 : 1;
}

template <class T>
cudaError_t launch_tiles(const DeviceProperties& device, const Network& network, const DevicePoses& poses,
                         const DeviceRefinedPoses& refined, cudaStream_t cuda_stream) {
    const int each = poses_per_warp(device, poses.count);
    const int tiles = ceil_divide(poses.count, kWarps * each);
    const LaunchShape shape{dim3(unsigned(tiles)), dim3(kThreads),
                            each == 2 ? sizeof(TileMemory<2>) : sizeof(TileMemory<1>)};
    return launch(each == 2 ? tiles_kernel<T, 2> : tiles_kernel<T, 1>, shape, cuda_stream, poses, network, refined);
}

template <class T>
cudaError_t launch_cluster(const DeviceProperties& device, const Network& network, const DevicePoses& poses,
                           const DeviceRefinedPoses& refined, cudaStream_t cuda_stream) {
    const int each = poses_per_group(poses.count, device.clusters, max_poses_per_cluster(device));
    const LaunchShape shape{dim3(unsigned(ceil_divide(poses.count, each)) * kClusterBlocks), dim3(kThreads),
                            sizeof(SplitMemory<kSplitStages>) + std::size_t(each) * sizeof(PoseExchange),
                            SyncScope::kCluster};
    return launch(cluster_kernel<T, kSplitStages>, shape, cuda_stream, poses, network, refined, each);
}

// The exchange lives in memory of this launch alone: launches on several streams share nothing.
template <class T>
cudaError_t launch_grid(const DeviceProperties& device, const Network& network, const DevicePoses& poses,
                        const DeviceRefinedPoses& refined, cudaStream_t cuda_stream) {
    const int each = poses_per_group(poses.count, max_grid_groups(device), kSplitPoses);
    const int groups = ceil_divide(poses.count, each);
    const bool small = device.shared_bytes < int(sizeof(SplitMemory<kSplitStages>));
    const LaunchShape shape{dim3(unsigned(groups) * kClusterBlocks), dim3(kThreads),
                            small ? sizeof(SplitMemory<kSmallSplitStages>) : sizeof(SplitMemory<kSplitStages>),
                            SyncScope::kGrid};
    const std::size_t group_bytes = 128 + kClusterBlocks * std::size_t(each) * sizeof(PoseExchange);
    void* memory = nullptr;
    cudaError_t code = allocate_async(&memory, device.pool, group_bytes, std::size_t(groups), 128, cuda_stream);
    if (code == cudaSuccess)
        code = launch(small ? grid_kernel<T, kSmallSplitStages> : grid_kernel<T, kSplitStages>, shape, cuda_stream,
                      poses, network, refined, each, static_cast<char*>(memory), group_bytes);
    const cudaError_t freed = free_async(memory, cuda_stream);
    return code == cudaSuccess ? freed : code;
}

template <class T>
cudaError_t launch_variant(const DeviceProperties& device, const Network& network, const DevicePoses& poses,
                           const DeviceRefinedPoses& refined, Variant variant, cudaStream_t cuda_stream) {
    switch (variant) {
        case Variant::kCluster:
            return launch_cluster<T>(device, network, poses, refined, cuda_stream);
        case Variant::kGrid:
            return launch_grid<T>(device, network, poses, refined, cuda_stream);
        case Variant::kTiles:
            return launch_tiles<T>(device, network, poses, refined, cuda_stream);
    }
    return cudaErrorInvalidValue;
}

}  // namespace

bool supports(const DeviceProperties& device, Variant variant, int poses) {
    switch (variant) {
        case Variant::kCluster:
            return device.clusters > 0 && max_poses_per_cluster(device) > 0;
        case Variant::kGrid:
            return device.cooperative && device.pool && poses <= max_grid_groups(device) * kSplitPoses;
        case Variant::kTiles:
            return true;
    }
    return false;
}

// A split variant takes one time for as many poses as run at once, so it is chosen up to that count.
Variant choose_variant(const DeviceProperties& device, int poses) {
    if (supports(device, Variant::kCluster, poses))
        return poses <= device.clusters * max_poses_per_cluster(device) ? Variant::kCluster : Variant::kTiles;
    return supports(device, Variant::kGrid, poses) ? Variant::kGrid : Variant::kTiles;
}

cudaError_t refine(const DeviceProperties& device, const Network& network, const DevicePoses& poses,
                   const DeviceRefinedPoses& refined, Variant variant, cudaStream_t cuda_stream) {
    if (!poses.count) return cudaSuccess;
    if (!supports(device, variant, poses.count)) return cudaErrorInvalidValue;
    if (network.precision == Precision::kBFloat16)
        return device.capability < 80
                   ? cudaErrorNotSupported
                   : launch_variant<__nv_bfloat16>(device, network, poses, refined, variant, cuda_stream);
    return launch_variant<__half>(device, network, poses, refined, variant, cuda_stream);
}

namespace {

std::size_t max_cluster_bytes(const DeviceProperties& device) {
    return sizeof(SplitMemory<kSplitStages>) + std::size_t(max_poses_per_cluster(device)) * sizeof(PoseExchange);
}

// Loads all kernels of a precision that the device runs, and allows them the most shared memory that they ever need. It
// is done once: it is a setting of the kernel, not of a launch.
template <class T>
cudaError_t prepare_kernels(const DeviceProperties& device) {
    cudaError_t code = allow_shared_memory(tiles_kernel<T, 1>, sizeof(TileMemory<1>));
    const auto allow = [&](auto kernel, std::size_t bytes) {
        if (code == cudaSuccess) code = allow_shared_memory(kernel, bytes);
    };
    const bool small = device.shared_bytes < int(sizeof(SplitMemory<kSplitStages>));
    if (device.capability >= 80) allow(tiles_kernel<T, 2>, sizeof(TileMemory<2>));
    if (small) allow(grid_kernel<T, kSmallSplitStages>, sizeof(SplitMemory<kSmallSplitStages>));
    if (!small) allow(grid_kernel<T, kSplitStages>, sizeof(SplitMemory<kSplitStages>));
    if (device.capability >= 90 && max_poses_per_cluster(device) > 0)
        allow(cluster_kernel<T, kSplitStages>, max_cluster_bytes(device));
    return code;
}

// How many clusters can be resident at once, each with its most poses.
cudaError_t count_max_clusters(const DeviceProperties& device, int& clusters) {
#if defined(__CUDACC__)
    cudaLaunchAttribute attribute{};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = kClusterBlocks;
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(kClusterBlocks);
    config.blockDim = dim3(kThreads);
    config.dynamicSmemBytes = max_cluster_bytes(device);
    config.attrs = &attribute;
    config.numAttrs = 1;
    return cudaOccupancyMaxActiveClusters(&clusters, cluster_kernel<__half, kSplitStages>, &config);
#else
    clusters = device.processors / int(kClusterBlocks);
    return cudaSuccess;
#endif
}

// A pool that keeps freed memory: every launch of the grid variant allocates.
cudaError_t create_pool(int ordinal, cudaMemPool_t& pool) {
    cudaMemPoolProps properties{};
    properties.allocType = cudaMemAllocationTypePinned;
    properties.location.type = cudaMemLocationTypeDevice;
    properties.location.id = ordinal;
    cudaError_t code = cudaMemPoolCreate(&pool, &properties);
    std::uint64_t all = ~std::uint64_t(0);
    int off = 0;  // no stream waits for memory of another stream
    if (code == cudaSuccess) code = cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &all);
    if (code == cudaSuccess) code = cudaMemPoolSetAttribute(pool, cudaMemPoolReuseAllowInternalDependencies, &off);
    return code;
}

}  // namespace

cudaError_t query_device(int ordinal, DeviceProperties& device) {
    device = DeviceProperties{};
    int major = 0, minor = 0, pools = 0;
    const std::pair<int*, cudaDeviceAttr> attributes[] = {
        {&device.processors, cudaDevAttrMultiProcessorCount},
        {&device.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin},
        {&device.cooperative, cudaDevAttrCooperativeLaunch},
        {&pools, cudaDevAttrMemoryPoolsSupported},
        {&major, cudaDevAttrComputeCapabilityMajor},
        {&minor, cudaDevAttrComputeCapabilityMinor},
    };
    for (const auto& [to, attribute] : attributes) {
        const cudaError_t code = cudaDeviceGetAttribute(to, attribute, ordinal);
        if (code != cudaSuccess) return code;
    }
    // A kernel that was compiled for an older architecture and translated for this one keeps that one's limits.
    int compiled = device.capability = 10 * major + minor;
    cudaError_t code = compiled_capability(tiles_kernel<__half, 1>, compiled);
    device.capability = std::min(device.capability, compiled);
    if (code == cudaSuccess) code = prepare_kernels<__half>(device);
    if (code == cudaSuccess && device.capability >= 80) code = prepare_kernels<__nv_bfloat16>(device);
    if (code != cudaSuccess) return code;
    // Clusters and pools may be refused (MIG instances, virtual GPUs): the tiles variant needs neither.
    if (device.capability >= 90 && max_poses_per_cluster(device) > 0 &&
        count_max_clusters(device, device.clusters) != cudaSuccess)
        device.clusters = 0;
    if (pools && create_pool(ordinal, device.pool) != cudaSuccess) {
        if (device.pool) cudaMemPoolDestroy(device.pool);
        device.pool = nullptr;
    }
    cudaGetLastError();  // clears the error: the next call must not report it
    return cudaSuccess;
}

}  // namespace jointbert::cuda
