"""ONNX export of the refiner: the tensor contract of :mod:`jointbert.backends.layout`, dynamic batch."""

from __future__ import annotations

import os
import tempfile
import warnings
from pathlib import Path

import onnx
import torch

from jointbert.models.refiner import JointRefiner
from jointbert.weights import load_weights

OPSET = 18


def export_refiner(path: str | Path, weights: str | os.PathLike[str] = "nyu14") -> None:
    """Writes ``features (B, 14, 8)`` to ``output (B, 14, 4)`` as one ONNX file, with the weights' metadata.

    Raises:
        ValueError: unknown weights. OSError: the file can't be written.
    """
    model = JointRefiner.load(weights)
    example = torch.zeros(2, 14, 8)
    batch = torch.export.Dim("batch", min=1)
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")  # the exporter warns of its own deprecations
        temporary = Path(folder) / "refiner.onnx"
        torch.onnx.export(
            model,
            (example,),
            temporary,
            input_names=["features"],
            output_names=["output"],
            dynamic_shapes={"features": {0: batch}},
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        exported = onnx.load(temporary)
    for key, value in load_weights(weights).metadata.items():
        exported.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(exported, full_check=True)
    onnx.save(exported, path)
