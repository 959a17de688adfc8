// Tensors of other libraries by DLPack, version 0, which all libraries support: dmlc.github.io/dlpack.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <vector>

namespace jointbert::dlpack {

struct Device {
    std::int32_t type, id;
};
struct DataType {
    std::uint8_t code, bits;
    std::uint16_t lanes;
};
struct Tensor {
    void* data;
    Device device;
    std::int32_t ndim;
    DataType dtype;
    std::int64_t* shape;
    std::int64_t* strides;  // in elements; null: C order
    std::uint64_t byte_offset;
};
struct Managed {
    Tensor tensor;
    void* context;
    void (*deleter)(Managed*);
};
constexpr std::int32_t kCuda = 2;

// Consumes a capsule: (pointer, shape, strides or None, a type such as "f32", device type, device, owner), where the
// tensor lives as long as the owner.
inline pybind11::tuple read(pybind11::capsule capsule) {
    namespace py = pybind11;
    if (std::string(capsule.name() ? capsule.name() : "") != "dltensor")
        throw py::value_error("dlpack: the capsule holds no tensor, or was used before");
    auto* managed = capsule.get_pointer<Managed>();
    capsule.set_name("used_dltensor");
    const py::capsule owner(managed, [](void* p) {
        auto* m = static_cast<Managed*>(p);
        if (m->deleter) m->deleter(m);
    });
    const Tensor& t = managed->tensor;
    py::tuple shape(t.ndim);
    for (int i = 0; i < t.ndim; ++i) shape[i] = t.shape[i];
    py::object strides = py::none();
    if (t.strides) {
        py::tuple given(t.ndim);
        for (int i = 0; i < t.ndim; ++i) given[i] = t.strides[i];
        strides = given;
    }
    const char* kinds[] = {"i", "u", "f", "o", "bf", "c", "b"};
    const std::string kind = t.dtype.lanes == 1 && t.dtype.code < 7 ? kinds[t.dtype.code] : "o";
    return py::make_tuple(reinterpret_cast<std::uintptr_t>(t.data) + t.byte_offset, shape, strides,
                          kind + std::to_string(t.dtype.bits), t.device.type, t.device.id, owner);
}

// A capsule for an array in C order, whose memory `owner` keeps.
inline pybind11::capsule write(std::uintptr_t data, const std::vector<std::int64_t>& shape, std::uint8_t code,
                               std::uint8_t bits, int device, const pybind11::object& owner) {
    namespace py = pybind11;
    struct Kept {
        Managed managed;
        std::vector<std::int64_t> shape;
        PyObject* owner;
    };
    auto* kept = new Kept{{}, shape, owner.inc_ref().ptr()};
    kept->managed.tensor = {reinterpret_cast<void*>(data),
                            {kCuda, device},
                            std::int32_t(shape.size()),
                            {code, bits, 1},
                            kept->shape.data(),
                            nullptr,
                            0};
    kept->managed.context = kept;
    kept->managed.deleter = [](Managed* managed) {
        auto* mine = static_cast<Kept*>(managed->context);
        if (!Py_IsInitialized()) return;  // the interpreter has ended before the consumer
        const py::gil_scoped_acquire gil;
        Py_DECREF(mine->owner);
        delete mine;
    };
    return py::capsule(&kept->managed, "dltensor", [](PyObject* capsule) {
        if (!PyCapsule_IsValid(capsule, "dltensor")) return;  // consumed: the consumer calls the deleter
        auto* managed = static_cast<Managed*>(PyCapsule_GetPointer(capsule, "dltensor"));
        managed->deleter(managed);
    });
}

}  // namespace jointbert::dlpack
