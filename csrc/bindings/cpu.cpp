// jointbert._core: checks what Python passes and hands it to the refiner. jointbert/_core.pyi documents the module.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "../cpu/contract.h"
#include "../cpu/isa.h"
#include "../cpu/refiner.h"

namespace py = pybind11;

namespace jointbert {
namespace {

// An array that is strided or not aligned to its items is copied by NumPy; any other is used as it lies.
template <typename T>
using Array = py::array_t<T, py::array::c_style | py::detail::npy_api::NPY_ARRAY_ALIGNED_>;

using Shape = std::vector<py::ssize_t>;

constexpr py::ssize_t kAny = -1;  // in an expected shape

std::string type_name(const py::handle& value) { return py::cast<std::string>(py::type::of(value).attr("__name__")); }

std::string text(const py::array& array) { return py::cast<std::string>(py::str(array.attr("shape"))); }

std::string text(const Shape& shape) {
    std::string s = "(";
    for (std::size_t i = 0; i < shape.size(); ++i)
        s += (i ? ", " : "") + (shape[i] == kAny ? "N" : std::to_string(shape[i]));
    return s + (shape.size() == 1 ? ",)" : ")");
}

py::array check_array(const char* name, const py::handle& value, const Shape& shape) {
    if (!py::isinstance<py::array>(value))
        throw py::type_error(std::string(name) + ": got " + type_name(value) + "; expected a NumPy array");
    auto array = py::reinterpret_borrow<py::array>(value);
    bool fits = array.ndim() == py::ssize_t(shape.size());
    for (std::size_t i = 0; fits && i < shape.size(); ++i)
        fits = shape[i] == kAny || array.shape(py::ssize_t(i)) == shape[i];
    if (!fits) throw py::value_error(std::string(name) + ": got shape " + text(array) + "; expected " + text(shape));
    return array;
}

template <typename T>
Array<T> check(const char* name, const py::handle& value, const Shape& shape, const char* type) {
    const py::array array = check_array(name, value, shape);
    if (!py::isinstance<py::array_t<T>>(array))
        throw py::type_error(std::string(name) + ": got " + py::cast<std::string>(py::str(array.dtype())) +
                             "; expected " + type);
    auto ready = Array<T>::ensure(array);
    if (!ready) throw py::error_already_set();
    return ready;
}

// An optional array stays alive as long as this does.
template <typename T>
class Optional {
  public:
    Optional(const char* name, const py::handle& value, const Shape& shape, const char* type) {
        if (!value.is_none()) array_ = check<T>(name, value, shape, type);
    }
    const T* data() const { return array_ ? array_->data() : nullptr; }
    // A bool's byte: one made by hand from another array may hold more than 0 and 1, which a C++ bool may not.
    const std::uint8_t* bytes() const {
        return array_ ? static_cast<const std::uint8_t*>(py::array(*array_).data()) : nullptr;
    }

  private:
    std::optional<Array<T>> array_;
};

std::size_t check_threads(long threads) {
    if (threads < 1) throw py::value_error("threads: got " + std::to_string(threads) + "; expected at least 1");
    return std::size_t(threads);
}

std::array<std::size_t, kJoints> check_permutation(const py::handle& value) {
    const auto given = check<std::int32_t>("permutation", value, {kJoints}, "int32");
    std::array<std::size_t, kJoints> permutation{};
    std::array<bool, kJoints> taken{};
    for (std::size_t i = 0; i < kJoints; ++i) {
        const std::int32_t at = given.data()[i];
        if (at < 0 || at >= std::int32_t(kJoints) || taken[std::size_t(at)])
            throw py::value_error("permutation: " + std::to_string(at) + " at " + std::to_string(i) +
                                  "; expected each of 0 to 13 once");
        taken[std::size_t(at)] = true;
        permutation[i] = std::size_t(at);
    }
    return permutation;
}

std::unique_ptr<Refiner> make_refiner(const py::dict& weights, const std::string& isa) {
    std::map<std::string, Tensor> tensors;
    std::vector<Array<float>> alive;
    for (const auto& [key, value] : weights) {
        if (!py::isinstance<py::str>(key))
            throw py::type_error("weights: a name is of type " + type_name(key) + "; expected str");
        const auto name = py::cast<std::string>(key);
        if (!py::isinstance<py::array>(value))
            throw py::type_error("weights: '" + name + "' is of type " + type_name(value) + "; expected a NumPy array");
        const auto array = py::reinterpret_borrow<py::array>(value);
        if (!py::isinstance<py::array_t<float>>(array))
            throw py::value_error("weights: '" + name + "' is " + py::cast<std::string>(py::str(array.dtype())) +
                                  "; expected float32");
        alive.push_back(Array<float>::ensure(array));
        if (!alive.back()) throw py::error_already_set();
        tensors[name] = {alive.back().data(), {array.shape(), array.shape() + array.ndim()}};
    }
    return std::make_unique<Refiner>(tensors, isa);
}

py::array_t<float> forward(const Refiner& refiner, const py::object& features, long threads) {
    const auto in = check<float>("features", features, {kAny, kJoints, kFeatures}, "float32");
    const std::size_t workers = check_threads(threads);
    py::array_t<float> out(Shape{in.shape(0), kJoints, kOutputs});
    const float* from = in.data();
    float* to = out.mutable_data();
    const std::size_t count = std::size_t(in.shape(0));
    {
        const py::gil_scoped_release release;
        refiner.forward(from, count, to, workers);
    }
    return out;
}

template <typename T>
py::tuple run_as(const Refiner& refiner, const py::object& joints, const py::object& permutation, double mm_per_unit,
                 const py::object& mirror, const py::object& visible, const py::object& confidence,
                 const py::object& error_mm, long threads, const char* type) {
    const auto in = check<T>("joints", joints, {kAny, kJoints, 3}, type);
    const py::ssize_t n = in.shape(0);
    const Optional<bool> mirrors("mirror", mirror, {n}, "bool"), visibles("visible", visible, {n, kJoints}, "bool");
    const Optional<float> confidences("confidence", confidence, {n, kJoints}, "float32"),
        errors("error_mm", error_mm, {n, kJoints}, "float32");
    const Poses<T> poses{in.data(),          std::size_t(n),  check_permutation(permutation),
                         mm_per_unit,        mirrors.bytes(), visibles.bytes(),
                         confidences.data(), errors.data()};
    const std::size_t workers = check_threads(threads);

    py::array_t<T> out(Shape{n, kJoints, 3});
    py::array_t<float> sigma(Shape{n, kJoints}), size_mm(Shape{n}), chirality(Shape{n});
    py::array_t<std::uint8_t> status(Shape{n});
    const Refined<T> refined{out.mutable_data(), sigma.mutable_data(), status.mutable_data(), size_mm.mutable_data(),
                             chirality.mutable_data()};
    {
        const py::gil_scoped_release release;
        refiner.run(poses, refined, workers);
    }
    return py::make_tuple(out, sigma, status, size_mm, chirality);
}

py::tuple run(const Refiner& refiner, const py::object& joints, const py::object& permutation, double mm_per_unit,
              const py::object& mirror, const py::object& visible, const py::object& confidence,
              const py::object& error_mm, long threads) {
    if (!(std::isfinite(mm_per_unit) && mm_per_unit > 0))
        throw py::value_error("mm_per_unit: got " + py::cast<std::string>(py::str(py::float_(mm_per_unit))) +
                              "; expected a positive number");
    const auto call = py::isinstance<py::array_t<float>>(joints) ? run_as<float> : run_as<double>;
    return call(refiner, joints, permutation, mm_per_unit, mirror, visible, confidence, error_mm, threads,
                "float32 or float64");
}

}  // namespace
}  // namespace jointbert

PYBIND11_MODULE(_core, m) {
    using namespace jointbert;
    m.doc() = "The refiner on CPU.";
    py::class_<Refiner>(m, "Refiner")
        .def(py::init(&make_refiner), py::arg("weights"), py::arg("isa") = "auto")
        .def("run", &run, py::arg("joints"), py::arg("permutation"), py::arg("mm_per_unit"), py::arg("mirror"),
             py::arg("visible"), py::arg("confidence"), py::arg("error_mm"), py::arg("threads"))
        .def("forward", &forward, py::arg("features"), py::arg("threads") = 1)
        .def_property_readonly("isa", &Refiner::isa)
        .def_property_readonly("layers", &Refiner::layers);
    m.def("supported_isas", [] {
        py::list names;
        for (const Kernel* kernel : supported_kernels()) names.append(kernel->isa);
        return names;
    });

    m.attr("NUM_JOINTS") = kJoints;
    m.attr("HEADS") = kHeads;
    m.attr("WIDTH") = kWidth;
    m.attr("FFN") = kFfn;
    m.attr("FEATURES") = kFeatures;
    m.attr("OUTPUTS") = kOutputs;
    m.attr("SCALE_MM") = kScaleMm;
    m.attr("ERROR_UNIT_MM") = kErrorUnitMm;
    m.attr("ERROR_RANGE_MM") = py::make_tuple(kErrorRangeMm[0], kErrorRangeMm[1]);
    m.attr("LOG_SIGMA_RANGE") = py::make_tuple(kLogSigmaRange[0], kLogSigmaRange[1]);
    m.attr("MIN_JOINTS") = kMinJoints;
    m.attr("HAND_SIZE_MM") = py::make_tuple(kHandSizeMm[0], kHandSizeMm[1]);
    m.attr("STATUS_REFINED") = int(Status::kRefined);
    m.attr("STATUS_TOO_FEW_JOINTS") = int(Status::kTooFewJoints);
    m.attr("STATUS_NOT_A_HAND") = int(Status::kNotAHand);
}
