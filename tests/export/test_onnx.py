from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from jointbert.contract.layout import LAYOUT  # noqa: E402
from jointbert.export.onnx import export_refiner  # noqa: E402
from jointbert.models import JointRefiner  # noqa: E402
from jointbert.models.refiner import RefinerConfig  # noqa: E402


@pytest.mark.parametrize("batch", [1, 2, 3, 64, 257])
def test_onnx_runtime_equals_torch_at_any_batch(exported: Path, random_weights: Path, batch: int) -> None:
    session = ort.InferenceSession(exported, providers=["CPUExecutionProvider"])
    features = np.random.default_rng(batch).normal(size=(batch, 14, 8)).astype(np.float32)
    features[..., 3] = features[..., 3] > -1  # some joints are missing
    (output,) = session.run(["output"], {"features": features})
    model = JointRefiner.load(random_weights).double()
    with torch.inference_mode():
        exact = model(torch.from_numpy(features).double()).numpy()
        single = model.float()(torch.from_numpy(features)).numpy()
    # Twice torch's own float32 error plus 1e-5 mm, in units of 100 mm.
    assert np.abs(output - exact).max() <= 2 * np.abs(single - exact).max() + 1e-7


def test_one_file_with_the_layout(exported: Path, tmp_path: Path) -> None:
    assert sorted(p.name for p in exported.parent.iterdir()) == ["refiner.onnx"]
    model = onnx.load(exported)
    assert {p.key: p.value for p in model.metadata_props}["layout"] == LAYOUT
    assert [o.version for o in model.opset_import if o.domain in ("", "ai.onnx")] == [18]
    (features,), (output,) = model.graph.input, model.graph.output
    assert [d.dim_param or d.dim_value for d in features.type.tensor_type.shape.dim][1:] == [14, 8]
    assert features.type.tensor_type.shape.dim[0].dim_param
    assert output.name == "output"


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    JointRefiner(RefinerConfig(layers=1)).save(tmp_path / "small.safetensors")
    with pytest.raises(OSError, match="nowhere"):
        export_refiner(tmp_path / "nowhere" / "refiner.onnx", tmp_path / "small.safetensors")
