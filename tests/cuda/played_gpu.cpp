// jointbert._cuda for a GPU that the host plays: the module's own sources, with kernels run by fibers.h and this
// runtime. A stream does what it was asked when somebody waits for it, not before; memory of the device is the host's,
// and filled with NaN when it is taken. One call can be told to fail. What might be recorded by mistake breaks captures
// as CUDA's modes of capture have it. As CUDA's runtime it may be called from any thread: one at a time is at work.
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

#include "fibers.h"

namespace {

using Work = std::function<void()>;
struct Count {  // of what a stream was asked, and has done; events keep it
    long asked = 0, done = 0;
};
struct Stream {
    std::deque<Work> waiting;
    std::shared_ptr<Count> count = std::make_shared<Count>();
    std::vector<Work>* recording = nullptr;
    cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
    std::thread::id by;
    bool broken = false;
};
struct Played {
    std::map<void*, Stream*> streams;
    std::string failing;
    int devices = 1, capability = 90, driver = 13000;
    long allocated = 0, waits = 0;
    const void* of_the_host = nullptr;
    Stream legacy, elsewhere;
    std::deque<float> times;
    std::recursive_mutex working;
} played;
thread_local int current_device = 0;
thread_local cudaStreamCaptureMode capture_mode = cudaStreamCaptureModeGlobal;

Stream& stream_of(cudaStream_t stream) {
    const auto found = played.streams.find(stream);
    return found == played.streams.end() ? played.legacy : *found->second;
}
void finish(Stream& stream, long until = std::numeric_limits<long>::max()) {
    while (!stream.waiting.empty() && stream.count->done < until) {
        const Work work = stream.waiting.front();
        stream.waiting.pop_front();
        work();
        ++stream.count->done;
    }
}
bool at_work() {
    bool any = !played.legacy.waiting.empty();
    for (auto& [handle, stream] : played.streams) any |= !stream->waiting.empty();
    return any;
}
void finish_all() {  // the host waits for the device
    played.waits += at_work();
    finish(played.legacy);
    for (auto& [handle, stream] : played.streams) finish(*stream);
}
void enqueue(cudaStream_t stream, Work work) {
    Stream& to = stream_of(stream);
    if (to.recording)
        to.recording->push_back(std::move(work));
    else {
        to.waiting.push_back(std::move(work));
        ++to.count->asked;
    }
}
struct Event {
    cudaStream_t stream = nullptr;
    std::shared_ptr<Count> count;
    long asked = 0;
    bool captured = false;
};
Event& event_of(cudaEvent_t event) { return *reinterpret_cast<Event*>(event); }
cudaError_t result(const char* call) {
    if (played.failing != call) return cudaSuccess;
    played.failing.clear();
    return cudaErrorUnknown;
}
// A call that might be recorded by mistake: breaks the captures that forbid it.
cudaError_t unsafe() {
    if (capture_mode == cudaStreamCaptureModeRelaxed) return cudaSuccess;
    cudaError_t code = cudaSuccess;
    const auto ask = [&](Stream& stream) {
        const bool forbids =
            stream.recording && (stream.by == std::this_thread::get_id()
                                     ? stream.mode != cudaStreamCaptureModeRelaxed
                                     : stream.mode == cudaStreamCaptureModeGlobal && capture_mode == stream.mode);
        if (!forbids) return;
        stream.broken = true;
        code = cudaErrorStreamCaptureUnsupported;
    };
    ask(played.elsewhere);
    for (auto& [handle, stream] : played.streams) ask(*stream);
    return code;
}
cudaError_t take(void** memory, std::size_t bytes) {
    *memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
    std::memset(*memory, 0xff, bytes);
    ++played.allocated;
    return cudaSuccess;
}

}  // namespace

#define ALONE const std::lock_guard<std::recursive_mutex> alone(played.working)
#define CALL(name) \
    ALONE;         \
    if (const cudaError_t code = result(#name); code != cudaSuccess) return code

extern "C" {
cudaError_t cudaGetDeviceCount(int* count) {
    *count = played.devices;
    if (played.driver < 13000) return cudaErrorInsufficientDriver;
    return played.devices ? cudaSuccess : cudaErrorNoDevice;
}
cudaError_t cudaDriverGetVersion(int* version) { return *version = played.driver, cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int* version) { return *version = 13000, cudaSuccess; }
cudaError_t cudaGetDevice(int* device) { return *device = current_device, cudaSuccess; }
cudaError_t cudaSetDevice(int device) {
    if (device < 0 || device >= played.devices) return cudaErrorInvalidDevice;
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
             : attribute == cudaDevAttrComputeCapabilityMajor       ? played.capability / 10
             : attribute == cudaDevAttrComputeCapabilityMinor       ? played.capability % 10
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
    if (!played.times.empty()) {
        *ms = played.times.front();
        played.times.pop_front();
    }
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    CALL(cudaEventRecord);
    const Stream& asked = stream_of(stream);
    event_of(event) = {stream, asked.count, asked.count->asked, asked.recording != nullptr};
    return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
    CALL(cudaEventQuery);
    if (const cudaError_t code = unsafe(); code != cudaSuccess) return code;
    const Event& asked = event_of(event);
    if (asked.captured) {
        stream_of(asked.stream).broken = true;
        return cudaErrorCapturedEvent;
    }
    return asked.count->done < asked.asked ? cudaErrorNotReady : cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
    CALL(cudaStreamWaitEvent);
    enqueue(stream, [first = event_of(event)] { finish(stream_of(first.stream), first.asked); });
    return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
    delete reinterpret_cast<Event*>(event);
    return cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* at) {
    CALL(cudaPointerGetAttributes);
    *attributes = {};
    attributes->type = at && at != played.of_the_host ? cudaMemoryTypeDevice : cudaMemoryTypeUnregistered;
    return cudaSuccess;
}
cudaError_t cudaMemPoolCreate(cudaMemPool_t* pool, const cudaMemPoolProps*) {
    CALL(cudaMemPoolCreate);
    *pool = reinterpret_cast<cudaMemPool_t>(&played);
    ++played.allocated;
    return cudaSuccess;
}
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void*) {
    CALL(cudaMemPoolSetAttribute);
    return cudaSuccess;
}
cudaError_t cudaMemPoolDestroy(cudaMemPool_t) {
    ALONE;
    --played.allocated;
    return cudaSuccess;
}
cudaError_t cudaMalloc(void** memory, std::size_t bytes) {
    CALL(cudaMalloc);
    if (const cudaError_t code = unsafe(); code != cudaSuccess) return code;
    return take(memory, bytes);
}
cudaError_t cudaMallocHost(void** memory, std::size_t bytes) {
    CALL(cudaMallocHost);
    if (const cudaError_t code = unsafe(); code != cudaSuccess) return code;
    return take(memory, bytes);
}
cudaError_t cudaFree(void* memory) {
    ALONE;
    if (const cudaError_t code = unsafe(); code != cudaSuccess) return code;
    finish_all();
    played.allocated -= memory != nullptr;
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
    auto* made = new Stream;
    played.streams[made] = made;
    *stream = reinterpret_cast<cudaStream_t>(made);
    return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    ALONE;
    Stream* old = played.streams.at(stream);
    finish(*old);
    played.streams.erase(stream);
    delete old;
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    CALL(cudaStreamSynchronize);
    if (stream_of(stream).recording) {
        stream_of(stream).broken = true;
        return cudaErrorStreamCaptureUnsupported;
    }
    ++played.waits;
    finish(stream_of(stream));
    return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
    CALL(cudaStreamIsCapturing);
    *status = stream_of(stream).recording ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
    CALL(cudaStreamBeginCapture);
    Stream& recorded = stream_of(stream);
    recorded.recording = new std::vector<Work>;
    recorded.mode = mode;
    recorded.by = std::this_thread::get_id();
    recorded.broken = false;
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
    ALONE;
    Stream& recorded = stream_of(stream);
    *graph = reinterpret_cast<cudaGraph_t>(recorded.recording);
    recorded.recording = nullptr;
    if (recorded.broken) {
        delete reinterpret_cast<std::vector<Work>*>(*graph);
        *graph = nullptr;
        return cudaErrorStreamCaptureInvalidated;
    }
    return result("cudaStreamEndCapture");
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* ready, cudaGraph_t graph, unsigned long long) {
    CALL(cudaGraphInstantiate);
    *ready = reinterpret_cast<cudaGraphExec_t>(new std::vector<Work>(*reinterpret_cast<std::vector<Work>*>(graph)));
    return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete reinterpret_cast<std::vector<Work>*>(graph);
    return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) {
    ALONE;
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

// For the tests, by ctypes: the next call of a name fails; what lies between the next two events, behind what was said
// before; which of the next launches fails; how many devices there are, of which compute capability, for which driver;
// what is allocated now; how often the host has waited; an address that is
// no device's; a capture of
// another thread in the mode that torch takes, begun, and ended: whether it was broken.
extern "C" {
#pragma GCC visibility push(default)
void played_fail(const char* call) {
    ALONE;
    played.failing = call;
}
void played_time(float ms) {
    ALONE;
    played.times.push_back(ms);
}
void played_refuse(int ahead) { jointbert::fibers::refusal().ahead = ahead; }
void played_devices(int count, int capability, int driver) {
    played.devices = count;
    played.capability = capability;
    played.driver = driver;
}
long played_allocated() { return played.allocated; }
long played_waits() { return played.waits; }
void played_of_the_host(const void* at) { played.of_the_host = at; }
// Work that goes on when `*flag` is no longer 0, or, if that does not happen, in five seconds, with -1 there.
void played_hold(cudaStream_t stream, volatile int* flag) {
    ALONE;
    enqueue(stream, [flag] {
        const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(5);
        while (!*flag) {
            if (std::chrono::steady_clock::now() > end) *flag = -1;
            std::this_thread::yield();
        }
    });
}
void played_begin_elsewhere() {
    ALONE;
    played.elsewhere = {};
    played.elsewhere.recording = new std::vector<Work>;
}
int played_end_elsewhere() {
    ALONE;
    delete played.elsewhere.recording;
    played.elsewhere.recording = nullptr;
    return played.elsewhere.broken;
}
#pragma GCC visibility pop
}

namespace {
const bool ready = [] {
    jointbert::fibers::launcher() = [](cudaStream_t stream, Work launch) {
        ALONE;
        enqueue(stream, std::move(launch));
    };
    return true;
}();
}  // namespace
