// jointbert._core: the refiners of csrc/cpu for Python. jointbert/_core.pyi documents the module.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "../cpu/contract.h"
#include "../cpu/isa.h"
#include "../cpu/online_sequence.h"
#include "../cpu/refiner.h"
#include "../cpu/sequence.h"
#include "arguments.h"

namespace py = pybind11;

namespace jointbert {
namespace {

using namespace arguments;

std::shared_ptr<Refiner> make_refiner(const py::dict& weights, const std::string& isa) {
    return std::make_shared<Refiner>(Tensors(weights).by_name, isa);
}

std::shared_ptr<SequenceRefiner> make_sequence_refiner(std::shared_ptr<Refiner> refiner, const py::dict& weights) {
    return std::make_shared<SequenceRefiner>(std::move(refiner), Tensors(weights).by_name);
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
        const PoseArguments<decltype(t)> given(joints, permutation, mm_per_unit, mirror, visible, confidence, error_mm);
        const std::size_t workers = check_threads(threads);
        const ResultArrays<decltype(t)> result(given.count);
        {
            const py::gil_scoped_release release;
            refiner.run(given.poses, result.refined, workers);
        }
        return result.tuple();
    });
}

// run with the network of another runtime: a callable from features [n, 14, 8] to outputs [n, 14, 4].
py::tuple run_by(const py::function& network, const py::object& joints, const py::object& permutation,
                 double mm_per_unit, const py::object& mirror, const py::object& visible, const py::object& confidence,
                 const py::object& error_mm) {
    check_unit(mm_per_unit);
    return with_type_of(joints, [&](auto t) {
        const PoseArguments<decltype(t)> given(joints, permutation, mm_per_unit, mirror, visible, confidence, error_mm);
        const ResultArrays<decltype(t)> result(given.count);
        run_external(given.poses, result.refined, [&](const float* features, std::size_t count, float* outputs) {
            const auto n = py::ssize_t(count);
            const py::object returned = network(py::array_t<float>(Shape{n, kJoints, kFeatures}, features));
            const auto checked = check<float>("output", returned, {n, kJoints, kOutputs}, "float32");
            std::copy_n(checked.data(), checked.size(), outputs);
        });
        return result.tuple();
    });
}

py::array_t<float> forward_sequence(const SequenceRefiner& refiner, const py::object& hidden,
                                    const py::object& features, long threads) {
    const auto states = check<float>("hidden", hidden, {kAny, kJoints, kWidth}, "float32");
    const auto in = check<float>("features", features, {states.shape(0), kJoints, kSequenceFeatures}, "float32");
    const std::size_t workers = check_threads(threads);
    py::array_t<float> out(Shape{in.shape(0), kJoints, kOutputs});
    const float *from = in.data(), *state = states.data();
    float* to = out.mutable_data();
    const std::size_t count = std::size_t(in.shape(0));
    {
        const py::gil_scoped_release release;
        refiner.forward(state, from, count, to, workers);
    }
    return out;
}

py::tuple run_sequence(const SequenceRefiner& refiner, const py::object& joints, const py::object& permutation,
                       double mm_per_unit, const py::object& mirror, const py::object& visible,
                       const py::object& confidence, const py::object& error_mm, const py::object& lengths_mm,
                       long look_behind, long look_ahead, bool alone, long threads) {
    check_unit(mm_per_unit);
    return with_type_of(joints, [&](auto t) {
        const PoseArguments<decltype(t)> given(joints, permutation, mm_per_unit, mirror, visible, confidence, error_mm);
        const SequenceOptions options{check_lengths(lengths_mm), check_reach("look_behind", look_behind),
                                      check_reach("look_ahead", look_ahead), alone};
        if (alone && (look_behind || look_ahead))
            throw py::value_error("alone: got frames that stand alone, and to look " + std::to_string(look_behind) +
                                  " behind and " + std::to_string(look_ahead) + " ahead; expected 0 and 0");
        const std::size_t workers = check_threads(threads);
        const ResultArrays<decltype(t)> result(given.count);
        {
            const py::gil_scoped_release release;
            refiner.run(given.poses, options, result.refined, workers);
        }
        return result.tuple();
    });
}

py::tuple calibrate(const SequenceRefiner& refiner, const py::object& joints, const py::object& permutation,
                    double mm_per_unit, const py::object& mirror, const py::object& visible,
                    const py::object& confidence, const py::object& error_mm, long threads) {
    check_unit(mm_per_unit);
    return with_type_of(joints, [&](auto t) {
        const PoseArguments<decltype(t)> given(joints, permutation, mm_per_unit, mirror, visible, confidence, error_mm);
        const std::size_t workers = check_threads(threads);
        const ResultArrays<decltype(t)> result(given.count);
        Calibration calibration;
        {
            const py::gil_scoped_release release;
            calibration = refiner.calibrate(given.poses, result.refined, workers);
        }
        py::array_t<std::int64_t> counts(Shape{kRigidBoneCount});
        std::copy(calibration.counts.begin(), calibration.counts.end(), counts.mutable_data());
        return py::make_tuple(py::array_t<double>(Shape{kRigidBoneCount}, calibration.lengths_mm.data()), counts,
                              result.status, result.size_mm, result.chirality);
    });
}

std::shared_ptr<OnlineSequence> make_stream(std::shared_ptr<SequenceRefiner> refiner, const py::object& permutation,
                                            double mm_per_unit, bool mirror, const py::object& lengths_mm,
                                            long look_ahead) {
    const OnlineOptions options{check_permutation(permutation), check_unit(mm_per_unit), mirror,
                                check_lengths(lengths_mm), check_reach("look_ahead", look_ahead)};
    return std::make_shared<OnlineSequence>(std::move(refiner), options);
}

py::tuple to_tuple(const OnlineResult& result) {
    const auto joints = std::visit(
        [](const auto& values) -> py::array {
            using T = typename std::decay_t<decltype(values)>::value_type;
            return py::array_t<T>(Shape{kJoints, 3}, values.data());
        },
        result.joints);
    return py::make_tuple(joints, py::array_t<float>(Shape{kJoints}, result.sigma.data()), int(result.status),
                          result.size_mm, result.chirality);
}

py::object push(OnlineSequence& sequence, const py::object& joints, const py::object& visible,
                const py::object& confidence, const py::object& error_mm) {
    return with_type_of(joints, [&](auto t) -> py::object {
        using T = decltype(t);
        const auto in = check<T>("joints", joints, {kJoints, 3}, "float32 or float64");
        const Optional<bool> visibles("visible", visible, {kJoints}, "bool");
        const Optional<float> confidences("confidence", confidence, {kJoints}, "float32"),
            errors("error_mm", error_mm, {kJoints}, "float32");
        const OnlineFrame<T> frame{in.data(), visibles.bytes(), confidences.data(), errors.data()};
        std::optional<OnlineResult> result;
        {
            const py::gil_scoped_release release;
            result = sequence.push(frame);
        }
        if (!result) return py::none();
        return to_tuple(*result);
    });
}

py::list flush(OnlineSequence& sequence) {
    std::vector<OnlineResult> results;
    {
        const py::gil_scoped_release release;
        results = sequence.flush();
    }
    py::list list;
    for (const OnlineResult& result : results) list.append(to_tuple(result));
    return list;
}

py::array_t<double> bone_lengths(const OnlineSequence& sequence) {
    BoneLengths lengths;
    {
        const py::gil_scoped_release release;
        lengths = sequence.bone_lengths();
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
    py::class_<OnlineSequence, std::shared_ptr<OnlineSequence>>(m, "OnlineSequence")
        .def("push", &push, py::arg("joints"), py::arg("visible") = py::none(), py::arg("confidence") = py::none(),
             py::arg("error_mm") = py::none())
        .def("flush", &flush)
        .def("reset", &OnlineSequence::reset, py::call_guard<py::gil_scoped_release>())
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
