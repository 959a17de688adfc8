"""What the registry says of each runtime, held against what the runtimes do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import jointbert
from jointbert import Refiner, runtimes
from jointbert.contract import Result
from jointbert.runtimes import RUNTIMES, RuntimeSpec, candidates, capability_table, registry, runtime

README = Path(__file__).resolve().parents[2] / "README.md"
SAFETENSORS, ONNX = Path("x.safetensors"), Path("x.onnx")


def here() -> Iterator[object]:
    """Runtimes of .safetensors weights that need no GPU."""
    for spec in RUNTIMES:
        if ".safetensors" in spec.suffixes and spec.arrays == ("cpu",):
            library = pytest.mark.skipif(spec.name == "torch" and not find_spec("torch"), reason="needs torch")
            yield pytest.param(spec, id=spec.name, marks=library)


def test_names_are_unique_and_auto_is_the_native_one() -> None:
    assert [spec.name for spec in RUNTIMES] == ["native", "cuda", "onnxruntime", "torch"]
    assert {place: spec.name for place, spec in candidates("auto", SAFETENSORS).items()} == {"cpu": "native", "gpu": "cuda"}
    assert {place: spec.name for place, spec in candidates("auto", ONNX).items()} == {"cpu": "onnxruntime"}
    assert {place: spec.name for place, spec in candidates("cuda", SAFETENSORS).items()} == {"cpu": "cuda", "gpu": "cuda"}
    assert {place: spec.name for place, spec in candidates("torch", SAFETENSORS).items()} == {"cpu": "torch"}


@pytest.mark.parametrize("spec", list(here()))
def test_a_runtime_can_what_its_spec_says(spec: RuntimeSpec, poses: np.ndarray) -> None:
    refiner = Refiner(backend=spec.name)
    calls = {
        "sequences": lambda: refiner(poses[:12], sequence=True),
        "streams": lambda: refiner.stream(),
        "calibration": lambda: refiner.calibrate(poses),
    }
    for capability, call in calls.items():
        if getattr(spec, capability):
            call()
        else:
            with pytest.raises(ValueError, match=rf"^backend: '{spec.name}' has no .*; take backend '"):
                call()


@pytest.mark.parametrize("spec", list(here()))
def test_a_runtime_takes_its_precisions_and_no_other(spec: RuntimeSpec, poses: np.ndarray) -> None:
    usual = Refiner(backend=spec.name)(poses[:3])
    for precision in spec.precisions:
        backend = registry.load(spec, jointbert.weights.load_weights(), 1, precision)
        assert backend.name == spec.name
        assert backend.precision == precision
        if precision == spec.precisions[0]:
            np.testing.assert_array_equal(Refiner(backend=spec.name, precision=precision)(poses[:3]), usual)
    with pytest.raises(ValueError, match=rf"^precision: got 'int4'; .*{spec.name}: {', '.join(spec.precisions)}"):
        Refiner(backend=spec.name, precision="int4")


def test_a_precision_of_another_place_s_runtime_is_refused_where_it_is_reached(poses: np.ndarray) -> None:
    refiner = Refiner(precision="bf16")  # auto: the GPU's runtime has it
    with pytest.raises(ValueError, match=r"^precision: got 'bf16', which backend 'native' does not have \(f32\); take backend"):
        refiner(poses[:1])
    for wrong in ("f8", "", None, 16):
        with pytest.raises(ValueError, match=r"^precision: got .*expected 'auto' or what the backend has"):
            Refiner(precision=wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^precision: got 'bf16'; .*native: f32"):
        Refiner(backend="native", precision="bf16")


def test_a_new_spec_is_all_that_a_new_runtime_needs(monkeypatch: pytest.MonkeyPatch, poses: np.ndarray) -> None:
    class Still:
        """Gives every pose back."""

        name, precision, detail = "still", "f32", "does nothing"

        def run(self, batch: jointbert.contract.Batch) -> Result:
            n = len(batch.joints)
            size, side = np.full(n, 60, np.float32), np.full(n, -9, np.float32)
            return Result(batch.joints, np.zeros((n, 14), np.float32), np.zeros(n, np.uint8), size, side)

    still = replace(runtime("native"), name="still", sequences=False, streams=False, calibration=False)
    still = replace(still, load=lambda weights, threads, precision: Still())
    monkeypatch.setattr(registry, "RUNTIMES", (*RUNTIMES, still))
    monkeypatch.setattr(registry, "BACKENDS", (*registry.BACKENDS, "still"))
    refiner = Refiner(backend="still")
    np.testing.assert_array_equal(refiner(poses), poses)
    with pytest.raises(ValueError, match=r"'still' has no sequences; take backend 'native' or 'torch'$"):
        refiner(poses, sequence=True)
    assert "`still`" in capability_table()
    assert repr(refiner) == "Refiner(weights='nyu14', backend='still')"


def test_an_unknown_backend_is_named() -> None:
    with pytest.raises(ValueError, match=r"^backend: got 'gpu'; expected 'auto' or one of 'native', 'cuda', 'onnx"):
        Refiner(backend="gpu")
    with pytest.raises(ValueError, match="backend: got 'gpu'"):
        runtimes.runtime("gpu")
    with pytest.raises(ValueError, match=r"backend: got 7; expected 'auto'"):
        Refiner(backend=7)  # type: ignore[arg-type]


def test_the_readme_s_table_is_the_registry_s() -> None:
    text = README.read_text(encoding="utf-8")
    table = re.search(r"<!-- capabilities -->\n(.*?)\n<!-- end of capabilities -->", text, flags=re.DOTALL)
    assert table is not None, "README.md has no table between <!-- capabilities --> and <!-- end of capabilities -->"
    assert table[1].strip() == capability_table(), "replace it by what `jointbert info --capabilities` prints"
