from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
torchvision = pytest.importorskip("torchvision")

from jointbert.models.encoder import FPNNeck, ResNetBackbone  # noqa: E402


@pytest.fixture(scope="module")
def resnet() -> torch.nn.Module:
    torch.manual_seed(0)
    net = torchvision.models.resnet18(weights=None)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return net.eval()


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_it_is_torchvision_s_network(resnet: torch.nn.Module, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights.{suffix}"
    if suffix == "pth":
        torch.save(resnet.state_dict(), path)
    else:
        from safetensors.torch import save_file

        save_file(resnet.state_dict(), path)
    backbone = ResNetBackbone("resnet18")
    assert not backbone.trained
    backbone.load_weights(path)
    assert backbone.trained
    images = torch.randn(2, 3, 64, 96)
    maps = backbone(images)
    assert [tuple(m.shape) for m in maps] == [(2, 64, 16, 24), (2, 128, 8, 12), (2, 256, 4, 6), (2, 512, 2, 3)]
    pooled = resnet.fc(maps[-1].mean((2, 3)))
    torch.testing.assert_close(pooled, resnet(images))


def test_it_is_frozen(resnet: torch.nn.Module) -> None:
    backbone = ResNetBackbone("resnet18")
    backbone.load_state_dict({**backbone.state_dict()})
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    backbone.train()(torch.randn(2, 3, 32, 32))
    assert not any(p.requires_grad for p in backbone.parameters())
    assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())
    backbone.thaw()(torch.randn(2, 3, 32, 32))
    assert all(p.requires_grad for p in backbone.parameters())
    assert not torch.equal(backbone.stem[1].running_mean, before["stem.1.running_mean"])
    assert backbone.freeze().trained
    assert not backbone.training


def test_another_encoder_s_weights_are_refused(resnet: torch.nn.Module, tmp_path: Path) -> None:
    torch.save(resnet.state_dict(), tmp_path / "r18.pth")
    with pytest.raises(ValueError, match=r"r18.pth: not the weights of resnet34: stages.0.2.conv1.weight and \d+ more"):
        ResNetBackbone("resnet34").load_weights(tmp_path / "r18.pth")
    (tmp_path / "broken.pth").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"broken.pth: no readable weights"):
        ResNetBackbone("resnet18").load_weights(tmp_path / "broken.pth")
    torch.save([1], tmp_path / "list.pth")
    with pytest.raises(ValueError, match=r"list.pth: no state dict"):
        ResNetBackbone("resnet18").load_weights(tmp_path / "list.pth")
    with pytest.raises(OSError, match="no such file of encoder weights"):
        ResNetBackbone("resnet18").load_weights(tmp_path / "none.pth")
    with pytest.raises(ValueError, match="backbone: got 'vgg'"):
        ResNetBackbone("vgg")  # type: ignore[arg-type]


def test_what_learned_nothing_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    from safetensors.torch import save_file

    backbone = ResNetBackbone("resnet18")
    save_file({f"encoder.{k}": v for k, v in backbone.state_dict().items()}, tmp_path / "random.safetensors")
    with pytest.raises(ValueError, match=r"random.safetensors: its encoder is untrained"):
        ResNetBackbone("resnet18").load_weights(tmp_path / "random.safetensors")


def test_imagenet_without_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import urllib.error

    def unreachable(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    with pytest.raises(
        OSError, match=r"ImageNet weights of resnet18 are neither in torch's cache nor available for download .*name the file"
    ):
        ResNetBackbone("resnet18").load_weights("imagenet")


def test_the_neck_by_hand() -> None:
    """With laterals that pass the first channel and an identity as smoothing, the neck sums nearest-neighbour enlargements."""
    neck = FPNNeck([2, 3, 4, 5], width=1)
    with torch.no_grad():
        for lateral in neck.laterals:
            lateral.weight.zero_()[0, 0] = 1
            lateral.bias.zero_()
        neck.smooth.weight.zero_()[0, 0, 1, 1] = 1
        neck.smooth.bias.zero_()
    maps = [torch.randn(1, c, 16 // 2**i, 8 // 2**i) for i, c in enumerate((2, 3, 4, 5))]
    expected = sum(m[:, :1].repeat_interleave(2**i, 2).repeat_interleave(2**i, 3) for i, m in enumerate(maps))
    torch.testing.assert_close(neck(maps), expected)
