"""The native backend, for every instruction set, against its reference implementation: backend ``torch`` in float64."""

from __future__ import annotations

import importlib
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

import jointbert
from jointbert import _core
from jointbert.contract import Result, Status, layout
from jointbert.runtimes.native import NativeBackend
from jointbert.skeletons import NYU14
from jointbert.weights import Weights

torch = pytest.importorskip("torch")
from jointbert.models.refiner import RefinerConfig  # noqa: E402
from jointbert.runtimes.torch import TorchBackend  # noqa: E402
from tests.support.native import (  # noqa: E402
    ISAS,
    SHUFFLED,
    assert_matches,
    assert_same_bits,
    full_batch,
    hands,
    make_batch,
    random_weights,
    rows,
)

pytestmark = pytest.mark.sanitize


@pytest.mark.parametrize("count", [0, 1, 2, 3, 15, 16, 17, 100])
def test_refines_like_the_reference(native: NativeBackend, reference: TorchBackend, tolerance_mm: float, count: int) -> None:
    batch = make_batch(hands(count))
    mine = native.run(batch)
    assert_matches(mine, reference.run(batch), batch, tolerance_mm)
    assert (mine.status == Status.REFINED).all()
    if count:
        assert np.abs(mine.joints - batch.joints).max() > 1  # the network has something to say


@pytest.mark.parametrize("count", [0, 1, 2, 3, 15, 16, 17, 100])
def test_refines_like_the_reference_with_every_option(
    native: NativeBackend, reference: TorchBackend, tolerance_mm: float, count: int
) -> None:
    batch = full_batch(count)
    assert_matches(native.run(batch), reference.run(batch), batch, tolerance_mm)


@pytest.mark.parametrize("option", ["mirror", "visible", "confidence", "error_mm"])
def test_each_option_alone_is_the_references_and_matters(
    native: NativeBackend, reference: TorchBackend, tolerance_mm: float, option: str
) -> None:
    plain = make_batch(hands(20, seed=1))
    batch = replace(plain, **{option: getattr(full_batch(20), option)})
    mine = native.run(batch)
    assert_matches(mine, reference.run(batch), batch, tolerance_mm)
    assert np.abs(mine.joints - native.run(plain).joints).max() > 0.01


def test_float32_joints_are_within_a_thousandth_of_a_millimetre(native: NativeBackend, reference: TorchBackend) -> None:
    for batch in (make_batch(hands(100).astype(np.float32)), full_batch(100, np.float32)):
        expected = reference.run(replace(batch, joints=batch.joints.astype(np.float64)))
        mine = native.run(batch)
        np.testing.assert_array_equal(mine.status, expected.status)
        good = mine.status == Status.REFINED
        assert mine.joints.dtype == np.float32
        assert np.abs(mine.joints[good] - expected.joints[good]).max() * batch.mm_per_unit < 1e-3
        assert mine.joints[~good].tobytes() == batch.joints[~good].tobytes()


def test_network_alone_is_the_models(native: NativeBackend, reference: TorchBackend, tolerance_mm: float) -> None:
    rng = np.random.default_rng(3)
    features = rng.normal(0, 0.6, (33, 14, 8)).astype(np.float32)
    features[..., 3] = rng.random((33, 14)) < 0.8
    with torch.inference_mode():
        expected = reference.model(torch.from_numpy(features).double()).numpy()
    out = native._refiner.forward(features)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, expected, rtol=0, atol=tolerance_mm / layout.SCALE_MM * 1.5)


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
