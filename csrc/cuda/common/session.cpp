#include "session.h"

#include <cstring>
#include <stdexcept>
#include <string>

namespace jointbert::cuda {

GraphSession::GraphSession(std::vector<std::size_t> inputs, std::vector<std::size_t> outputs, std::size_t rows,
                           int device)
    : rows_(rows), device_(device) {
    const DeviceGuard guard(device);
    const RelaxedCaptureGuard relaxed;
    try {
        check(cudaStreamCreateWithFlags(&cuda_stream_, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
        const auto make = [&](const std::vector<std::size_t>& sizes, std::vector<Buffer>& buffers) {
            for (const std::size_t size : sizes) {
                Buffer& buffer = buffers.emplace_back();
                buffer.row_bytes = size;
                check(cudaMallocHost(&buffer.host, size * rows), "cudaMallocHost");
                check(cudaMalloc(&buffer.device, size * rows), "cudaMalloc");
                std::memset(buffer.host, 0, size * rows);
            }
        };
        make(inputs, inputs_);
        make(outputs, outputs_);
    } catch (...) {
        release();
        throw;
    }
}

GraphSession::~GraphSession() {
    int before = 0;
    if (cudaGetDevice(&before) == cudaSuccess) cudaSetDevice(device_);
    const RelaxedCaptureGuard relaxed;
    if (cuda_stream_) cudaStreamSynchronize(cuda_stream_);
    release();
    cudaSetDevice(before);
}

void GraphSession::release() {
    for (const auto& [rows, graph] : graphs_) cudaGraphExecDestroy(graph);
    for (const auto* buffers : {&inputs_, &outputs_})
        for (const Buffer& buffer : *buffers) {
            cudaFreeHost(buffer.host);
            cudaFree(buffer.device);
        }
    if (cuda_stream_) cudaStreamDestroy(cuda_stream_);
}

void GraphSession::begin(std::size_t rows) {
    if (!rows || rows > rows_)
        throw std::invalid_argument("batch: got " + std::to_string(rows) + "; this session has room for 1 to " +
                                    std::to_string(rows_));
    std::unique_lock<std::recursive_mutex> lock(mutex_);
    if (recording_) throw std::invalid_argument("capture: another one has not ended");
    const DeviceGuard guard(device_);
    // Thread-local mode: other threads may use calls that a capture forbids in its own thread.
    check(cudaStreamBeginCapture(cuda_stream_, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
    recording_ = rows;
    lock.release();  // end or abandon unlocks
    try {
        for (const Buffer& buffer : inputs_)
            check(cudaMemcpyAsync(buffer.device, buffer.host, buffer.row_bytes * rows, cudaMemcpyHostToDevice,
                                  cuda_stream_),
                  "cudaMemcpyAsync");
    } catch (...) {
        abandon();
        throw;
    }
}

void GraphSession::end() {
    if (!recording_) throw std::invalid_argument("capture: none has begun");
    const DeviceGuard guard(device_);
    const std::size_t rows = recording_;
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t ready = nullptr;
    try {
        for (const Buffer& buffer : outputs_)
            check(cudaMemcpyAsync(buffer.host, buffer.device, buffer.row_bytes * rows, cudaMemcpyDeviceToHost,
                                  cuda_stream_),
                  "cudaMemcpyAsync");
    } catch (...) {
        abandon();
        throw;
    }
    recording_ = 0;
    const std::unique_lock<std::recursive_mutex> lock(mutex_, std::adopt_lock);
    check(cudaStreamEndCapture(cuda_stream_, &graph), "cudaStreamEndCapture");
    const RelaxedCaptureGuard relaxed;  // captures of other threads
    const cudaError_t code = cudaGraphInstantiate(&ready, graph, 0);
    cudaGraphDestroy(graph);
    check(code, "cudaGraphInstantiate");
    cudaGraphExec_t& place = graphs_[rows];
    if (place) cudaGraphExecDestroy(place);
    place = ready;
}

void GraphSession::abandon() {
    if (!recording_) return;
    recording_ = 0;
    const std::unique_lock<std::recursive_mutex> lock(mutex_, std::adopt_lock);
    cudaGraph_t graph = nullptr;
    cudaStreamEndCapture(cuda_stream_, &graph);
    if (graph) cudaGraphDestroy(graph);
    cudaGetLastError();  // clears the error: the next call must not report it
}

std::vector<std::size_t> GraphSession::recorded() const {
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    std::vector<std::size_t> sizes;
    for (const auto& [rows, graph] : graphs_) sizes.push_back(rows);
    return sizes;
}

void GraphSession::run(std::size_t rows, const std::vector<const void*>& inputs, const std::vector<void*>& outputs) {
    if (!rows) return;
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    const auto found = graphs_.lower_bound(rows);
    if (found == graphs_.end())
        throw std::invalid_argument(
            "batch: got " + std::to_string(rows) +
            (graphs_.empty() ? "; nothing was captured yet"
                             : "; the largest that was captured is " + std::to_string(graphs_.rbegin()->first)));
    const DeviceGuard guard(device_);
    for (std::size_t i = 0; i < inputs_.size(); ++i)
        std::memcpy(inputs_[i].host, inputs[i], inputs_[i].row_bytes * rows);
    check(cudaGraphLaunch(found->second, cuda_stream_), "cudaGraphLaunch");
    check(cudaStreamSynchronize(cuda_stream_), "cudaStreamSynchronize");
    for (std::size_t i = 0; i < outputs_.size(); ++i)
        std::memcpy(outputs[i], outputs_[i].host, outputs_[i].row_bytes * rows);
}

}  // namespace jointbert::cuda
