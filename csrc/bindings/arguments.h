// Arguments of jointbert._core: NumPy arrays, checked, as the types of csrc/cpu. Errors name the argument, its value
// and what was expected.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "../cpu/contract.h"
#include "../cpu/pose.h"
#include "../cpu/sequence_features.h"
#include "../cpu/weights.h"

namespace jointbert::arguments {

namespace py = pybind11;

// NumPy copies an array that is strided or not aligned; any other is used in place.
template <typename T>
using Array = py::array_t<T, py::array::c_style | py::detail::npy_api::NPY_ARRAY_ALIGNED_>;

using Shape = std::vector<py::ssize_t>;

constexpr py::ssize_t kAny = -1;  // in an expected shape

inline std::string type_name(const py::handle& value) {
    return py::cast<std::string>(py::type::of(value).attr("__name__"));
}

inline std::string text(const py::array& array) { return py::cast<std::string>(py::str(array.attr("shape"))); }

inline std::string text(const Shape& shape) {
    std::string s = "(";
    for (std::size_t i = 0; i < shape.size(); ++i)
        s += (i ? ", " : "") + (shape[i] == kAny ? "N" : std::to_string(shape[i]));
    return s + (shape.size() == 1 ? ",)" : ")");
}

inline py::array check_array(const char* name, const py::handle& value, const Shape& shape) {
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

// An array or None. Keeps the array alive.
template <typename T>
class Optional {
  public:
    Optional(const char* name, const py::handle& value, const Shape& shape, const char* type) {
        if (!value.is_none()) array_ = check<T>(name, value, shape, type);
    }
    const T* data() const { return array_ ? array_->data() : nullptr; }
    // Bools as bytes: an array viewed as bool may hold other bytes than 0 and 1, which a C++ bool may not.
    const std::uint8_t* bytes() const {
        return array_ ? static_cast<const std::uint8_t*>(py::array(*array_).data()) : nullptr;
    }

  private:
    std::optional<Array<T>> array_;
};

inline std::size_t check_threads(long threads) {
    if (threads < 1) throw py::value_error("threads: got " + std::to_string(threads) + "; expected at least 1");
    return std::size_t(threads);
}

inline std::array<std::size_t, kJoints> check_permutation(const py::handle& value) {
    const auto given = check<std::int32_t>("permutation", value, {kJoints}, "int32");
    std::array<std::size_t, kJoints> permutation{};
    std::array<bool, kJoints> taken{};
    for (std::size_t i = 0; i < kJoints; ++i) {
        const std::int32_t at = given.data()[i];
        if (at < 0 || at >= std::int32_t(kJoints) || taken[std::size_t(at)])
            throw py::value_error("permutation: " + std::to_string(at) + " at " + std::to_string(i) +
                                  "; expected each of 0 to " + std::to_string(kJoints - 1) + " once");
        taken[std::size_t(at)] = true;
        permutation[i] = std::size_t(at);
    }
    return permutation;
}

inline double check_unit(double mm_per_unit) {
    if (!(std::isfinite(mm_per_unit) && mm_per_unit > 0))
        throw py::value_error("mm_per_unit: got " + py::cast<std::string>(py::str(py::float_(mm_per_unit))) +
                              "; expected a positive number");
    return mm_per_unit;
}

inline std::size_t check_reach(const char* name, long frames) {
    if (frames < 0 || frames > long(kReach))
        throw py::value_error(std::string(name) + ": got " + std::to_string(frames) + "; expected 0 to " +
                              std::to_string(kReach));
    return std::size_t(frames);
}

inline BoneLengths check_lengths(const py::handle& value) {
    BoneLengths lengths = kUnknown.lengths;
    if (value.is_none()) return lengths;
    const auto given = check<double>("lengths_mm", value, {kRigidBoneCount}, "float64");
    for (std::size_t i = 0; i < kRigidBoneCount; ++i) {
        lengths[i] = given.data()[i];
        if (!(std::isnan(lengths[i]) || (std::isfinite(lengths[i]) && lengths[i] > 0)))
            throw py::value_error("lengths_mm: got " + py::cast<std::string>(py::str(py::float_(lengths[i]))) + " at " +
                                  std::to_string(i) + "; expected positive millimetres, NaN where unknown");
    }
    return lengths;
}

// A state dict's tensors. Keeps the arrays alive.
struct Tensors {
    explicit Tensors(const py::dict& weights) {
        for (const auto& [key, value] : weights) {
            if (!py::isinstance<py::str>(key))
                throw py::type_error("weights: a name is of type " + type_name(key) + "; expected str");
            const auto name = py::cast<std::string>(key);
            if (!py::isinstance<py::array>(value))
                throw py::type_error("weights: '" + name + "' is of type " + type_name(value) +
                                     "; expected a NumPy array");
            const auto array = py::reinterpret_borrow<py::array>(value);
            if (!py::isinstance<py::array_t<float>>(array))
                throw py::value_error("weights: '" + name + "' is " + py::cast<std::string>(py::str(array.dtype())) +
                                      "; expected float32");
            arrays.push_back(Array<float>::ensure(array));
            if (!arrays.back()) throw py::error_already_set();
            by_name[name] = {arrays.back().data(), {array.shape(), array.shape() + array.ndim()}};
        }
    }
    std::vector<Array<float>> arrays;
    std::map<std::string, Tensor> by_name;
};

// Poses: the arrays that every function takes, checked. Keeps them alive.
template <typename T>
struct PoseArguments {
    PoseArguments(const py::object& joints, const py::object& permutation, double mm_per_unit, const py::object& mirror,
                  const py::object& visible, const py::object& confidence, const py::object& error_mm)
        : joints(check<T>("joints", joints, {kAny, kJoints, 3}, "float32 or float64")),
          count(this->joints.shape(0)),
          mirror("mirror", mirror, {count}, "bool"),
          visible("visible", visible, {count, kJoints}, "bool"),
          confidence("confidence", confidence, {count, kJoints}, "float32"),
          error_mm("error_mm", error_mm, {count, kJoints}, "float32"),
          poses{this->joints.data(),  std::size_t(count),    check_permutation(permutation), mm_per_unit,
                this->mirror.bytes(), this->visible.bytes(), this->confidence.data(),        this->error_mm.data()} {}
    Array<T> joints;
    py::ssize_t count;
    Optional<bool> mirror, visible;
    Optional<float> confidence, error_mm;
    Poses<T> poses;
};

// The arrays of a result.
template <typename T>
struct ResultArrays {
    explicit ResultArrays(py::ssize_t count)
        : joints(Shape{count, kJoints, 3}),
          sigma(Shape{count, kJoints}),
          size_mm(Shape{count}),
          chirality(Shape{count}),
          status(Shape{count}),
          refined{joints.mutable_data(), sigma.mutable_data(), status.mutable_data(), size_mm.mutable_data(),
                  chirality.mutable_data()} {}
    py::tuple tuple() const { return py::make_tuple(joints, sigma, status, size_mm, chirality); }
    py::array_t<T> joints;
    py::array_t<float> sigma, size_mm, chirality;
    py::array_t<std::uint8_t> status;
    RefinedPoses<T> refined;
};

// work(T{}) with the type of the joints. Another type than float and double is refused when the joints are checked.
template <class Work>
auto with_type_of(const py::object& joints, const Work& work) {
    return py::isinstance<py::array_t<float>>(joints) ? work(float{}) : work(double{});
}

}  // namespace jointbert::arguments
