"""Exported models in ONNX Runtime, on the CPU: no torch is needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from jointbert.backends.base import Batch, Result, SequenceBackend
from jointbert.backends.layout import ESTIMATOR_LAYOUT
from jointbert.estimate import Estimated
from jointbert.weights import Weights

CHUNK = 1024
"""Poses that the session sees at a time: its memory grows with them."""


class OnnxBackend:
    """A refiner's ONNX file (``jointbert export``). Poses are encoded and decoded as the native backend does it.

    Raises:
        ValueError: no readable ONNX file. ImportError: onnxruntime is not installed.
    """

    name = "onnxruntime"

    def __init__(self, weights: Weights, threads: int = 1) -> None:
        self.session, _ = open_session(weights.path, threads)

    def run(self, batch: Batch) -> Result:
        from jointbert import _core
        from jointbert.backends.native import arguments

        return Result(*_core.run_by(self._network, *arguments(batch)))

    def _network(self, features: np.ndarray) -> np.ndarray:
        pieces = (features[i : i + CHUNK] for i in range(0, len(features), CHUNK))
        return np.concatenate([self.session.run(["output"], {"features": piece})[0] for piece in pieces])

    def sequence(self, weights: Weights) -> SequenceBackend:
        raise ValueError("backend: 'onnxruntime' refines single frames alone; sequences and persons are for 'native'")


class OnnxEstimator:
    """An estimator's ONNX file: see :class:`jointbert.estimate.Estimator`, which checks what comes here.

    Raises:
        ValueError: not the file of an estimator. ImportError: onnxruntime is not installed.
    """

    def __init__(self, path: Path, threads: int = 1) -> None:
        self.session, metadata = open_session(path, threads)
        if metadata.get("layout") != ESTIMATOR_LAYOUT:
            raise ValueError(f"{path}: the layout {metadata.get('layout')!r} is not an estimator's, {ESTIMATOR_LAYOUT!r}")
        config = json.loads(metadata["config"])
        self.image: str = config["image"]
        self.cube_mm: float = config["cube_mm"]

    def __call__(self, images: np.ndarray, centres: np.ndarray, camera: np.ndarray, left: np.ndarray) -> Estimated:
        given = {
            "images": images,
            "centres": centres,
            "camera": np.ascontiguousarray(camera),
            "left": np.ascontiguousarray(left),
        }
        return Estimated(*self.session.run(list(Estimated._fields), given))


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
