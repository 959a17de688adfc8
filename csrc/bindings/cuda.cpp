// jointbert._cuda: the kernels behind raw device pointers. Shapes, dtypes and devices are checked in Python.
#include <cuda_runtime_api.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "../cuda/soft_argmax.h"

namespace py = pybind11;

namespace jointbert::cuda {
namespace {

// What a CUDA call says of itself, with its name.
void check(cudaError_t code, const char* call) {
    if (code == cudaSuccess) return;
    throw std::runtime_error(std::string(call) + ": " + cudaGetErrorString(code) + " (CUDA error " +
                             std::to_string(int(code)) + ")");
}

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
             std::uintptr_t stream) {
    const Call call(values, element, poses, height, width, channels_last, soft, beta, window);
    const Keypoints out{pointer<float>(uv), pointer<float>(confidence), pointer<std::uint8_t>(status)};
    const py::gil_scoped_release release;
    check(soft_argmax(call.maps, call.options, out, pointer<CUstream_st>(stream)), "soft_argmax");
}

void backward(std::uintptr_t values, int element, int poses, int height, int width, bool channels_last, bool soft,
              float beta, int window, std::uintptr_t status, std::uintptr_t to_uv, std::uintptr_t to_confidence,
              std::uintptr_t gradient, std::uintptr_t stream) {
    const Call call(values, element, poses, height, width, channels_last, soft, beta, window);
    const Keypoints found{nullptr, nullptr, pointer<std::uint8_t>(status)};
    const KeypointGradients gradients{pointer<const float>(to_uv), pointer<const float>(to_confidence)};
    const py::gil_scoped_release release;
    check(soft_argmax_backward(call.maps, call.options, found, gradients, pointer<void>(gradient),
                               pointer<CUstream_st>(stream)),
          "soft_argmax_backward");
}

}  // namespace
}  // namespace jointbert::cuda

PYBIND11_MODULE(_cuda, m) {
    using namespace jointbert::cuda;
    m.doc() = "Kernels for NVIDIA GPUs, behind device pointers.";
    m.def("devices", &devices);
    m.def("soft_argmax", &forward, py::arg("values"), py::arg("element"), py::arg("poses"), py::arg("height"),
          py::arg("width"), py::arg("channels_last"), py::arg("soft"), py::arg("beta"), py::arg("window"),
          py::arg("uv"), py::arg("confidence"), py::arg("status"), py::arg("stream"));
    m.def("soft_argmax_backward", &backward, py::arg("values"), py::arg("element"), py::arg("poses"), py::arg("height"),
          py::arg("width"), py::arg("channels_last"), py::arg("soft"), py::arg("beta"), py::arg("window"),
          py::arg("status"), py::arg("to_uv"), py::arg("to_confidence"), py::arg("gradient"), py::arg("stream"));
    m.attr("ARCHITECTURES") = JOINTBERT_CUDA_ARCHS;
}
