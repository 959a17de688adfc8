"""The estimator in ONNX Runtime on the CPU, without torch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from jointbert.contract.layout import ESTIMATOR_LAYOUT
from jointbert.estimator.result import Estimated
from jointbert.runtimes.onnxruntime import open_session


class OnnxEstimator:
    """Runs an estimator's ONNX file; :class:`jointbert.estimator.Estimator` checks the arguments.

    Raises:
        ValueError: not an estimator's file. ImportError: onnxruntime is not installed.
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
