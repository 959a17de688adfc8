// jointbert._cuda: the kernels and CUDA resources for Python, by raw device pointers. Python checks shapes, types and
// devices. jointbert/_cuda.pyi documents the module.
#include <cuda_runtime_api.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "../cuda/common/resources.h"
#include "../cuda/common/session.h"
#include "../cuda/heatmaps/soft_argmax.h"
#include "../cuda/refiner/device_refiner.h"
#include "dlpack.h"

namespace py = pybind11;

namespace jointbert::cuda {
namespace {

// The number of usable devices, and the reason where there are none.
py::tuple devices() {
    int count = 0, driver = 0, runtime = 0;
    const cudaError_t code = cudaGetDeviceCount(&count);
    if (code == cudaSuccess && count) return py::make_tuple(count, "");
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    const auto version = [](int v) { return std::to_string(v / 1000) + "." + std::to_string(v % 1000 / 10); };
    if (code == cudaErrorInsufficientDriver && driver)
        return py::make_tuple(0,
                              "the driver is for CUDA " + version(driver) + ", this build needs " + version(runtime));
    if (code == cudaSuccess || code == cudaErrorNoDevice || code == cudaErrorInsufficientDriver)
        return py::make_tuple(0, "there is no GPU, or no driver for it");
    if (code == cudaErrorInitializationError)
        return py::make_tuple(
            0,
            "CUDA can't be initialised; a process that was forked from one that had used CUDA can't use "
            "it: start it by multiprocessing's 'spawn'");
    return py::make_tuple(0, std::string(cudaGetErrorString(code)));
}

template <class T>
T* pointer(std::uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

// --- heatmaps

// The arguments that the heatmap functions share.
struct HeatmapArguments {
    HeatmapArguments(std::uintptr_t values, int element, int poses, int height, int width, bool channels_last,
                     bool soft, float beta, int window)
        : maps{pointer<const void>(values), ElementType(element), poses, height, width, channels_last},
          options{soft ? PeakMode::kSoft : PeakMode::kArgmax, beta, window} {
        if (element < 0 || element > int(ElementType::kBFloat16)) throw py::value_error("element: expected 0, 1 or 2");
        if (poses < 0 || height < 1 || width < 1 || height > kMaxSide || width > kMaxSide)
            throw py::value_error("heatmaps: expected up to " + std::to_string(kMaxSide) + " x " +
                                  std::to_string(kMaxSide));
    }
    Heatmaps maps;
    SoftArgmaxOptions options;
};

void soft_argmax_forward(std::uintptr_t values, int element, int poses, int height, int width, bool channels_last,
                         bool soft, float beta, int window, std::uintptr_t uv, std::uintptr_t confidence,
                         std::uintptr_t status, std::uintptr_t cuda_stream, int device) {
    const HeatmapArguments given(values, element, poses, height, width, channels_last, soft, beta, window);
    const KeypointPointers out{pointer<float>(uv), pointer<float>(confidence), pointer<std::uint8_t>(status)};
    const DeviceGuard guard(device);
    const py::gil_scoped_release release;
    check(soft_argmax(given.maps, given.options, out, pointer<CUstream_st>(cuda_stream)), "soft_argmax");
}

void soft_argmax_with_depth(std::uintptr_t values, int element, int poses, int height, int width, bool soft, float beta,
                            int window, std::uintptr_t weight, std::uintptr_t bias, std::uintptr_t uv,
                            std::uintptr_t confidence, std::uintptr_t status, std::uintptr_t depth,
                            std::uintptr_t memory, std::uintptr_t cuda_stream, int device) {
    const HeatmapArguments given(values, element, poses, height, width, false, soft, beta, window);
    const KeypointPointers out{pointer<float>(uv), pointer<float>(confidence), pointer<std::uint8_t>(status)};
    const DepthHead head{pointer<const void>(weight), pointer<const float>(bias), pointer<float>(depth)};
    const DeviceGuard guard(device);
    const py::gil_scoped_release release;
    check(soft_argmax_depth(given.maps, given.options, head, out, pointer<void>(memory),
                            pointer<CUstream_st>(cuda_stream)),
          "soft_argmax_depth");
}

void soft_argmax_gradient(std::uintptr_t values, int element, int poses, int height, int width, bool channels_last,
                          bool soft, float beta, int window, std::uintptr_t status, std::uintptr_t to_uv,
                          std::uintptr_t to_confidence, std::uintptr_t gradient, std::uintptr_t cuda_stream,
                          int device) {
    const HeatmapArguments given(values, element, poses, height, width, channels_last, soft, beta, window);
    const KeypointPointers found{nullptr, nullptr, pointer<std::uint8_t>(status)};
    const KeypointGradients gradients{pointer<const float>(to_uv), pointer<const float>(to_confidence)};
    const DeviceGuard guard(device);
    const py::gil_scoped_release release;
    check(soft_argmax_backward(given.maps, given.options, found, gradients, pointer<void>(gradient),
                               pointer<CUstream_st>(cuda_stream)),
          "soft_argmax_backward");
}

// --- refiner

// Destroys an object without the GIL: freeing memory waits for the device, and work there may need the GIL.
template <class T>
struct DeleteWithoutGil {
    void operator()(T* object) const {
        const py::gil_scoped_release release;
        delete object;
    }
};
template <class T>
using Owned = std::unique_ptr<T, DeleteWithoutGil<T>>;
using NoGil = py::call_guard<py::gil_scoped_release>;

using Bytes = py::array_t<std::uint8_t, py::array::c_style>;

Owned<DeviceRefiner> make_refiner(const Bytes& ends, const Bytes& chunks, int layers, int precision, int device) {
    const void *e = ends.data(), *c = chunks.data();
    const auto eb = std::size_t(ends.nbytes()), cb = std::size_t(chunks.nbytes());
    const py::gil_scoped_release release;
    return Owned<DeviceRefiner>(new DeviceRefiner(e, eb, c, cb, layers, Precision(precision), device));
}

void check_order(const std::vector<int>& order) {
    std::array<bool, kJoints> taken{};
    bool valid = order.size() == kJoints;
    for (std::size_t i = 0; valid && i < kJoints; ++i)
        valid = order[i] >= 0 && order[i] < int(kJoints) && !std::exchange(taken[std::size_t(order[i])], true);
    if (!valid)
        throw py::value_error("order: expected each of 0 to " + std::to_string(kJoints - 1) +
                              " once: the kernels are for " + std::to_string(kJoints) + " joints");
}

// Addresses are the device's, 0 for an argument that is not given. Variant -1: the fastest for this number of poses.
void run_refiner(const DeviceRefiner& refiner, std::uintptr_t joints, int number, int count,
                 const std::vector<int>& order, double mm_per_unit, bool mirror_all, std::uintptr_t mirror,
                 std::uintptr_t visible, std::uintptr_t confidence, std::uintptr_t error_mm, float error_all_mm,
                 std::uintptr_t refined, std::uintptr_t sigma, std::uintptr_t status, std::uintptr_t size_mm,
                 std::uintptr_t chirality, std::uintptr_t cuda_stream, int variant) {
    check_order(order);
    if (number < 0 || number > int(CoordinateType::kBFloat16)) throw py::value_error("number: expected 0, 1, 2 or 3");
    if (variant > int(Variant::kTiles)) throw py::value_error("variant: expected 0, 1, 2 or -1");
    DevicePoses poses{pointer<const void>(joints),
                      CoordinateType(number),
                      count,
                      {},
                      mm_per_unit,
                      mirror_all,
                      pointer<const std::uint8_t>(mirror),
                      pointer<const std::uint8_t>(visible),
                      pointer<const float>(confidence),
                      pointer<const float>(error_mm),
                      error_all_mm};
    std::copy(order.begin(), order.end(), poses.order);
    const DeviceRefinedPoses out{pointer<void>(refined), pointer<float>(sigma), pointer<std::uint8_t>(status),
                                 pointer<float>(size_mm), pointer<float>(chirality)};
    const Variant which = variant < 0 ? refiner.choose(count) : Variant(variant);
    const py::gil_scoped_release release;
    refiner.run(poses, out, which, pointer<CUstream_st>(cuda_stream));
}

// --- sessions, memory, streams

// Host arrays in C order. Their sizes are checked here: a shorter array would be read beyond its end.
void run_session(GraphSession& session, std::size_t rows, const std::vector<py::buffer>& inputs,
                 const std::vector<py::buffer>& outputs) {
    std::vector<const void*> from;
    std::vector<void*> to;
    std::vector<py::buffer_info> kept;
    const auto checked = [&](py::buffer_info&& info, std::size_t row_bytes) {
        if (std::size_t(info.size) * std::size_t(info.itemsize) < rows * row_bytes)
            throw py::value_error("run: an array is shorter than its rows");
        return kept.emplace_back(std::move(info)).ptr;
    };
    if (inputs.size() != session.inputs() || outputs.size() != session.outputs())
        throw py::value_error("run: got " + std::to_string(inputs.size()) + " inputs and " +
                              std::to_string(outputs.size()) + " outputs; this session has " +
                              std::to_string(session.inputs()) + " and " + std::to_string(session.outputs()));
    for (std::size_t i = 0; i < inputs.size(); ++i)
        from.push_back(checked(inputs[i].request(), session.input_row_bytes(i)));
    for (std::size_t i = 0; i < outputs.size(); ++i)
        to.push_back(checked(outputs[i].request(true), session.output_row_bytes(i)));
    const py::gil_scoped_release release;
    session.run(rows, from, to);
}

template <class T>
std::uintptr_t address(T* pointer) {
    return reinterpret_cast<std::uintptr_t>(pointer);
}

void copy(std::uintptr_t to, std::uintptr_t from, std::size_t bytes, int device, std::uintptr_t cuda_stream) {
    const DeviceGuard guard(device);
    const py::gil_scoped_release release;
    check(cudaMemcpyAsync(pointer<void>(to), pointer<const void>(from), bytes, cudaMemcpyDefault,
                          pointer<CUstream_st>(cuda_stream)),
          "cudaMemcpyAsync");
}

// The device whose memory holds an address; -1: none.
int device_of(std::uintptr_t at) {
    cudaPointerAttributes attributes{};
    const cudaError_t code = cudaPointerGetAttributes(&attributes, pointer<const void>(at));
    if (code == cudaErrorInvalidValue) return cudaGetLastError(), -1;
    check(code, "cudaPointerGetAttributes");
    return attributes.type == cudaMemoryTypeDevice || attributes.type == cudaMemoryTypeManaged ? attributes.device : -1;
}

// Makes later work on the stream `later` wait for the work enqueued on the stream `first` so far.
void order_streams(std::uintptr_t first, std::uintptr_t later, int device) {
    const DeviceGuard guard(device);
    cudaEvent_t event = nullptr;
    check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreateWithFlags");
    cudaError_t code = cudaEventRecord(event, pointer<CUstream_st>(first));
    if (code == cudaSuccess) code = cudaStreamWaitEvent(pointer<CUstream_st>(later), event, 0);
    cudaEventDestroy(event);
    check(code, "cudaStreamWaitEvent");
}

bool is_capturing(std::uintptr_t cuda_stream, int device) {
    const DeviceGuard guard(device);
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    // The legacy stream can not be captured. The query fails for it while a blocking stream is captured.
    if (cudaStreamIsCapturing(pointer<CUstream_st>(cuda_stream), &status) != cudaSuccess) cudaGetLastError();
    return status != cudaStreamCaptureStatusNone;
}

void synchronize(std::uintptr_t cuda_stream, int device) {
    const DeviceGuard guard(device);
    const py::gil_scoped_release release;
    check(cudaStreamSynchronize(pointer<CUstream_st>(cuda_stream)), "cudaStreamSynchronize");
}

// --- constants

template <class Code>
py::dict codes(std::initializer_list<std::pair<const char*, Code>> names) {
    py::dict result;
    for (const auto& [name, code] : names) result[name] = int(code);
    return result;
}

void export_constants(py::module_& m) {
    m.attr("ARCHITECTURES") = JOINTBERT_CUDA_ARCHS;
    m.attr("NUM_JOINTS") = kJoints;
    m.attr("HEADS") = kHeads;
    m.attr("WIDTH") = kWidth;
    m.attr("FFN") = kFfn;
    m.attr("FEATURES") = kFeatures;
    m.attr("OUTPUTS") = kOutputs;
    m.attr("CHUNKS") = kChunks;
    m.attr("CHUNK_INNER") = kChunkInner;
    m.attr("CHUNK_OUTER") = kChunkOuter;
    m.attr("MAX_HEATMAP") = kMaxSide;
    m.attr("NUMBERS") = codes<CoordinateType>({{"float32", CoordinateType::kFloat32},
                                               {"float64", CoordinateType::kFloat64},
                                               {"float16", CoordinateType::kFloat16},
                                               {"bfloat16", CoordinateType::kBFloat16}});
    m.attr("ELEMENTS") = codes<ElementType>(
        {{"float32", ElementType::kFloat32}, {"float16", ElementType::kFloat16}, {"bfloat16", ElementType::kBFloat16}});
    m.attr("PRECISIONS") = codes<Precision>({{"f16", Precision::kFloat16}, {"bf16", Precision::kBFloat16}});
    m.attr("VARIANTS") =
        codes<Variant>({{"cluster", Variant::kCluster}, {"grid", Variant::kGrid}, {"tiles", Variant::kTiles}});
}

}  // namespace
}  // namespace jointbert::cuda

PYBIND11_MODULE(_cuda, m) {
    using namespace jointbert::cuda;
    m.doc() = "Kernels for NVIDIA GPUs, behind device pointers.";
    m.def("devices", &devices);
    m.def("soft_argmax", &soft_argmax_forward, py::arg("values"), py::arg("element"), py::arg("poses"),
          py::arg("height"), py::arg("width"), py::arg("channels_last"), py::arg("soft"), py::arg("beta"),
          py::arg("window"), py::arg("uv"), py::arg("confidence"), py::arg("status"), py::arg("stream"),
          py::arg("device"));
    m.def("soft_argmax_depth", &soft_argmax_with_depth, py::arg("values"), py::arg("element"), py::arg("poses"),
          py::arg("height"), py::arg("width"), py::arg("soft"), py::arg("beta"), py::arg("window"), py::arg("weight"),
          py::arg("bias"), py::arg("uv"), py::arg("confidence"), py::arg("status"), py::arg("depth"), py::arg("memory"),
          py::arg("stream"), py::arg("device"));
    m.def("soft_argmax_depth_memory", &soft_argmax_depth_memory, py::arg("poses"));
    m.def("soft_argmax_backward", &soft_argmax_gradient, py::arg("values"), py::arg("element"), py::arg("poses"),
          py::arg("height"), py::arg("width"), py::arg("channels_last"), py::arg("soft"), py::arg("beta"),
          py::arg("window"), py::arg("status"), py::arg("to_uv"), py::arg("to_confidence"), py::arg("gradient"),
          py::arg("stream"), py::arg("device"));
    py::class_<DeviceRefiner, Owned<DeviceRefiner>>(m, "Refiner")
        .def(py::init(&make_refiner), py::arg("ends"), py::arg("chunks"), py::arg("layers"), py::arg("precision"),
             py::arg("device"))
        .def("run", &run_refiner, py::arg("joints"), py::arg("number"), py::arg("count"), py::arg("order"),
             py::arg("mm_per_unit"), py::arg("mirror_all"), py::arg("mirror"), py::arg("visible"),
             py::arg("confidence"), py::arg("error_mm"), py::arg("error_all_mm"), py::arg("refined"), py::arg("sigma"),
             py::arg("status"), py::arg("size_mm"), py::arg("chirality"), py::arg("stream"), py::arg("variant") = -1)
        .def("measure", &DeviceRefiner::measure, py::arg("sizes"), NoGil())
        .def_property_readonly("measured",
                               [](const DeviceRefiner& self) {
                                   std::vector<std::tuple<int, int, float>> rows;
                                   for (const auto& f : self.measured())
                                       rows.emplace_back(f.poses, int(f.variant), f.us);
                                   return rows;
                               })
        .def(
            "choose", [](const DeviceRefiner& self, int poses) { return int(self.choose(poses)); }, py::arg("poses"))
        .def_property_readonly("device", &DeviceRefiner::device)
        .def_property_readonly("clusters", [](const DeviceRefiner& self) { return self.properties().clusters; });
    py::class_<GraphSession, Owned<GraphSession>>(m, "GraphSession")
        .def(py::init<std::vector<std::size_t>, std::vector<std::size_t>, std::size_t, int>(), py::arg("inputs"),
             py::arg("outputs"), py::arg("rows"), py::arg("device"), NoGil())
        .def_property_readonly("stream", [](const GraphSession& self) { return address(self.cuda_stream()); })
        // Without the GIL: the thread that captures holds the session's lock, and may need the GIL.
        .def_property_readonly("recorded", py::cpp_function(&GraphSession::recorded, NoGil()))
        .def(
            "input", [](const GraphSession& self, std::size_t i) { return address(self.input(i)); }, py::arg("i"))
        .def(
            "output", [](const GraphSession& self, std::size_t i) { return address(self.output(i)); }, py::arg("i"))
        .def("begin", &GraphSession::begin, py::arg("rows"), NoGil())
        .def("end", &GraphSession::end, NoGil())
        .def("abandon", &GraphSession::abandon, NoGil())
        .def("run", &run_session, py::arg("rows"), py::arg("inputs"), py::arg("outputs"));
    py::class_<Event, Owned<Event>>(m, "Event")
        .def(py::init([](std::uintptr_t cuda_stream, int device) {
                 return Owned<Event>(new Event(pointer<CUstream_st>(cuda_stream), device));
             }),
             py::arg("stream"), py::arg("device"), NoGil())
        .def_property_readonly("passed", py::cpp_function(&Event::passed, NoGil()));
    py::class_<Memory, Owned<Memory>>(m, "Memory")
        .def(py::init<std::size_t, int>(), py::arg("bytes"), py::arg("device"), NoGil())
        .def_property_readonly("address", [](const Memory& self) { return address(self.data()); });
    m.def("copy", &copy, py::arg("to"), py::arg("source"), py::arg("bytes"), py::arg("device"), py::arg("stream"));
    m.def("order", &order_streams, py::arg("first"), py::arg("later"), py::arg("device"), NoGil());
    m.def("is_capturing", &is_capturing, py::arg("stream"), py::arg("device"), NoGil());
    m.def("device_of", &device_of, py::arg("address"));
    m.def("synchronize", &synchronize, py::arg("stream"), py::arg("device"));
    m.def("read_dlpack", &jointbert::dlpack::read, py::arg("capsule"));
    m.def("write_dlpack", &jointbert::dlpack::write, py::arg("data"), py::arg("shape"), py::arg("code"),
          py::arg("bits"), py::arg("device"), py::arg("owner"));
    export_constants(m);
}
