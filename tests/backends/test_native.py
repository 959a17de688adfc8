"""The native backend against its twin, :class:`jointbert.runtimes.torch.TorchBackend` in float64, for every instruction set."""

from __future__ import annotations

import importlib
import re
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import jointbert
from jointbert import _core
from jointbert.contract import Batch, Result, Status, layout
from jointbert.runtimes.native import NativeBackend
from jointbert.skeletons import NYU14
from jointbert.weights import Weights

torch = pytest.importorskip("torch")
from jointbert.models.refiner import JointRefiner, RefinerConfig  # noqa: E402
from jointbert.runtimes.torch import TorchBackend  # noqa: E402

ISAS = _core.supported_isas()
CANONICAL = np.arange(14, dtype=np.int32)
SHUFFLED = np.random.default_rng(7).permutation(14).astype(np.int32)


def random_weights(layers: int = 12) -> Weights:
    """Weights of a trained refiner's scale in which every tensor matters: an untrained one corrects nothing."""
    generator = torch.Generator().manual_seed(layers)
    model = JointRefiner(RefinerConfig(layers=layers))
    tensors = {}
    for name, parameter in model.state_dict().items():
        noise = torch.randn(parameter.shape, generator=generator)
        norm = "norm" in name
        if norm and name.endswith("weight"):
            value = 1 + 0.2 * noise
        elif name.endswith("bias"):
            value = 0.1 * noise
        else:
            value = noise * (0.3 if name in ("embed.weight", "joint_embedding", "mask") else 0.06)
        tensors[name] = value.numpy()
    tensors["head.weight"] *= 0.02 / 0.06
    tensors["observed_gain"] = np.full(1, 0.8, np.float32)
    sizes = {"layers": layers, "heads": 8, "width": 128, "ffn": 256, "features": 8, "outputs": 4}
    return Weights("random", tensors, sizes, {})


def hands(count: int, seed: int = 0) -> np.ndarray:
    """Right hands of an adult's size, some 80 cm from the camera: (count, 14, 3) float64 in millimetres."""
    rng = np.random.default_rng(seed)
    fingers = [(-30 + 20 * i, y) for i in range(4) for y in (-90 - 10 * (i in (1, 2)), -45 - 10 * (i in (1, 2)))]
    flat = np.array([*fingers, (70, -20), (50, 0), (30, 20), (-25, 60), (25, 60), (0, 0)])
    pose = np.concatenate([flat, np.zeros((14, 1))], axis=1)
    rotation = np.linalg.qr(rng.standard_normal((count, 3, 3)))[0]
    rotation *= np.linalg.det(rotation)[:, None, None]
    place = rng.uniform((-200, -200, 600), (200, 200, 1000), (count, 1, 3))
    return (pose + rng.normal(0, 8, (count, 14, 3))) @ rotation + place


def make_batch(joints: np.ndarray, **given: Any) -> Batch:
    blank: dict[str, Any] = {"mirror": None, "visible": None, "confidence": None, "error_mm": None}
    return Batch(**{"joints": joints, "permutation": CANONICAL, "mm_per_unit": 1.0, **blank, **given})


def full_batch(count: int, dtype: type = np.float64, seed: int = 1) -> Batch:
    """Every option at once: shuffled order, centimetres, both hands, missing joints, unknown confidences and errors."""
    rng = np.random.default_rng(seed)
    joints = hands(count, seed) / 10
    joints[rng.random((count, 14)) < 0.1, 0] = np.nan
    confidence = rng.random((count, 14), dtype=np.float32)
    confidence[rng.random((count, 14)) < 0.2] = np.nan
    error_mm = rng.uniform(0.01, 300, (count, 14)).astype(np.float32)
    error_mm[rng.random((count, 14)) < 0.2] = np.nan
    return Batch(
        joints=joints.astype(dtype),
        permutation=SHUFFLED,
        mm_per_unit=10.0,
        mirror=rng.random(count) < 0.5,
        visible=rng.random((count, 14)) < 0.9,
        confidence=confidence,
        error_mm=error_mm,
    )


def rows(batch: Batch, index: slice) -> Batch:
    cut = {
        name: None if (value := getattr(batch, name)) is None else np.ascontiguousarray(value[index])
        for name in ("joints", "mirror", "visible", "confidence", "error_mm")
    }
    return replace(batch, **cut)


def assert_same_bits(one: Result, other: Result, index: slice = slice(None)) -> None:
    for name in ("joints", "sigma", "status", "size_mm", "chirality"):
        mine, theirs = getattr(one, name), getattr(other, name)[index]
        assert mine.dtype == theirs.dtype, name
        assert mine.shape == theirs.shape, name
        assert mine.tobytes() == theirs.tobytes(), name


@pytest.fixture(scope="module")
def weights() -> Weights:
    return random_weights()


@pytest.fixture(scope="module")
def twin(weights: Weights) -> TorchBackend:
    return TorchBackend(weights, dtype=torch.float64)


@pytest.fixture(scope="module", params=ISAS)
def native(request: pytest.FixtureRequest, weights: Weights) -> NativeBackend:
    return NativeBackend(weights, isa=request.param)


@pytest.fixture(scope="module")
def tolerance_mm(weights: Weights, twin: TorchBackend) -> float:
    """Twice torch float32's own error plus 1e-5 mm; float64 joints, so that no camera frame's rounding hides it."""
    single = TorchBackend(weights, dtype=torch.float32)
    worst = 0.0
    for batch in (make_batch(hands(100)), full_batch(100)):
        difference = single.run(batch).joints - twin.run(batch).joints
        worst = max(worst, float(np.nanmax(np.abs(difference))) * batch.mm_per_unit)
    assert 1e-6 < worst < 1e-3  # else this yardstick measures nothing
    return 2 * worst + 1e-5


def assert_twins(mine: Result, reference: Result, batch: Batch, tolerance_mm: float) -> None:
    assert mine.joints.dtype == batch.joints.dtype
    assert mine.joints.shape == batch.joints.shape
    np.testing.assert_array_equal(mine.status, reference.status)
    np.testing.assert_allclose(mine.size_mm, reference.size_mm, rtol=1e-6)
    np.testing.assert_allclose(mine.chirality, reference.chirality, rtol=1e-5, atol=1e-6)
    good = mine.status == Status.REFINED
    error = np.abs(mine.joints[good].astype(np.float64) - reference.joints[good]) * batch.mm_per_unit
    assert error.max(initial=0) <= tolerance_mm
    np.testing.assert_allclose(mine.sigma[good], reference.sigma[good], rtol=3e-6)
    assert np.isnan(mine.sigma[~good]).all()
    assert mine.joints[~good].tobytes() == batch.joints[~good].tobytes()


# The twin


@pytest.mark.parametrize("count", [0, 1, 2, 3, 15, 16, 17, 100])
def test_refines_like_its_twin(native: NativeBackend, twin: TorchBackend, tolerance_mm: float, count: int) -> None:
    batch = make_batch(hands(count))
    mine = native.run(batch)
    assert_twins(mine, twin.run(batch), batch, tolerance_mm)
    assert (mine.status == Status.REFINED).all()
    if count:
        assert np.abs(mine.joints - batch.joints).max() > 1  # the network has something to say


@pytest.mark.parametrize("count", [0, 1, 2, 3, 15, 16, 17, 100])
def test_refines_like_its_twin_with_every_option(
    native: NativeBackend, twin: TorchBackend, tolerance_mm: float, count: int
) -> None:
    batch = full_batch(count)
    assert_twins(native.run(batch), twin.run(batch), batch, tolerance_mm)


@pytest.mark.parametrize("option", ["mirror", "visible", "confidence", "error_mm"])
def test_each_option_alone_is_the_twins_and_matters(
    native: NativeBackend, twin: TorchBackend, tolerance_mm: float, option: str
) -> None:
    plain = make_batch(hands(20, seed=1))
    batch = replace(plain, **{option: getattr(full_batch(20), option)})
    mine = native.run(batch)
    assert_twins(mine, twin.run(batch), batch, tolerance_mm)
    assert np.abs(mine.joints - native.run(plain).joints).max() > 0.01


def test_float32_joints_are_within_a_thousandth_of_a_millimetre(native: NativeBackend, twin: TorchBackend) -> None:
    for batch in (make_batch(hands(100).astype(np.float32)), full_batch(100, np.float32)):
        reference = twin.run(replace(batch, joints=batch.joints.astype(np.float64)))
        mine = native.run(batch)
        np.testing.assert_array_equal(mine.status, reference.status)
        good = mine.status == Status.REFINED
        assert mine.joints.dtype == np.float32
        assert np.abs(mine.joints[good] - reference.joints[good]).max() * batch.mm_per_unit < 1e-3
        assert mine.joints[~good].tobytes() == batch.joints[~good].tobytes()


def test_network_alone_is_the_models(native: NativeBackend, twin: TorchBackend, tolerance_mm: float) -> None:
    rng = np.random.default_rng(3)
    features = rng.normal(0, 0.6, (33, 14, 8)).astype(np.float32)
    features[..., 3] = rng.random((33, 14)) < 0.8
    with torch.inference_mode():
        reference = twin.model(torch.from_numpy(features).double()).numpy()
    out = native._refiner.forward(features)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, reference, rtol=0, atol=tolerance_mm / layout.SCALE_MM * 1.5)


def test_nan_features_stay_in_their_pose(native: NativeBackend) -> None:
    features = np.random.default_rng(5).normal(0, 0.6, (3, 14, 8)).astype(np.float32)
    features[..., 3] = 1
    clean = native._refiner.forward(features)
    features[1, 4, 0] = np.nan
    out = native._refiner.forward(features)
    assert np.isnan(out[1]).all()
    assert out[[0, 2]].tobytes() == clean[[0, 2]].tobytes()


@pytest.mark.parametrize("isa", ISAS)
def test_every_tensor_matters_as_it_does_in_torch(isa: str) -> None:
    weights = random_weights(layers=2)
    batch = full_batch(8)

    def both(tensors: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        changed = replace(weights, tensors=tensors)
        results = NativeBackend(changed, isa=isa).run(batch), TorchBackend(changed, dtype=torch.float64).run(batch)
        return tuple(np.concatenate([r.joints, np.log(r.sigma)[..., None]], axis=-1) for r in results)  # type: ignore[return-value]

    mine, reference = both(weights.tensors)
    rng = np.random.default_rng(4)
    for name, tensor in weights.tensors.items():
        noise = rng.normal(0, 0.05, tensor.shape).astype(np.float32)
        my_changed, changed = both({**weights.tensors, name: tensor + noise})
        assert np.nanmax(np.abs(changed - reference)) > 1e-3, name
        np.testing.assert_allclose(my_changed - mine, changed - reference, rtol=0, atol=2e-5, err_msg=name)


# The same result, however it is asked for


def test_alone_or_in_a_batch_on_one_thread_or_many(native: NativeBackend) -> None:
    for batch in (make_batch(hands(100).astype(np.float32)), full_batch(100)):
        whole = native.run(batch)
        for start, stop in ((0, 1), (7, 8), (99, 100), (5, 22), (0, 16), (31, 97)):
            assert_same_bits(native.run(rows(batch, slice(start, stop))), whole, slice(start, stop))
        for threads in (2, 3, 8, 64, 10**6):
            native_many = native._refiner.run(*vars(batch).values(), threads)
            assert_same_bits(Result(*native_many), whole)
        features = np.random.default_rng(0).normal(0, 0.6, (50, 14, 8)).astype(np.float32)
        assert native._refiner.forward(features, 5).tobytes() == native._refiner.forward(features).tobytes()
        assert native._refiner.forward(features[9:10]).tobytes() == native._refiner.forward(features)[9:10].tobytes()


def test_order_permutes_and_nothing_else(native: NativeBackend) -> None:
    joints = hands(5)
    plain = native.run(make_batch(joints))
    shuffled = np.empty_like(joints)
    shuffled[:, SHUFFLED] = joints
    result = native.run(make_batch(shuffled, permutation=SHUFFLED))
    assert result.joints[:, SHUFFLED].tobytes() == plain.joints.tobytes()
    assert result.sigma[:, SHUFFLED].tobytes() == plain.sigma.tobytes()
    assert result.chirality.tobytes() == plain.chirality.tobytes()


def test_mirrored_hands_come_back_mirrored(native: NativeBackend) -> None:
    joints = hands(5)
    flip = np.array([-1.0, 1.0, 1.0])
    plain = native.run(make_batch(joints))
    result = native.run(make_batch(joints * flip, mirror=np.ones(5, dtype=bool)))
    assert (result.joints * flip).tobytes() == plain.joints.tobytes()
    assert result.chirality.tobytes() == plain.chirality.tobytes()


@pytest.mark.parametrize("mm_per_unit", [10.0, 25.4, 1000.0])
def test_units_scale_joints_and_sigma(native: NativeBackend, mm_per_unit: float) -> None:
    joints = hands(5)
    plain = native.run(make_batch(joints))
    result = native.run(make_batch(joints / mm_per_unit, mm_per_unit=mm_per_unit))
    np.testing.assert_allclose(result.joints * mm_per_unit, plain.joints, rtol=0, atol=1e-4)
    np.testing.assert_allclose(result.sigma * mm_per_unit, plain.sigma, rtol=1e-5)


def test_translation_changes_nothing(native: NativeBackend) -> None:
    joints = hands(5)
    shift = np.array([512.0, -1024.0, 2048.0])
    moved = native.run(make_batch(joints + shift)).joints - shift
    np.testing.assert_allclose(moved, native.run(make_batch(joints)).joints, rtol=0, atol=1e-4)


def test_unknown_is_none_is_nan_and_is_not_one(native: NativeBackend) -> None:
    joints = hands(3)
    unknown = np.full((3, 14), np.nan, dtype=np.float32)
    plain = native.run(make_batch(joints))
    assert_same_bits(native.run(make_batch(joints, confidence=unknown, error_mm=unknown)), plain)
    sure = native.run(make_batch(joints, confidence=np.ones_like(unknown)))
    assert np.abs(sure.joints - plain.joints).max() > 0.01


def test_error_mm_is_clamped(native: NativeBackend) -> None:
    joints = hands(1)

    def run(error: float) -> Result:
        return native.run(make_batch(joints, error_mm=np.full((1, 14), error, dtype=np.float32)))

    low, high = layout.ERROR_RANGE_MM
    assert_same_bits(run(0.0), run(1e-30))
    assert_same_bits(run(1e30), run(high))
    assert_same_bits(run(low / 2), run(0.0))
    assert np.abs(run(low).joints - run(high).joints).max() > 0.01


# Frames that can't be refined


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_frames_that_are_no_hand_come_back_bit_for_bit(native: NativeBackend, twin: TorchBackend, dtype: type) -> None:
    joints = hands(9).astype(dtype)
    joints[1, 3:] = np.nan  # three joints
    joints[2] = np.inf  # none
    joints[3] = (joints[3] - joints[3].mean(0)) * 0.01 + joints[3].mean(0)
    joints[4] *= 1000
    joints[5, 4] = np.finfo(dtype).max  # finite, and no hand
    joints[6] = 0
    joints[7] *= np.finfo(dtype).tiny
    payload = joints[1].view(np.uint32 if dtype is np.float32 else np.uint64)
    payload[5, 0] |= 0x1234  # a NaN that holds something comes back with it
    batch = make_batch(joints)
    mine = native.run(batch)
    few, strange = Status.TOO_FEW_JOINTS, Status.NOT_A_HAND
    expected = [Status.REFINED, few, few, strange, strange, strange, strange, strange, Status.REFINED]
    np.testing.assert_array_equal(mine.status, expected)
    np.testing.assert_array_equal(mine.status, twin.run(batch).status)
    for i in range(1, 8):
        assert mine.joints[i].tobytes() == joints[i].tobytes()
        assert np.isnan(mine.sigma[i]).all()
    assert np.isnan(mine.size_mm[2])
    assert np.isnan(mine.chirality[1])
    assert np.isfinite(mine.joints[[0, 8]]).all()
    assert_same_bits(native.run(rows(batch, slice(8, 9))), mine, slice(8, 9))


def test_three_joints_are_too_few_and_four_enough(native: NativeBackend) -> None:
    visible = np.zeros((2, 14), dtype=bool)
    visible[0, :3] = visible[1, :4] = True
    mine = native.run(make_batch(hands(2), visible=visible))
    assert mine.status.tolist() == [Status.TOO_FEW_JOINTS, Status.REFINED]
    assert np.isfinite(mine.joints[1]).all()


def test_a_missing_joint_is_filled_in_whatever_it_holds(native: NativeBackend) -> None:
    joints = hands(1)
    visible = np.ones((1, 14), dtype=bool)
    visible[0, 5] = False
    reference = native.run(make_batch(joints, visible=visible))
    assert np.isfinite(reference.joints).all()
    for value in (np.nan, np.inf, -np.inf, 1e300, 1e-300, 0.0):
        changed = joints.copy()
        changed[0, 5] = value
        assert_same_bits(native.run(make_batch(changed, visible=visible)), reference)
    joints[0, 5, 2] = np.nan  # one coordinate is enough
    assert_same_bits(native.run(make_batch(joints)), reference)


@pytest.mark.parametrize(("low", "high"), [layout.HAND_SIZE_MM])
def test_size_limits(native: NativeBackend, low: float, high: float) -> None:
    joints = hands(1)
    centred = joints - joints.mean(1, keepdims=True)
    centred /= np.sqrt((centred**2).sum(-1).mean())
    sizes = np.array([low - 1e-3, low + 1e-3, high - 1e-3, high + 1e-3])
    mine = native.run(make_batch(centred * sizes[:, None, None] + 700))
    np.testing.assert_allclose(mine.size_mm, sizes, rtol=1e-6)
    assert mine.status.tolist() == [Status.NOT_A_HAND, Status.REFINED, Status.REFINED, Status.NOT_A_HAND]


extreme = st.one_of(
    st.floats(-150, 150), st.floats(), st.sampled_from([np.nan, np.inf, -np.inf, 1e300, -1e300, 1e-300, 5e-324, 1.7e308])
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    joints=arrays(np.float64, (3, 14, 3), elements=extreme, fill=st.floats(-100, 100)),
    visible=arrays(np.bool_, (3, 14)),
    confidence=arrays(np.float32, (3, 14), elements=st.floats(width=32)),
    error_mm=arrays(np.float32, (3, 14), elements=st.floats(width=32)),
)
def test_any_number_gives_finite_joints_or_the_frame_as_it_was(
    joints: np.ndarray, visible: np.ndarray, confidence: np.ndarray, error_mm: np.ndarray
) -> None:
    batch = make_batch(joints, visible=visible, confidence=confidence, error_mm=error_mm)
    reference = shared_twin().run(batch)
    sizes = reference.size_mm[:, None] - np.array(layout.HAND_SIZE_MM)
    sure = ~(np.abs(sizes) < 1e-4).any(-1)  # at the limit itself, the last bit decides
    for isa in ISAS:
        mine = shared_native(isa).run(batch)
        np.testing.assert_array_equal(mine.status[sure], reference.status[sure])
        for i, status in enumerate(mine.status):
            if status == Status.REFINED:
                assert not np.isnan(mine.joints[i]).any()
                assert not np.isnan(mine.sigma[i]).any()
            else:
                assert mine.joints[i].tobytes() == joints[i].tobytes()


@cache  # hypothesis takes no fixtures
def shared_native(isa: str) -> NativeBackend:
    return NativeBackend(random_weights(2), isa=isa)


@cache
def shared_twin() -> TorchBackend:
    return TorchBackend(random_weights(2), dtype=torch.float64)


# Threads


def test_one_refiner_serves_many_python_threads(native: NativeBackend) -> None:
    batches = [full_batch(count, np.float32, seed=count) for count in (1, 2, 5, 16, 17, 33, 40, 64)]
    expected = [native.run(batch) for batch in batches]
    start = threading.Barrier(8)

    def work(offset: int) -> list[Result]:
        start.wait()
        return [native.run(batches[(offset + i) % 8]) for i in range(16)]

    with ThreadPoolExecutor(8) as pool:
        for offset, results in enumerate(pool.map(work, range(8))):
            for i, result in enumerate(results):
                assert_same_bits(result, expected[(offset + i) % 8])


def test_other_python_threads_run_meanwhile(native: NativeBackend) -> None:
    batch = make_batch(hands(20))
    start = time.perf_counter()
    native.run(batch)
    count = int(np.clip(20 * 0.5 / (time.perf_counter() - start), 100, 20000))  # some half a second of work
    batch = make_batch(hands(count))
    span: list[float] = []

    def work() -> None:
        span.append(time.perf_counter())
        native.run(batch)
        span.append(time.perf_counter())

    thread = threading.Thread(target=work)
    ticks = []
    thread.start()
    while thread.is_alive():
        ticks.append(time.perf_counter())
        time.sleep(0.001)
    thread.join()
    began, ended = span
    inside = [began, *(tick for tick in ticks if began < tick < ended), ended]
    # With the interpreter's lock held, this thread would have stood still from beginning to end.
    assert np.diff(inside).max() < 0.5 * (ended - began)


# Weights


@pytest.mark.parametrize(
    "name", ["embed.weight", "mask", "joint_embedding", "layers.1.qkv.weight", "layers.0.fc2.bias", "head.bias"]
)
@pytest.mark.parametrize("isa", ISAS)
def test_bad_weights_are_refused_by_name(name: str, isa: str) -> None:
    tensors = random_weights(2).tensors
    tensor = tensors[name]
    broken = tensor.copy()
    broken.flat[-1] = np.nan
    cases: list[tuple[Any, type[Exception], str]] = [
        (tensor.astype(np.float64), ValueError, "is float64; expected float32"),
        (tensor.astype(np.float16), ValueError, "is float16"),
        (tensor.astype(">f4"), ValueError, "expected float32"),
        (tensor[..., :-1], ValueError, f"has shape {tensor[..., :-1].shape}; expected {tensor.shape}"),
        (tensor[None], ValueError, "has shape (1, "),
        (np.array(1, np.float32), ValueError, "has shape (); expected"),
        (np.zeros((0,), np.float32), ValueError, "has shape (0,); expected"),
        (broken, ValueError, "not finite"),
        (tensor.tolist(), TypeError, "is of type list; expected a NumPy array"),
    ]
    for value, error, message in cases:
        with pytest.raises(error, match=re.escape(f"'{name}'") + ".*" + re.escape(message)):
            _core.Refiner({**tensors, name: value}, isa)
    with pytest.raises(ValueError, match=re.escape(f"there is no tensor '{name}'")):
        _core.Refiner({key: value for key, value in tensors.items() if key != name}, isa)


def test_unknown_tensors_and_names_are_refused() -> None:
    tensors = random_weights(2).tensors
    for name in ("layers.0.gate.weight", "layers.3.fc1.bias", "layers.01.fc1.bias", "", "norm.weight.", "position"):
        with pytest.raises(ValueError, match=re.escape(f"'{name}' is no tensor of this network")):
            _core.Refiner({**tensors, name: np.zeros(128, np.float32)})
    with pytest.raises(TypeError, match="a name is of type int; expected str"):
        _core.Refiner({**tensors, 3: tensors["mask"]})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="there is no tensor"):
        _core.Refiner({})
    with pytest.raises(ValueError, match=re.escape("there is no tensor 'layers.0.")):
        _core.Refiner({key: value for key, value in tensors.items() if not key.startswith("layers.")})
    with pytest.raises(TypeError):
        _core.Refiner(None)  # type: ignore[arg-type]


def test_weights_are_copied_and_may_be_strided_or_read_only() -> None:
    weights = random_weights(1)
    batch = full_batch(4)
    expected = NativeBackend(weights).run(batch)
    strided = {key: np.asfortranarray(value) for key, value in weights.tensors.items()}
    for value in strided.values():
        value.setflags(write=False)
    assert_same_bits(NativeBackend(replace(weights, tensors=strided)).run(batch), expected)
    own = {key: value.copy() for key, value in weights.tensors.items()}
    backend = NativeBackend(replace(weights, tensors=own))
    for value in own.values():
        value[...] = np.nan
    assert_same_bits(backend.run(batch), expected)


@pytest.mark.parametrize(("key", "value"), [("heads", 4), ("width", 104), ("ffn", 512), ("features", 9), ("outputs", 3)])
def test_other_sizes_are_refused(weights: Weights, key: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"weights: {key} is {value}; the native backend is compiled for"):
        NativeBackend(replace(weights, sizes={**weights.sizes, key: value}))


def test_a_stated_number_of_layers_must_be_there(weights: Weights) -> None:
    with pytest.raises(ValueError, match="weights: the metadata states 11 layers, the tensors have 12"):
        NativeBackend(replace(weights, sizes={**weights.sizes, "layers": 11}))


# Arguments


def arguments() -> dict[str, Any]:
    return {**vars(full_batch(3, np.float32)), "threads": 1}


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("joints", np.zeros((3, 21, 3)), ValueError, "joints: got shape (3, 21, 3); expected (N, 14, 3)"),
        ("joints", np.zeros((14, 3)), ValueError, "joints: got shape (14, 3)"),
        ("joints", np.zeros((3, 14, 3), np.int64), TypeError, "joints: got int64; expected float32 or float64"),
        ("joints", np.zeros((3, 14, 3), np.float16), TypeError, "joints: got float16"),
        ("joints", np.zeros((3, 14, 3), ">f8"), TypeError, "joints: got >f8"),
        ("joints", np.zeros((3, 14, 3), np.complex128), TypeError, "joints: got complex128"),
        ("joints", [[0.0]], TypeError, "joints: got list; expected a NumPy array"),
        ("joints", None, TypeError, "joints: got NoneType"),
        ("permutation", CANONICAL.astype(np.int64), TypeError, "permutation: got int64; expected int32"),
        ("permutation", CANONICAL[:13], ValueError, "permutation: got shape (13,); expected (14,)"),
        ("permutation", np.zeros(14, np.int32), ValueError, "permutation: 0 at 1; expected each of 0 to 13 once"),
        ("permutation", CANONICAL + 1, ValueError, "permutation: 14 at 13"),
        ("permutation", CANONICAL - 1, ValueError, "permutation: -1 at 0"),
        ("permutation", None, TypeError, "permutation: got NoneType"),
        ("mm_per_unit", 0.0, ValueError, "mm_per_unit: got 0.0; expected a positive number"),
        ("mm_per_unit", -1.0, ValueError, "mm_per_unit: got -1.0"),
        ("mm_per_unit", float("nan"), ValueError, "mm_per_unit: got nan"),
        ("mm_per_unit", float("inf"), ValueError, "mm_per_unit: got inf"),
        ("mirror", np.zeros(2, bool), ValueError, "mirror: got shape (2,); expected (3,)"),
        ("mirror", np.zeros(3), TypeError, "mirror: got float64; expected bool"),
        ("visible", np.zeros((3, 13), bool), ValueError, "visible: got shape (3, 13); expected (3, 14)"),
        ("visible", np.zeros((3, 14), np.uint8), TypeError, "visible: got uint8; expected bool"),
        ("confidence", np.zeros((2, 14), np.float32), ValueError, "confidence: got shape (2, 14); expected (3, 14)"),
        ("confidence", np.zeros((3, 14)), TypeError, "confidence: got float64; expected float32"),
        ("error_mm", np.zeros((3, 14, 1), np.float32), ValueError, "error_mm: got shape (3, 14, 1); expected (3, 14)"),
        ("error_mm", 5.0, TypeError, "error_mm: got float; expected a NumPy array"),
        ("threads", 0, ValueError, "threads: got 0; expected at least 1"),
        ("threads", -3, ValueError, "threads: got -3"),
        ("threads", 1.5, TypeError, "threads"),
    ],
)
def test_bad_arguments_are_refused_by_name(name: str, value: Any, error: type[Exception], message: str) -> None:
    refiner = _core.Refiner(random_weights(1).tensors)
    refiner.run(**arguments())
    with pytest.raises(error, match=re.escape(message)):
        refiner.run(**{**arguments(), name: value})


def test_forward_checks_its_arguments() -> None:
    refiner = _core.Refiner(random_weights(1).tensors)
    assert refiner.forward(np.zeros((0, 14, 8), np.float32)).shape == (0, 14, 4)
    with pytest.raises(ValueError, match=re.escape("features: got shape (1, 14, 9); expected (N, 14, 8)")):
        refiner.forward(np.zeros((1, 14, 9), np.float32))
    with pytest.raises(TypeError, match="features: got float64; expected float32"):
        refiner.forward(np.zeros((1, 14, 8)))
    with pytest.raises(ValueError, match="threads: got 0"):
        refiner.forward(np.zeros((1, 14, 8), np.float32), 0)


def test_backend_refuses_no_threads(weights: Weights) -> None:
    with pytest.raises(ValueError, match="threads: got 0; expected at least 1"):
        NativeBackend(weights, threads=0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_input_is_not_modified_and_may_be_read_only(native: NativeBackend, dtype: type) -> None:
    batch = full_batch(20, dtype)
    expected = native.run(batch)
    given = [value for value in vars(batch).values() if isinstance(value, np.ndarray)]
    before = [value.tobytes() for value in given]
    for value in given:
        value.setflags(write=False)
    assert_same_bits(native.run(batch), expected)
    assert [value.tobytes() for value in given] == before
    assert all(not np.shares_memory(batch.joints, array) for array in vars(expected).values())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_strided_and_unaligned_arrays_are_read_as_what_they_hold(native: NativeBackend, dtype: type) -> None:
    batch = full_batch(5, dtype)
    expected = native.run(batch)

    def strided(value: np.ndarray) -> np.ndarray:
        return np.repeat(value, 2, axis=0)[::2]

    def unaligned(value: np.ndarray) -> np.ndarray:
        room = np.empty(value.nbytes + 1, np.uint8)
        out = room[1:].view(value.dtype).reshape(value.shape)
        out[...] = value
        return out

    for change in (strided, unaligned, np.asfortranarray):
        changed = {name: change(v) if isinstance(v, np.ndarray) else v for name, v in vars(batch).items()}
        assert_same_bits(native.run(Batch(**changed)), expected)


def test_a_bool_that_holds_another_byte_is_true(native: NativeBackend) -> None:
    batch = full_batch(5)
    assert batch.visible is not None
    assert batch.mirror is not None
    odd = replace(batch, visible=(batch.visible * np.uint8(6)).view(bool), mirror=(batch.mirror * np.uint8(255)).view(bool))
    assert_same_bits(native.run(odd), native.run(batch))


# The module


def test_constants_are_the_contracts() -> None:
    for name in ("SCALE_MM", "ERROR_UNIT_MM", "ERROR_RANGE_MM", "LOG_SIGMA_RANGE", "MIN_JOINTS", "HAND_SIZE_MM"):
        assert getattr(_core, name) == getattr(layout, name), name
    assert _core.NUM_JOINTS == layout.NUM_JOINTS == NYU14.num_joints
    config = RefinerConfig()
    for name in ("heads", "width", "ffn", "features", "outputs"):
        assert getattr(_core, name.upper()) == getattr(config, name), name
    for status in Status:
        assert getattr(_core, f"STATUS_{status.name}") == status


def test_log_sigma_is_clamped(weights: Weights) -> None:
    for bias, expected in ((50.0, layout.LOG_SIGMA_RANGE[1]), (-50.0, layout.LOG_SIGMA_RANGE[0])):
        head = weights.tensors["head.bias"].copy()
        head[3] = bias
        backend = NativeBackend(replace(weights, tensors={**weights.tensors, "head.bias": head}))
        np.testing.assert_allclose(backend.run(make_batch(hands(1))).sigma, 100 * np.exp(expected), rtol=1e-6)


def test_auto_is_the_best_instruction_set(weights: Weights) -> None:
    assert ISAS[-1] == "portable"
    assert [isa for isa in ("avx512", "avx2", "portable") if isa in ISAS] == ISAS
    assert NativeBackend(weights).isa == ISAS[0]
    assert NativeBackend(weights).name == "native"
    for isa in ISAS:
        assert NativeBackend(weights, isa=isa).isa == isa
    with pytest.raises(ValueError, match="isa: got 'sse9'; this machine runs 'auto', "):
        NativeBackend(weights, isa="sse9")


def test_a_module_that_is_not_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jointbert._core", None)
    monkeypatch.delattr(jointbert, "_core")
    monkeypatch.delitem(sys.modules, "jointbert.runtimes.native")
    with pytest.raises(
        ImportError, match=r"the native module jointbert\._core can't be loaded .* checkout .*; elsewhere, install jointbert"
    ):
        importlib.import_module("jointbert.runtimes.native")
