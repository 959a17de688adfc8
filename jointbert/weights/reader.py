"""Reads weight files. The format is safetensors, so that reading a file executes no code."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from jointbert.contract import Weights
from jointbert.contract.layout import LAYOUT, SEQUENCE_LAYOUT
from jointbert.weights.shapes import sequence_tensor_shapes, tensor_shapes

_FOLDER = Path(__file__).parent
_SEQUENCE_SUFFIX = "-sequence"
"""The suffix of a second stage's file name, after the name of its refiner."""
_SIZES = ("layers", "heads", "width", "ffn", "features", "outputs")


def shipped() -> list[str]:
    """Names of the weights that come with the package."""
    return sorted(p.stem for p in _FOLDER.glob("*.safetensors") if not p.stem.endswith(_SEQUENCE_SUFFIX))


def load_weights(weights: str | os.PathLike[str] = "nyu14") -> Weights:
    """Reads weights by shipped name or from a ``.safetensors`` file.

    Raises:
        ValueError: neither a shipped name nor a file; a file that is invalid, of another format or of another layout.
    """
    path = find_weights(weights)
    if path.suffix == ".onnx":
        raise ValueError(f"weights: {str(path)!r} is for ONNX Runtime; expected a shipped name or a .safetensors file")
    return _read(path, str(weights), LAYOUT, tensor_shapes)


def find_weights(weights: str | os.PathLike[str]) -> Path:
    """The path of shipped weights, given by name, or of a file.

    Raises:
        ValueError: neither a shipped name nor a file. TypeError: neither a name nor a path.
    """
    if not isinstance(weights, (str, os.PathLike)):
        raise TypeError(f"weights: got {type(weights).__name__}; expected a shipped name or the path of a .safetensors file")
    path = Path(weights)
    if is_shipped_name(weights):
        path = _FOLDER / f"{weights}.safetensors"
        if not _is_file(path):
            raise ValueError(
                f"weights: {weights!r} is not shipped; expected one of {shipped()} or the path of a .safetensors file"
            )
    elif not _is_file(path):
        raise ValueError(f"weights: there is no file {str(path)[:200]!r}")
    return path


def is_shipped_name(weights: object) -> bool:
    """Whether ``weights`` is a name and not a path: a str without a folder and without a suffix."""
    return isinstance(weights, str) and os.path.basename(weights) == weights and not Path(weights).suffix


def load_sequence_weights(first: Weights) -> Weights:
    """Reads a refiner's second stage (for sequences and calibrated persons), from the file beside the refiner's.

    Raises:
        ValueError: there is no such file, it is invalid, or it was trained on another refiner than ``first``.
    """
    path = first.path.with_name(f"{first.path.stem}{_SEQUENCE_SUFFIX}.safetensors")
    if not _is_file(path):
        raise ValueError(
            f"weights: {first.name!r} refines single frames only; sequences and calibration need {path.name!r} beside it"
        )
    second = _read(path, f"{first.name}{_SEQUENCE_SUFFIX}", SEQUENCE_LAYOUT, sequence_tensor_shapes)
    expected, found = fingerprint(first.tensors), second.metadata.get("first_stage")
    if found != expected:
        raise ValueError(f"weights: {str(path)!r} was trained on another refiner than {str(first.path)!r}")
    return second


def fingerprint(tensors: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of tensor names and float32 values, by which a second stage's file identifies its refiner."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensors[name], dtype="<f4").tobytes())
    return digest.hexdigest()


def _read(path: Path, name: str, layout: str, shapes_of: Callable[[dict[str, int]], dict[str, tuple[int, ...]]]) -> Weights:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            metadata = dict(file.metadata() or {})
            check_layout(metadata, path, layout)
            sizes = read_sizes(metadata, str(path))
            shapes = shapes_of(sizes)
            names = set(file.keys())
            if names != set(shapes):
                wrong = ", ".join(repr(key) for key in sorted(names ^ set(shapes))[:3])
                raise ValueError(f"weights: {str(path)!r} has missing or unknown tensors, among them {wrong}")
            for key, shape in shapes.items():
                view = file.get_slice(key)
                dtype, found = view.get_dtype(), tuple(view.get_shape())
                if dtype != "F32" or found != shape:
                    raise ValueError(f"weights: {key!r} of {str(path)!r} is {dtype} {found}; expected F32 {shape}")
            tensors = {key: file.get_tensor(key) for key in shapes}
    except SafetensorError as error:
        raise ValueError(f"weights: {str(path)!r} is no valid safetensors file ({error})") from None
    for key, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise ValueError(f"weights: {key!r} of {str(path)!r} has values that are not finite")
    return Weights(name, tensors, sizes, metadata, path)


def check_layout(metadata: dict[str, str], path: Path, layout: str) -> None:
    """Raises ValueError if a file's metadata names another layout."""
    found = metadata.get("layout")
    if found != layout:
        raise ValueError(f"weights: {str(path)!r} has the layout {found!r}; this version runs {layout!r}")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # the name is too long, or contains NUL
        return False


def read_sizes(metadata: dict[str, str], path: str) -> dict[str, int]:
    """A network's sizes from a file's metadata. Raises ValueError if one is missing or invalid."""
    sizes = {}
    for key in _SIZES:
        text = metadata.get(key, "")
        if not text.isdecimal() or not 0 < int(text) <= 4096:
            raise ValueError(f"weights: the metadata of {path!r} has {key} = {text!r}; expected a whole number from 1 to 4096")
        sizes[key] = int(text)
    if sizes["width"] % sizes["heads"]:
        raise ValueError(f"weights: the width {sizes['width']} of {path!r} is no multiple of its {sizes['heads']} heads")
    return sizes
