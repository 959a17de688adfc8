"""Exported refiners in ONNX Runtime, on the CPU: no torch is needed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from jointbert.contract import Batch, Result, Weights
from jointbert.contract.layout import LAYOUT
from jointbert.runtimes.native import run_by
from jointbert.weights import check_layout, find_weights, read_sizes

CHUNK = 1024
"""Poses that the session sees at a time: its memory grows with them."""


class OnnxBackend:
    """A refiner's ONNX file (``jointbert export``). Poses are encoded and decoded as the native backend does it.

    Raises:
        ValueError: no readable ONNX file. ImportError: onnxruntime is not installed.
    """

    name = "onnxruntime"
    precision = "file"
    detail = ""

    def __init__(self, weights: Weights, threads: int = 1) -> None:
        self.session, _ = open_session(weights.path, threads)

    def run(self, batch: Batch) -> Result:
        return run_by(self._network, batch)

    def _network(self, features: np.ndarray) -> np.ndarray:
        pieces = (features[i : i + CHUNK] for i in range(0, len(features), CHUNK))
        return np.concatenate([self.session.run(["output"], {"features": piece})[0] for piece in pieces])


def read_onnx(weights: str | os.PathLike[str]) -> Weights:
    """What a refiner's ONNX file says of itself; the tensors stay in the file.

    Raises:
        ValueError: no such file, or not a refiner's. ImportError: onnxruntime is not installed.
    """
    path = find_weights(weights)
    _, metadata = open_session(path, 1)
    check_layout(metadata, path, LAYOUT)
    return Weights(str(weights), {}, read_sizes(metadata, str(path)), metadata, path)


def open_session(path: Path, threads: int) -> tuple[Any, dict[str, str]]:
    """A session and the file's metadata.

    Raises:
        ValueError: no readable ONNX file. ImportError: onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(f'{path}: ONNX files need onnxruntime ({error}); pip install "jointbert[onnx]"') from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has its own exceptions, in a private module
        raise ValueError(f"{path}: no readable ONNX file ({' '.join(str(error).split())[:200]})") from None
    return session, dict(session.get_modelmeta().custom_metadata_map)
