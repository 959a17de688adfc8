"""Refining NumPy and GPU arrays with backend ``cuda``, on the fake CUDA runtime."""

from __future__ import annotations

import copy
import ctypes
import threading
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jointbert
from jointbert import JointbertWarning, Refiner, Status
from jointbert.cuda.arrays import DeviceArray, is_on_gpu
from jointbert.cuda.graph_session import GraphSession
from jointbert.cuda.module import load_module
from jointbert.runtimes.cuda import CudaBackend
from jointbert.weights import load_weights
from tests.support.fake_gpu import GpuArray, plain_batch, to_numpy
from tests.support.readme import python_block

pytestmark = pytest.mark.usefixtures("gpu")


@pytest.mark.sanitize
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


@pytest.mark.sanitize
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_arrays_on_the_gpu_stay_there(
    few: np.ndarray, dtype: type, refine: Callable[..., Any], make: Callable[..., Refiner]
) -> None:
    centred = (few - few.mean(1, keepdims=True)).astype(dtype)
    before = centred.copy()
    given = GpuArray(centred.reshape(5, 1, 14, 3))
    found = refine(given, return_details=True)
    assert is_on_gpu(found.joints)
    assert (found.joints.shape, found.joints.dtype) == ((5, 1, 14, 3), np.dtype(dtype).name)
    expected = make(backend="cuda")(before.astype(np.float64), return_details=True)
    through = expected.joints if dtype is np.float64 else expected.joints.astype(np.float32)
    np.testing.assert_array_equal(to_numpy(found.joints)[:, 0], through.astype(dtype))
    np.testing.assert_array_equal(to_numpy(found.sigma)[:, 0], expected.sigma.astype(np.float32))
    assert (to_numpy(found.status) == Status.REFINED).all()
    np.testing.assert_array_equal(given.array[:, 0], before)


def test_optional_arguments_on_gpu_host_or_as_lists(few: np.ndarray, make: Callable[..., Refiner]) -> None:
    rng = np.random.default_rng(0)
    confidence, visible = rng.random((5, 14)).astype(np.float32), rng.random((5, 14)) < 0.8
    error = rng.uniform(1, 30, (5, 14)).astype(np.float32)
    doubles = {"confidence": confidence.astype(float), "error_mm": error.astype(float), "visible": visible.tolist()}
    hands = ["left", "right", "left", "right", "right"]
    refiner = make(backend="cuda")
    for hand in ("left", hands):
        expected = refiner(few, confidence=confidence, visible=visible, error_mm=error, hand=hand)
        there = refiner(
            GpuArray(few),
            confidence=GpuArray(confidence),
            visible=GpuArray(visible),
            error_mm=GpuArray(error),
            hand=hand,
            check=True,
        )
        from_host = refiner(GpuArray(few), confidence=confidence, visible=visible, error_mm=error, hand=hand)
        converted = refiner(GpuArray(few), hand=hand, **doubles)
        for found in (there, from_host, converted):
            np.testing.assert_array_equal(to_numpy(found), expected)
    np.testing.assert_array_equal(to_numpy(refiner(GpuArray(few), error_mm=7)), refiner(few, error_mm=7))


def test_only_check_synchronises_and_warns(few: np.ndarray, gpu: ctypes.CDLL, refine: Callable[..., Any]) -> None:
    refine(GpuArray(few))  # the first call uploads weights and measures
    before = gpu.fake_synchronisations()
    everything = {"confidence": np.ones((5, 14)), "visible": GpuArray(np.ones((5, 14), bool)), "error_mm": np.full(14, 9.0)}
    kept = refine(GpuArray(few), hand=["left"] * 3 + ["right"] * 2, return_details=True, **everything)
    assert gpu.fake_synchronisations() == before
    del kept
    refine(GpuArray(few), check=True)
    assert gpu.fake_synchronisations() > before
    metres = GpuArray(few / 1000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quiet = refine(metres, return_details=True)
    assert (to_numpy(quiet.status) == Status.NOT_A_HAND).all()
    np.testing.assert_array_equal(to_numpy(quiet.joints), few / 1000)
    with pytest.warns(JointbertWarning, match=r"5 of 5 frames were returned unchanged.*looks like metres"):
        refine(metres, check=True)
    with pytest.raises(ValueError, match="fewer than 4 finite, visible joints"):
        refine(GpuArray(np.full((2, 14, 3), np.nan)), check=True)
    bad = GpuArray(np.full((5, 14), 1.5, np.float32))
    refine(GpuArray(few), confidence=bad)
    with pytest.raises(ValueError, match=r"confidence: got 1.5; expected values in \[0, 1\]"):
        refine(GpuArray(few), confidence=bad, check=True)
    with pytest.raises(ValueError, match=r"error_mm: got the shape \(3,\); expected \(5, 14\), or a number"):
        refine(GpuArray(few), error_mm=GpuArray(np.ones(3, np.float32)))


def test_arrays_of_wrong_type_shape_or_device_are_refused(few: np.ndarray, refine: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match="joints: got the dtype int32; expected floating-point"):
        refine(GpuArray(few.astype(np.int32)))
    with pytest.raises(ValueError, match=r"joints: got the shape \(5, 21, 3\).*21 joints are another protocol"):
        refine(GpuArray(np.zeros((5, 21, 3))))
    with pytest.raises(ValueError, match="joints: the array is not contiguous; copy it first"):
        refine(GpuArray(few, strides=(8, 40, 560)))
    with pytest.raises(ValueError, match=r"confidence: got float64 of the shape \(5, 14\); expected float32"):
        refine(GpuArray(few), confidence=GpuArray(np.zeros((5, 14))))
    elsewhere = GpuArray(np.zeros((5, 14), np.float32))
    elsewhere.__dlpack_device__ = lambda: (2, 1)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="confidence: the array is on GPU 1, the joints on GPU 0"):
        refine(GpuArray(few), confidence=elsewhere)
    with pytest.raises(
        ValueError, match="backend: 'cuda' has no sequences; take backend 'native' or 'torch', and arrays on the CPU"
    ):
        refine(GpuArray(few), sequence=True)
    with pytest.raises(ValueError, match="backend 'native' computes on the CPU; take 'auto' or 'cuda'"):
        refine(GpuArray(few), backend="native")
    with pytest.raises(ValueError, match="backend: 'cuda' has no sequences"):
        jointbert.refine(few, sequence=True, backend="cuda")


def test_optional_arguments_of_wrong_type_are_refused(few: np.ndarray, refine: Callable[..., Any]) -> None:
    for given, kind, message in (
        ({"visible": np.full((5, 14), 0.3)}, TypeError, "visible: got the dtype float64; expected bool"),
        ({"confidence": np.ones((5, 14), bool)}, TypeError, "confidence: got the dtype bool; expected numbers"),
        ({"error_mm": np.ones((3, 14))}, ValueError, r"error_mm: got the shape \(3, 14\); expected \(5, 14\)"),
        ({"confidence": np.ones(5)}, ValueError, r"confidence: got the shape \(5,\)"),
        ({"confidence": np.ones((5, 14), ">f4")}, TypeError, "confidence: got bytes in the order of '>f4'"),
    ):
        with pytest.raises(kind, match=message):
            refine(GpuArray(few), **{name: GpuArray(value) for name, value in given.items()})
    with pytest.raises(TypeError, match="joints: got bytes in the order of '>f8'"):
        refine(GpuArray(few.astype(">f8")))
    masked = GpuArray(few)
    masked.__cuda_array_interface__["mask"] = masked
    with pytest.raises(TypeError, match="joints: got a masked array"):
        refine(masked)


def test_host_arrays_are_copied_before_the_call_returns(few: np.ndarray, refine: Callable[..., Any]) -> None:
    """Pinned ones, too: the caller may overwrite them."""
    confidence = np.full((5, 14), 0.05, np.float32)
    expected = to_numpy(refine(GpuArray(few), confidence=confidence))
    found = refine(GpuArray(few), confidence=confidence)
    confidence[:] = 1
    np.testing.assert_array_equal(to_numpy(found), expected)


def test_no_poses(refine: Callable[..., Any]) -> None:
    assert refine(np.zeros((0, 14, 3)), backend="cuda").shape == (0, 14, 3)
    assert refine(GpuArray(np.zeros((0, 14, 3)))).shape == (0, 14, 3)


def test_results_depend_on_neither_batch_nor_thread(poses: np.ndarray, make: Callable[..., Refiner]) -> None:
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


def test_more_joint_orders_than_cached_graphs(few: np.ndarray, make: Callable[..., Refiner]) -> None:
    refiner = make(backend="cuda")
    names = list(jointbert.JOINT_NAMES)
    expected = refiner(few)
    for shift in range(10):
        order = names[shift:] + names[:shift]
        rolled = np.roll(few, -shift, axis=1)
        np.testing.assert_array_equal(refiner(rolled, order=order), np.roll(expected, -shift, axis=1))


def test_sessions_are_made_and_deleted_while_another_thread_refines(poses: np.ndarray, make: Callable[..., Refiner]) -> None:
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


def test_the_readme_examples_run(few: np.ndarray) -> None:
    class Tensor:
        def cuda(self) -> GpuArray:
            return GpuArray(few[:1])

    names = {"jointbert": jointbert, "joints": Tensor(), "array": few[:1]}
    exec(python_block("gpu-poses"), names)
    np.testing.assert_allclose(names["better"], jointbert.refine(few[:1]), atol=0.05)
    maps, weight, bias = np.ones((1, 14, 4, 4), np.float32), np.ones((14, 224), np.float32), np.zeros(14, np.float32)
    names = {"heatmaps": GpuArray(maps), "weight": GpuArray(weight), "bias": GpuArray(bias)}
    exec(python_block("gpu-heatmaps"), names)
    np.testing.assert_array_equal(to_numpy(names["depth"]), 224)


def test_bfloat16_by_refiner_and_backend(few: np.ndarray, small: Path) -> None:
    """bfloat16 takes weights that float16 can not represent."""
    weights = load_weights(small)
    large = {k: 1e6 * v if k == "layers.0.fc1.weight" else v for k, v in weights.tensors.items()}
    with pytest.raises(ValueError, match="too large for f16, or is no number; take precision 'bf16'"):
        CudaBackend(replace(weights, tensors=large))
    too_large = {k: np.full_like(v, 3.4e38) if k == "layers.0.fc1.weight" else v for k, v in large.items()}
    with pytest.raises(ValueError, match="too large for bf16, or is no number"):
        CudaBackend(replace(weights, tensors=too_large), precision="bf16")
    refiner = Refiner(small, precision="bf16")
    expected = CudaBackend(weights, precision="bf16").run(plain_batch(few))
    np.testing.assert_array_equal(to_numpy(refiner(GpuArray(few))), expected.joints)
    np.testing.assert_array_equal(copy.copy(Refiner(small, "cuda", 1, "bf16"))(few), expected.joints)


@pytest.mark.parametrize("precision", ["f16", "bf16"])
def test_16_bit_weights_change_no_methods_error(nyu_folder: Path, precision: str, full: bool) -> None:
    """It changes by less than 0.02 mm, the limit for a default precision: on two frames of each method, or of some."""
    nyu = pytest.importorskip("training.data.nyu", reason="needs a checkout")
    published = nyu.read_published(nyu_folder).frames(slice(2440, 4376, 968))
    methods = list(published.predictions.values())[:: 1 if full else 5]
    joints = np.concatenate(methods).reshape(-1, 14, 3)
    batch = plain_batch(joints)
    found = CudaBackend(load_weights(), precision=precision).run(batch)
    exact = Refiner()(joints)
    truth = np.tile(published.groundtruth, (len(methods), 1, 1))
    change = np.linalg.norm(found.joints - truth, axis=-1) - np.linalg.norm(exact - truth, axis=-1)
    assert np.abs(change.reshape(len(methods), -1).mean(1)).max() < 0.02
    moved = np.linalg.norm(found.joints - exact, axis=-1)
    assert moved.mean() < {"f16": 0.002, "bf16": 0.01}[precision]
    assert moved.max() < {"f16": 0.05, "bf16": 0.2}[precision]


def test_the_estimators_refiner_as_one_launch(few: np.ndarray, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the estimator's tensors, in place of the estimator's own refiner."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("torchvision")
    from jointbert.estimator import torch_runtime
    from jointbert.models.estimator import EstimatorConfig, HandPoseEstimator
    from jointbert.models.refiner import JointRefiner, RefinerConfig

    class OnHost:
        """torch, with host tensors as GPU tensors."""

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
