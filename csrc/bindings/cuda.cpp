// jointbert._cuda: the kernels behind raw device pointers. Shapes, dtypes and devices are checked in Python.
#include <cuda_runtime_api.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "../cuda/device_refiner.h"
#include "../cuda/resources.h"
#include "../cuda/session.h"
#include "../cuda/soft_argmax.h"
#include "dlpack.h"

namespace py = pybind11;

namespace jointbert::cuda {
namespace {

// Devices that can be used, and 0 with a reason where there are none.
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

// The arguments that forward and backward share.
struct Call {
    Call(std::uintptr_t values, int element, int poses, int height, int width, bool channels_last, bool soft,
         float beta, int window)
        : maps{pointer<const void>(values), Element(element), poses, height, width, channels_last},
          options{soft ? Peak::kSoft : Peak::kArgmax, beta, window} {
        if (element < 0 || element > int(Element::kBFloat16)) throw py::value_error("element: expected 0, 1 or 2");
        if (poses < 0 || height < 1 || width < 1 || height > kMaxSide || width > kMaxSide)
            throw py::value_error("heatmaps: expected up to " + std::to_string(kMaxSide) + " x " +
                                  std::to_string(kMaxSide));
    }
    Heatmaps maps;
    SoftArgmaxOptions options;
};

void forward(std::uintptr_t values, int element, int poses, int height, int width, bool channels_last, bool soft,
             float beta, int window, std::uintptr_t uv, std::uintptr_t confidence, std::uintptr_t status,
             std::uintptr_t stream, int device) {
    const Call call(values, element, poses, height, width, channels_last, soft, beta, window);
    const Keypoints out{pointer<float>(uv), pointer<float>(confidence), pointer<std::uint8_t>(status)};
    const OnDevice on(device);
    const py::gil_scoped_release release;
    check(soft_argmax(call.maps, call.options, out, pointer<CUstream_st>(stream)), "soft_argmax");
}

void with_depth(std::uintptr_t values, int element, int poses, int height, int width, bool soft, float beta, int window,
                std::uintptr_t weight, std::uintptr_t bias, std::uintptr_t uv, std::uintptr_t confidence,
                std::uintptr_t status, std::uintptr_t depth, std::uintptr_t memory, std::uintptr_t stream, int device) {
    const Call call(values, element, poses, height, width, false, soft, beta, window);
    const Keypoints out{pointer<float>(uv), pointer<float>(confidence), pointer<std::uint8_t>(status)};
    const DepthHead head{pointer<const void>(weight), pointer<const float>(bias), pointer<float>(depth)};
    const OnDevice on(device);
    const py::gil_scoped_release release;
    check(soft_argmax_depth(call.maps, call.options, head, out, pointer<void>(memory), pointer<CUstream_st>(stream)),
          "soft_argmax_depth");
}

void backward(std::uintptr_t values, int element, int poses, int height, int width, bool channels_last, bool soft,
              float beta, int window, std::uintptr_t status, std::uintptr_t to_uv, std::uintptr_t to_confidence,
              std::uintptr_t gradient, std::uintptr_t stream, int device) {
    const Call call(values, element, poses, height, width, channels_last, soft, beta, window);
    const Keypoints found{nullptr, nullptr, pointer<std::uint8_t>(status)};
    const KeypointGradients gradients{pointer<const float>(to_uv), pointer<const float>(to_confidence)};
    const OnDevice on(device);
    const py::gil_scoped_release release;
    check(soft_argmax_backward(call.maps, call.options, found, gradients, pointer<void>(gradient),
                               pointer<CUstream_st>(stream)),
          "soft_argmax_backward");
}

// Destroys without the GIL: giving memory back waits for the device, and what is at work there may want the GIL.
template <class T>
struct WithoutGil {
    void operator()(T* object) const {
        const py::gil_scoped_release release;
        delete object;
    }
};
template <class T>
using Owned = std::unique_ptr<T, WithoutGil<T>>;
using NoGil = py::call_guard<py::gil_scoped_release>;

using Bytes = py::array_t<std::uint8_t, py::array::c_style>;

Owned<DeviceRefiner> make_refiner(const Bytes& ends, const Bytes& chunks, int layers, int precision, int device) {
    const void *e = ends.data(), *c = chunks.data();
    const auto eb = std::size_t(ends.nbytes()), cb = std::size_t(chunks.nbytes());
    const py::gil_scoped_release release;
    return Owned<DeviceRefiner>(new DeviceRefiner(e, eb, c, cb, layers, Precision(precision), device));
}

// Addresses are the device's, 0 for what is not given; variant -1: the one for this batch.
void run_refiner(const DeviceRefiner& refiner, std::uintptr_t joints, int number, int count,
                 const std::array<unsigned char, kJoints>& order, double mm_per_unit, bool mirror_all,
                 std::uintptr_t mirror, std::uintptr_t visible, std::uintptr_t confidence, std::uintptr_t error_mm,
                 float error_all_mm, std::uintptr_t refined, std::uintptr_t sigma, std::uintptr_t status,
                 std::uintptr_t size_mm, std::uintptr_t chirality, std::uintptr_t stream, int variant) {
    Poses poses{pointer<const void>(joints),
                Number(number),
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
    const Refined out{pointer<void>(refined), pointer<float>(sigma), pointer<std::uint8_t>(status),
                      pointer<float>(size_mm), pointer<float>(chirality)};
    if (variant > int(Variant::kTiles)) throw py::value_error("variant: expected 0, 1, 2 or -1");
    const Variant which = variant < 0 ? refiner.choose(count) : Variant(variant);
    const py::gil_scoped_release release;
    refiner.run(poses, out, which, pointer<CUstream_st>(stream));
}

// Arrays of the host, C order, at least as many bytes as their rows need: checked here, since C++ would read beyond.
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
        throw py::value_error("run: another number of inputs or outputs than this session has");
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

void copy(std::uintptr_t to, std::uintptr_t from, std::size_t bytes, int device, std::uintptr_t stream) {
    const OnDevice on(device);
    const py::gil_scoped_release release;
    check(cudaMemcpyAsync(pointer<void>(to), pointer<const void>(from), bytes, cudaMemcpyDefault,
                          pointer<CUstream_st>(stream)),
          "cudaMemcpyAsync");
}

// The device whose memory an address lies in; -1: none.
int device_of(std::uintptr_t at) {
    cudaPointerAttributes attributes{};
    const cudaError_t code = cudaPointerGetAttributes(&attributes, pointer<const void>(at));
    if (code == cudaErrorInvalidValue) return cudaGetLastError(), -1;
    check(code, "cudaPointerGetAttributes");
    return attributes.type == cudaMemoryTypeDevice || attributes.type == cudaMemoryTypeManaged ? attributes.device : -1;
}

// What `later` is asked from now on waits for what `first` was asked until now; nobody else does.
void order(std::uintptr_t first, std::uintptr_t later, int device) {
    const OnDevice on(device);
    cudaEvent_t event = nullptr;
    check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreateWithFlags");
    cudaError_t code = cudaEventRecord(event, pointer<CUstream_st>(first));
    if (code == cudaSuccess) code = cudaStreamWaitEvent(pointer<CUstream_st>(later), event, 0);
    cudaEventDestroy(event);
    check(code, "cudaStreamWaitEvent");
}

bool is_capturing(std::uintptr_t stream, int device) {
    const OnDevice on(device);
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    // The legacy stream can't be captured; while another one is that waits for it, this says so by an error.
    if (cudaStreamIsCapturing(pointer<CUstream_st>(stream), &status) != cudaSuccess) cudaGetLastError();
    return status != cudaStreamCaptureStatusNone;
}

void synchronize(std::uintptr_t stream, int device) {
    const OnDevice on(device);
    const py::gil_scoped_release release;
    check(cudaStreamSynchronize(pointer<CUstream_st>(stream)), "cudaStreamSynchronize");
}

}  // namespace
}  // namespace jointbert::cuda

PYBIND11_MODULE(_cuda, m) {
    using namespace jointbert::cuda;
    m.doc() = "Kernels for NVIDIA GPUs, behind device pointers.";
    m.def("devices", &devices);
    m.def("soft_argmax", &forward, py::arg("values"), py::arg("element"), py::arg("poses"), py::arg("height"),
          py::arg("width"), py::arg("channels_last"), py::arg("soft"), py::arg("beta"), py::arg("window"),
          py::arg("uv"), py::arg("confidence"), py::arg("status"), py::arg("stream"), py::arg("device"));
    m.def("soft_argmax_depth", &with_depth, py::arg("values"), py::arg("element"), py::arg("poses"), py::arg("height"),
          py::arg("width"), py::arg("soft"), py::arg("beta"), py::arg("window"), py::arg("weight"), py::arg("bias"),
          py::arg("uv"), py::arg("confidence"), py::arg("status"), py::arg("depth"), py::arg("memory"),
          py::arg("stream"), py::arg("device"));
    m.def("soft_argmax_depth_memory", &soft_argmax_depth_memory, py::arg("poses"));
    m.def("soft_argmax_backward", &backward, py::arg("values"), py::arg("element"), py::arg("poses"), py::arg("height"),
          py::arg("width"), py::arg("channels_last"), py::arg("soft"), py::arg("beta"), py::arg("window"),
          py::arg("status"), py::arg("to_uv"), py::arg("to_confidence"), py::arg("gradient"), py::arg("stream"),
          py::arg("device"));
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
        .def_property_readonly("stream", [](const GraphSession& self) { return address(self.stream()); })
        // Without the GIL: whoever captures holds the session, and needs the GIL to go on.
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
        .def(py::init([](std::uintptr_t stream, int device) {
                 return Owned<Event>(new Event(pointer<CUstream_st>(stream), device));
             }),
             py::arg("stream"), py::arg("device"), NoGil())
        .def_property_readonly("passed", py::cpp_function(&Event::passed, NoGil()));
    py::class_<Memory, Owned<Memory>>(m, "Memory")
        .def(py::init<std::size_t, int>(), py::arg("bytes"), py::arg("device"), NoGil())
        .def_property_readonly("address", [](const Memory& self) { return address(self.data()); });
    m.def("copy", &copy, py::arg("to"), py::arg("source"), py::arg("bytes"), py::arg("device"), py::arg("stream"));
    m.def("order", &order, py::arg("first"), py::arg("later"), py::arg("device"), NoGil());
    m.def("is_capturing", &is_capturing, py::arg("stream"), py::arg("device"), NoGil());
    m.def("device_of", &device_of, py::arg("address"));
    m.def("synchronize", &synchronize, py::arg("stream"), py::arg("device"));
    m.def("read_dlpack", &jointbert::dlpack::read, py::arg("capsule"));
    m.def("write_dlpack", &jointbert::dlpack::write, py::arg("data"), py::arg("shape"), py::arg("code"),
          py::arg("bits"), py::arg("device"), py::arg("owner"));
    m.attr("ARCHITECTURES") = JOINTBERT_CUDA_ARCHS;
}
