"""Shipped weights and the reader of weight files (safetensors: no pickle, nothing is executed)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jointbert.backends.layout import LAYOUT

_FOLDER = Path(__file__).parent
_SIZES = ("layers", "heads", "width", "ffn", "features", "outputs")


@dataclass(frozen=True)
class Weights:
    """A refiner's weights: tensors by name (float32), sizes, and the file's metadata."""

    name: str
    tensors: dict[str, np.ndarray]
    sizes: dict[str, int]
    metadata: dict[str, str]


def shipped() -> list[str]:
    """Names of the weights that come with the package."""
    return sorted(p.stem for p in _FOLDER.glob("*.safetensors"))


def load_weights(weights: str | os.PathLike[str] = "nyu14") -> Weights:
    """Reads weights by shipped name or from a ``.safetensors`` file.

    Raises:
        ValueError: neither a shipped name nor a file, a file that is no safetensors, or one of another layout.
    """
    if not isinstance(weights, (str, os.PathLike)):
        raise TypeError(f"weights: got {type(weights).__name__}; expected a shipped name or the path of a .safetensors file")
    path = Path(weights)
    if isinstance(weights, str) and path.name == weights and path.suffix != ".safetensors":
        path = _FOLDER / f"{weights}.safetensors"
        if not path.is_file():
            raise ValueError(
                f"weights: {weights!r} is not shipped; expected one of {shipped()} or the path of a .safetensors file"
            )
    elif not path.is_file():
        raise ValueError(f"weights: there is no file {str(path)!r}")

    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            metadata = dict(file.metadata() or {})
            layout = metadata.get("layout")
            if layout != LAYOUT:
                raise ValueError(f"weights: {str(path)!r} has the layout {layout!r}; this version runs {LAYOUT!r}")
            sizes = {key: int(metadata[key]) for key in _SIZES if key in metadata}
            if len(sizes) != len(_SIZES):
                raise ValueError(f"weights: the metadata of {str(path)!r} lacks {sorted(set(_SIZES) - set(sizes))}")
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no dict)
    except SafetensorError as error:
        raise ValueError(f"weights: {str(path)!r} is no valid safetensors file ({error})") from None
    return Weights(str(weights), tensors, sizes, metadata)
