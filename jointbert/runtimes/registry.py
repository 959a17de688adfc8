"""The runtimes of the refiner, as specs: what each can do, what it needs, how it is loaded.

``Refiner``, the command line's help, ``jointbert info``, ``jointbert bench`` and the README's table all read :data:`RUNTIMES`.
A new runtime is one file beside this one and one spec here. A runtime's own library is imported when it is loaded.
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
"""Stands for the precision of a model file that fixes it."""


@dataclass(frozen=True)
class RuntimeSpec:
    """What a runtime can do.

    Attributes:
        name: what ``backend=`` calls it.
        summary: what it is, in a few words.
        suffixes: of the weight files that it runs.
        arrays: where the poses may lie: ``cpu``, ``gpu``.
        precisions: of the products; the first is what ``precision="auto"`` means.
        sequences, streams, calibration: whether it has a second stage for these.
        requires: what has to be there, for people to read.
        load: makes the backend from weights, CPU threads and a precision of ``precisions``. Raises ImportError where its
            library is missing (the message says how to get it), RuntimeError without a device, ValueError for other weights.
        read: reads the weights of its files.
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
    """The spec of a name.

    Raises:
        ValueError: there is none.
    """
    for spec in RUNTIMES:
        if spec.name == name:
            return spec
    raise ValueError(f"backend: got {name!r}; expected 'auto' or one of {_words(BACKENDS)}")


def candidates(backend: str, weights: Path) -> dict[str, RuntimeSpec]:
    """For arrays on the ``cpu`` and on the ``gpu``, the runtime that ``backend`` means for a weight file.

    ``auto`` is the first that runs such files and takes such arrays in their place.

    Raises:
        ValueError: an unknown name, or one that does not run such files.
    """
    if not isinstance(backend, str) or backend not in ("auto", *BACKENDS):
        raise ValueError(f"backend: got {backend!r}; expected 'auto' or one of {_words(BACKENDS)}")
    kind = file_kind(weights)
    able = [spec for spec in RUNTIMES if kind in spec.suffixes]
    if backend != "auto":
        spec = runtime(backend)
        if spec not in able:
            names, own = _words(("auto", *(other.name for other in able)), " or "), " or ".join(spec.suffixes)
            hint = " (jointbert export writes one)" if ".onnx" in spec.suffixes else ""
            raise ValueError(
                f"backend: {backend!r} can't run {str(weights)!r}; expected {names} for a {kind} file, or weights as "
                f"{own}{hint}"
            )
        able = [spec]
    found = {}
    for place in ("cpu", "gpu"):
        # A runtime for one place goes before a runtime for both.
        fitting = sorted((spec for spec in able if place in spec.arrays), key=lambda spec: len(spec.arrays))
        if fitting:
            found[place] = fitting[0]
    return found


def choose_precision(precision: str, specs: dict[str, RuntimeSpec]) -> str:
    """Checks that one of several runtimes has a precision; ``auto`` is each one's own.

    Raises:
        ValueError: none of them has it; the message lists what they have.
    """
    known = {name: None for spec in specs.values() for name in spec.precisions if name != FILE_PRECISION}
    if precision == "auto" or (isinstance(precision, str) and precision in known):
        return precision
    have = "; ".join(f"{spec.name}: {describe_precisions(spec)}" for spec in {s.name: s for s in specs.values()}.values())
    raise ValueError(f"precision: got {precision!r}; expected 'auto' or what the backend has ({have})")


def describe_precisions(spec: RuntimeSpec) -> str:
    """For people to read: the first is what ``auto`` means."""
    return ", ".join("the file's own" if name == FILE_PRECISION else name for name in spec.precisions)


def load(spec: RuntimeSpec, weights: Weights, threads: int, precision: str = "auto") -> Backend:
    """Loads a runtime in a precision.

    Raises:
        ValueError: it does not have that precision; weights that do not fit. ImportError, RuntimeError: what is missing.
    """
    if precision != "auto" and (precision not in spec.precisions or precision == FILE_PRECISION):
        others = [other.name for other in RUNTIMES if precision in other.precisions]
        advice = f"take backend {_words(others, ' or ')}, or 'auto' as precision" if others else "take 'auto'"
        raise ValueError(
            f"precision: got {precision!r}, which backend {spec.name!r} does not have ({describe_precisions(spec)}); {advice}"
        )
    return spec.load(weights, threads, spec.precisions[0] if precision == "auto" else precision)


def file_kind(path: Path) -> str:
    """The suffix by which runtimes know a weight file; one that none knows is read as safetensors."""
    return path.suffix if any(path.suffix in spec.suffixes for spec in RUNTIMES) else ".safetensors"


def load_any(weights: str | os.PathLike[str]) -> Weights:
    """Reads weights of any file that a runtime knows, or shipped ones by name.

    Raises:
        ValueError: neither a shipped name nor such a file. ImportError: the library that reads the file is missing.
    """
    kind = file_kind(find_weights(weights))
    return next(spec.read for spec in RUNTIMES if kind in spec.suffixes)(weights)


def refusal(spec: RuntimeSpec, capability: Capability) -> ValueError:
    """The error where a runtime is asked for what it can't do: one sentence that names those that can."""
    able = [other for other in RUNTIMES if getattr(other, capability)]
    means = [f"backend {_words([other.name for other in able], ' or ')}"]
    if "cpu" in spec.arrays and "gpu" in spec.arrays:
        means.append("arrays on the CPU")
    if not any(suffix in other.suffixes for other in able for suffix in spec.suffixes):
        means.append(f"{' or '.join(able[0].suffixes)} weights")
    return ValueError(f"backend: {spec.name!r} has no {_CAPABILITIES[capability]}; take {', and '.join(means)}")


def capability_table() -> str:
    """A Markdown table of what each runtime can do: the README's."""
    head = ("Backend", "Weights", "Arrays", "Precisions", "Single frames", "Sequences", "Streams", "Calibration", "Needs")
    rows = [head, ("---",) * len(head)]
    for spec in RUNTIMES:
        words = {True: "yes", False: "–"}  # noqa: RUF001
        rows.append(
            (
                f"`{spec.name}`: {spec.summary}",
                ", ".join(f"`{suffix}`" for suffix in spec.suffixes),
                ", ".join(place.upper() for place in spec.arrays),
                describe_precisions(spec),
                words[True],
                words[spec.sequences],
                words[spec.streams],
                words[spec.calibration],
                spec.requires,
            )
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _words(names: tuple[str, ...] | list[str], between: str = ", ") -> str:
    return between.join(map(repr, names))
