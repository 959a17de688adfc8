from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")

from jointbert.camera import NYU  # noqa: E402
from jointbert.models.estimator import EstimatorConfig, HandPoseEstimator  # noqa: E402
from jointbert.models.refiner import JointRefiner, RefinerConfig  # noqa: E402

SMALL: dict[str, Any] = {"size": 64, "backbone": "resnet18", "width": 16, "depth": 3}
SMALL["refiner"] = {"layers": 2, "heads": 2, "width": 16, "ffn": 32}


def small(**changes: Any) -> HandPoseEstimator:
    torch.manual_seed(0)
    return HandPoseEstimator.from_config({**SMALL, **changes}, encoder=None)


def scene(batch: int = 2, channels: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Depth images of a bump at 800 mm, and the centres."""
    v, u = torch.meshgrid(torch.arange(480.0), torch.arange(640.0), indexing="ij")
    bump = 800 - 60 * torch.exp(-((u - 330) ** 2 + (v - 250) ** 2) / 2000)
    images = torch.where(bump < 798, bump, 0).expand(batch, channels, -1, -1).clone()
    return (images if channels == 1 else images / 1000), torch.tensor([[10.0, 10, 790]]).expand(batch, 3)


def test_parameters_are_the_thesis_s() -> None:
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "parameter_share.py"
    script = runpy.run_path(str(path))
    parts = script["count"]()
    rounded = {name: round(count / 1e6, 2) for name, count in parts.items()}
    assert rounded == {"encoder": 23.51, "neck": 1.57, "hourglass": 3.07, "regression": 0.8, "refiner": 1.59}
    assert script["main"]() == 0


@pytest.mark.parametrize("changes", [{}, {"head": "awr"}, {"image": "rgb"}, {"peak": "argmax"}, {"refiner": None}])
def test_images_to_joints(changes: dict[str, Any]) -> None:
    model = small(**changes).eval()
    images, centres = scene(3, 3 if changes.get("image") == "rgb" else 1)
    with torch.inference_mode():
        found = model(images, centres, NYU)
        alone = model(images[:1], centres[:1], NYU)
    shapes = [(3, 14, 3), (3, 14, 3), (3, 14), (3, 14), (3, 14, 16, 16), (3, images.shape[1], 64, 64), (3, 14, 2)]
    assert [tuple(x.shape) for x in found] == shapes
    assert found.joints.isfinite().all()
    # Pixels of the crop are within the cube's outline at any depth that the head may say.
    assert ((found.joints - centres.unsqueeze(1)).norm(dim=-1) < 1000).all()
    assert ((found.confidence >= 0) & (found.confidence <= 1)).all()
    torch.testing.assert_close(alone.refined, found.refined[:1], atol=1e-2, rtol=0)
    if model.refiner is None:
        assert torch.equal(found.refined, found.joints)
        assert found.sigma.isnan().all()
    else:
        assert found.sigma.isfinite().all()


def test_a_peak_s_way_to_millimetres() -> None:
    """A heatmap's peak at its middle's lower right pixel: 2 crop pixels beyond the centre's ray, at the layer's depth."""
    model = small(refiner=None).eval()
    with torch.no_grad():
        model.regression.linear.weight.zero_()
        model.regression.linear.bias.copy_(torch.full((14,), 0.5))
        model.hourglass.heatmaps.weight.zero_()
    heatmaps = torch.zeros(1, 14, 16, 16)
    heatmaps[..., 8, 8] = 0.7
    joints = model.regression(heatmaps)
    from jointbert.models.crop import Crop

    crop = Crop.around(torch.tensor([[0.0, 0, 800]]), NYU, 300.0, 64)
    xyz = model.to_xyz(joints, crop)
    beyond = 2 * 300 / 64 * 875 / 800  # mm at the centre's depth, seen 75 mm further away
    torch.testing.assert_close(xyz, torch.tensor([beyond, beyond, 875]).expand(1, 14, 3), atol=1e-2, rtol=0)
    torch.testing.assert_close(joints.confidence, torch.full((1, 14), 0.7))


@pytest.mark.parametrize("head", ["linear", "awr"])
def test_gradients_reach_every_parameter(head: str) -> None:
    model = small(head=head)
    model.encoder.thaw()
    with torch.no_grad():  # an untrained refiner corrects nothing, and lets nothing through
        model.refiner.head.weight.normal_(0, 0.1)
    images, centres = scene()
    found = model.train()(images + 5 * torch.rand_like(images) * (images > 0), centres, NYU)
    loss = found.refined.square().mean() + found.sigma.mean() + found.confidence.sum() + found.heatmaps.square().mean()
    loss.backward()
    # The mask is for joints that are not there: the estimator has all of them.
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == ["refiner.mask"]


def test_left_hands_are_seen_mirrored() -> None:
    model = small().eval()
    torch.nn.init.normal_(model.refiner.head.weight, std=0.1)
    joints, confidence = 50 * torch.randn(4, 14, 3), torch.rand(4, 14)
    mirrored = joints * torch.tensor([-1.0, 1, 1])
    left = torch.tensor([True, False, True, False])
    refined, sigma = model.refine(torch.where(left[:, None, None], mirrored, joints), confidence, left)
    expected, expected_sigma = model.refine(joints, confidence)
    torch.testing.assert_close(refined, torch.where(left[:, None, None], expected * torch.tensor([-1.0, 1, 1]), expected))
    torch.testing.assert_close(sigma, expected_sigma)


def test_saved_and_loaded(tmp_path: Path) -> None:
    model = small(head="awr", window=None).eval()
    model.save(tmp_path / "model.safetensors", {"name": "test"})
    again = HandPoseEstimator.load(tmp_path / "model.safetensors")
    assert again.config == model.config
    assert not again.training
    images, centres = scene()
    with torch.inference_mode():
        for a, b in zip(model(images, centres, NYU), again(images, centres, NYU), strict=True):
            assert torch.equal(a, b)


def test_from_files(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(
        "size: 64\nbackbone: resnet18\nwidth: 16\ndepth: 3\nrefiner: {layers: 2, heads: 2, width: 16}\n"
    )
    (tmp_path / "small.json").write_text(json.dumps(SMALL))
    configs = [HandPoseEstimator.from_config(tmp_path / f"small.{kind}", None).config for kind in ("yaml", "json")]
    assert configs[0].refiner == RefinerConfig(layers=2, heads=2, width=16)
    assert configs[1] == EstimatorConfig.of(SMALL)
    refiner = JointRefiner(RefinerConfig(**SMALL["refiner"]))
    torch.nn.init.normal_(refiner.head.weight)
    refiner.save(tmp_path / "refiner.safetensors")
    model = HandPoseEstimator.from_config(SMALL, None, tmp_path / "refiner.safetensors")
    assert torch.equal(model.refiner.head.weight, refiner.head.weight)
    with pytest.raises(ValueError, match=r"refiner: nyu14 has RefinerConfig\(layers=12"):
        HandPoseEstimator.from_config(SMALL, None, "nyu14")
    with pytest.raises(ValueError, match="got weights for a config without a refiner"):
        HandPoseEstimator.from_config({**SMALL, "refiner": None}, None, "nyu14")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"size": 100}, "size: got 100; expected a multiple of 32"),
        ({"size": 32}, "depth: got 4; heatmaps of 8 pixels can't be halved so often"),
        ({"image": "infrared"}, "image: got 'infrared'"),
        ({"head": "mlp"}, "head: got 'mlp'"),
        ({"head": "awr", "image": "rgb"}, "'awr' uses the pixels' depth"),
        ({"backbone": "vgg"}, "backbone: got 'vgg'"),
        ({"colour": 1}, "config: .*unexpected keyword argument 'colour'"),
        ({"refiner": {"width": 10, "heads": 4}}, "width 10 is no multiple of 4 heads"),
    ],
)
def test_bad_configs_are_named(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HandPoseEstimator.from_config(config, None)


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no such file"):
        HandPoseEstimator.load(tmp_path / "none.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"broken.safetensors: no readable estimator"):
        HandPoseEstimator.load(tmp_path / "broken.safetensors")
    JointRefiner(RefinerConfig(layers=1)).save(tmp_path / "refiner.safetensors")
    with pytest.raises(ValueError, match="the layout 'pose14-xyz-observed-confidence-error' is not an estimator's"):
        HandPoseEstimator.load(tmp_path / "refiner.safetensors")
    small().save(tmp_path / "other.safetensors", {"config": json.dumps({**SMALL, "width": 32})})
    with pytest.raises(ValueError, match="its weights do not fit its config"):
        HandPoseEstimator.load(tmp_path / "other.safetensors")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ValueError, match=r"list.yaml: expected a mapping"):
        HandPoseEstimator.from_config(tmp_path / "list.yaml", None)
    (tmp_path / "broken.yaml").write_text("{a: [")
    with pytest.raises(ValueError, match=r"broken.yaml: can't be read"):
        HandPoseEstimator.from_config(tmp_path / "broken.yaml", None)
    with pytest.raises(ValueError, match=r"crops: got the shape \(1, 1, 64, 64\); expected \(B, 3, S, S\)"):
        small(image="rgb").encode(torch.zeros(1, 1, 64, 64))
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match=r"broken.json: can't be read"):
        HandPoseEstimator.from_config(tmp_path / "broken.json", None)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"images": torch.zeros(2, 3, 480, 640)}, ValueError, r"expected \(B, 1, H, W\) for depth images"),
        ({"images": torch.zeros(480, 640)}, ValueError, r"images: got the shape \(480, 640\)"),
        ({"images": torch.zeros(2, 1, 480, 640, dtype=torch.bool)}, TypeError, "images: got the dtype torch.bool"),
        ({"images": torch.zeros(2, 1, 480, 640)}, ValueError, "no depth within the cube around the centre of image 0"),
        ({"centres": torch.zeros(1, 3)}, ValueError, r"centres: got the shape \(1, 3\); expected \(2, 3\)"),
        ({"centres": torch.tensor([[0.0, 0, 800], [0.9, 0, 0.8]])}, ValueError, r"that of image 1 falls on pixel \(982, 240\)"),
        ({"camera": torch.ones(5)}, ValueError, r"camera: got the shape \(5,\)"),
        ({"cube_mm": -1.0}, ValueError, "cube_mm: expected positive sides"),
        ({"left": torch.zeros(2)}, ValueError, r"left: got torch.float32 of the shape \(2,\); expected bool \(2,\)"),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], error: type[Exception], message: str) -> None:
    images, centres = scene()
    with pytest.raises(error, match=message):
        small().eval()(**{"images": images, "centres": centres, "camera": NYU, **change})


def test_millimetres_as_integers() -> None:
    """As PNG files give them."""
    model = small().eval()
    images, centres = scene()
    with torch.inference_mode():
        whole = model(images.round().to(torch.int32), centres, NYU)
        torch.testing.assert_close(whole.joints, model(images.round(), centres, NYU).joints)


def test_files_that_call_the_neck_top_down_are_read(tmp_path: Path) -> None:
    """Files of earlier versions; nested in a larger module, too, as in a training checkpoint."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    model, path = small(), tmp_path / "old.safetensors"
    model.save(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = {key.replace("neck.", "top_down."): file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    assert any(key.startswith("top_down.") for key in tensors)
    save_file(tensors, path, metadata)
    loaded = HandPoseEstimator.load(path).state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in model.state_dict().items())
    torch.nn.ModuleDict({"model": small()}).load_state_dict({f"model.{key}": value for key, value in tensors.items()})
