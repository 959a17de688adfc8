"""Weights and arguments that the native second stage refuses, each by its name."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from jointbert import _core
from jointbert.contract import layout

torch = pytest.importorskip("torch")
from tests.support.native_sequence import (  # noqa: E402
    CANONICAL,
    ISAS,
    LENGTHS,
    Sequence,
    assert_same_bits,
    everything,
    motion,
    open_stream,
    plain,
    run,
    shared,
    stages,
    stream_all,
)

pytestmark = pytest.mark.sanitize

# Weights


@pytest.mark.parametrize("name", ["embed1.weight", "embed2.bias", "layers.1.qkv.weight", "norm.weight", "head.bias", "gain"])
@pytest.mark.parametrize("isa", ISAS)
def test_bad_weights_are_refused_by_name(name: str, isa: str) -> None:
    first, tensors = _core.Refiner(stages().first, isa), stages().second
    tensor = tensors[name]
    broken = tensor.copy()
    broken.flat[-1] = np.nan
    cases: list[tuple[Any, type[Exception], str]] = [
        (tensor.astype(np.float64), ValueError, "is float64; expected float32"),
        (tensor[..., :-1], ValueError, f"has shape {tensor[..., :-1].shape}; expected {tensor.shape}"),
        (tensor[None], ValueError, "has shape (1, "),
        (np.zeros((0,), np.float32), ValueError, "has shape (0,); expected"),
        (broken, ValueError, "not finite"),
        (tensor.tolist(), TypeError, "is of type list; expected a NumPy array"),
    ]
    for value, error, message in cases:
        with pytest.raises(error, match=re.escape(f"'{name}'") + ".*" + re.escape(message)):
            _core.SequenceRefiner(first, {**tensors, name: value})
    with pytest.raises(ValueError, match=re.escape(f"there is no tensor '{name}'")):
        _core.SequenceRefiner(first, {key: value for key, value in tensors.items() if key != name})


def test_unknown_tensors_and_refiners_are_refused() -> None:
    first, tensors = _core.Refiner(stages().first), stages().second
    for name in ("layers.0.gate.weight", "layers.3.fc1.bias", "mask", "embed.weight", "observed_gain", ""):
        with pytest.raises(ValueError, match=re.escape(f"'{name}' is no tensor of this network")):
            _core.SequenceRefiner(first, {**tensors, name: np.zeros(128, np.float32)})
    with pytest.raises(ValueError, match=re.escape("there is no tensor 'layers.0.")):
        _core.SequenceRefiner(first, {key: value for key, value in tensors.items() if not key.startswith("layers.")})
    with pytest.raises(ValueError, match="there is no tensor"):
        _core.SequenceRefiner(first, {})
    for refiner, weights in ((None, tensors), (tensors, tensors), (first, None), (shared(), tensors)):
        with pytest.raises(TypeError):
            _core.SequenceRefiner(refiner, weights)  # type: ignore[arg-type]


# Arguments


def arguments() -> dict[str, Any]:
    options = {"lengths_mm": LENGTHS, "look_behind": 20, "look_ahead": 20, "alone": False, "threads": 1}
    return {**vars(everything(3).as_float32()), **options}


BATCH_CASES = [
    ("joints", np.zeros((3, 21, 3)), ValueError, "joints: got shape (3, 21, 3); expected (N, 14, 3)"),
    ("joints", np.zeros((3, 14, 3), np.int64), TypeError, "joints: got int64; expected float32 or float64"),
    ("joints", None, TypeError, "joints: got NoneType"),
    ("permutation", np.zeros(14, np.int32), ValueError, "permutation: 0 at 1; expected each of 0 to 13 once"),
    ("mm_per_unit", 0.0, ValueError, "mm_per_unit: got 0.0; expected a positive number"),
    ("mirror", np.zeros(2, bool), ValueError, "mirror: got shape (2,); expected (3,)"),
    ("visible", np.zeros((3, 14), np.uint8), TypeError, "visible: got uint8; expected bool"),
    ("confidence", np.zeros((2, 14), np.float32), ValueError, "confidence: got shape (2, 14); expected (3, 14)"),
    ("error_mm", 5.0, TypeError, "error_mm: got float; expected a NumPy array"),
    ("threads", 0, ValueError, "threads: got 0; expected at least 1"),
]
LENGTH_CASES = [
    ("lengths_mm", LENGTHS[:8], ValueError, "lengths_mm: got shape (8,); expected (9,)"),
    ("lengths_mm", LENGTHS.astype(np.float32), TypeError, "lengths_mm: got float32; expected float64"),
    ("lengths_mm", 40.0, TypeError, "lengths_mm: got float; expected a NumPy array"),
    *(
        (
            "lengths_mm",
            np.where(np.arange(9) == 6, value, LENGTHS),
            ValueError,
            f"lengths_mm: got {value} at 6; expected positive millimetres, NaN where unknown",
        )
        for value in (0.0, -3.0, np.inf)
    ),
]
LOOK_CASES = [
    ("look_ahead", -1, ValueError, "look_ahead: got -1; expected 0 to 20"),
    ("look_ahead", 21, ValueError, "look_ahead: got 21; expected 0 to 20"),
    ("look_ahead", 1.5, TypeError, "look_ahead"),
]


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        *BATCH_CASES,
        *LENGTH_CASES,
        *LOOK_CASES,
        ("look_behind", 21, ValueError, "look_behind: got 21; expected 0 to 20"),
        ("look_behind", -(2**40), ValueError, "look_behind: got -1099511627776"),
        ("alone", True, ValueError, "alone: got frames that stand alone, and to look 20 behind and 20 ahead"),
        ("alone", 1, TypeError, "alone: bool"),
    ],
)
def test_bad_arguments_are_refused_by_name(name: str, value: Any, error: type[Exception], message: str) -> None:
    shared(small=True).run(**arguments())
    with pytest.raises(error, match=re.escape(message)):
        shared(small=True).run(**{**arguments(), name: value})


@pytest.mark.parametrize(("name", "value", "error", "message"), BATCH_CASES)
def test_calibrate_checks_its_arguments(name: str, value: Any, error: type[Exception], message: str) -> None:
    given = {**vars(everything(3).as_float32()), "threads": 1}
    with pytest.raises(error, match=re.escape(message)):
        shared(small=True).calibrate(**{**given, name: value})


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        *(case for case in BATCH_CASES if case[0] in ("permutation", "mm_per_unit")),
        *LENGTH_CASES,
        *LOOK_CASES,
        ("mirror", None, TypeError, "mirror: bool"),
        ("mirror", np.zeros(1, bool), TypeError, "mirror: bool"),
    ],
)
def test_streams_check_their_options(name: str, value: Any, error: type[Exception], message: str) -> None:
    options = {"permutation": CANONICAL, "mm_per_unit": 1.0, "mirror": False, "lengths_mm": None, "look_ahead": 0}
    shared(small=True).stream(**options)  # type: ignore[arg-type]
    with pytest.raises(error, match=re.escape(message)):
        shared(small=True).stream(**{**options, name: value})


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("joints", np.zeros((1, 14, 3)), ValueError, "joints: got shape (1, 14, 3); expected (14, 3)"),
        ("joints", np.zeros((14, 3), np.float16), TypeError, "joints: got float16; expected float32 or float64"),
        ("joints", None, TypeError, "joints: got NoneType"),
        ("visible", np.zeros((1, 14), bool), ValueError, "visible: got shape (1, 14); expected (14,)"),
        ("visible", np.zeros(14), TypeError, "visible: got float64; expected bool"),
        ("confidence", np.zeros(13, np.float32), ValueError, "confidence: got shape (13,); expected (14,)"),
        ("confidence", np.zeros(14), TypeError, "confidence: got float64; expected float32"),
        ("error_mm", 5.0, TypeError, "error_mm: got float; expected a NumPy array"),
    ],
)
def test_push_checks_its_arguments(name: str, value: Any, error: type[Exception], message: str) -> None:
    stream = open_stream(shared(small=True), plain(1), 0)
    given = {"joints": motion(1)[0], "visible": None, "confidence": None, "error_mm": None}
    assert stream.push(**given) is not None  # type: ignore[arg-type]
    with pytest.raises(error, match=re.escape(message)):
        stream.push(**{**given, name: value})


def test_forward_checks_its_arguments() -> None:
    refiner = shared(small=True)
    hidden, features = np.zeros((2, 14, 128), np.float32), np.zeros((2, 14, layout.SEQUENCE_FEATURES), np.float32)
    assert refiner.forward(hidden[:0], features[:0]).shape == (0, 14, 4)
    with pytest.raises(ValueError, match=re.escape("hidden: got shape (2, 14, 127); expected (N, 14, 128)")):
        refiner.forward(hidden[..., 1:], features)
    with pytest.raises(ValueError, match=re.escape("features: got shape (1, 14, ")):
        refiner.forward(hidden, features[:1])
    with pytest.raises(TypeError, match="features: got float64; expected float32"):
        refiner.forward(hidden, features.astype(np.float64))
    with pytest.raises(ValueError, match="threads: got 0"):
        refiner.forward(hidden, features, 0)


def test_input_is_not_modified_and_may_be_strided_or_read_only() -> None:
    refiner, given = shared(small=True), everything(12, mirror=True)
    expected = run(refiner, given, lengths_mm=LENGTHS)
    streamed = stream_all(open_stream(refiner, given, 2), given, 2)
    strided: dict[str, Any] = {
        key: np.repeat(v, 2, axis=0)[::2] if isinstance(v, np.ndarray) else v for key, v in vars(given).items()
    }
    changed = Sequence(**strided)
    values = [value for value in vars(changed).values() if isinstance(value, np.ndarray)]
    before = [value.tobytes() for value in values]
    for value in values:
        value.setflags(write=False)
    assert_same_bits(run(refiner, changed, lengths_mm=np.repeat(LENGTHS, 2)[::2]), expected)
    assert_same_bits(stream_all(open_stream(refiner, changed, 2), changed, 2), streamed)
    assert [value.tobytes() for value in values] == before
