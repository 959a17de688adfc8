"""Malformed inputs: each gives the error, or the warning and status, that the contract names, and nothing else."""

# ruff: noqa: PT017  (whether an exception comes is what is asked here)

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jointbert import JOINT_NAMES, JointbertWarning, Refiner, Status

pytestmark = pytest.mark.sanitize

Case = tuple[dict[str, Any], str]  # arguments of refine(), and what to expect: an argument's name, "kept" or "refined"


def frames(poses: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Some good frames in a random leading shape and dtype."""
    shape = [(), (1,), (3,), (2, 2), (1, 1, 2)][rng.integers(5)]
    chosen = poses[rng.integers(len(poses), size=int(np.prod(shape, dtype=int)))].reshape(*shape, 14, 3)
    return chosen.astype([np.float32, np.float64][rng.integers(2)])


def wrong_shape(poses: np.ndarray, rng: np.random.Generator) -> Case:
    while True:
        shape = tuple(rng.integers(0, 25, size=rng.integers(0, 5)))
        if len(shape) < 2 or shape[-2:] != (14, 3):
            return {"joints": np.zeros(shape)}, "joints"


def wrong_dtype(poses: np.ndarray, rng: np.random.Generator) -> Case:
    dtype = ["bool", "complex64", "complex128", "U8", "S4", "O", "M8[s]", "m8[s]", "V4"][rng.integers(9)]
    return {"joints": np.zeros((14, 3), dtype)}, "joints"


def no_array(poses: np.ndarray, rng: np.random.Generator) -> Case:
    things = [None, "hand", b"hand", {}, set(), object(), 3, 2.5, [], [[]], [[1, 2], [3]], lambda: 0, ["a"] * 14, Ellipsis, int]
    return {"joints": things[rng.integers(len(things))]}, "joints"


class Broken:
    """Somebody's array whose library fails when it is asked for numbers."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        raise self.error


def odd_library(poses: np.ndarray, rng: np.random.Generator) -> Case:
    good = frames(poses, rng)
    masked = np.ma.masked_greater(good, good.mean())
    things = [Broken(RuntimeError("lost\ndevice")), Broken(MemoryError()), masked, [masked], [[good], [None]]]
    try:
        import torch
    except ImportError:
        pass
    else:
        tensor = torch.from_numpy(good)
        things += [tensor.clone().requires_grad_(), tensor.to("meta"), tensor.to_sparse(), tensor.bool(), tensor + 1j]
        things += [[tensor.clone().requires_grad_()], tensor.to(torch.float8_e5m2), tensor[..., :2], tensor.flatten()]
    return {"joints": things[rng.integers(len(things))]}, "joints"


def as_list(poses: np.ndarray, rng: np.random.Generator) -> Case:
    return {"joints": frames(poses, rng).tolist()}, "refined"


def too_few(poses: np.ndarray, rng: np.random.Generator) -> Case:
    joints = frames(poses, rng)
    seen = rng.integers(0, 4)
    bad = [np.nan, np.inf, -np.inf][rng.integers(3)]
    masked = rng.permutation(14)[seen:]
    joints[..., masked, rng.integers(3)] = bad
    return {"joints": joints}, "joints"


def all_invisible(poses: np.ndarray, rng: np.random.Generator) -> Case:
    visible = np.zeros(14, bool)
    visible[rng.permutation(14)[: rng.integers(0, 4)]] = True
    return {"joints": frames(poses, rng), "visible": visible}, "joints"


def huge_or_tiny(poses: np.ndarray, rng: np.random.Generator) -> Case:
    joints = frames(poses, rng).astype(np.float64)
    joints -= joints.mean(-2, keepdims=True)
    factor = 10.0 ** rng.choice([-300, -30, -5, -3, 2, 5, 30, 150, 300])
    return {"joints": joints * factor}, "kept"


def all_the_same(poses: np.ndarray, rng: np.random.Generator) -> Case:
    return {"joints": np.full((rng.integers(1, 4), 14, 3), rng.normal() * 10.0 ** rng.integers(-3, 6))}, "kept"


def one_far_joint(poses: np.ndarray, rng: np.random.Generator) -> Case:
    joints = frames(poses, rng).astype(np.float64)
    joints[..., rng.integers(14), rng.integers(3)] = [1e4, -1e6, 1e38, 1.7e308][rng.integers(4)]
    return {"joints": joints}, "kept"


def some_missing(poses: np.ndarray, rng: np.random.Generator) -> Case:
    joints = frames(poses, rng)
    # The palm's triangle and a finger stay: a full-sized hand by any four.
    masked = rng.permutation(10)[: rng.integers(0, 9)]
    joints[..., masked, :] = np.nan
    return {"joints": joints}, "refined"


def odd_memory(poses: np.ndarray, rng: np.random.Generator) -> Case:
    joints = frames(poses, rng)
    kind = rng.integers(5)
    if kind == 0:
        joints = np.asfortranarray(joints)
    elif kind == 1:
        joints = np.repeat(joints, 2, axis=-1)[..., ::2]
    elif kind == 2:
        joints = joints[..., ::-1][..., ::-1]
    elif kind == 3:
        joints = np.frombuffer(b"\0" + joints.tobytes(), np.uint8)[1:].view(joints.dtype).reshape(joints.shape)  # unaligned
    joints.flags.writeable = False
    return {"joints": joints}, "refined"


def empty(poses: np.ndarray, rng: np.random.Generator) -> Case:
    shape = [(0, 14, 3), (2, 0, 14, 3), (0, 0, 14, 3)][rng.integers(3)]
    extra = [{}, {"hand": "left"}, {"visible": np.ones(14, bool)}, {"error_mm": 3}][rng.integers(4)]
    return {"joints": np.zeros(shape, [np.float32, np.float64, np.int64][rng.integers(3)]), **extra}, "refined"


def per_joint(name: str, values: list[Any]) -> Callable[[np.ndarray, np.random.Generator], Case]:
    def case(poses: np.ndarray, rng: np.random.Generator) -> Case:
        return {"joints": frames(poses, rng), name: values[rng.integers(len(values))]}, name

    case.__name__ = f"bad_{name}"
    return case


def at_random(low: float, high: float) -> np.ndarray:
    values = np.full(14, 0.5)
    values[3], values[9] = low, high
    return values


NO_PER_JOINT = ["x", object(), {}, np.ones(13), np.ones((7, 14)), np.ones((14, 1)), [[1], [1, 2]], np.ones(14, complex)]
MUTATORS = [
    wrong_shape,
    wrong_dtype,
    no_array,
    odd_library,
    as_list,
    too_few,
    all_invisible,
    huge_or_tiny,
    all_the_same,
    one_far_joint,
    some_missing,
    odd_memory,
    empty,
    per_joint(
        "confidence", [*NO_PER_JOINT, at_random(-1e-3, 1), at_random(0, 1.001), at_random(np.inf, 0), at_random(0, -np.inf)]
    ),
    per_joint("visible", [*NO_PER_JOINT, np.full(14, 7), np.full(14, -1), np.full(14, 0.0), np.full(14, np.nan)]),
    per_joint("error_mm", [*NO_PER_JOINT, 0, -1, np.inf, -np.inf, at_random(0, 1), at_random(1, np.inf), [1, 2], "3"]),
    per_joint("units", ["", "MM", "inch", "µm", None, 1, 1.0, ["mm"], b"mm", object()]),
    per_joint(
        "order", ["", "nyu", [], ["palm"] * 14, list(JOINT_NAMES[:13]), [*JOINT_NAMES, "palm"], range(14), 5, None, object()]
    ),
    per_joint(
        "hand", ["", "Left", "both", ["left"] * 9, [1], [None], [["left"], ["right", "left"]], 5, None, object(), b"left"]
    ),
    per_joint("sequence", [1, "yes"]),
]


@pytest.mark.parametrize(("backend", "cases", "all_cases"), [("native", 2000, 10_000), ("torch", 400, 1000)])
def test_what_becomes_of_malformed_inputs(
    backend: str, cases: int, all_cases: int, full: bool, random_weights: Path, poses: np.ndarray
) -> None:
    if backend == "torch":
        pytest.importorskip("torch")
    refiner = Refiner(random_weights, backend=backend)
    rng, cases = np.random.default_rng(2026), all_cases if full else cases
    seen = {"error": 0, "kept": 0, "refined": 0}
    for number in range(cases):
        mutator = MUTATORS[number % len(MUTATORS)]
        arguments, expected = mutator(poses, rng)
        plain = expected in ("kept", "refined")
        given = np.array(arguments["joints"], copy=True) if plain else None
        label = f"case {number}, {mutator.__name__}: {arguments}"
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                result = refiner(**arguments, return_details=True)
            except (ValueError, TypeError) as error:
                assert expected not in ("kept", "refined"), f"{label}: {error}"
                assert str(error).startswith(f"{expected}: "), f"{label}: {error}"
                assert "\n" not in str(error), label
                assert not caught, label
                seen["error"] += 1
                continue
        assert expected in ("kept", "refined"), f"{label}: no error"
        assert given is not None
        np.testing.assert_array_equal(arguments["joints"], given, err_msg=label)
        assert result.joints.shape == given.shape, label
        if expected == "kept":
            assert (np.asarray(result.status) == Status.NOT_A_HAND).all(), label
            np.testing.assert_array_equal(result.joints, given, err_msg=label)
            assert [w.category for w in caught] == [JointbertWarning], label
        else:
            assert (np.asarray(result.status) == Status.REFINED).all(), label
            assert np.isfinite(result.joints).all(), label
            assert not [w for w in caught if w.category is not JointbertWarning], label
        seen[expected] += 1
    assert min(seen.values()) > cases / 20, seen
