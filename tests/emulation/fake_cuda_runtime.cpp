// A fake CUDA runtime for tests: linked with the sources of jointbert._cuda, whose kernels the emulator runs, it makes
// a module that needs no GPU. Work on a stream is done when the stream is waited for, and no earlier. Device
// memory is host memory, filled with NaN when it is allocated. A call can be made to fail. Calls that are not allowed
// during a capture invalidate it, by the rules of CUDA's capture modes. Any thread may call; a mutex lets one work at a
// time.
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "cuda_emulator.h"

namespace {

using Work = std::function<void()>;
struct Progress {  // of a stream, in pieces of work; shared with its events
    long enqueued = 0, done = 0;
};
struct Stream {
    std::deque<Work> pending;
    std::shared_ptr<Progress> progress = std::make_shared<Progress>();
    std::vector<Work>* capture = nullptr;  // not null: a capture is under way
    cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
    std::thread::id capturing_thread;
    bool invalidated = false;
};
struct Runtime {
    std::map<void*, Stream*> streams;
    std::string failing_call;
    int devices = 1, capability = 90, driver = 13000;
    long allocations = 0, synchronisations = 0;
    const void* host_address = nullptr;
    Stream legacy, foreign;  // foreign: captured by another library
    std::deque<float> event_times;
    bool skip_launches = false;
    std::recursive_mutex mutex;
} runtime;
thread_local int current_device = 0;
thread_local cudaStreamCaptureMode capture_mode = cudaStreamCaptureModeGlobal;

Stream& stream_of(cudaStream_t stream) {
    const auto found = runtime.streams.find(stream);
    return found == runtime.streams.end() ? runtime.legacy : *found->second;
}
void finish(Stream& stream, long until = std::numeric_limits<long>::max()) {
    while (!stream.pending.empty() && stream.progress->done < until) {
        const Work work = stream.pending.front();
        stream.pending.pop_front();
        work();
        ++stream.progress->done;
    }
}
bool has_pending_work() {
    bool any = !runtime.legacy.pending.empty();
    for (auto& [handle, stream] : runtime.streams) any |= !stream->pending.empty();
    return any;
}
void finish_all() {  // as cudaDeviceSynchronize
    runtime.synchronisations += has_pending_work();
    finish(runtime.legacy);
    for (auto& [handle, stream] : runtime.streams) finish(*stream);
}
void enqueue(cudaStream_t stream, Work work) {
    Stream& to = stream_of(stream);
    if (to.capture)
        to.capture->push_back(std::move(work));
    else {
        to.pending.push_back(std::move(work));
        ++to.progress->enqueued;
    }
}
struct Event {
    cudaStream_t stream = nullptr;
    std::shared_ptr<Progress> progress;
    long enqueued = 0;
    bool captured = false;
};
Event& event_of(cudaEvent_t event) { return *reinterpret_cast<Event*>(event); }
cudaError_t result(const char* call) {
    if (runtime.failing_call != call) return cudaSuccess;
    runtime.failing_call.clear();
    return cudaErrorUnknown;
}
// For calls that capture modes restrict: invalidates the captures that forbid the call.
cudaError_t check_captures() {
    if (capture_mode == cudaStreamCaptureModeRelaxed) return cudaSuccess;
    cudaError_t code = cudaSuccess;
    const auto check = [&](Stream& stream) {
        const bool forbids =
            stream.capture && (stream.capturing_thread == std::this_thread::get_id()
                                   ? stream.mode != cudaStreamCaptureModeRelaxed
                                   : stream.mode == cudaStreamCaptureModeGlobal && capture_mode == stream.mode);
        if (!forbids) return;
        stream.invalidated = true;
        code = cudaErrorStreamCaptureUnsupported;
    };
    check(runtime.foreign);
    for (auto& [handle, stream] : runtime.streams) check(*stream);
    return code;
}
cudaError_t allocate(void** memory, std::size_t bytes) {
    *memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
    std::memset(*memory, 0xff, bytes);
    ++runtime.allocations;
    return cudaSuccess;
}

}  // namespace

#define LOCK const std::lock_guard<std::recursive_mutex> lock(runtime.mutex)
#define CALL(name) \
    LOCK;          \
    if (const cudaError_t code = result(#name); code != cudaSuccess) return code

extern "C" {
cudaError_t cudaGetDeviceCount(int* count) {
    *count = runtime.devices;
    if (runtime.driver < 13000) return cudaErrorInsufficientDriver;
    return runtime.devices ? cudaSuccess : cudaErrorNoDevice;
}
cudaError_t cudaDriverGetVersion(int* version) { return *version = runtime.driver, cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int* version) { return *version = 13000, cudaSuccess; }
cudaError_t cudaGetDevice(int* device) { return *device = current_device, cudaSuccess; }
cudaError_t cudaSetDevice(int device) {
    if (device < 0 || device >= runtime.devices) return cudaErrorInvalidDevice;
    return current_device = device, cudaSuccess;
}
cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t code) { return code == cudaErrorUnknown ? "unknown error" : "error"; }
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
    CALL(cudaDeviceGetAttribute);
    *value = attribute == cudaDevAttrMultiProcessorCount            ? 132
             : attribute == cudaDevAttrMaxSharedMemoryPerBlockOptin ? 232448
             : attribute == cudaDevAttrCooperativeLaunch            ? 1
             : attribute == cudaDevAttrMemoryPoolsSupported         ? 1
             : attribute == cudaDevAttrComputeCapabilityMajor       ? runtime.capability / 10
             : attribute == cudaDevAttrComputeCapabilityMinor       ? runtime.capability % 10
                                                                    : 0;
    return cudaSuccess;
}
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
    return std::swap(*mode, capture_mode), cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
    CALL(cudaEventCreateWithFlags);
    *event = reinterpret_cast<cudaEvent_t>(new Event);
    return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* event) {
    CALL(cudaEventCreate);
    return cudaEventCreateWithFlags(event, 0);
}
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t, cudaEvent_t) {
    CALL(cudaEventElapsedTime);
    *ms = 1;
    if (!runtime.event_times.empty()) {
        *ms = runtime.event_times.front();
        runtime.event_times.pop_front();
    }
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    CALL(cudaEventRecord);
    const Stream& recorded = stream_of(stream);
    event_of(event) = {stream, recorded.progress, recorded.progress->enqueued, recorded.capture != nullptr};
    return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
    CALL(cudaEventQuery);
    if (const cudaError_t code = check_captures(); code != cudaSuccess) return code;
    const Event& queried = event_of(event);
    if (queried.captured) {
        stream_of(queried.stream).invalidated = true;
        return cudaErrorCapturedEvent;
    }
    return queried.progress->done < queried.enqueued ? cudaErrorNotReady : cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
    CALL(cudaStreamWaitEvent);
    enqueue(stream, [first = event_of(event)] { finish(stream_of(first.stream), first.enqueued); });
    return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
    delete reinterpret_cast<Event*>(event);
    return cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* at) {
    CALL(cudaPointerGetAttributes);
    *attributes = {};
    attributes->type = at && at != runtime.host_address ? cudaMemoryTypeDevice : cudaMemoryTypeUnregistered;
    return cudaSuccess;
}
cudaError_t cudaMemPoolCreate(cudaMemPool_t* pool, const cudaMemPoolProps*) {
    CALL(cudaMemPoolCreate);
    *pool = reinterpret_cast<cudaMemPool_t>(&runtime);
    ++runtime.allocations;
    return cudaSuccess;
}
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void*) {
    CALL(cudaMemPoolSetAttribute);
    return cudaSuccess;
}
cudaError_t cudaMemPoolDestroy(cudaMemPool_t) {
    LOCK;
    --runtime.allocations;
    return cudaSuccess;
}
cudaError_t cudaMalloc(void** memory, std::size_t bytes) {
    CALL(cudaMalloc);
    if (const cudaError_t code = check_captures(); code != cudaSuccess) return code;
    return allocate(memory, bytes);
}
cudaError_t cudaMallocHost(void** memory, std::size_t bytes) {
    CALL(cudaMallocHost);
    if (const cudaError_t code = check_captures(); code != cudaSuccess) return code;
    return allocate(memory, bytes);
}
cudaError_t cudaFree(void* memory) {
    LOCK;
    if (const cudaError_t code = check_captures(); code != cudaSuccess) return code;
    finish_all();
    runtime.allocations -= memory != nullptr;
    std::free(memory);
    return cudaSuccess;
}
cudaError_t cudaFreeHost(void* memory) { return cudaFree(memory); }
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
    CALL(cudaMemcpyAsync);
    enqueue(stream, [=] { std::memcpy(to, from, bytes); });
    return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
    CALL(cudaStreamCreateWithFlags);
    auto* created = new Stream;
    runtime.streams[created] = created;
    *stream = reinterpret_cast<cudaStream_t>(created);
    return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    LOCK;
    Stream* old = runtime.streams.at(stream);
    finish(*old);
    runtime.streams.erase(stream);
    delete old;
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    CALL(cudaStreamSynchronize);
    if (stream_of(stream).capture) {
        stream_of(stream).invalidated = true;
        return cudaErrorStreamCaptureUnsupported;
    }
    ++runtime.synchronisations;
    finish(stream_of(stream));
    return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
    CALL(cudaStreamIsCapturing);
    *status = stream_of(stream).capture ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
    CALL(cudaStreamBeginCapture);
    Stream& recorded = stream_of(stream);
    recorded.capture = new std::vector<Work>;
    recorded.mode = mode;
    recorded.capturing_thread = std::this_thread::get_id();
    recorded.invalidated = false;
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
    LOCK;
    Stream& recorded = stream_of(stream);
    *graph = reinterpret_cast<cudaGraph_t>(recorded.capture);
    recorded.capture = nullptr;
    if (recorded.invalidated) {
        delete reinterpret_cast<std::vector<Work>*>(*graph);
        *graph = nullptr;
        return cudaErrorStreamCaptureInvalidated;
    }
    return result("cudaStreamEndCapture");
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
    CALL(cudaGraphInstantiate);
    *executable =
        reinterpret_cast<cudaGraphExec_t>(new std::vector<Work>(*reinterpret_cast<std::vector<Work>*>(graph)));
    return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete reinterpret_cast<std::vector<Work>*>(graph);
    return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) {
    LOCK;
    finish_all();
    delete reinterpret_cast<std::vector<Work>*>(graph);
    return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) {
    CALL(cudaGraphLaunch);
    for (const Work& work : *reinterpret_cast<std::vector<Work>*>(graph)) enqueue(stream, work);
    return cudaSuccess;
}
}

// Controls for tests, by ctypes.
extern "C" {
#pragma GCC visibility push(default)
// The next call of this name fails.
void fake_fail(const char* call) {
    LOCK;
    runtime.failing_call = call;
}
// The time between the next two events; further calls are for later pairs.
void fake_event_time(float ms) {
    LOCK;
    runtime.event_times.push_back(ms);
}
// A launch fails, `countdown` launches from now.
void fake_fail_launch(int countdown) { jointbert::emulator::launch_failure().countdown = countdown; }
// From now on kernels are not run: for tests of which only the launches matter.
void fake_skip_launches(int skip) { runtime.skip_launches = skip; }
void fake_devices(int count, int capability, int driver) {
    runtime.devices = count;
    runtime.capability = capability;
    runtime.driver = driver;
}
long fake_allocations() { return runtime.allocations; }            // that are not freed yet
long fake_synchronisations() { return runtime.synchronisations; }  // of the host with the device, so far
// An address that cudaPointerGetAttributes calls a host address.
void fake_host_address(const void* address) { runtime.host_address = address; }
// Enqueues work that runs until `*flag` is not 0, but for five seconds at most: it then sets the flag to -1.
void fake_block_stream(cudaStream_t stream, volatile int* flag) {
    LOCK;
    enqueue(stream, [flag] {
        const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(5);
        while (!*flag) {
            if (std::chrono::steady_clock::now() > end) *flag = -1;
            std::this_thread::yield();
        }
    });
}
// A capture of another thread, in the global mode, which is torch's default; the second ends it, and returns whether it
// was invalidated.
void fake_begin_foreign_capture() {
    LOCK;
    runtime.foreign = {};
    runtime.foreign.capture = new std::vector<Work>;
}
int fake_end_foreign_capture() {
    LOCK;
    delete runtime.foreign.capture;
    runtime.foreign.capture = nullptr;
    return runtime.foreign.invalidated;
}
#pragma GCC visibility pop
}

namespace {
const bool installed = [] {
    jointbert::emulator::stream_queue() = [](cudaStream_t stream, Work launch) {
        LOCK;
        if (!runtime.skip_launches) enqueue(stream, std::move(launch));
    };
    return true;
}();
}  // namespace
