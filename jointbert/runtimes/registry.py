"""The registry of runtimes: a spec for each says what it can do, what it needs and how it is loaded.

``Refiner``, the command line's help, ``jointbert info``, ``jointbert bench`` and the README's table all read :data:`RUNTIMES`.
To add a runtime, add a module beside this one and a spec here. A runtime's library is imported when the runtime is loaded.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jointbert.contract import Backend, Weights
from jointbert.weights import find_weights, load_weights

Capability = Literal["sequences", "streams", "calibration"]
_CAPABILITIES: dict[Capability, str] = {
    "sequences": "sequences",
    "streams": "streams (online refinement)",
    "calibration": "calibrated persons",
}
FILE_PRECISION = "file"
"""The precision of runtimes whose model file fixes it."""


@dataclass(frozen=True)
class RuntimeSpec:
    """A runtime's capabilities and requirements.

    Attributes:
        name: the value of ``backend=`` that selects it.
        summary: a description in a few words.
        suffixes: of the weight files that it runs.
        arrays: memories that it takes poses from: ``cpu``, ``gpu``.
        precisions: of the network's products; ``precision="auto"`` selects the first.
        sequences, streams, calibration: whether its second stage supports sequences, online refinement, calibrated persons.
        requires: requirements, as text for users.
        load: makes the backend from weights, a number of CPU threads and one of ``precisions``. It raises ImportError if its
            library is missing (the message says how to get it), RuntimeError without a device, ValueError for unsuitable
            weights.
        read: reads its weight files.
    """

    name: str
    summary: str
    suffixes: tuple[str, ...]
    arrays: tuple[str, ...]
    precisions: tuple[str, ...]
    sequences: bool
    streams: bool
    calibration: bool
    requires: str
    load: Callable[[Weights, int, str], Backend]
    read: Callable[[str | os.PathLike[str]], Weights] = load_weights


def _load_native(weights: Weights, threads: int, precision: str) -> Backend:
    from jointbert.runtimes.native import NativeBackend

    return NativeBackend(weights, threads)


def _load_cuda(weights: Weights, threads: int, precision: str) -> Backend:
    from jointbert.runtimes.cuda import CudaBackend

    return CudaBackend(weights, precision=precision)


def _load_onnxruntime(weights: Weights, threads: int, precision: str) -> Backend:
    from jointbert.runtimes.onnxruntime import OnnxBackend

    return OnnxBackend(weights, threads)


def _read_onnx(path: str | os.PathLike[str]) -> Weights:
    from jointbert.runtimes.onnxruntime import read_onnx

    return read_onnx(path)


def _load_torch(weights: Weights, threads: int, precision: str) -> Backend:
    try:
        from jointbert.runtimes.torch import TorchBackend
    except ImportError as error:
        raise ImportError(f"backend 'torch' needs torch, which can't be imported ({error}); pip install torch") from None
    return TorchBackend(weights, threads)


RUNTIMES: tuple[RuntimeSpec, ...] = (
    RuntimeSpec(
        name="native",
        summary="C++ on the CPU",
        suffixes=(".safetensors",),
        arrays=("cpu",),
        precisions=("f32",),
        sequences=True,
        streams=True,
        calibration=True,
        requires="nothing",
        load=_load_native,
    ),
    RuntimeSpec(
        name="cuda",
        summary="one launch on an NVIDIA GPU",
        suffixes=(".safetensors",),
        arrays=("cpu", "gpu"),
        precisions=("f16", "bf16"),
        sequences=False,
        streams=False,
        calibration=False,
        requires="a GPU, and an installation with its kernels",
        load=_load_cuda,
    ),
    RuntimeSpec(
        name="onnxruntime",
        summary="an exported file on the CPU",
        suffixes=(".onnx",),
        arrays=("cpu",),
        precisions=(FILE_PRECISION,),
        sequences=False,
        streams=False,
        calibration=False,
        requires="onnxruntime",
        load=_load_onnxruntime,
        read=_read_onnx,
    ),
    RuntimeSpec(
        name="torch",
        summary="the reference implementation",
        suffixes=(".safetensors",),
        arrays=("cpu",),
        precisions=("f32",),
        sequences=True,
        streams=False,
        calibration=True,
        requires="torch",
        load=_load_torch,
    ),
)
BACKENDS = tuple(spec.name for spec in RUNTIMES)


def runtime(name: str) -> RuntimeSpec:
    """The spec of the runtime with this name.

    Raises:
        ValueError: there is no such runtime.
    """
    for spec in RUNTIMES:
        if spec.name == name:
            return spec
    raise ValueError(f"backend: got {name!r}; expected 'auto' or one of {_quoted(BACKENDS)}")


def candidates(backend: str, weights: Path) -> dict[str, RuntimeSpec]:
    """Selects the runtimes for a weight file: for arrays on the ``cpu`` and on the ``gpu``, the one that ``backend`` means.

    For ``auto``, this is the first one that runs such files and takes arrays from that memory. Runtimes for one kind of memory
    precede runtimes for both.

    Raises:
        ValueError: an unknown name, or a runtime that does not run such files.
    """
    if not isinstance(backend, str) or backend not in ("auto", *BACKENDS):
        raise ValueError(f"backend: got {backend!r}; expected 'auto' or one of {_quoted(BACKENDS)}")
    kind = file_kind(weights)
    able = [spec for spec in RUNTIMES if kind in spec.suffixes]
    if backend != "auto":
        spec = runtime(backend)
        if spec not in able:
            names, own = _quoted(("auto", *(other.name for other in able)), " or "), " or ".join(spec.suffixes)
            hint = " (jointbert export writes one)" if ".onnx" in spec.suffixes else ""
            raise ValueError(
                f"backend: {backend!r} can't run {str(weights)!r}; expected {names} for a {kind} file, or weights as "
                f"{own}{hint}"
            )
        able = [spec]
    found = {}
    for place in ("cpu", "gpu"):
        fitting = sorted((spec for spec in able if place in spec.arrays), key=lambda spec: len(spec.arrays))
        if fitting:
            found[place] = fitting[0]
    return found


def choose_precision(precision: str, specs: dict[str, RuntimeSpec]) -> str:
    """Checks that at least one of several runtimes has a precision; ``auto`` is valid for all.

    Raises:
        ValueError: none of them has it; the message lists their precisions.
    """
    known = [name for spec in specs.values() for name in spec.precisions if name != FILE_PRECISION]
    if isinstance(precision, str) and precision in ("auto", *known):
        return precision
    have = "; ".join(dict.fromkeys(f"{spec.name}: {describe_precisions(spec)}" for spec in specs.values()))
    raise ValueError(f"precision: got {precision!r}; expected 'auto' or what the backend has ({have})")


def describe_precisions(spec: RuntimeSpec) -> str:
    """A runtime's precisions as text; the first is the one that ``auto`` selects."""
    return ", ".join("the file's own" if name == FILE_PRECISION else name for name in spec.precisions)


def load(spec: RuntimeSpec, weights: Weights, threads: int, precision: str = "auto", place: str = "cpu") -> Backend:
    """Loads a runtime with weights in a precision, for arrays on the ``cpu`` or the ``gpu``.

    Raises:
        ValueError: the runtime does not have that precision; unsuitable weights. ImportError: its library is missing.
        RuntimeError: it has no device.
    """
    if precision != "auto" and (precision not in spec.precisions or precision == FILE_PRECISION):
        others = [other.name for other in RUNTIMES if precision in other.precisions and place in other.arrays]
        advice = f"take backend {_quoted(others, ' or ')}, or 'auto' as precision" if others else "take 'auto'"
        if place == "gpu":
            advice += ", or pass a CPU array"
        raise ValueError(
            f"precision: got {precision!r}, which backend {spec.name!r} does not have ({describe_precisions(spec)}); {advice}"
        )
    return spec.load(weights, threads, spec.precisions[0] if precision == "auto" else precision)


def file_kind(path: Path) -> str:
    """The file's suffix if a runtime runs such files, otherwise ``.safetensors``."""
    return path.suffix if any(path.suffix in spec.suffixes for spec in RUNTIMES) else ".safetensors"


def load_any(weights: str | os.PathLike[str]) -> Weights:
    """Reads weights from a file of any runtime, or shipped weights by name.

    Raises:
        ValueError: neither a shipped name nor a weight file. ImportError: the library that reads the file is missing.
    """
    kind = file_kind(find_weights(weights))
    return next(spec.read for spec in RUNTIMES if kind in spec.suffixes)(weights)


def refusal(spec: RuntimeSpec, capability: Capability, place: str = "cpu") -> ValueError:
    """The error for a capability that a runtime lacks; the message names the runtimes that have it."""
    able = [other for other in RUNTIMES if getattr(other, capability)]
    if place == "gpu":
        names = _quoted([other.name for other in able], " or ")
        return ValueError(
            f"joints: the array is on a GPU, where backend {spec.name!r} has no {_CAPABILITIES[capability]}; pass a CPU array, "
            f"with backend 'auto', {names}"
        )
    remedies = [f"backend {_quoted([other.name for other in able], ' or ')}"]
    if "cpu" in spec.arrays and "gpu" in spec.arrays:
        remedies.append("arrays on the CPU")
    if not any(suffix in other.suffixes for other in able for suffix in spec.suffixes):
        remedies.append(f"{' or '.join(able[0].suffixes)} weights")
    return ValueError(f"backend: {spec.name!r} has no {_CAPABILITIES[capability]}; take {', and '.join(remedies)}")


def capability_table() -> str:
    """The Markdown table of the runtimes' capabilities that the README shows."""
    head = ("Backend", "Weights", "Arrays", "Precisions", "Single frames", "Sequences", "Streams", "Calibration", "Needs")
    rows = [head, ("---",) * len(head)]
    for spec in RUNTIMES:
        yes_no = {True: "yes", False: "–"}  # noqa: RUF001
        rows.append(
            (
                f"`{spec.name}`: {spec.summary}",
                ", ".join(f"`{suffix}`" for suffix in spec.suffixes),
                ", ".join(place.upper() for place in spec.arrays),
                describe_precisions(spec),
                yes_no[True],
                yes_no[spec.sequences],
                yes_no[spec.streams],
                yes_no[spec.calibration],
                spec.requires,
            )
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _quoted(names: tuple[str, ...] | list[str], separator: str = ", ") -> str:
    return separator.join(map(repr, names))
