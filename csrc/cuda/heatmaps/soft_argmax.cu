#include "soft_argmax.cuh"

namespace jointbert::cuda {
namespace {

// The largest map, in pixels, for a block of so many threads.
template <int kThreads>
constexpr int kMaxPixels = kThreads == 256 ? 64 * 64 : kMaxSide * kMaxSide;

// [poses, 14, height, width], one block a map. The threads hold the map in registers and read memory once: they find
// the peak, then the sums under the softmax.
template <class T, int kThreads, bool kVector>
__global__ void __launch_bounds__(kThreads)
    maps_kernel(const T* values, int height, int width, SoftArgmaxOptions options, KeypointPointers out) {
    constexpr int kCount = Vector16<T>::kCount, kPacks = kMaxPixels<kThreads> / kCount / kThreads,
                  kWarps = kThreads / 32;
    __shared__ std::uint64_t keys[kWarps];
    __shared__ SoftmaxSums partial[kWarps];
    const int map = int(blockIdx.x), size = height * width;
    const unsigned thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
    values += std::size_t(map) * size;

    float mine[kPacks][kCount];
    std::uint64_t best = 0;
#pragma unroll
    for (int k = 0; k < kPacks; ++k) {
        if (kVector) {
            const int pack = int(thread) + k * kThreads;
            if (pack * kCount < size) {
                const Vector16<T> loaded = reinterpret_cast<const Vector16<T>*>(values)[pack];
#pragma unroll
                for (int e = 0; e < kCount; ++e) mine[k][e] = Storage<T>::load(loaded.values[e]);
            } else {
#pragma unroll
                for (int e = 0; e < kCount; ++e) mine[k][e] = -INFINITY;
            }
        } else {
#pragma unroll
            for (int e = 0; e < kCount; ++e) {
                const int i = int(thread) + (k * kCount + e) * kThreads;
                mine[k][e] = i < size ? Storage<T>::load(values[i]) : -INFINITY;
            }
        }
    }
    const auto index = [&](int k, int e) {
        return kVector ? (thread + unsigned(k) * kThreads) * kCount + unsigned(e)
                       : thread + unsigned(k * kCount + e) * kThreads;
    };
#pragma unroll
    for (int k = 0; k < kPacks; ++k)
#pragma unroll
        for (int e = 0; e < kCount; ++e)
            if (index(k, e) < unsigned(size)) best = max_key(best, peak_key(mine[k][e], index(k, e)));
    best = warp_max_key(best);
    if (lane == 0) keys[warp] = best;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kWarps; ++i) best = max_key(best, keys[i]);

    SoftmaxSums sums{};
    if (options.mode == PeakMode::kSoft) {
        const SoftmaxWindow window(best, width, options);
#pragma unroll
        for (int k = 0; k < kPacks; ++k)
#pragma unroll
            for (int e = 0; e < kCount; ++e) {
                int du, dv;
                const bool counts = window.offset(index(k, e), du, dv) && index(k, e) < unsigned(size);
                sums.add(counts ? window.weight(mine[k][e]) : 0, float(du), float(dv));
            }
        sums = warp_sum(sums);
        if (lane == 0) partial[warp] = sums;
        __syncthreads();
        sums = SoftmaxSums{};
        if (thread == 0)
            for (int i = 0; i < kWarps; ++i) sums.add(partial[i]);
    }
    if (thread == 0) write_keypoint(out, map, best, sums, width, options.mode);
}

constexpr int kPixelLanes = 32;
constexpr int kPoseThreads = kMaps * kPixelLanes;
constexpr unsigned kRun = 16;

// Channels last, [poses, height, width, 14], one block a pose: thread t reads map t % 14, so that a warp reads
// consecutive addresses. The second read, for the sums, is served by the L2 cache.
template <class T>
__global__ void __launch_bounds__(kPoseThreads)
    pixels_kernel(const T* values, int height, int width, SoftArgmaxOptions options, KeypointPointers out) {
    __shared__ std::uint64_t keys[kPixelLanes][kMaps];
    __shared__ SoftmaxSums partial[kPixelLanes][kMaps];
    const int pose = int(blockIdx.x), size = height * width;
    const unsigned map = threadIdx.x % kMaps, first = threadIdx.x / kMaps;
    values += std::size_t(pose) * size * kMaps + map;

    std::uint64_t best = 0;
    for (unsigned i = first; i < unsigned(size); i += kPixelLanes)
        best = max_key(best, peak_key(Storage<T>::load(values[i * kMaps]), i));
    keys[first][map] = best;
    __syncthreads();
#pragma unroll 8
    for (int i = 0; i < kPixelLanes; ++i) best = max_key(best, keys[i][map]);

    SoftmaxSums sums{};
    if (options.mode == PeakMode::kSoft) {
        const SoftmaxWindow window(best, width, options);
        for (unsigned from = first; from < unsigned(size); from += kPixelLanes * kRun) {
            SoftmaxSums run{};  // a sum of partial sums: less rounding error than hundreds of additions in a row
            for (unsigned i = from; i < min(from + kPixelLanes * kRun, unsigned(size)); i += kPixelLanes) {
                int du, dv;
                if (window.offset(i, du, dv))
                    run.add(window.weight(Storage<T>::load(values[i * kMaps])), float(du), float(dv));
            }
            sums.add(run);
        }
        partial[first][map] = sums;
        __syncthreads();
        if (first == 0)
            for (int i = 1; i < kPixelLanes; ++i) sums.add(partial[i][map]);
    }
    if (first == 0) write_keypoint(out, pose * kMaps + int(map), best, sums, width, options.mode);
}

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

// d uv / d h = beta p (pixel - uv). The softmax is computed again: that costs one read of the maps, less than storing
// the weights would. d confidence / d h is 1 at a peak between 0 and 1, else 0.
template <class T>
__global__ void __launch_bounds__(kThreads, 4)
    backward_kernel(const T* values, Heatmaps maps, SoftArgmaxOptions options, KeypointPointers found,
                    KeypointGradients gradients, T* result) {
    __shared__ std::uint64_t keys[kWarps];
    __shared__ SoftmaxSums partial[kWarps];
    const int map = int(blockIdx.x), width = maps.width, size = maps.height * width;
    const unsigned thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
    const std::size_t stride = maps.channels_last ? kMaps : 1;
    const std::size_t base =
        maps.channels_last ? std::size_t(map / kMaps) * size * kMaps + map % kMaps : std::size_t(map) * size;
    values += base;
    result += base;
    if (found.status[map]) {
        for (int i = int(thread); i < size; i += kThreads) result[i * stride] = Storage<T>::store(0);
        return;
    }
    std::uint64_t best = 0;
    for (int i = int(thread); i < size; i += kThreads)
        best = max_key(best, peak_key(Storage<T>::load(values[i * stride]), unsigned(i)));
    best = warp_max_key(best);
    if (lane == 0) keys[warp] = best;
    __syncthreads();
    for (int i = 0; i < kWarps; ++i) best = max_key(best, keys[i]);

    const SoftmaxWindow window(best, width, options);
    const bool soft = options.mode == PeakMode::kSoft;
    const auto weight = [&](int i, int& du, int& dv) {
        const bool counts = window.offset(unsigned(i), du, dv) && soft;
        return counts ? window.weight(Storage<T>::load(values[i * stride])) : 0.0f;
    };
    SoftmaxSums sums{};
    for (int i = int(thread); i < size; i += kThreads) {
        int du, dv;
        const float w = weight(i, du, dv);
        sums.add(w, float(du), float(dv));
    }
    sums = warp_sum(sums);
    if (lane == 0) partial[warp] = sums;
    __syncthreads();
    sums = SoftmaxSums{};
    for (int i = 0; i < kWarps; ++i) sums.add(partial[i]);
    const float mean_u = sums.u / sums.weight, mean_v = sums.v / sums.weight;
    const float factor = soft ? options.beta / sums.weight : 0;
    const float to_u = gradients.uv[2 * map], to_v = gradients.uv[2 * map + 1];
    const float at_peak = window.peak >= 0 && window.peak <= 1 ? gradients.confidence[map] : 0;
    for (int i = int(thread); i < size; i += kThreads) {
        int du, dv;
        const float w = weight(i, du, dv);
        float gradient = w > 0 ? factor * w * (to_u * (float(du) - mean_u) + to_v * (float(dv) - mean_v)) : 0;
        if (unsigned(i) == peak_index(best)) gradient += at_peak;
        result[i * stride] = Storage<T>::store(gradient);
    }
}

template <class T>
cudaError_t forward(const Heatmaps& maps, const SoftArgmaxOptions& options, const KeypointPointers& out,
                    cudaStream_t cuda_stream) {
    const T* values = static_cast<const T*>(maps.values);
    if (maps.channels_last)
        return launch(pixels_kernel<T>, dim3(unsigned(maps.poses)), dim3(kPoseThreads), cuda_stream, values,
                      maps.height, maps.width, options, out);
    const int size = maps.height * maps.width;
    const bool vector =
        size % Vector16<T>::kCount == 0 && reinterpret_cast<std::uintptr_t>(values) % sizeof(Vector16<T>) == 0;
    const bool small = size <= kMaxPixels<256>;
    const auto kernel = small ? (vector ? maps_kernel<T, 256, true> : maps_kernel<T, 256, false>)
                              : (vector ? maps_kernel<T, 512, true> : maps_kernel<T, 512, false>);
    return launch(kernel, dim3(unsigned(maps.poses) * kMaps), dim3(small ? 256 : 512), cuda_stream, values, maps.height,
                  maps.width, options, out);
}

template <class T>
cudaError_t backward(const Heatmaps& maps, const SoftArgmaxOptions& options, const KeypointPointers& found,
                     const KeypointGradients& gradients, void* result, cudaStream_t cuda_stream) {
    return launch(backward_kernel<T>, dim3(unsigned(maps.poses) * kMaps), dim3(kThreads), cuda_stream,
                  static_cast<const T*>(maps.values), maps, options, found, gradients, static_cast<T*>(result));
}

}  // namespace

cudaError_t soft_argmax(const Heatmaps& maps, const SoftArgmaxOptions& options, const KeypointPointers& out,
                        cudaStream_t cuda_stream) {
    if (!maps.poses) return cudaSuccess;
    switch (maps.element) {
        case ElementType::kFloat32:
            return forward<float>(maps, options, out, cuda_stream);
        case ElementType::kFloat16:
            return forward<__half>(maps, options, out, cuda_stream);
        case ElementType::kBFloat16:
            return forward<__nv_bfloat16>(maps, options, out, cuda_stream);
    }
    return cudaErrorInvalidValue;
}

cudaError_t soft_argmax_backward(const Heatmaps& maps, const SoftArgmaxOptions& options, const KeypointPointers& found,
                                 const KeypointGradients& gradients, void* maps_gradient, cudaStream_t cuda_stream) {
    if (!maps.poses) return cudaSuccess;
    switch (maps.element) {
        case ElementType::kFloat32:
            return backward<float>(maps, options, found, gradients, maps_gradient, cuda_stream);
        case ElementType::kFloat16:
            return backward<__half>(maps, options, found, gradients, maps_gradient, cuda_stream);
        case ElementType::kBFloat16:
            return backward<__nv_bfloat16>(maps, options, found, gradients, maps_gradient, cuda_stream);
    }
    return cudaErrorInvalidValue;
}

}  // namespace jointbert::cuda
