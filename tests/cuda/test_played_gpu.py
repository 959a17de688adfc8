"""Backend ``cuda``, its arrays and graphs, on a GPU that the host plays (played_gpu.cpp)."""

from __future__ import annotations

import copy
import ctypes
import gc
import importlib.util
import math
import os
import sys
import sysconfig
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import jointbert
from jointbert import JointbertWarning, Refiner, Status
from jointbert.contract import Batch
from jointbert.contract.layout import LAYOUT
from jointbert.cuda import libraries
from jointbert.cuda.arrays import DeviceArray, is_on_gpu
from jointbert.cuda.graph_session import GraphSession
from jointbert.cuda.heatmaps import soft_argmax, soft_argmax_depth
from jointbert.cuda.module import load_module
from jointbert.runtimes.cuda import CudaBackend, DeviceBatch, DeviceResult
from jointbert.weights import load_weights
from tests.test_docs import blocks

REPOSITORY = Path(__file__).resolve().parents[2]
ONE_HOPPER = (1, 90, 13000)
SOURCES = ("csrc/bindings/cuda.cpp", "csrc/cuda/device_refiner.cpp", "csrc/cuda/session.cpp", "tests/cuda/played_gpu.cpp")
KERNELS = tuple(f"csrc/cuda/{name}.cu" for name in ("refiner", "soft_argmax", "soft_argmax_depth"))


@pytest.fixture(scope="module")
def module(compile_for_host: Callable[..., Path]) -> ModuleType:
    """The module that stands in for ``jointbert._cuda``."""
    pybind11 = pytest.importorskip("pybind11")
    includes = [pybind11.get_include(), sysconfig.get_paths()["include"]]
    options = ["-fvisibility=hidden", '-DJOINTBERT_CUDA_ARCHS="played"', *(f"-isystem{i}" for i in includes)]
    path = compile_for_host("_cuda", [REPOSITORY / s for s in (*KERNELS, *SOURCES)], options)
    spec = importlib.util.spec_from_file_location("jointbert._cuda", path)
    assert spec is not None
    assert spec.loader is not None
    built = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(built)
    return built


@pytest.fixture(scope="module")
def small(random_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of one layer: the host is a slow GPU."""
    from safetensors.numpy import save_file

    weights = load_weights(random_weights)
    tensors = {k: v for k, v in weights.tensors.items() if not k.startswith("layers.") or k.startswith("layers.0.")}
    path = tmp_path_factory.mktemp("small") / "small.safetensors"
    sizes = {key: str(value) for key, value in (weights.sizes | {"layers": 1}).items()}
    save_file(tensors, path, metadata={"layout": LAYOUT, "name": "small", **sizes})
    return path


@pytest.fixture
def refine(small: Path) -> Callable[..., Any]:
    return partial(jointbert.refine, weights=small)


@pytest.fixture
def make(small: Path) -> Callable[..., Refiner]:
    return partial(Refiner, small)


@pytest.fixture(autouse=True)
def gpu(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[ctypes.CDLL]:
    """One GPU that works; the calls that change that."""
    monkeypatch.setitem(sys.modules, "jointbert._cuda", module)
    monkeypatch.setattr(jointbert, "_cuda", module, raising=False)
    load_module.cache_clear()
    assert module.__file__ is not None
    control = ctypes.CDLL(module.__file__)
    control.played_allocated.restype = ctypes.c_long
    control.played_time.argtypes = (ctypes.c_float,)
    monkeypatch.setattr(CudaBackend, "measured_sizes", ())  # the host is too slow for thousands of poses
    control.played_waits.restype = ctypes.c_long
    control.played_hold.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
    control.played_of_the_host.argtypes = (ctypes.c_void_p,)
    yield control
    control.played_devices(*ONE_HOPPER)
    control.played_of_the_host(None)
    libraries._under_way.clear()
    libraries._recorded.clear()
    control.played_fail(b"")
    load_module.cache_clear()


class OnGpu:
    """An array of some library on the GPU: the host's memory behind ``__cuda_array_interface__``."""

    def __init__(self, array: np.ndarray, strides: tuple[int, ...] | None = None) -> None:
        self.array = np.ascontiguousarray(array)
        self.__cuda_array_interface__ = {
            "shape": array.shape,
            "typestr": array.dtype.str,
            "data": (self.array.ctypes.data, True),
            "strides": strides,
            "version": 3,
        }


def on_host(array: DeviceArray) -> np.ndarray:
    """What the GPU holds once it has done what it was asked."""
    load_module().synchronize(array.stream, array.device)
    if not array.nbytes:
        return np.empty(array.shape, array.dtype)
    memory = (ctypes.c_char * array.nbytes).from_address(array.address)
    return np.frombuffer(bytes(memory), array.dtype).reshape(array.shape)


def one_launch(backend: CudaBackend, joints: np.ndarray, variant: int) -> np.ndarray:
    """Refined joints of one variant."""
    count = len(joints)
    out = [np.empty(s, d) for s, d in ((joints.shape, joints.dtype), ((count, 14), np.float32), ((count,), np.uint8))]
    given, *arrays = (DeviceArray(x.ctypes.data, x.shape, x.dtype.name, 0, x) for x in (joints, *out))
    asked = DeviceBatch(given, np.arange(14, dtype=np.int32), 1.0, False, None, None, None)
    backend.enqueue(asked, DeviceResult(*arrays, None, None), 0, variant)
    load_module().synchronize(0, 0)
    return out[0]


@pytest.fixture(scope="module")
def few(poses: np.ndarray) -> np.ndarray:
    return poses[:5]


def test_numpy_in_and_out(few: np.ndarray, refine: Callable[..., Any]) -> None:
    confidence = np.linspace(0, 1, 5 * 14).reshape(5, 14)
    given = {
        "confidence": confidence,
        "hand": ["left", "right", "right", "left", "right"],
        "order": "palm_first",
        "units": "cm",
    }
    few = few.copy()
    few[2, 3] = np.nan
    expected = refine(few / 10, return_details=True, **given)
    found = refine(few / 10, backend="cuda", return_details=True, **given)
    np.testing.assert_allclose(found.joints, expected.joints, atol=0.02)
    np.testing.assert_allclose(found.sigma, expected.sigma, rtol=0.05)
    np.testing.assert_array_equal(found.status, expected.status)
    assert found.joints.dtype == np.float64


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_arrays_on_the_gpu_stay_there(
    few: np.ndarray, dtype: type, refine: Callable[..., Any], make: Callable[..., Refiner]
) -> None:
    centred = (few - few.mean(1, keepdims=True)).astype(dtype)
    before = centred.copy()
    given = OnGpu(centred.reshape(5, 1, 14, 3))
    found = refine(given, return_details=True)
    assert is_on_gpu(found.joints)
    assert (found.joints.shape, found.joints.dtype) == ((5, 1, 14, 3), np.dtype(dtype).name)
    expected = make(backend="cuda")(before.astype(np.float64), return_details=True)
    through = expected.joints if dtype is np.float64 else expected.joints.astype(np.float32)
    np.testing.assert_array_equal(on_host(found.joints)[:, 0], through.astype(dtype))
    np.testing.assert_array_equal(on_host(found.sigma)[:, 0], expected.sigma.astype(np.float32))
    assert (on_host(found.status) == Status.REFINED).all()
    np.testing.assert_array_equal(given.array[:, 0], before)


def test_what_is_said_of_joints_on_the_gpu(few: np.ndarray, make: Callable[..., Refiner]) -> None:
    rng = np.random.default_rng(0)
    confidence, visible = rng.random((5, 14)).astype(np.float32), rng.random((5, 14)) < 0.8
    error = rng.uniform(1, 30, (5, 14)).astype(np.float32)
    doubles = {"confidence": confidence.astype(float), "error_mm": error.astype(float), "visible": visible.tolist()}
    hands = ["left", "right", "left", "right", "right"]
    refiner = make(backend="cuda")
    for hand in ("left", hands):
        expected = refiner(few, confidence=confidence, visible=visible, error_mm=error, hand=hand)
        there = refiner(
            OnGpu(few), confidence=OnGpu(confidence), visible=OnGpu(visible), error_mm=OnGpu(error), hand=hand, check=True
        )
        from_host = refiner(OnGpu(few), confidence=confidence, visible=visible, error_mm=error, hand=hand)
        converted = refiner(OnGpu(few), hand=hand, **doubles)
        for found in (there, from_host, converted):
            np.testing.assert_array_equal(on_host(found), expected)
    np.testing.assert_array_equal(on_host(refiner(OnGpu(few), error_mm=7)), refiner(few, error_mm=7))


def test_only_check_waits_and_warns(few: np.ndarray, gpu: ctypes.CDLL, refine: Callable[..., Any]) -> None:
    refine(OnGpu(few))  # the first call sends the weights and measures
    before = gpu.played_waits()
    everything = {"confidence": np.ones((5, 14)), "visible": OnGpu(np.ones((5, 14), bool)), "error_mm": np.full(14, 9.0)}
    kept = refine(OnGpu(few), hand=["left"] * 3 + ["right"] * 2, return_details=True, **everything)
    assert gpu.played_waits() == before
    del kept
    refine(OnGpu(few), check=True)
    assert gpu.played_waits() > before
    metres = OnGpu(few / 1000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quiet = refine(metres, return_details=True)
    assert (on_host(quiet.status) == Status.NOT_A_HAND).all()
    np.testing.assert_array_equal(on_host(quiet.joints), few / 1000)
    with pytest.warns(JointbertWarning, match=r"5 of 5 frames were returned unchanged.*looks like metres"):
        refine(metres, check=True)
    with pytest.raises(ValueError, match="fewer than 4 finite, visible joints"):
        refine(OnGpu(np.full((2, 14, 3), np.nan)), check=True)
    bad = OnGpu(np.full((5, 14), 1.5, np.float32))
    refine(OnGpu(few), confidence=bad)
    with pytest.raises(ValueError, match=r"confidence: got 1.5; expected values in \[0, 1\]"):
        refine(OnGpu(few), confidence=bad, check=True)
    with pytest.raises(ValueError, match=r"error_mm: got the shape \(3,\); expected \(5, 14\), or a number"):
        refine(OnGpu(few), error_mm=OnGpu(np.ones(3, np.float32)))


def test_arrays_that_do_not_fit(few: np.ndarray, refine: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match="joints: got the dtype int32; expected floating-point"):
        refine(OnGpu(few.astype(np.int32)))
    with pytest.raises(ValueError, match=r"joints: got the shape \(5, 21, 3\).*21 joints are another protocol"):
        refine(OnGpu(np.zeros((5, 21, 3))))
    with pytest.raises(ValueError, match="joints: the array is not contiguous; copy it first"):
        refine(OnGpu(few, strides=(8, 40, 560)))
    with pytest.raises(ValueError, match=r"confidence: got float64 of the shape \(5, 14\); expected float32"):
        refine(OnGpu(few), confidence=OnGpu(np.zeros((5, 14))))
    elsewhere = OnGpu(np.zeros((5, 14), np.float32))
    elsewhere.__dlpack_device__ = lambda: (2, 1)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="confidence: the array is on GPU 1, the joints on GPU 0"):
        refine(OnGpu(few), confidence=elsewhere)
    with pytest.raises(ValueError, match="on a GPU there are no sequences and no calibrated persons"):
        refine(OnGpu(few), sequence=True)
    with pytest.raises(ValueError, match="backend 'native' computes on the CPU; take 'auto' or 'cuda'"):
        refine(OnGpu(few), backend="native")
    with pytest.raises(ValueError, match="backend: 'cuda' has no second stage"):
        jointbert.refine(few, sequence=True, backend="cuda")


def test_what_is_said_in_the_wrong_type(few: np.ndarray, refine: Callable[..., Any]) -> None:
    for given, kind, message in (
        ({"visible": np.full((5, 14), 0.3)}, TypeError, "visible: got the dtype float64; expected bool"),
        ({"confidence": np.ones((5, 14), bool)}, TypeError, "confidence: got the dtype bool; expected numbers"),
        ({"error_mm": np.ones((3, 14))}, ValueError, r"error_mm: got the shape \(3, 14\); expected \(5, 14\)"),
        ({"confidence": np.ones(5)}, ValueError, r"confidence: got the shape \(5,\)"),
        ({"confidence": np.ones((5, 14), ">f4")}, TypeError, "confidence: got bytes in the order of '>f4'"),
    ):
        with pytest.raises(kind, match=message):
            refine(OnGpu(few), **{name: OnGpu(value) for name, value in given.items()})
    with pytest.raises(TypeError, match="joints: got bytes in the order of '>f8'"):
        refine(OnGpu(few.astype(">f8")))
    masked = OnGpu(few)
    masked.__cuda_array_interface__["mask"] = masked
    with pytest.raises(TypeError, match="joints: got a masked array"):
        refine(masked)


def test_broken_protocols_are_one_sentence(few: np.ndarray, refine: Callable[..., Any]) -> None:
    incomplete = OnGpu(few)
    del incomplete.__cuda_array_interface__["shape"]

    class NoStream:
        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, 0

        def __dlpack__(self) -> None: ...

    class Raises:
        def __dlpack_device__(self) -> tuple[int, int]:
            raise OSError("gone")

    for broken in (incomplete, NoStream(), Raises()):
        with pytest.raises(TypeError, match=rf"^joints: .*{type(broken).__name__}.*"):
            refine(broken)


def test_other_streams_are_waited_for(few: np.ndarray, module: ModuleType, refine: Callable[..., Any]) -> None:
    """Confidences that their own stream has yet to write; a result that another stream reads."""
    session = GraphSession({}, {"y": ((), "uint8")}, rows=1)  # for its stream
    confidence = np.linspace(0, 1, 70, dtype=np.float32).reshape(5, 14)
    late = OnGpu(np.full((5, 14), np.nan, np.float32))
    late.__cuda_array_interface__["stream"] = session.stream
    module.copy(late.array.ctypes.data, confidence.ctypes.data, confidence.nbytes, 0, session.stream)
    found = refine(OnGpu(few), confidence=late)
    np.testing.assert_array_equal(on_host(found), on_host(refine(OnGpu(few), confidence=OnGpu(confidence))))

    pending = OnGpu(few)
    pending.__cuda_array_interface__["stream"] = session.stream
    result = refine(pending)
    assert result.stream == session.stream
    capsule = result.__dlpack__()  # for the legacy stream, by DLPack's rule
    module.synchronize(1, 0)
    address = module.read_dlpack(capsule)[0]
    there = np.frombuffer(bytes((ctypes.c_char * result.nbytes).from_address(address)), np.float64)
    np.testing.assert_array_equal(there.reshape(5, 14, 3), on_host(refine(OnGpu(few))))


def test_an_interface_that_does_not_say_when(few: np.ndarray, module: ModuleType, refine: Callable[..., Any]) -> None:
    """Before its version 3 it names no stream (JAX's is 2): DLPack orders the streams."""
    session = GraphSession({}, {"y": ((), "uint8")}, rows=1)  # for its stream

    class Late(OnGpu):
        def __init__(self) -> None:
            super().__init__(np.full_like(few, np.nan))
            self.__cuda_array_interface__["version"] = 2
            module.copy(self.array.ctypes.data, few.ctypes.data, few.nbytes, 0, session.stream)

        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, 0

        def __dlpack__(self, stream: int) -> Any:
            module.order(session.stream, stream, 0)
            return module.write_dlpack(self.array.ctypes.data, list(few.shape), 2, 64, 0, self)

    np.testing.assert_array_equal(on_host(refine(Late())), on_host(refine(OnGpu(few))))


class CuPyArray(OnGpu):
    """An array of a CuPy that is played: what :mod:`jointbert.device_arrays` takes of its library, on the host's memory."""

    __module__ = "cupy"

    def __init__(self, array: np.ndarray, device: int = 0) -> None:
        super().__init__(array)
        self.shape, self.dtype = array.shape, array.dtype
        self.data, self.device = SimpleNamespace(ptr=self.array.ctypes.data), SimpleNamespace(id=device)


def test_arrays_of_cupy(few: np.ndarray, refine: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """They stay CuPy's, on its current stream; what is said of joints is broadcast and converted by it."""
    stream = GraphSession({}, {"y": ((), "uint8")}, rows=1)
    used: list[int] = []

    def on_host_first(function: Callable[..., np.ndarray]) -> Callable[..., CuPyArray]:
        return lambda x, *more, **named: CuPyArray(function(getattr(x, "array", x), *more, **named))

    class Device:
        def __init__(self, number: int) -> None:
            self.number = number

        def __enter__(self) -> None:
            used.append(self.number)

        def __exit__(self, *_: object) -> None: ...

    cupy = ModuleType("cupy")
    for name in ("ascontiguousarray", "asarray", "broadcast_to", "empty"):
        setattr(cupy, name, on_host_first(getattr(np, name)))
    cupy.cuda = SimpleNamespace(Device=Device, get_current_stream=lambda: SimpleNamespace(ptr=stream.stream))  # type: ignore[attr-defined]

    def from_dlpack(array: DeviceArray) -> CuPyArray:
        address, shape, _, _, _, _, owner = load_module().read_dlpack(array.__dlpack__(stream=stream.stream))
        values = np.ctypeslib.as_array((ctypes.c_float * math.prod(shape)).from_address(address)).reshape(shape)
        made = CuPyArray(values)
        made.array, made.data.ptr, made.kept = values, address, owner  # type: ignore[attr-defined]
        return made

    cupy.from_dlpack = from_dlpack  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    # What the device writes goes to the array's own memory: no copy may stand between.
    monkeypatch.setattr(cupy, "ascontiguousarray", lambda x: x)
    confidence, error = np.linspace(0.2, 1, 14), 9.0
    found = refine(CuPyArray(few), confidence=CuPyArray(confidence), error_mm=error, return_details=True)
    for array in found:
        assert isinstance(array, CuPyArray)
    load_module().synchronize(stream.stream, 0)
    expected = refine(OnGpu(few), confidence=np.tile(confidence, (5, 1)), error_mm=error)
    np.testing.assert_array_equal(found.joints.array, on_host(expected))
    assert found.sigma.shape == (5, 14)
    assert set(used) == {0}
    from_host = refine(CuPyArray(few), confidence=confidence, error_mm=error)
    load_module().synchronize(stream.stream, 0)
    np.testing.assert_array_equal(from_host.array, found.joints.array)
    # Another library's, which its own stream has yet to write.
    late = OnGpu(np.full((5, 14), np.nan, np.float32))
    other = GraphSession({}, {"y": ((), "uint8")}, rows=1)
    late.__cuda_array_interface__["stream"] = other.stream
    said = np.tile(confidence, (5, 1)).astype(np.float32)
    load_module().copy(late.array.ctypes.data, said.ctypes.data, said.nbytes, 0, other.stream)
    of_both = refine(CuPyArray(few), confidence=late, error_mm=error)
    ended: list[str] = []
    weakref.finalize(late, ended.append, "late")
    del late
    assert not ended  # its library may write over it once nobody has it
    load_module().synchronize(stream.stream, 0)
    np.testing.assert_array_equal(of_both.array, found.joints.array)


def test_a_library_of_the_array_api_gets_its_own_arrays(few: np.ndarray, refine: Callable[..., Any]) -> None:
    class Array(OnGpu):
        def __array_namespace__(self) -> Any:
            return SimpleNamespace(
                from_dlpack=lambda x: ("its own", x.__dlpack_device__(), load_module().read_dlpack(x.__dlpack__()))
            )

    kind, device, (address, shape, *_, owner) = refine(Array(few))
    assert (kind, device, shape) == ("its own", (2, 0), (5, 14, 3))
    load_module().synchronize(1, 0)
    there = np.frombuffer(bytes((ctypes.c_char * few.nbytes).from_address(address)), few.dtype)
    np.testing.assert_array_equal(there.reshape(few.shape), on_host(refine(OnGpu(few))))
    del owner


def test_what_a_launch_reads_is_kept_until_it_is_through(
    few: np.ndarray, gpu: ctypes.CDLL, make: Callable[..., Refiner]
) -> None:
    """Its library may write over it as soon as nobody has it. Results keep nothing: neither inputs nor each other."""
    refiner = make(backend="cuda")
    ended: list[str] = []

    def array(name: str, values: np.ndarray) -> OnGpu:
        made = OnGpu(values)
        weakref.finalize(made, ended.append, name)
        return made

    found = refiner(array("joints", few), confidence=array("confidence", np.ones((5, 14), np.float32)))
    assert not ended
    refiner(OnGpu(few[:0]))  # a later call looks, and nothing is through yet
    assert not ended
    load_module().synchronize(1, 0)
    refiner(OnGpu(few[:0]))
    assert sorted(ended) == ["confidence", "joints"]
    del found
    before, waits = gpu.played_allocated(), gpu.played_waits()
    again = refiner(OnGpu(few))
    for _ in range(5):
        again = refiner(again)
    assert gpu.played_waits() == waits  # nor does giving memory back wait
    load_module().synchronize(1, 0)
    del again
    refiner(OnGpu(few[:0]))
    assert gpu.played_allocated() == before


def test_giving_memory_back_lets_python_go_on(gpu: ctypes.CDLL, module: ModuleType) -> None:
    """It waits for the device; work there may wait for Python."""
    session = GraphSession({}, {"y": ((), "uint8")}, rows=1)  # for its stream
    for make in (lambda: module.Memory(16, 0), lambda: GraphSession({}, {"y": ((), "uint8")}, rows=1)):
        flag = ctypes.c_int(0)
        kept = [make()]
        gpu.played_hold(session.stream, ctypes.addressof(flag))
        ending = threading.Thread(target=kept.clear)
        ending.start()
        time.sleep(0.1)
        flag.value = flag.value or 1
        ending.join()
        assert flag.value == 1


def test_memory_that_is_none(few: np.ndarray, gpu: ctypes.CDLL, refine: Callable[..., Any]) -> None:
    null, odd, foreign = OnGpu(np.ones((5, 14), np.float32)), OnGpu(np.ones((5, 14), np.float32)), OnGpu(few)
    null.__cuda_array_interface__["data"] = (0, False)
    odd.__cuda_array_interface__["data"] = (odd.array.ctypes.data + 1, False)
    foreign.__dlpack_device__ = lambda: (10, 0)  # type: ignore[attr-defined]
    for field, wrong, message in (
        ("stream", -1, "got the stream -1; expected a cudaStream_t, 1, 2 or None"),
        ("stream", "abc", "got the stream 'abc'"),
        ("shape", (-1, 14, 3), r"got the shape \(-1, 14, 3\); expected sides of at least 0"),
        ("shape", (5.0, 14, 3), r"got the shape \(5.0, 14, 3\)"),
        ("shape", (2**62, 14, 3), r"got the shape \(4611686018427387904, 14, 3\)"),
        ("strides", (8,), r"got strides \(8,\) for the shape \(5, 14, 3\)"),
    ):
        odd_field = OnGpu(few)
        odd_field.__cuda_array_interface__[field] = wrong
        with pytest.raises(TypeError, match=f"joints: {message}"):
            refine(odd_field)
    with pytest.raises(ValueError, match=r"confidence: got a null pointer for an array of the shape \(5, 14\)"):
        refine(OnGpu(few), confidence=null)
    with pytest.raises(ValueError, match="error_mm: the memory is not aligned for float32"):
        refine(OnGpu(few), error_mm=odd)
    with pytest.raises(TypeError, match="joints: got memory of DLPack's device type 10; expected CUDA's"):
        refine(foreign)
    here = OnGpu(few)
    gpu.played_of_the_host(here.array.ctypes.data)
    with pytest.raises(ValueError, match="joints: the pointer is not a GPU's; pass NumPy arrays as they are"):
        refine(here)
    gpu.played_fail(b"cudaPointerGetAttributes")
    with pytest.raises(TypeError, match=r"joints: .*cudaPointerGetAttributes: unknown error"):
        refine(OnGpu(few))


def test_each_array_is_asked_for_once(few: np.ndarray, module: ModuleType, refine: Callable[..., Any]) -> None:
    """By DLPack, for the stream on which it is read."""
    session = GraphSession({}, {"y": ((), "uint8")}, rows=1)  # for its stream
    asked: list[int] = []

    class Once:
        def __init__(self, values: np.ndarray) -> None:
            self.values = values

        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, 0

        def __dlpack__(self, stream: int) -> Any:
            asked.append(stream)
            return module.write_dlpack(self.values.ctypes.data, list(self.values.shape), 2, 32, 0, self)

    joints = OnGpu(few)
    joints.__cuda_array_interface__["stream"] = session.stream
    confidence = np.full((5, 14), 0.5, np.float32)
    found = refine(joints, confidence=Once(confidence))
    assert asked == [session.stream]
    np.testing.assert_array_equal(on_host(found), on_host(refine(OnGpu(few), confidence=confidence)))


def test_host_arrays_are_read_at_once(few: np.ndarray, refine: Callable[..., Any]) -> None:
    """Pinned ones, too: the caller may write over them."""
    confidence = np.full((5, 14), 0.05, np.float32)
    expected = on_host(refine(OnGpu(few), confidence=confidence))
    found = refine(OnGpu(few), confidence=confidence)
    confidence[:] = 1
    np.testing.assert_array_equal(on_host(found), expected)


def test_a_result_says_what_it_can_not_be(few: np.ndarray, refine: Callable[..., Any]) -> None:
    found = refine(OnGpu(few))
    with pytest.raises(TypeError, match="the array is on a GPU"):
        np.asarray(found)
    with pytest.raises(BufferError, match="this array makes no copies"):
        found.__dlpack__(copy=True)
    with pytest.raises(BufferError, match=r"the array is on \(2, 0\)"):
        found.__dlpack__(dl_device=(1, 0))
    assert found.__dlpack__(max_version=(1, 0), dl_device=(2, 0)) is not None


@pytest.mark.parametrize("precision", ["f16", "bf16"])
def test_a_lower_precision_changes_no_method_s_error(nyu_folder: Path, precision: str) -> None:
    """What makes float16 the default: less than 0.02 mm. These are two frames a method; in float16 no joint moves much farther,
    so no mean error can change by more on others either. bfloat16 does well here, too."""
    nyu = pytest.importorskip("training.data.nyu", reason="needs a checkout")
    published = nyu.read_published(nyu_folder).frames(slice(2440, 4376, 968))
    joints = np.concatenate(list(published.predictions.values())).reshape(-1, 14, 3)
    batch = Batch(joints, np.arange(14, dtype=np.int32), 1.0, None, None, None, None)
    found = CudaBackend(load_weights(), precision=precision).run(batch)
    exact = Refiner()(joints)
    truth = np.tile(published.groundtruth, (len(published.predictions), 1, 1))
    change = np.linalg.norm(found.joints - truth, axis=-1) - np.linalg.norm(exact - truth, axis=-1)
    assert np.abs(change.reshape(len(published.predictions), -1).mean(1)).max() < 0.02
    moved = np.linalg.norm(found.joints - exact, axis=-1)
    assert moved.mean() < {"f16": 0.002, "bf16": 0.01}[precision]
    assert moved.max() < {"f16": 0.05, "bf16": 0.2}[precision]


def test_no_poses(refine: Callable[..., Any]) -> None:
    assert refine(np.zeros((0, 14, 3)), backend="cuda").shape == (0, 14, 3)
    assert refine(OnGpu(np.zeros((0, 14, 3)))).shape == (0, 14, 3)


def test_results_go_on_by_dlpack(few: np.ndarray, module: ModuleType, refine: Callable[..., Any]) -> None:
    """A result is an input again, by either protocol; its memory lives as long as somebody has it."""
    first = refine(OnGpu(few))

    class OnlyDlpack:
        def __dlpack_device__(self) -> tuple[int, int]:
            return first.__dlpack_device__()

        def __dlpack__(self, **options: Any) -> Any:
            return first.__dlpack__(**options)

    np.testing.assert_array_equal(on_host(refine(OnlyDlpack())), on_host(refine(first)))
    capsule = first.__dlpack__()
    module.read_dlpack(capsule)
    with pytest.raises(ValueError, match="holds no tensor, or was used before"):
        module.read_dlpack(capsule)


def test_nothing_is_kept(few: np.ndarray, gpu: ctypes.CDLL, make: Callable[..., Refiner]) -> None:
    refiner = make(backend="cuda")

    def end() -> int:
        load_module().synchronize(1, 0)
        refiner(OnGpu(few[:0]))  # a later call looks for what is through
        return gpu.played_allocated()

    refiner(OnGpu(few))
    before = end()
    for _ in range(3):
        refiner(OnGpu(few), confidence=np.ones((5, 14)))
        refiner(OnGpu(few)).__dlpack__()
    assert end() == before


def test_the_same_alone_in_a_batch_and_from_any_thread(poses: np.ndarray, make: Callable[..., Refiner]) -> None:
    refiner = make(backend="cuda")
    whole = refiner(poses[:20])
    found: dict[int, np.ndarray] = {}

    def work(i: int) -> None:
        found[i] = refiner(poses[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, one in found.items():
        np.testing.assert_array_equal(one, whole[i])


def test_the_readme_s_example_runs(few: np.ndarray) -> None:
    class Tensor:
        def cuda(self) -> OnGpu:
            return OnGpu(few[:1])

    names = {"jointbert": jointbert, "joints": Tensor(), "array": few[:1]}
    exec(blocks()[2], names)
    np.testing.assert_allclose(names["better"], jointbert.refine(few[:1]), atol=0.05)
    maps, weight, bias = np.ones((1, 14, 4, 4), np.float32), np.ones((14, 224), np.float32), np.zeros(14, np.float32)
    names = {"heatmaps": OnGpu(maps), "weight": OnGpu(weight), "bias": OnGpu(bias)}
    exec(blocks()[3], names)
    np.testing.assert_array_equal(on_host(names["depth"]), 224)


def test_sessions_come_and_go_while_others_work(poses: np.ndarray, make: Callable[..., Refiner]) -> None:
    refiner = make(backend="cuda")
    expected = refiner(poses[:20])
    ended = threading.Event()

    def come_and_go() -> None:
        while not ended.is_set():
            GraphSession({"x": ((4,), "float32")}, {"y": ((4,), "float32")}, rows=2)

    beside = threading.Thread(target=come_and_go)
    beside.start()
    try:
        for i in range(20):
            np.testing.assert_array_equal(refiner(poses[i]), expected[i])
    finally:
        ended.set()
        beside.join()


def test_the_fastest_variant_is_taken(few: np.ndarray, small: Path, gpu: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the clock says: the best of three rounds of five launches, for each size that is measured."""
    before = CudaBackend(load_weights(small))
    unmeasured = [before.refiner(0).choose(n) for n in (1, 4, 5000)]
    assert before.refiner(0).measured == []
    monkeypatch.setattr(CudaBackend, "measured_sizes", (1, 2, 4))
    # Tiles, clusters, grid at 1 and 2; clusters took more than twice the tiles' time at 2 and are not tried at 4.
    rounds = [(3, 2, 4), (1.5, 9, 1), (1.2, 8, 7), (2, 3, 2), (4.5, 5, 6), (1.9, 9, 9), (2, 2, 2), (2.5, 9, 9)]
    for times in [(1e3, 1e3, 1e3), *rounds]:  # the warm-up comes first
        for ms in times:
            gpu.played_time(ms)
    backend = CudaBackend(load_weights(small))
    refiner = backend.refiner(0)
    rows = [(1, 0, 200.0), (2, 1, 380.0), (4, 2, 400.0)]
    assert [(n, v) for n, v, _ in refiner.measured] == [(n, v) for n, v, _ in rows]
    np.testing.assert_allclose([us for _, _, us in refiner.measured], [us for _, _, us in rows], rtol=1e-6)
    assert [refiner.choose(n) for n in (1, 2, 3, 4, 5, 5000)] == [0, 1, 2, 2, 2, 2]
    # Whatever was taken, the result is the same.
    given = Batch(few, np.arange(14, dtype=np.int32), 1.0, None, None, None, None)
    for count in (1, 2, 3):
        part = Batch(few[:count], given.permutation, 1.0, None, None, None, None)
        np.testing.assert_array_equal(backend.run(part).joints, before.run(part).joints)
    assert unmeasured[0] != 2
    # Where the last one has no room for so many, another runs.
    monkeypatch.setattr(CudaBackend, "measured_sizes", (2,))
    for ms in (1e3, 1e3, 1e3, *(2, 2, 2), *(3, 3, 3), *(1, 1, 1)):
        gpu.played_time(ms)
    grid = CudaBackend(load_weights(small)).refiner(0)
    assert [grid.choose(n) for n in (1, 2, 20)] == [1, 1, 1]
    assert grid.choose(5000) == unmeasured[2]
    # A variant that can't be launched is none: its first launch comes behind the warm-up's 16.
    for ms in (1e3, 1e3, 1e3, *(9, 9, 9), *(8, 8, 8)):
        gpu.played_time(ms)
    gpu.played_refuse(16)
    assert [v for _, v, _ in CudaBackend(load_weights(small)).refiner(0).measured] == [1]
    # What is no list of sizes, and a clock that fails.
    for sizes in ([64, 1], [2, 0], [-1], [0], [2, 2]):
        with pytest.raises(ValueError, match="sizes: expected positive numbers of poses that rise"):
            grid.measure(sizes)
    gpu.played_fail(b"cudaEventElapsedTime")
    with pytest.raises(RuntimeError, match="cudaEventElapsedTime: unknown error"):
        CudaBackend(load_weights(small)).refiner(0)


def test_a_grid_s_memory_and_threads(poses: np.ndarray, small: Path) -> None:
    """Every launch of a grid takes memory, on whatever thread."""
    backend = CudaBackend(load_weights(small))
    expected = backend.run(Batch(poses[:8], np.arange(14, dtype=np.int32), 1.0, None, None, None, None)).joints
    failed: list[int] = []

    def work(i: int) -> None:
        for k in range(i, 8, 4):
            if not np.array_equal(one_launch(backend, poses[k : k + 1], 1)[0], expected[k]):
                failed.append(k)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_more_orders_than_graphs_are_kept(few: np.ndarray, make: Callable[..., Refiner]) -> None:
    refiner = make(backend="cuda")
    names = list(jointbert.JOINT_NAMES)
    expected = refiner(few)
    for shift in range(10):
        order = names[shift:] + names[:shift]
        rolled = np.roll(few, -shift, axis=1)
        np.testing.assert_array_equal(refiner(rolled, order=order), np.roll(expected, -shift, axis=1))


def test_no_gpu_is_one_sentence(
    few: np.ndarray, gpu: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch, refine: Callable[..., Any], make: Callable[..., Refiner]
) -> None:
    gpu.played_devices(0, 90, 13000)
    with pytest.raises(RuntimeError, match=r"^backend 'cuda' needs a GPU: there is no GPU, or no driver for it$"):
        make(backend="cuda")
    monkeypatch.setitem(sys.modules, "jointbert._cuda", None)
    monkeypatch.delattr(jointbert, "_cuda")
    load_module.cache_clear()
    with pytest.raises(ImportError, match="joints: the array is on a GPU; jointbert: this installation has no GPU kernels"):
        make()(OnGpu(few))


@pytest.mark.parametrize(
    "name", ["cudaMalloc", "cudaMemcpyAsync", "cudaMallocHost", "cudaStreamBeginCapture", "cudaGraphLaunch"]
)
def test_what_cuda_says_is_an_exception_and_not_the_end(
    few: np.ndarray, gpu: ctypes.CDLL, name: str, make: Callable[..., Refiner]
) -> None:
    refiner = make(backend="cuda")
    gpu.played_fail(name.encode())
    with pytest.raises(RuntimeError, match=rf"^{name}: unknown error \(CUDA error 999\)$"):
        refiner(few)
    assert np.isfinite(refiner(few)).all()


@pytest.mark.parametrize("name", ["cudaMemcpyAsync", "cudaStreamSynchronize", "cudaDeviceGetAttribute"])
def test_weights_that_do_not_arrive_leave_nothing(small: Path, gpu: ctypes.CDLL, name: str) -> None:
    backend = CudaBackend(load_weights(small))
    before = gpu.played_allocated()
    gpu.played_fail(name.encode())
    with pytest.raises(RuntimeError, match="unknown error"):
        backend.refiner(0)
    assert gpu.played_allocated() == before
    backend.refiner(0)


@pytest.mark.parametrize("name", ["cudaMemPoolCreate", "cudaMemPoolSetAttribute"])
def test_a_gpu_without_pools_has_no_grid(few: np.ndarray, small: Path, gpu: ctypes.CDLL, name: str) -> None:
    """What a part of a GPU, or a virtual one, refuses: the other variants run."""
    before = gpu.played_allocated()
    gpu.played_fail(name.encode())
    backend = CudaBackend(load_weights(small))
    batch = Batch(few, np.arange(14, dtype=np.int32), 1.0, None, None, None, None)
    np.testing.assert_array_equal(backend.run(batch).joints, CudaBackend(load_weights(small)).run(batch).joints)
    with pytest.raises(ValueError, match="variant: this GPU runs no cooperative grid"):
        one_launch(backend, few, 1)
    del backend
    assert gpu.played_allocated() == before


def test_what_an_older_gpu_lacks(few: np.ndarray, small: Path, gpu: ctypes.CDLL) -> None:
    expected = one_launch(CudaBackend(load_weights(small)), few, 2)
    gpu.played_devices(1, 75, 13000)
    with pytest.raises(
        ValueError, match=r"precision: this GPU, of compute capability 7.5, multiplies no bfloat16 .* take 'f16'"
    ):
        CudaBackend(load_weights(small), precision="bf16").refiner(0)
    backend = CudaBackend(load_weights(small))
    with pytest.raises(
        ValueError, match=r"variant: this GPU runs no clusters \(compute capability 9.0 and later have them\); got 5"
    ):
        one_launch(backend, few, 0)
    np.testing.assert_array_equal(one_launch(backend, few, -1), expected)
    with pytest.raises(ValueError, match="variant: expected 0, 1, 2 or -1"):
        one_launch(backend, few, 3)


def test_a_driver_that_is_too_old(small: Path, gpu: ctypes.CDLL) -> None:
    gpu.played_devices(1, 90, 12040)
    with pytest.raises(RuntimeError, match=r"needs a GPU: the driver is for CUDA 12.4, this build needs 13.0"):
        CudaBackend(load_weights(small))


def test_arguments_of_the_backend() -> None:
    with pytest.raises(ValueError, match="precision: got 'f32'; expected one of 'f16', 'bf16'"):
        CudaBackend(load_weights(), precision="f32")
    with pytest.raises(ValueError, match="device: got 3; expected a GPU's number, 0 to 0 here"):
        CudaBackend(load_weights(), device=3)
    with pytest.raises(TypeError, match="device: got str; expected a GPU's number"):
        CudaBackend(load_weights(), device="cuda")  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="cudaSetDevice"):
        CudaBackend(load_weights()).refiner(3)
    with pytest.raises(ValueError, match="precision: got 'f32'; expected one of 'f16', 'bf16'"):
        Refiner(precision="f32")


def test_bfloat16_by_the_front_door(few: np.ndarray, small: Path) -> None:
    """For weights that float16 can't hold."""
    weights = load_weights(small)
    large = {k: 1e6 * v if k == "layers.0.fc1.weight" else v for k, v in weights.tensors.items()}
    with pytest.raises(ValueError, match="too large for f16, or is no number; take precision 'bf16'"):
        CudaBackend(replace(weights, tensors=large))
    too_large = {k: np.full_like(v, 3.4e38) if k == "layers.0.fc1.weight" else v for k, v in large.items()}
    with pytest.raises(ValueError, match="too large for bf16, or is no number"):
        CudaBackend(replace(weights, tensors=too_large), precision="bf16")
    refiner = Refiner(small, precision="bf16")
    expected = CudaBackend(weights, precision="bf16").run(
        Batch(few, np.arange(14, dtype=np.int32), 1.0, None, None, None, None)
    )
    np.testing.assert_array_equal(on_host(refiner(OnGpu(few))), expected.joints)
    np.testing.assert_array_equal(copy.copy(Refiner(small, "cuda", 1, "bf16"))(few), expected.joints)


def test_a_forked_process_is_told_so(few: np.ndarray, make: Callable[..., Refiner], monkeypatch: pytest.MonkeyPatch) -> None:
    refiner = make(backend="cuda")
    refiner(few)
    monkeypatch.setattr(os, "getpid", lambda: -1)
    for given in (few, OnGpu(few)):
        with pytest.raises(RuntimeError, match=r"this process was forked from the one that made it.*'spawn'"):
            refiner(given)


def test_many_first_calls_make_one_backend(
    few: np.ndarray, make: Callable[..., Refiner], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[CudaBackend] = []
    plain = CudaBackend.__init__

    def counted(self: CudaBackend, *given: Any, **named: Any) -> None:
        made.append(self)
        time.sleep(0.05)
        plain(self, *given, **named)

    monkeypatch.setattr(CudaBackend, "__init__", counted)
    refiner = make()
    threads = [threading.Thread(target=refiner, args=(OnGpu(few),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1


# --- graph sessions ---


def doubled(session: GraphSession, gpu_work: list[int]) -> Callable[[int], None]:
    """Enqueues y = x on the session's stream; a copy is work enough."""

    def enqueue(batch: int) -> None:
        x, y = session.input("x", batch), session.output("y", batch)
        load_module().copy(y.address, x.address, y.nbytes, 0, session.stream)
        gpu_work.append(batch)

    return enqueue


def test_a_session_replays_what_was_recorded() -> None:
    session = GraphSession({"x": ((3,), "float32")}, {"y": ((3,), "float32")}, rows=8)
    recorded: list[int] = []
    session.capture(doubled(session, recorded), batches=(2, 8))
    assert session.batches == (2, 8)
    for rows in (1, 2, 5, 8):
        x = np.arange(3 * rows, dtype=np.float32).reshape(rows, 3)
        np.testing.assert_array_equal(session(x=x)["y"], x)
    assert recorded == [2, 8]  # Python enqueued once for each size, and never again


def test_a_session_says_what_does_not_fit(gpu: ctypes.CDLL) -> None:
    session = GraphSession({"x": ((3,), "float32")}, {"y": ((3,), "float32")}, rows=8)
    x = np.zeros((2, 3), np.float32)
    with pytest.raises(ValueError, match="batch: got 2; nothing was captured yet"):
        session(x=x)
    session.capture(doubled(session, []), batches=(4,))
    with pytest.raises(ValueError, match="batch: got 5; the largest that was captured is 4"):
        session(x=np.zeros((5, 3), np.float32))
    with pytest.raises(ValueError, match=r"x: got float64 of the shape \(2, 3\); expected float32"):
        session(x=x.astype(np.float64))
    with pytest.raises(ValueError, match=r"got \['z'\]; expected \['x'\]"):
        session(z=x)
    with pytest.raises(ValueError, match="batch: got 9; this session has room for 1 to 8"):
        session.capture(doubled(session, []), batches=(9,))
    with pytest.raises(ValueError, match="at least one row and one output"):
        GraphSession({}, {}, rows=8)
    for dtype in ("float33", "object", ">f4", "complex64"):
        with pytest.raises(ValueError, match=f"got the dtype '{dtype}'; expected one of float16"):
            GraphSession({}, {"y": ((3,), dtype)}, rows=8)
    with pytest.raises(ValueError, match=r"got 2305843009213693952 rows of 8 bytes; expected \d+ bytes at most"):
        GraphSession({}, {"y": ((), "float64")}, rows=2**61)
    for batch in (9, -1):
        with pytest.raises(ValueError, match=f"batch: got {batch}; this session has room"):
            session.input("x", batch)
    with pytest.raises(ValueError, match=r"got the name 'z'; expected one of \['x'\]"):
        session.input("z")
    with pytest.raises(TypeError, match="x: got list; expected a plain NumPy array"):
        session(x=[1, 2])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="x: got MaskedArray; expected a plain NumPy array"):
        session(x=np.ma.array(x, mask=x == 0))
    with pytest.raises(TypeError, match="inputs: got list; expected shape and dtype by name, in a dict"):
        GraphSession([], {"y": ((), "uint8")}, rows=8)  # type: ignore[arg-type]
    for name, wrong in (("rows", 1.5), ("device", "cuda:0")):
        with pytest.raises(TypeError, match=f"{name}: got {type(wrong).__name__}; expected an integer"):
            GraphSession({}, {"y": ((), "uint8")}, **{"rows": 8, name: wrong})
    with pytest.raises(ValueError, match=r"got the shape \(-3, -2\); expected sides of at least 0"):
        GraphSession({}, {"y": ((-3, -2), "uint8")}, rows=8)
    with pytest.raises(ValueError, match="batch: got 99; this session has room for 1 to 8"):
        session.capture(doubled(session, []), batches=(2, 99))
    assert session.batches == (4,)  # what can't be is refused before anything is recorded
    alone = GraphSession({}, {"y": ((), "uint8")}, rows=8)
    alone.capture(lambda _: None, (2, 4))
    assert alone()["y"].shape == (4,)
    gpu.played_fail(b"cudaMemcpyAsync")
    with pytest.raises(RuntimeError, match="cudaMemcpyAsync: unknown error"):
        session.capture(doubled(session, []), batches=(8,))
    np.testing.assert_array_equal(session(x=x)["y"], x)


def test_a_capture_that_fails_leaves_the_session_as_it_was(gpu: ctypes.CDLL) -> None:
    session = GraphSession({"x": ((), "uint8")}, {"y": ((), "uint8")}, rows=4)
    session.capture(doubled(session, []), batches=(4,))

    def broken(batch: int) -> None:
        raise KeyError(batch)

    with pytest.raises(KeyError):
        session.capture(broken, batches=(2,))
    with pytest.raises(RuntimeError, match="cudaStreamSynchronize: error"):
        session.capture(lambda batch: load_module().synchronize(session.stream, 0), batches=(2,))
    for call in (b"cudaStreamEndCapture", b"cudaGraphInstantiate"):
        gpu.played_fail(call)
        with pytest.raises(RuntimeError, match=call.decode()):
            session.capture(doubled(session, []), batches=(2,))
    assert session.batches == (4,)
    x = np.arange(3, dtype=np.uint8)
    np.testing.assert_array_equal(session(x=x)["y"], x)


def test_what_begins_within_a_capture_does_not_break_it(
    few: np.ndarray, small: Path, gpu: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first launch takes memory, sends weights and measures; sessions come and go. Beside others', too."""
    expected = one_launch(CudaBackend(load_weights(small)), few, 2)
    monkeypatch.setattr(CudaBackend, "measured_sizes", (1,))
    for ms in (1e3, 1e3, 1e3):  # a short warm-up
        gpu.played_time(ms)
    backend = CudaBackend(load_weights(small))
    types = {"joints": ((14, 3), "float64"), "sigma": ((14,), "float32"), "status": ((), "uint8")}
    session = GraphSession({"given": types["joints"]}, types, rows=5)

    def enqueue(batch: int) -> None:
        asked = DeviceBatch(session.input("given", batch), np.arange(14, dtype=np.int32), 1.0, False, None, None, None)
        backend.enqueue(asked, DeviceResult(*(session.output(name, batch) for name in types), None, None), session.stream)
        GraphSession({}, {"z": ((), "uint8")}, rows=1)

    session.capture(enqueue, (5,))
    np.testing.assert_array_equal(session(given=few)["joints"], expected)
    monkeypatch.setattr(CudaBackend, "measured_sizes", ())
    gpu.played_begin_elsewhere()
    one_launch(CudaBackend(load_weights(small)), few, 2)
    GraphSession({}, {"z": ((), "uint8")}, rows=1)
    gc.collect()
    assert gpu.played_end_elsewhere() == 0


def test_a_graph_keeps_what_its_launches_need(few: np.ndarray, make: Callable[..., Refiner], gpu: ctypes.CDLL) -> None:
    """Scratch and copies that the caller never sees; several calls in one capture, others between capture and replay."""
    rng = np.random.default_rng(0)
    maps, weight = rng.random((3, 14, 8, 8), dtype=np.float32), rng.random((14, 14 * 64), dtype=np.float32)
    bias = np.arange(14, dtype=np.float32)
    refiner = make(backend="cuda")
    confidence = np.full((3, 14), 0.2)
    expected = on_host(refiner(OnGpu(few[:3].astype(np.float32)), confidence=confidence, hand=["left", "right", "left"]))
    session = GraphSession(
        {"maps": ((14, 8, 8), "float32"), "joints": ((14, 3), "float32")},
        {"depth": ((14,), "float32"), "refined": ((14, 3), "float32")},
        rows=3,
    )
    head = (OnGpu(weight), OnGpu(bias))

    def enqueue(batch: int) -> None:
        depth = soft_argmax_depth(session.input("maps"), *head).depth
        refined = refiner(session.input("joints"), confidence=confidence, hand=["left", "right", "left"])
        for name, array in (("depth", depth), ("refined", refined)):
            to = session.output(name)
            load_module().copy(to.address, array.address, array.nbytes, 0, session.stream)

    session.capture(enqueue, (3,))
    for _ in range(3):
        refiner(OnGpu(few))
        load_module().synchronize(1, 0)
    confidence[:] = 1
    gc.collect()
    found = session(maps=maps, joints=few[:3].astype(np.float32))
    np.testing.assert_allclose(found["depth"], maps.reshape(3, -1).astype(float) @ weight.T.astype(float) + bias, rtol=1e-6)
    np.testing.assert_array_equal(found["refined"], expected)


def test_python_goes_on_during_a_replay(gpu: ctypes.CDLL) -> None:
    session = GraphSession({}, {"y": ((), "uint8")}, rows=1)
    flag = ctypes.c_int(0)
    session.capture(lambda _: gpu.played_hold(session.stream, ctypes.addressof(flag)), (1,))
    replay = threading.Thread(target=session)
    replay.start()
    time.sleep(0.2)  # the replay waits for what follows
    flag.value = flag.value or 1
    replay.join()
    assert flag.value == 1  # not -1: it gave up


def test_others_wait_for_a_capture_without_holding_it_up() -> None:
    session = GraphSession({"x": ((), "uint8")}, {"y": ((), "uint8")}, rows=4)
    seen: list[tuple[int, ...]] = []
    other = threading.Thread(target=lambda: seen.append(session.batches))

    def enqueue(batch: int) -> None:
        other.start()
        time.sleep(0.05)  # the other one waits by now, and must not have the interpreter
        doubled(session, [])(batch)

    session.capture(enqueue, batches=(4,))
    other.join(10)
    assert seen == [(4,)]


def test_a_session_frees_what_it_took(gpu: ctypes.CDLL) -> None:
    before = gpu.played_allocated()
    session = GraphSession({"x": ((3,), "float32")}, {"y": ((3,), "float32")}, rows=8)
    session.capture(doubled(session, []), batches=(4,))
    assert gpu.played_allocated() == before + 4
    del session
    assert gpu.played_allocated() == before
    gpu.played_fail(b"cudaMallocHost")
    with pytest.raises(RuntimeError, match="cudaMallocHost"):
        GraphSession({"x": ((3,), "float32")}, {"y": ((3,), "float32")}, rows=8)
    assert gpu.played_allocated() == before


def test_heatmaps_of_any_library(module: ModuleType) -> None:
    """The kernels behind torch's operators, without torch: arrays of anybody in, theirs out."""
    rng = np.random.default_rng(0)
    maps = rng.random((3, 6, 14, 8, 8), dtype=np.float32)
    top = maps.reshape(3, 6, 14, -1).argmax(-1)
    expected = np.stack([top % 8, top // 8], -1)
    waits = ctypes.CDLL(module.__file__).played_waits
    before = waits()
    found = soft_argmax(OnGpu(maps), "argmax")
    assert waits() == before
    assert (found.uv.shape, found.uv.dtype, found.status.dtype) == ((3, 6, 14, 2), "float32", "uint8")
    np.testing.assert_array_equal(on_host(found.uv), expected)
    np.testing.assert_array_equal(on_host(found.confidence), maps.max((3, 4)))
    np.testing.assert_array_equal(on_host(found.status), 0)
    # By hand: the softmax's mean over the whole map, and around the peak.
    places = np.stack(np.meshgrid(np.arange(8), np.arange(8)), -1).reshape(-1, 2).astype(float)
    for window in (None, 1):
        weights = np.exp(20 * maps.astype(float).reshape(3, 6, 14, -1))
        if window is not None:
            weights *= (np.abs(places - expected[..., None, :]) <= window).all(-1)
        mean = (weights[..., None] * places).sum(-2) / weights.sum(-1, keepdims=True)
        np.testing.assert_allclose(on_host(soft_argmax(OnGpu(maps), "soft", 20.0, window).uv), mean, atol=2e-5)

    weight, bias = rng.random((14, 14 * 64), dtype=np.float32), np.arange(14, dtype=np.float32)
    both = soft_argmax_depth(OnGpu(maps), OnGpu(weight), OnGpu(bias), "argmax")
    np.testing.assert_array_equal(on_host(both.uv), expected)
    linear = maps.reshape(3, 6, -1).astype(float) @ weight.T.astype(float) + bias
    np.testing.assert_allclose(on_host(both.depth), linear, rtol=1e-6)
    none = soft_argmax_depth(OnGpu(maps[:0]), OnGpu(weight), OnGpu(bias))
    assert (none.uv.shape, none.depth.shape) == ((0, 6, 14, 2), (0, 6, 14))


def test_heatmaps_that_do_not_fit(module: ModuleType) -> None:
    maps, weight, bias = np.zeros((2, 14, 8, 8), np.float32), np.zeros((14, 14 * 64), np.float32), np.zeros(14, np.float32)
    with pytest.raises(TypeError, match="heatmaps: got ndarray; expected an array on a GPU"):
        soft_argmax(maps)
    with pytest.raises(TypeError, match="heatmaps: got the dtype float64; expected one of float32, float16, bfloat16"):
        soft_argmax(OnGpu(maps.astype(float)))
    for shape in ((2, 21, 8, 8), (8, 8)):
        with pytest.raises(ValueError, match=r"heatmaps: got the shape .*; expected \(..., 14, H, W\)"):
            soft_argmax(OnGpu(np.zeros(shape, np.float32)))
    with pytest.raises(ValueError, match="up to 128 x 128"):
        soft_argmax(OnGpu(np.zeros((1, 14, 129, 8), np.float32)))
    with pytest.raises(ValueError, match="mode: got 'mean'"):
        soft_argmax(OnGpu(maps), "mean")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"weight: got the shape \(14, 5\); expected \(14, 896\) for heatmaps \(2, 14, 8, 8\)"):
        soft_argmax_depth(OnGpu(maps), OnGpu(weight[:, :5]), OnGpu(bias))
    with pytest.raises(ValueError, match=r"bias: got float64 of the shape \(14,\); expected float32"):
        soft_argmax_depth(OnGpu(maps), OnGpu(weight), OnGpu(bias.astype(float)))
    with pytest.raises(TypeError, match="weight: got ndarray; expected an array on a GPU"):
        soft_argmax_depth(OnGpu(maps), weight, OnGpu(bias))
    with pytest.raises(ValueError, match="up to 128 x 128"):
        module.soft_argmax_depth(0, 0, 1, 129, 8, False, 1.0, -1, 0, 0, 0, 0, 0, 0, 0, 0, 0)


def test_an_estimator_s_refiner_is_one_launch(few: np.ndarray, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors as the estimator has them, in the place of its own refiner."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("torchvision")
    from jointbert.estimator import torch_runtime
    from jointbert.models.estimator import EstimatorConfig, HandPoseEstimator
    from jointbert.models.refiner import JointRefiner, RefinerConfig

    class OnHost:
        """torch's library, whose GPU is the host."""

        cuda_stream = 0

        def read(self, tensor: Any) -> DeviceArray:
            tensor = tensor.contiguous()
            dtype = str(tensor.dtype).removeprefix("torch.")
            return DeviceArray(tensor.data_ptr(), tuple(tensor.shape), dtype, 0, tensor, self.cuda_stream)

        def empty(self, shape: tuple[int, ...], dtype: str) -> DeviceArray:
            return self.read(torch.empty(shape, dtype=getattr(torch, dtype)))

        def converted(self, given: Any, shape: tuple[int, ...], dtype: str, name: str) -> DeviceArray:
            return self.read(given.owner.to(getattr(torch, dtype)).expand(shape))

        def enqueued(self) -> None: ...

        def result(self, array: DeviceArray) -> Any:
            load_module().synchronize(self.cuda_stream, 0)
            return array.owner

    monkeypatch.setattr(torch_runtime, "read", lambda tensor, name: (OnHost().read(tensor), OnHost()))
    config = RefinerConfig(layers=1)
    model = HandPoseEstimator(EstimatorConfig(size=32, backbone="resnet18", width=8, depth=2, refiner=config)).eval()
    assert model.refiner is not None
    model.refiner.load_state_dict(JointRefiner.load(small).state_dict())
    assert torch_runtime.OneLaunch.fits(model.refiner)
    assert not torch_runtime.OneLaunch.fits(JointRefiner(RefinerConfig(layers=1, width=64)))
    launch = torch_runtime.OneLaunch(model.refiner, "f16")
    joints = torch.from_numpy(few).float()
    confidence = torch.linspace(0, 1, 5 * 14).view(5, 14)
    for left in (None, torch.tensor([True, False, False, True, False])):
        with torch.inference_mode():
            expected, sigma = model.refine(joints, confidence, left)
            found, found_sigma = launch(joints, confidence, left)
        np.testing.assert_allclose(found, expected, atol=0.05)
        np.testing.assert_allclose(found_sigma, sigma, rtol=0.05)
        assert (expected - joints).abs().max() > 0.1
