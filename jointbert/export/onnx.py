"""Exports the refiner (with the tensors of :mod:`jointbert.contract.layout`) and the estimator to ONNX, for any batch size."""

from __future__ import annotations

import copy
import json
import os
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from jointbert.contract.layout import ESTIMATOR_LAYOUT
from jointbert.estimator.result import Estimated
from jointbert.models.refiner import JointRefiner
from jointbert.weights import load_weights

OPSET = 18


def export_refiner(path: str | Path, weights: str | os.PathLike[str] = "nyu14") -> None:
    """Writes the refiner as one ONNX file with the weights' metadata: ``features (B, 14, 8)`` in, ``output (B, 14, 4)`` out.

    Raises:
        ValueError: unknown weights. OSError: the file can't be written.
    """
    model = JointRefiner.load(weights)
    shapes = {"features": {0: torch.export.Dim("batch", min=1)}}
    _export(model, (torch.zeros(2, 14, 8),), shapes, ["output"], load_weights(weights).metadata, path)


def export_estimator(path: str | Path, estimator: str | os.PathLike[str]) -> None:
    """Writes an estimator as one ONNX file, from the camera's images to refined joints.

    Inputs: ``images (B, C, H, W)`` float32, ``centres (B, 3)``, ``camera (B, 4)``, ``left (B,)`` bool, as in
    :meth:`jointbert.models.estimator.HandPoseEstimator.run`. Outputs: the fields of :class:`jointbert.estimator.Estimated`. The
    batch size and the images' size are free. The graph checks nothing; :class:`jointbert.estimator.Estimator` does.

    Raises:
        ValueError: not an estimator's file. OSError: a file can't be read or written.
    """
    from jointbert.models.estimator import HandPoseEstimator
    from jointbert.models.regression import LinearDepth

    model = HandPoseEstimator.load(estimator)
    if isinstance(model.regression, LinearDepth):
        model.regression.plain = True
    channels = 1 if model.config.image == "depth" else 3
    example = (
        torch.full((2, channels, 120, 160), 700.0),
        torch.tensor([[0.0, 0, 700], [10, 0, 700]]),
        torch.tensor([[150.0, 150, 80, 60], [150, 150, 80, 60]]),
        torch.tensor([True, False]),
    )
    batch = torch.export.Dim("batch", min=1)
    height, width = torch.export.Dim("height", min=2, max=8192), torch.export.Dim("width", min=2, max=8192)
    shapes = {"images": {0: batch, 2: height, 3: width}, "centres": {0: batch}, "camera": {0: batch}, "left": {0: batch}}
    metadata = {"layout": ESTIMATOR_LAYOUT, "config": json.dumps(asdict(model.config))}
    _export(_FromImages(model), example, shapes, list(Estimated._fields), metadata, path)


class _FromImages(nn.Module):
    """An estimator's :meth:`run` as the forward pass."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)

    def forward(self, images: Tensor, centres: Tensor, camera: Tensor, left: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.model.run(images, centres, camera, left))


def _export(
    model: nn.Module,
    example: tuple[Tensor, ...],
    shapes: dict[str, dict[int, Any]],
    outputs: list[str],
    metadata: Mapping[str, str],
    path: str | Path,
) -> None:
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")  # the exporter warns about its own deprecations
        temporary = Path(folder) / "model.onnx"
        torch.onnx.export(
            model,
            example,
            temporary,
            input_names=list(shapes),
            output_names=outputs,
            dynamic_shapes=shapes,
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        exported = onnx.load(temporary)
    for key, value in metadata.items():
        exported.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(exported, full_check=True)
    onnx.save(exported, path)
