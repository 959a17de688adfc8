"""Weight files that a `Refiner` reads, reads again or refuses."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jointbert
from jointbert import Refiner
from tests.support.refiners import BACKENDS

pytestmark = pytest.mark.sanitize


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"weights": "nyu21"}, ValueError, r"weights: 'nyu21' is not shipped; expected one of \['nyu14'\]"),
        ({"weights": "no/such.safetensors"}, ValueError, r"weights: there is no file"),
        ({"weights": 3}, TypeError, r"weights: got int"),
        ({"weights": ["nyu14"]}, TypeError, r"weights: got list"),
        ({"backend": "gpu"}, ValueError, r"backend: got 'gpu'; expected 'auto' or one of 'native', 'cuda', 'onnx"),
        ({"backend": None}, ValueError, r"backend: got None"),
    ],
)
def test_bad_weights_and_backends(poses: np.ndarray, arguments: dict, kind: type, message: str) -> None:
    with pytest.raises(kind, match=f"^{message}"):
        Refiner(**arguments)
    with pytest.raises(kind, match=f"^{message}"):
        jointbert.refine(poses[0], **arguments)


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({}, {"layers": "13"}, r"has missing or unknown tensors, among them 'layers\.12"),
        ({}, {"heads": "0"}, r"has heads = '0'; expected a whole number"),
        ({}, {"heads": "7"}, r"the width 128 .* is no multiple of its 7 heads"),
        ({}, {"width": "8000000000"}, r"has width = '8000000000'"),
        ({}, {"layers": "x"}, r"has layers = 'x'"),
        ({"mask": np.zeros(5, np.float32)}, {}, r"'mask' of .* is F32 \(5,\); expected F32 \(128,\)"),
        ({"mask": np.zeros(128, np.float16)}, {}, r"'mask' of .* is F16 \(128,\)"),
        ({"mask": np.full(128, np.nan, np.float32)}, {}, r"'mask' of .* has values that are not finite"),
        ({"extra": np.zeros(1, np.float32)}, {}, r"unknown tensors, among them 'extra'"),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_that_do_not_fit(
    tmp_path: Path, random_weights: Path, backend: str, tensors: dict, metadata: dict, message: str
) -> None:
    from safetensors.numpy import load_file, save_file

    from jointbert.weights import load_weights

    path = tmp_path / "wrong.safetensors"
    given = {**load_weights(random_weights).metadata, **metadata}
    save_file({**load_file(random_weights), **tensors}, path, metadata=given)
    with pytest.raises(ValueError, match=rf"^weights: .*{message}"):
        Refiner(path, backend=backend)


def test_the_same_relative_path_elsewhere_is_another_file(
    tmp_path: Path, random_weights: Path, poses: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.numpy import load_file, save_file

    from jointbert.weights import load_weights

    results = []
    for i, name in enumerate(("one", "two")):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        tensors = load_file(random_weights)
        tensors["head.bias"] = tensors["head.bias"] + i
        save_file(tensors, "mine.safetensors", metadata=load_weights(random_weights).metadata)
        os.utime("mine.safetensors", (1, 1))
        results.append(jointbert.refine(poses[0], weights="mine.safetensors"))
    assert np.abs(results[0] - results[1]).max() > 50


def test_bad_weight_files(tmp_path: Path, random_weights: Path) -> None:
    from safetensors.numpy import load_file, save_file

    path = tmp_path / "file.safetensors"
    path.write_bytes(b"no safetensors at all")
    with pytest.raises(ValueError, match=r"is no valid safetensors file"):
        Refiner(path)
    path.write_bytes(random_weights.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"is no valid safetensors file"):
        Refiner(path)
    save_file(load_file(random_weights), path, metadata={"layout": "pose21"})
    with pytest.raises(ValueError, match=r"has the layout 'pose21'; this version runs"):
        Refiner(path)


@pytest.mark.parametrize(("threads", "kind"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError)])
def test_bad_threads(threads: Any, kind: type) -> None:
    with pytest.raises(kind, match=r"^threads: got"):
        Refiner(threads=threads)


def test_a_changed_weight_file_is_read_again(tmp_path: Path, random_weights: Path, poses: np.ndarray) -> None:
    from safetensors.numpy import load_file, save_file

    path = tmp_path / "mine.safetensors"
    path.write_bytes(random_weights.read_bytes())
    first = jointbert.refine(poses[0], weights=path)
    from jointbert.weights import load_weights

    tensors = load_file(path)
    tensors["head.bias"] = tensors["head.bias"] + 1
    save_file(tensors, path, metadata={**load_weights(path).metadata, "note": "changed"})
    assert np.abs(jointbert.refine(poses[0], weights=path) - first).max() > 50
