"""The estimator as users have it: by torch and by ONNX Runtime, from Python and from the command line."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from PIL import Image  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

from jointbert.camera import NYU  # noqa: E402
from jointbert.cli import app  # noqa: E402
from jointbert.estimator import Estimated, Estimator  # noqa: E402
from jointbert.estimator.torch_runtime import TorchEstimator  # noqa: E402
from jointbert.export.onnx import export_estimator  # noqa: E402
from jointbert.inputs.textformat import read_joints  # noqa: E402
from jointbert.models.estimator import HandPoseEstimator  # noqa: E402

SMALL: dict[str, Any] = {"size": 64, "backbone": "resnet18", "width": 16, "depth": 3, "beta": 20.0}
SMALL["refiner"] = {"layers": 2, "heads": 2, "width": 16, "ffn": 32}
KINDS: dict[str, dict[str, Any]] = {"linear": {"window": 4}, "awr": {"head": "awr"}, "rgb": {"image": "rgb", "refiner": None}}


class Estimators:
    """A folder with each kind of estimator, all weights at work; ``.onnx`` is exported when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for kind, changes in KINDS.items():
            torch.manual_seed(0)
            model = HandPoseEstimator.from_config({**SMALL, **changes}, encoder=None)
            if model.refiner is not None:
                torch.nn.init.normal_(model.refiner.head.weight, std=0.1)
            model.save(folder / f"{kind}.safetensors")

    def __truediv__(self, name: str) -> Path:
        path = self.folder / name
        if path.suffix == ".onnx" and not path.exists():
            export_estimator(path, path.with_suffix(".safetensors"))
        return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Estimators:
    return Estimators(tmp_path_factory.mktemp("estimators"))


def scene(batch: int, h: int = 480, w: int = 640) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    v, u = np.meshgrid(np.arange(h), np.arange(w), indexing="ij")
    bump = 800 - 60 * np.exp(-((u - 330) ** 2 + (v - 250) ** 2) / 2000)
    images = np.where(bump < 798, bump, 0).astype(np.float32)
    images = np.stack([np.where(images > 0, images + rng.normal(0, 3, images.shape), 0) for _ in range(batch)])
    return images.astype(np.float32), np.array([[10.0, 10, 790]] * batch) + rng.normal(0, 5, (batch, 3))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("batch", "h", "w"), [(1, 480, 640), (5, 400, 500)])
def test_onnx_equals_torch(files: Estimators, kind: str, batch: int, h: int, w: int) -> None:
    """To 1e-3 pixels and 1e-2 mm, whatever the batch and the images' size."""
    images, centres = scene(batch, h, w)
    given = images[:, None].repeat(3, 1) / 1000 if kind == "rgb" else images
    left = np.arange(batch) % 2 == 1
    torch_s, onnx_s = (Estimator(files / f"{kind}.{suffix}")(given, centres, NYU, left) for suffix in ("safetensors", "onnx"))
    for name, tolerance in (("joints", 1e-2), ("refined", 1e-2), ("sigma", 1e-2), ("confidence", 1e-4), ("uv", 1e-3)):
        a, b = getattr(torch_s, name), getattr(onnx_s, name)
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, atol=tolerance, rtol=0)
    np.testing.assert_allclose(torch_s.heatmaps, onnx_s.heatmaps, atol=1e-4)
    np.testing.assert_allclose(torch_s.crops, onnx_s.crops, atol=1e-4)
    if kind != "rgb":
        assert np.abs(torch_s.refined - torch_s.joints).max() > 0.1


def test_no_images(files: Estimators) -> None:
    found = Estimator(files / "linear.safetensors")(np.zeros((0, 480, 640), np.float32), np.zeros((0, 3)), NYU)
    assert found.refined.shape == (0, 14, 3)


def test_it_is_the_module(files: Estimators) -> None:
    images, centres = scene(2)
    found = Estimator(files / "linear.safetensors")(images[:, None], centres, NYU)
    model = HandPoseEstimator.load(files / "linear.safetensors")
    with torch.inference_mode():
        expected = model(torch.from_numpy(images).unsqueeze(1), torch.from_numpy(centres), NYU)
    for name in Estimated._fields:
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name).numpy(), atol=1e-2)


@pytest.mark.parametrize(("precision", "dtype"), [("f16", torch.float16), ("bf16", torch.bfloat16)])
def test_what_is_narrow(files: Estimators, precision: str, dtype: torch.dtype) -> None:
    """Weights of products; no statistics, no depths, and no sums."""
    runtime = TorchEstimator(files / "linear.safetensors", precision=precision)
    narrow = {name for name, value in runtime.model.state_dict().items() if value.dtype == dtype}
    wide = set(runtime.model.state_dict()) - narrow
    assert {"regression.linear.weight", "encoder.stem.0.weight", "refiner.layers.1.fc2.bias"} < narrow
    assert {"regression.linear.bias", "encoder.stem.1.running_var", "refiner.norm.weight", "refiner.head.weight"} < wide
    maps = (torch.rand(3, 14, 16, 16) / 10).to(dtype)
    expected = runtime.model.regression(maps)
    with torch.autocast("cpu", dtype):
        found = runtime.model.regression(maps)
    assert found.depth.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize(("precision", "heatmap"), [("f16", 2e-3), ("bf16", 2e-2)])
def test_narrow_precision(files: Estimators, precision: str, heatmap: float) -> None:
    """The network is rounded, geometry is not."""
    images, centres = scene(2)
    found, expected = (Estimator(files / "awr.safetensors", precision=p)(images, centres, NYU) for p in (precision, None))
    assert 0 < np.abs(found.heatmaps - expected.heatmaps).max() < heatmap
    np.testing.assert_array_equal(found.crops, expected.crops)
    assert all(getattr(found, name).dtype == np.float32 for name in Estimated._fields)
    model = HandPoseEstimator.load(files / "awr.safetensors")
    with torch.inference_mode():
        refined, _ = model.refine(torch.from_numpy(found.joints), torch.from_numpy(found.confidence))
    np.testing.assert_allclose(found.refined, refined.numpy(), atol=200 * heatmap)
    np.testing.assert_allclose(found.joints, expected.joints, atol=500 * heatmap)


class EmulatedGraphs:
    """CUDA graphs of torch, emulated on the host: a replay is the recorded work once more, into the same memory."""

    recorded, replayed, eager = 0, 0, 0

    def __init__(self, monkeypatch: pytest.MonkeyPatch, runtime: Any) -> None:
        self.runtime = runtime
        self.inner = runtime.run
        beside = SimpleNamespace(wait_stream=lambda _: None)
        monkeypatch.setattr(runtime, "run", self.run)
        monkeypatch.setattr(torch.cuda, "Stream", lambda: beside)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: beside)
        monkeypatch.setattr(torch.cuda, "stream", contextlib.nullcontext)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=self.replay))
        monkeypatch.setattr(torch.cuda, "graph", self.record)

    def run(self, *given: Any) -> Any:
        self.eager += 1
        self.given, self.found = given, self.inner(*given)
        return self.found

    @contextlib.contextmanager
    def record(self, graph: Any, capture_error_mode: str) -> Iterator[None]:
        yield
        self.recorded += 1
        graph.given, graph.found = self.given, self.found
        graph.replay = lambda: self.replay(graph)

    def replay(self, graph: Any) -> None:
        self.replayed += 1
        with torch.inference_mode():
            for place, x in zip(graph.found, self.inner(*graph.given), strict=True):
                place.copy_(x)


def test_one_graph_for_each_shape(files: Estimators, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recorded once behind a warm-up, replayed with what is given, forgotten when there are too many."""
    runtime = TorchEstimator(files / "linear.safetensors")
    expected = TorchEstimator(files / "linear.safetensors").run
    emulated = EmulatedGraphs(monkeypatch, runtime)

    def check(batch: int, shift: float) -> None:
        images, centres = scene(batch)
        camera = torch.tensor([[NYU.fx, NYU.fy, NYU.cx, NYU.cy]]).repeat(batch, 1)
        centres = torch.from_numpy(centres + shift).float()
        given = (torch.from_numpy(images[:, None]), centres, camera, torch.arange(batch) % 2 == 1)
        for found, wanted in zip(runtime.replay(*given), expected(*given), strict=True):
            torch.testing.assert_close(found, wanted, equal_nan=True)

    for shift in (0, 5, 9):
        check(2, shift)
    assert (emulated.recorded, emulated.replayed, emulated.eager) == (1, 3, 4)
    for batch in (1, 3, 4, 5, 6, 7, 8):
        check(batch, 0)
    check(2, 3)  # was used last but seven: still there
    assert (emulated.recorded, len(runtime._graphs)) == (8, 8)
    check(9, 0)
    check(1, 0)
    assert (emulated.recorded, len(runtime._graphs)) == (10, 8)
    nothing = (torch.zeros(0, 1, 48, 64), torch.zeros(0, 3), torch.zeros(0, 4), torch.zeros(0, dtype=torch.bool))
    assert runtime.replay(*nothing).refined.shape == (0, 14, 3)
    assert emulated.recorded == 10


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_copied_from_python_s_numbers(files: Estimators, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is a copy to the GPU from memory that is not pinned: no graph can hold one."""
    runtime = TorchEstimator(files / f"{kind}.safetensors")
    images, centres = scene(2)
    images = np.repeat(images[:, None] / 1000, 3, 1) if runtime.image == "rgb" else images[:, None]
    camera = torch.tensor([[NYU.fx, NYU.fy, NYU.cx, NYU.cy]]).repeat(2, 1)
    given = (torch.from_numpy(images).float(), torch.from_numpy(centres).float(), camera, torch.tensor([False, True]))
    for where, name in ((torch.Tensor, "new_tensor"), (torch, "tensor"), (torch, "as_tensor"), (torch, "from_numpy")):
        monkeypatch.setattr(where, name, lambda *_, name=name, **__: pytest.fail(name))
    assert runtime.run(*given).refined.shape == (2, 14, 3)


def test_another_refiner_may_take_the_place_of_the_network_s(files: Estimators) -> None:
    runtime = TorchEstimator(files / "linear.safetensors")
    runtime._refine = lambda joints, confidence, left: (joints + left.view(-1, 1, 1), confidence * 2)  # type: ignore[assignment]
    images, centres = scene(2)
    camera = np.tile(np.array([[NYU.fx, NYU.fy, NYU.cx, NYU.cy]], np.float32), (2, 1))
    found = runtime(images[:, None], centres.astype(np.float32), camera, np.array([False, True]))
    np.testing.assert_allclose(found.refined - found.joints, np.array([0, 1]).reshape(2, 1, 1) * np.ones((2, 14, 3)), atol=1e-3)
    np.testing.assert_array_equal(found.sigma, 2 * found.confidence)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_devices_and_precisions_are_named(files: Estimators) -> None:
    torch_file, onnx_file = files / "linear.safetensors", files / "linear.onnx"
    with pytest.raises(ValueError, match="device: got 'gpu'; expected 'cpu' or 'cuda'"):
        Estimator(torch_file, device="gpu")
    with pytest.raises(ValueError, match="precision: got 'fp16'; expected one of 'f32', 'f16', 'bf16'"):
        Estimator(torch_file, precision="fp16")
    with pytest.raises(RuntimeError, match="device: got 'cuda'; torch finds no GPU"):
        Estimator(torch_file, device="cuda")
    for given in ({"device": "cuda"}, {"precision": "f16"}):
        with pytest.raises(ValueError, match=r"linear.onnx: ONNX files run on the CPU in float32 here; a GPU takes"):
            Estimator(onnx_file, **given)


def test_onnx_needs_no_torch(files: Estimators) -> None:
    code = f"""
import sys
sys.modules["torch"] = None
import numpy as np
from jointbert.camera import NYU
from jointbert.estimator import Estimator
depth = np.zeros((480, 640), np.float32)
depth[200:280, 280:360] = 800
print(Estimator({str(files / "linear.onnx")!r})(depth[None], np.array([[0, 0, 800]]), NYU).refined.shape)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "(1, 14, 3)", done.stderr


@pytest.mark.parametrize("suffix", ["safetensors", "onnx"])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"images": np.zeros((2, 3, 48, 64))}, ValueError, r"got the shape \(2, 3, 48, 64\); expected \(B, 1, H, W\)"),
        ({"images": np.zeros((2, 480, 640), bool)}, TypeError, "images: got the dtype bool"),
        ({"images": np.zeros((2, 480, 640))}, ValueError, "no depth within the cube around the centre of image 0"),
        ({"centres": np.zeros((1, 3))}, ValueError, r"centres: got the shape \(1, 3\); expected \(2, 3\)"),
        ({"centres": np.array([[0, 0, 800], [0, 0, np.nan]])}, ValueError, "for image 1; expected x y z in front"),
        ({"camera": (588, 587, 320, 240)}, TypeError, "camera: got tuple; expected a jointbert.camera.Camera"),
        ({"left": [True]}, ValueError, r"left: got bool of the shape \(1,\); expected bool, one or \(2,\)"),
        ({"centres": np.array([[0, 0, 0.8], [0.9, 0, 0.8]])}, ValueError, r"that of image 1 falls on pixel \(982, 240\)"),
    ],
)
def test_bad_input_is_named(
    files: Estimators, suffix: str, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    images, centres = scene(2)
    with pytest.raises(error, match=message):
        Estimator(files / f"linear.{suffix}")(**{"images": images, "centres": centres, "camera": NYU, **change})


def test_bad_files_are_named(files: Estimators, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no such file"):
        Estimator(tmp_path / "none.onnx")
    (tmp_path / "x.pt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"x.pt: expected an estimator as .safetensors or .onnx"):
        Estimator(tmp_path / "x.pt")
    (tmp_path / "broken.onnx").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"broken.onnx: no readable ONNX file"):
        Estimator(tmp_path / "broken.onnx")
    from jointbert.export.onnx import export_refiner
    from jointbert.models.refiner import JointRefiner, RefinerConfig

    JointRefiner(RefinerConfig(layers=1)).save(tmp_path / "small.safetensors")
    export_refiner(tmp_path / "refiner.onnx", tmp_path / "small.safetensors")
    with pytest.raises(ValueError, match=r"refiner.onnx: the layout 'pose14-.*' is not an estimator's"):
        Estimator(tmp_path / "refiner.onnx")


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, " ".join(result.output.split())


def test_from_the_command_line(files: Estimators, tmp_path: Path) -> None:
    images, _ = scene(2)
    for i, image in enumerate(images):
        Image.fromarray(image.round().astype(np.uint16)).save(tmp_path / f"{i}.png")
    given = (tmp_path / "0.png", tmp_path / "1.png", "--model", files / "linear.onnx", "--camera", "nyu")
    outputs = ("--out", tmp_path / "out.txt", "--json", tmp_path / "out.json", "--picture", tmp_path / "out.png")
    code, text = run("estimate", *given, *outputs)
    assert code == 0, text
    joints = read_joints(tmp_path / "out.txt", "xyz", None)
    content = json.loads((tmp_path / "out.json").read_text())
    assert content["joints"][0] == "pinky_tip"
    assert len(content["images"]) == 2
    np.testing.assert_allclose([one["refined"] for one in content["images"]], joints, atol=1e-3)
    direct = Estimator(files / "linear.onnx")
    for i, one in enumerate(content["images"]):
        expected = direct(images[i : i + 1].round(), np.array([one["centre_mm"]]), NYU)
        np.testing.assert_allclose(joints[i], expected.refined[0], atol=1e-2)
    for i in (1, 2):
        with Image.open(tmp_path / f"out-{i}.png") as picture:
            assert picture.size[0] > 800
    code, text = run("estimate", *given[1:], "--centre", "10,10,790", "--out", tmp_path / "uvd.txt", "--format", "uvd")
    assert (code, "centre (10, 10, 790) mm" in text) == (0, True)
    np.testing.assert_allclose(read_joints(tmp_path / "uvd.txt", "uvd", NYU).mean((0, 1))[2], 790, atol=200)


def test_the_command_line_s_errors(files: Estimators, tmp_path: Path) -> None:
    image = tmp_path / "0.png"
    Image.fromarray(np.zeros((48, 64), np.uint16)).save(image)
    model = ("--model", files / "linear.onnx")
    cases = [
        ((image, *model, "--camera", "nyu"), f"Error: {image}: an image without any depth has no hand, and no centre"),
        ((image, *model, "--camera", "kinect"), "Error: camera: got 'kinect'"),
        ((image, *model, "--camera", "nyu", "--centre", "1,2"), "Error: --centre: got '1,2'; expected auto or x,y,z"),
        ((image, *model, "--camera", "nyu", "--hand", "both"), "Error: --hand: got 'both'; expected right or left"),
        ((image, "--model", tmp_path / "x.onnx", "--camera", "nyu"), f"Error: {tmp_path}/x.onnx: no such file"),
        ((tmp_path / "none.png", *model, "--camera", "nyu"), f"Error: {tmp_path}/none.png: no such file"),
        ((image, *model, "--camera", "nyu", "--device", "tpu"), "Error: device: got 'tpu'; expected 'cpu' or 'cuda'"),
        ((image, "--model", files / "rgb.onnx", "--camera", "nyu"), "Error: --centre: an RGB image has no depth"),
        (
            (image, *model, "--camera", "nyu", "--centre", "0,0,800"),
            f"Error: {image}: centres: that of image 0 falls on pixel (320, 240)",
        ),
    ]
    for arguments, message in cases:
        code, text = run("estimate", *arguments)
        assert code == 2
        assert text.startswith(message), text


def test_export_from_the_command_line(files: Estimators, tmp_path: Path) -> None:
    code, text = run("export", tmp_path / "e.onnx", "--estimator", files / "awr.safetensors")
    assert (code, text) == (0, f"wrote {tmp_path}/e.onnx")
    assert Estimator(tmp_path / "e.onnx").image == "depth"
    code, text = run("export", tmp_path / "e.onnx", "--estimator", tmp_path / "none.safetensors")
    assert (code, text) == (2, f"Error: {tmp_path}/none.safetensors: no such file")
