"""Exported refiners in ONNX Runtime on the CPU, without torch."""

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
"""Poses per call of the ONNX session, whose memory grows with their number."""


class OnnxBackend:
    """Runs a refiner's ONNX file (``jointbert export``). The native module encodes and decodes the poses.

    Raises:
        ValueError: the ONNX file can't be read. ImportError: onnxruntime is not installed.
    """

    name = "onnxruntime"
    precision = "file"
    detail = ""

    def __init__(self, weights: Weights, threads: int = 1) -> None:
        self.session, _ = open_session(weights.path, threads)

    def run(self, batch: Batch) -> Result:
        """See :meth:`jointbert.contract.Backend.run`."""
        return run_by(self._network, batch)

    def _network(self, features: np.ndarray) -> np.ndarray:
        pieces = (features[i : i + CHUNK] for i in range(0, len(features), CHUNK))
        return np.concatenate([self.session.run(["output"], {"features": piece})[0] for piece in pieces])


def read_onnx(weights: str | os.PathLike[str]) -> Weights:
    """The sizes and metadata of a refiner's ONNX file; the tensors are not read.

    Raises:
        ValueError: there is no such file, or it is not a refiner's. ImportError: onnxruntime is not installed.
    """
    path = find_weights(weights)
    _, metadata = open_session(path, 1)
    check_layout(metadata, path, LAYOUT)
    return Weights(str(weights), {}, read_sizes(metadata, str(path)), metadata, path)


def open_session(path: Path, threads: int) -> tuple[Any, dict[str, str]]:
    """An ONNX Runtime session for a file, and the file's metadata.

    Raises:
        ValueError: the ONNX file can't be read. ImportError: onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(f'{path}: ONNX files need onnxruntime ({error}); pip install "jointbert[onnx]"') from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exception types are in a private module
        raise ValueError(f"{path}: no readable ONNX file ({' '.join(str(error).split())[:200]})") from None
    return session, dict(session.get_modelmeta().custom_metadata_map)
