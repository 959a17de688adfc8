#include "soft_argmax.cuh"

namespace jointbert::cuda {
namespace {

// Values of the largest map that a block of so many threads takes.
template <int kThreads>
constexpr int kMapSize = kThreads == 256 ? 64 * 64 : kMaxSide * kMaxSide;

// One block a map whose values lie together. Every thread keeps its share of the map in registers, so memory is read
// once: first the peak, then the sums under the softmax.
template <class T, int kThreads, bool kVector>
__global__ void __launch_bounds__(kThreads)
    maps_kernel(const T* values, int height, int width, SoftArgmaxOptions options, Keypoints out) {
    constexpr int kCount = Pack<T>::kCount, kPacks = kMapSize<kThreads> / kCount / kThreads, kWarps = kThreads / 32;
    __shared__ std::uint64_t keys[kWarps];
    __shared__ Sums partial[kWarps];
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
                const Pack<T> loaded = reinterpret_cast<const Pack<T>*>(values)[pack];
#pragma unroll
                for (int e = 0; e < kCount; ++e) mine[k][e] = Stored<T>::load(loaded.values[e]);
            } else {
#pragma unroll
                for (int e = 0; e < kCount; ++e) mine[k][e] = -INFINITY;
            }
        } else {
#pragma unroll
            for (int e = 0; e < kCount; ++e) {
                const int i = int(thread) + (k * kCount + e) * kThreads;
                mine[k][e] = i < size ? Stored<T>::load(values[i]) : -INFINITY;
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
            if (index(k, e) < unsigned(size)) best = highest(best, key_of(mine[k][e], index(k, e)));
    best = warp_highest(best);
    if (lane == 0) keys[warp] = best;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kWarps; ++i) best = highest(best, keys[i]);

    Sums sums{};
    if (options.mode == Peak::kSoft) {
        const Around around(best, width, options);
#pragma unroll
        for (int k = 0; k < kPacks; ++k)
#pragma unroll
            for (int e = 0; e < kCount; ++e) {
                int du, dv;
                const bool counts = around.place(index(k, e), du, dv) && index(k, e) < unsigned(size);
                sums.add(counts ? around.weight(mine[k][e]) : 0, float(du), float(dv));
            }
        sums = warp_sum(sums);
        if (lane == 0) partial[warp] = sums;
        __syncthreads();
        sums = Sums{};
        if (thread == 0)
            for (int i = 0; i < kWarps; ++i) sums.add(partial[i]);
    }
    if (thread == 0) write(out, map, best, sums, width, options.mode);
}

constexpr int kPixelLanes = 32;
constexpr int kPoseThreads = kMapsOfPose * kPixelLanes;
constexpr unsigned kRun = 16;

// One block a pose whose pixels hold the values of its 14 maps: thread t reads map t % 14, so that a warp reads
// neighbours. The second reading, for the sums, comes from L2.
template <class T>
__global__ void __launch_bounds__(kPoseThreads)
    pixels_kernel(const T* values, int height, int width, SoftArgmaxOptions options, Keypoints out) {
    __shared__ std::uint64_t keys[kPixelLanes][kMapsOfPose];
    __shared__ Sums partial[kPixelLanes][kMapsOfPose];
    const int pose = int(blockIdx.x), size = height * width;
    const unsigned map = threadIdx.x % kMapsOfPose, first = threadIdx.x / kMapsOfPose;
    values += std::size_t(pose) * size * kMapsOfPose + map;

    std::uint64_t best = 0;
    for (unsigned i = first; i < unsigned(size); i += kPixelLanes)
        best = highest(best, key_of(Stored<T>::load(values[i * kMapsOfPose]), i));
    keys[first][map] = best;
    __syncthreads();
#pragma unroll 8
    for (int i = 0; i < kPixelLanes; ++i) best = highest(best, keys[i][map]);

    Sums sums{};
    if (options.mode == Peak::kSoft) {
        const Around around(best, width, options);
        for (unsigned from = first; from < unsigned(size); from += kPixelLanes * kRun) {
            Sums run{};  // sums of sums: hundreds of additions in a row would cost digits
            for (unsigned i = from; i < min(from + kPixelLanes * kRun, unsigned(size)); i += kPixelLanes) {
                int du, dv;
                if (around.place(i, du, dv))
                    run.add(around.weight(Stored<T>::load(values[i * kMapsOfPose])), float(du), float(dv));
            }
            sums.add(run);
        }
        partial[first][map] = sums;
        __syncthreads();
        if (first == 0)
            for (int i = 1; i < kPixelLanes; ++i) sums.add(partial[i][map]);
    }
    if (first == 0) write(out, pose * kMapsOfPose + int(map), best, sums, width, options.mode);
}

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

// d uv / d h = beta p (place - uv); the sum under the softmax has to be found again, which costs a reading less than
// keeping the weights would cost in writing and reading. d confidence / d h: 1 at the peak, where it lies between 0
// and 1.
template <class T>
__global__ void __launch_bounds__(kThreads, 4)
    backward_kernel(const T* values, Heatmaps maps, SoftArgmaxOptions options, Keypoints found,
                    KeypointGradients gradients, T* result) {
    __shared__ std::uint64_t keys[kWarps];
    __shared__ Sums partial[kWarps];
    const int map = int(blockIdx.x), width = maps.width, size = maps.height * width;
    const unsigned thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
    const std::size_t stride = maps.channels_last ? kMapsOfPose : 1;
    const std::size_t base = maps.channels_last
                                 ? std::size_t(map / kMapsOfPose) * size * kMapsOfPose + map % kMapsOfPose
                                 : std::size_t(map) * size;
    values += base;
    result += base;
    if (found.status[map]) {
        for (int i = int(thread); i < size; i += kThreads) result[i * stride] = Stored<T>::store(0);
        return;
    }
    std::uint64_t best = 0;
    for (int i = int(thread); i < size; i += kThreads)
        best = highest(best, key_of(Stored<T>::load(values[i * stride]), unsigned(i)));
    best = warp_highest(best);
    if (lane == 0) keys[warp] = best;
    __syncthreads();
    for (int i = 0; i < kWarps; ++i) best = highest(best, keys[i]);

    const Around around(best, width, options);
    const bool soft = options.mode == Peak::kSoft;
    const auto weight = [&](int i, int& du, int& dv) {
        const bool counts = around.place(unsigned(i), du, dv) && soft;
        return counts ? around.weight(Stored<T>::load(values[i * stride])) : 0.0f;
    };
    Sums sums{};
    for (int i = int(thread); i < size; i += kThreads) {
        int du, dv;
        const float w = weight(i, du, dv);
        sums.add(w, float(du), float(dv));
    }
    sums = warp_sum(sums);
    if (lane == 0) partial[warp] = sums;
    __syncthreads();
    sums = Sums{};
    for (int i = 0; i < kWarps; ++i) sums.add(partial[i]);
    const float mean_u = sums.u / sums.weight, mean_v = sums.v / sums.weight;
    const float factor = soft ? options.beta / sums.weight : 0;
    const float to_u = gradients.uv[2 * map], to_v = gradients.uv[2 * map + 1];
    const float at_peak = around.peak >= 0 && around.peak <= 1 ? gradients.confidence[map] : 0;
    for (int i = int(thread); i < size; i += kThreads) {
        int du, dv;
        const float w = weight(i, du, dv);
        float gradient = w > 0 ? factor * w * (to_u * (float(du) - mean_u) + to_v * (float(dv) - mean_v)) : 0;
        if (unsigned(i) == index_of(best)) gradient += at_peak;
        result[i * stride] = Stored<T>::store(gradient);
    }
}

template <class T>
cudaError_t forward(const Heatmaps& maps, const SoftArgmaxOptions& options, const Keypoints& out, cudaStream_t stream) {
    const T* values = static_cast<const T*>(maps.values);
    if (maps.channels_last)
        return launch(pixels_kernel<T>, dim3(unsigned(maps.poses)), dim3(kPoseThreads), stream, values, maps.height,
                      maps.width, options, out);
    const int size = maps.height * maps.width;
    const bool vector = size % Pack<T>::kCount == 0 && reinterpret_cast<std::uintptr_t>(values) % sizeof(Pack<T>) == 0;
    const bool small = size <= kMapSize<256>;
    const auto kernel = small ? (vector ? maps_kernel<T, 256, true> : maps_kernel<T, 256, false>)
                              : (vector ? maps_kernel<T, 512, true> : maps_kernel<T, 512, false>);
    return launch(kernel, dim3(unsigned(maps.poses) * kMapsOfPose), dim3(small ? 256 : 512), stream, values,
                  maps.height, maps.width, options, out);
}

template <class T>
cudaError_t backward(const Heatmaps& maps, const SoftArgmaxOptions& options, const Keypoints& found,
                     const KeypointGradients& gradients, void* result, cudaStream_t stream) {
    return launch(backward_kernel<T>, dim3(unsigned(maps.poses) * kMapsOfPose), dim3(kThreads), stream,
                  static_cast<const T*>(maps.values), maps, options, found, gradients, static_cast<T*>(result));
}

}  // namespace

cudaError_t soft_argmax(const Heatmaps& maps, const SoftArgmaxOptions& options, const Keypoints& out,
                        cudaStream_t stream) {
    if (!maps.poses) return cudaSuccess;
    switch (maps.element) {
        case Element::kFloat32:
            return forward<float>(maps, options, out, stream);
        case Element::kFloat16:
            return forward<__half>(maps, options, out, stream);
        case Element::kBFloat16:
            return forward<__nv_bfloat16>(maps, options, out, stream);
    }
    return cudaErrorInvalidValue;
}

cudaError_t soft_argmax_backward(const Heatmaps& maps, const SoftArgmaxOptions& options, const Keypoints& found,
                                 const KeypointGradients& gradients, void* maps_gradient, cudaStream_t stream) {
    if (!maps.poses) return cudaSuccess;
    switch (maps.element) {
        case Element::kFloat32:
            return backward<float>(maps, options, found, gradients, maps_gradient, stream);
        case Element::kFloat16:
            return backward<__half>(maps, options, found, gradients, maps_gradient, stream);
        case Element::kBFloat16:
            return backward<__nv_bfloat16>(maps, options, found, gradients, maps_gradient, stream);
    }
    return cudaErrorInvalidValue;
}

}  // namespace jointbert::cuda
