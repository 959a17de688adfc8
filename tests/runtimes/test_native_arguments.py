"""Weights and arguments that the native backend refuses, each by its name."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from jointbert import _core
from jointbert.contract import Batch
from jointbert.runtimes.native import NativeBackend
from jointbert.weights import Weights

torch = pytest.importorskip("torch")
from tests.support.native import CANONICAL, ISAS, assert_same_bits, full_batch, random_weights  # noqa: E402

pytestmark = pytest.mark.sanitize

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
