"""Backend ``onnxruntime``: an exported refiner, against the native backend on the same weights."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import jointbert
from jointbert import Refiner, Status

onnxruntime = pytest.importorskip("onnxruntime")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_it_is_the_native_backend(exported: Path, random_weights: Path, poses: np.ndarray, dtype: type) -> None:
    given = poses.astype(dtype) / 1000
    given[3, 5] = np.nan
    given[7] = np.nan
    given[9] *= 100
    rng = np.random.default_rng(0)
    options = {
        "units": "m",
        "hand": ["left" if left else "right" for left in rng.random(len(given)) < 0.5],
        "confidence": rng.random((len(given), 14)),
        "error_mm": rng.uniform(5, 20, (len(given), 14)),
        "order": jointbert.JOINT_NAMES[::-1],
        "return_details": True,
    }
    with pytest.warns(jointbert.JointbertWarning):
        expected = Refiner(random_weights)(given[:, ::-1], **options)
    with pytest.warns(jointbert.JointbertWarning):
        found = Refiner(exported, threads=2)(given[:, ::-1], **options)
    np.testing.assert_array_equal(found.status, expected.status)
    assert {Status.REFINED, Status.TOO_FEW_JOINTS, Status.NOT_A_HAND} == set(found.status)
    np.testing.assert_allclose(found.joints, expected.joints, atol=1e-6)  # metres
    np.testing.assert_allclose(found.sigma, expected.sigma, rtol=1e-4)
    assert found.joints.dtype == dtype


def test_it_needs_no_torch(exported: Path) -> None:
    code = f"""
import sys
sys.modules["torch"] = None
import jointbert
refiner = jointbert.Refiner({str(exported)!r})
print(refiner, refiner(jointbert.load_demo().predictions[:2]).shape)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "backend='onnxruntime') (2, 14, 3)" in done.stdout, done.stderr


def test_pieces_are_the_whole(exported: Path, poses: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = Refiner(exported)(poses[:50])
    monkeypatch.setattr("jointbert.runtimes.onnxruntime.CHUNK", 7)
    np.testing.assert_allclose(Refiner(exported)(poses[:50]), expected, atol=1e-3)


def test_nothing_to_refine(exported: Path) -> None:
    assert Refiner(exported)(np.empty((0, 14, 3))).shape == (0, 14, 3)


def test_what_does_not_fit_is_named(exported: Path, poses: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"backend: 'native' can't run .*refiner.onnx'; expected 'auto' or 'onnxruntime'"):
        Refiner(exported, "native")
    with pytest.raises(
        ValueError, match=r"backend: 'onnxruntime' can't run .*nyu14.safetensors'; .* as .onnx \(jointbert export writes one\)"
    ):
        Refiner("nyu14", "onnxruntime")
    with pytest.raises(
        ValueError, match=r"'onnxruntime' has no sequences; take backend 'native' or 'torch', and .safetensors weights"
    ):
        Refiner(exported)(poses[:30], sequence=True)
    from jointbert.export.onnx import export_refiner

    with pytest.raises(ValueError, match=r"refiner.onnx' is for ONNX Runtime; expected a shipped name"):
        export_refiner(tmp_path / "again.onnx", exported)
    (tmp_path / "broken.onnx").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"broken.onnx: no readable ONNX file"):
        Refiner(tmp_path / "broken.onnx")
    import onnx

    other = onnx.load(exported)
    del other.metadata_props[:]
    onnx.save(other, tmp_path / "other.onnx")
    with pytest.raises(ValueError, match=r"other.onnx' has the layout None; this version runs 'pose14"):
        Refiner(tmp_path / "other.onnx")


def test_bench_times_it(exported: Path) -> None:
    from jointbert.bench import bench

    report = bench(exported, [1], 1, 0.0)
    assert [row.call for row in report.rows] == ["onnxruntime"]
    assert not report.missing
