// jointbert._core: checks what Python passes and hands it to the refiners. jointbert/_core.pyi documents the module.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "../cpu/contract.h"
#include "../cpu/isa.h"
#include "../cpu/refiner.h"
#include "../cpu/sequence.h"
#include "../cpu/stream.h"

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

double check_unit(double mm_per_unit) {
    if (!(std::isfinite(mm_per_unit) && mm_per_unit > 0))
        throw py::value_error("mm_per_unit: got " + py::cast<std::string>(py::str(py::float_(mm_per_unit))) +
                              "; expected a positive number");
    return mm_per_unit;
}

std::size_t check_look(const char* name, long frames) {
    if (frames < 0 || frames > long(kReach))
        throw py::value_error(std::string(name) + ": got " + std::to_string(frames) + "; expected 0 to " +
                              std::to_string(kReach));
    return std::size_t(frames);
}

BoneLengths check_lengths(const py::handle& value) {
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

// A state dict's tensors, which live as long as this does.
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

std::shared_ptr<Refiner> make_refiner(const py::dict& weights, const std::string& isa) {
    return std::make_shared<Refiner>(Tensors(weights).by_name, isa);
}

std::shared_ptr<SequenceRefiner> make_sequence_refiner(std::shared_ptr<Refiner> refiner, const py::dict& weights) {
    return std::make_shared<SequenceRefiner>(std::move(refiner), Tensors(weights).by_name);
}

// A batch of poses: its arrays, checked.
template <typename T>
struct Batch {
    Batch(const py::object& joints, const py::object& permutation, double mm_per_unit, const py::object& mirror,
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

// The arrays of a batch's result.
template <typename T>
struct Result {
    explicit Result(py::ssize_t count)
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
    Refined<T> refined;
};

// work(T{}) with the type of the joints; what is neither is refused where they are checked.
template <class Work>
auto with_type_of(const py::object& joints, const Work& work) {
    return py::isinstance<py::array_t<float>>(joints) ? work(float{}) : work(double{});
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

py::tuple run(const Refiner& refiner, const py::object& joints, const py::object& permutation, double mm_per_unit,
              const py::object& mirror, const py::object& visible, const py::object& confidence,
              const py::object& error_mm, long threads) {
    check_unit(mm_per_unit);
    return with_type_of(joints, [&](auto t) {
        const Batch<decltype(t)> batch(joints, permutation, mm_per_unit, mirror, visible, confidence, error_mm);
        const std::size_t workers = check_threads(threads);
        const Result<decltype(t)> result(batch.count);
        {
            const py::gil_scoped_release release;
            refiner.run(batch.poses, result.refined, workers);
        }
        return result.tuple();
    });
}

// The same with another runtime's network: a callable from features [n, 14, 8] to outputs [n, 14, 4].
py::tuple run_by(const py::function& network, const py::object& joints, const py::object& permutation,
                 double mm_per_unit, const py::object& mirror, const py::object& visible, const py::object& confidence,
                 const py::object& error_mm) {
    check_unit(mm_per_unit);
    return with_type_of(joints, [&](auto t) {
        const Batch<decltype(t)> batch(joints, permutation, mm_per_unit, mirror, visible, confidence, error_mm);
        const Result<decltype(t)> result(batch.count);
        constexpr std::size_t kSize = kJoints * kFeatures;
        std::vector<CanonicalPose> poses(1);
        std::vector<std::size_t> indices;
        std::vector<float> features(kSize);
        for (std::size_t i = 0; i < batch.poses.count; ++i) {  // the last row is for the next pose
            if (encode(batch.poses, i, poses.back(), &features[indices.size() * kSize], result.refined) !=
                Status::kRefined)
                continue;
            indices.push_back(i);
            poses.emplace_back();
            features.resize(features.size() + kSize);
        }
        if (indices.empty()) return result.tuple();
        const auto count = py::ssize_t(indices.size());
        const py::array_t<float> given(Shape{count, kJoints, kFeatures}, features.data());
        const auto outputs = check<float>("output", network(given), {count, kJoints, kOutputs}, "float32");
        for (std::size_t i = 0; i < indices.size(); ++i) {
            const float* output = outputs.data() + i * kJoints * kOutputs;
            Points refined;
            correct(poses[i], output, refined);
            decode(batch.poses, indices[i], refined, poses[i].sign, output, result.refined);
        }
        return result.tuple();
    });
}

py::array_t<float> forward_sequence(const SequenceRefiner& refiner, const py::object& hidden,
                                    const py::object& features, long threads) {
    const auto states = check<float>("hidden", hidden, {kAny, kJoints, kWidth}, "float32");
    const auto in = check<float>("features", features, {states.shape(0), kJoints, kSequenceFeatures}, "float32");
    const std::size_t workers = check_threads(threads);
    py::array_t<float> out(Shape{in.shape(0), kJoints, kOutputs});
    const float *from = in.data(), *stream = states.data();
    float* to = out.mutable_data();
    const std::size_t count = std::size_t(in.shape(0));
    {
        const py::gil_scoped_release release;
        refiner.forward(stream, from, count, to, workers);
    }
    return out;
}

py::tuple run_sequence(const SequenceRefiner& refiner, const py::object& joints, const py::object& permutation,
                       double mm_per_unit, const py::object& mirror, const py::object& visible,
                       const py::object& confidence, const py::object& error_mm, const py::object& lengths_mm,
                       long look_behind, long look_ahead, bool alone, long threads) {
    check_unit(mm_per_unit);
    return with_type_of(joints, [&](auto t) {
        const Batch<decltype(t)> batch(joints, permutation, mm_per_unit, mirror, visible, confidence, error_mm);
        const SequenceOptions options{check_lengths(lengths_mm), check_look("look_behind", look_behind),
                                      check_look("look_ahead", look_ahead), alone};
        if (alone && (look_behind || look_ahead))
            throw py::value_error("alone: got frames that stand alone, and to look " + std::to_string(look_behind) +
                                  " behind and " + std::to_string(look_ahead) + " ahead; expected 0 and 0");
        const std::size_t workers = check_threads(threads);
        const Result<decltype(t)> result(batch.count);
        {
            const py::gil_scoped_release release;
            refiner.run(batch.poses, options, result.refined, workers);
        }
        return result.tuple();
    });
}

py::tuple calibrate(const SequenceRefiner& refiner, const py::object& joints, const py::object& permutation,
                    double mm_per_unit, const py::object& mirror, const py::object& visible,
                    const py::object& confidence, const py::object& error_mm, long threads) {
    check_unit(mm_per_unit);
    return with_type_of(joints, [&](auto t) {
        const Batch<decltype(t)> batch(joints, permutation, mm_per_unit, mirror, visible, confidence, error_mm);
        const std::size_t workers = check_threads(threads);
        const Result<decltype(t)> result(batch.count);
        Calibration told;
        {
            const py::gil_scoped_release release;
            told = refiner.calibrate(batch.poses, result.refined, workers);
        }
        py::array_t<std::int64_t> counts(Shape{kRigidBoneCount});
        std::copy(told.counts.begin(), told.counts.end(), counts.mutable_data());
        return py::make_tuple(py::array_t<double>(Shape{kRigidBoneCount}, told.lengths_mm.data()), counts,
                              result.status, result.size_mm, result.chirality);
    });
}

std::shared_ptr<Stream> make_stream(std::shared_ptr<SequenceRefiner> refiner, const py::object& permutation,
                                    double mm_per_unit, bool mirror, const py::object& lengths_mm, long look_ahead) {
    const StreamOptions options{check_permutation(permutation), check_unit(mm_per_unit), mirror,
                                check_lengths(lengths_mm), check_look("look_ahead", look_ahead)};
    return std::make_shared<Stream>(std::move(refiner), options);
}

py::tuple to_tuple(const StreamResult& result) {
    const auto joints = std::visit(
        [](const auto& values) -> py::array {
            using T = typename std::decay_t<decltype(values)>::value_type;
            return py::array_t<T>(Shape{kJoints, 3}, values.data());
        },
        result.joints);
    return py::make_tuple(joints, py::array_t<float>(Shape{kJoints}, result.sigma.data()), int(result.status),
                          result.size_mm, result.chirality);
}

py::object push(Stream& stream, const py::object& joints, const py::object& visible, const py::object& confidence,
                const py::object& error_mm) {
    return with_type_of(joints, [&](auto t) -> py::object {
        using T = decltype(t);
        const auto in = check<T>("joints", joints, {kJoints, 3}, "float32 or float64");
        const Optional<bool> visibles("visible", visible, {kJoints}, "bool");
        const Optional<float> confidences("confidence", confidence, {kJoints}, "float32"),
            errors("error_mm", error_mm, {kJoints}, "float32");
        const StreamFrame<T> frame{in.data(), visibles.bytes(), confidences.data(), errors.data()};
        std::optional<StreamResult> result;
        {
            const py::gil_scoped_release release;
            result = stream.push(frame);
        }
        if (!result) return py::none();
        return to_tuple(*result);
    });
}

py::list flush(Stream& stream) {
    std::vector<StreamResult> results;
    {
        const py::gil_scoped_release release;
        results = stream.flush();
    }
    py::list list;
    for (const StreamResult& result : results) list.append(to_tuple(result));
    return list;
}

py::array_t<double> bone_lengths(const Stream& stream) {
    BoneLengths lengths;
    {
        const py::gil_scoped_release release;
        lengths = stream.bone_lengths();
    }
    return py::array_t<double>(Shape{kRigidBoneCount}, lengths.data());
}

// Pairs as a tuple of tuples.
template <std::size_t N>
py::tuple pairs(const std::size_t (&values)[N][2]) {
    py::tuple result(N);
    for (std::size_t i = 0; i < N; ++i) result[i] = py::make_tuple(values[i][0], values[i][1]);
    return result;
}

}  // namespace
}  // namespace jointbert

PYBIND11_MODULE(_core, m) {
    using namespace jointbert;
    m.doc() = "The refiners on CPU.";
    py::class_<Refiner, std::shared_ptr<Refiner>>(m, "Refiner")
        .def(py::init(&make_refiner), py::arg("weights"), py::arg("isa") = "auto")
        .def("run", &run, py::arg("joints"), py::arg("permutation"), py::arg("mm_per_unit"), py::arg("mirror"),
             py::arg("visible"), py::arg("confidence"), py::arg("error_mm"), py::arg("threads"))
        .def("forward", &forward, py::arg("features"), py::arg("threads") = 1)
        .def_property_readonly("isa", &Refiner::isa)
        .def_property_readonly("layers", &Refiner::layers);
    py::class_<SequenceRefiner, std::shared_ptr<SequenceRefiner>>(m, "SequenceRefiner")
        .def(py::init(&make_sequence_refiner), py::arg("refiner").none(false), py::arg("weights"))
        .def("run", &run_sequence, py::arg("joints"), py::arg("permutation"), py::arg("mm_per_unit"), py::arg("mirror"),
             py::arg("visible"), py::arg("confidence"), py::arg("error_mm"), py::arg("lengths_mm"),
             py::arg("look_behind"), py::arg("look_ahead"), py::arg("alone").noconvert(), py::arg("threads"))
        .def("calibrate", &calibrate, py::arg("joints"), py::arg("permutation"), py::arg("mm_per_unit"),
             py::arg("mirror"), py::arg("visible"), py::arg("confidence"), py::arg("error_mm"), py::arg("threads"))
        .def("stream", &make_stream, py::arg("permutation"), py::arg("mm_per_unit"), py::arg("mirror").noconvert(),
             py::arg("lengths_mm"), py::arg("look_ahead"))
        .def("forward", &forward_sequence, py::arg("hidden"), py::arg("features"), py::arg("threads") = 1)
        .def_property_readonly("isa", [](const SequenceRefiner& refiner) { return refiner.first().isa(); })
        .def_property_readonly("layers", &SequenceRefiner::layers);
    py::class_<Stream, std::shared_ptr<Stream>>(m, "Stream")
        .def("push", &push, py::arg("joints"), py::arg("visible") = py::none(), py::arg("confidence") = py::none(),
             py::arg("error_mm") = py::none())
        .def("flush", &flush)
        .def("reset", &Stream::reset, py::call_guard<py::gil_scoped_release>())
        .def_property_readonly("bone_lengths_mm", &bone_lengths);
    m.def("run_by", &run_by, py::arg("network"), py::arg("joints"), py::arg("permutation"), py::arg("mm_per_unit"),
          py::arg("mirror"), py::arg("visible"), py::arg("confidence"), py::arg("error_mm"));
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
    m.attr("SEQUENCE_FEATURES") = kSequenceFeatures;
    m.attr("BLOCKS") = pairs(kBlocks);
    m.attr("REACH") = kReach;
    m.attr("RIGID_BONES") = pairs(kRigidBones);
    m.attr("STEP_UNIT_MM") = kStepUnitMm;
    m.attr("CUT_MM") = kCutMm;
    m.attr("KNOWN_FRAMES") = kKnownFrames;
    m.attr("HISTORY_FRAMES") = kHistoryFrames;
    m.attr("ROUGHNESS_FLOOR_MM") = kRoughnessFloorMm;
    m.attr("STATUS_REFINED") = int(Status::kRefined);
    m.attr("STATUS_TOO_FEW_JOINTS") = int(Status::kTooFewJoints);
    m.attr("STATUS_NOT_A_HAND") = int(Status::kNotAHand);
}
