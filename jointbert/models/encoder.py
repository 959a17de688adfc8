"""The image encoder: a frozen ImageNet ResNet (He et al., CVPR 2016; thesis, section 4.2.1), and a feature pyramid neck (Lin et
al., CVPR 2017) that combines the maps of its four stages to features at a quarter of the image's size.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

Backbone = Literal["resnet18", "resnet34", "resnet50", "resnet101"]
STRIDE = 4
"""Image pixels per feature pixel along each axis."""


class ResNetBackbone(nn.Module):
    """The four stages of torchvision's ResNet, without its classifier. It is frozen until :meth:`thaw`: batch norm stays in
    evaluation mode, and parameters get no gradient.

    Shapes: ``(B, 3, H, W)``, H and W multiples of 32, to four maps ``(B, C_i, H / s, W / s)`` with s = 4, 8, 16, 32; of
    ``resnet50`` C = 256, 512, 1024, 2048.
    """

    def __init__(self, backbone: Backbone = "resnet50") -> None:
        super().__init__()
        if backbone not in get_args(Backbone):
            raise ValueError(f"backbone: got {backbone!r}; expected one of {', '.join(get_args(Backbone))}")
        self.backbone = backbone
        net = torchvision.models.get_model(backbone, weights=None)
        self.stem = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool)
        self.stages = nn.ModuleList([net.layer1, net.layer2, net.layer3, net.layer4])
        self.channels = [_output_channels(stage) for stage in (net.layer1, net.layer2, net.layer3, net.layer4)]
        self.trained: Tensor
        self.register_buffer("trained", torch.zeros((), dtype=torch.uint8))
        self._frozen = True
        self.requires_grad_(False).eval()

    def thaw(self) -> ResNetBackbone:
        """Makes all parameters trainable, for pre-training on images if ImageNet weights are not available."""
        self._frozen = False
        return self.requires_grad_(True).train()

    def freeze(self) -> ResNetBackbone:
        """Freezes all parameters and marks the weights as trained."""
        self._frozen = True
        self.trained.fill_(1)
        return self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> ResNetBackbone:
        """Sets the training mode, except for a frozen backbone, which stays in evaluation mode."""
        return super().train(mode and not self._frozen)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images to the maps of the four stages."""
        x = self.stem(images)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def load_weights(self, source: str | os.PathLike[str]) -> None:
        """Loads trained weights and freezes them: ``"imagenet"`` (torchvision's, from its cache or the network) or a file:
        torchvision's ``.pth``, ``.safetensors``, or an estimator's file.

        Raises:
            ValueError: the weights are of another backbone or untrained. OSError: the weights are not available, or not
            readable.
        """
        self.load_state_dict(_rename_keys(_read(source, self.backbone), self.state_dict(), source, self.backbone))
        self.freeze()


class FPNNeck(nn.Module):
    """Combines the backbone's maps from coarse to fine at the size of the finest: a 1x1 convolution of each map,
    nearest-neighbour upsampling and sum, and a 3x3 convolution at the end. Four ``(B, C_i, H_i, W_i)`` to ``(B, width, H_0,
    W_0)``."""

    def __init__(self, channels: Sequence[int], width: int = 256) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)
        self.smooth = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Four maps ``(B, C_i, H_i, W_i)`` to features ``(B, width, H_0, W_0)``."""
        x = self.laterals[-1](maps[-1])
        for lateral, fine in zip(reversed(self.laterals[:-1]), reversed(maps[:-1]), strict=True):
            x = lateral(fine) + F.interpolate(x, size=fine.shape[-2:], mode="nearest")
        out: Tensor = self.smooth(x)
        return out


def _output_channels(stage: nn.Module) -> int:
    norms = [module for module in stage.modules() if isinstance(module, nn.BatchNorm2d)]
    return max(module.num_features for module in norms)


def _read(source: str | os.PathLike[str], backbone: str) -> dict[str, Tensor]:
    if str(source) == "imagenet":
        weights: Any = torchvision.models.get_model_weights(backbone).DEFAULT
        try:
            loaded: dict[str, Tensor] = weights.get_state_dict(progress=True, check_hash=True)
        except OSError as error:  # without a network, urllib raises subclasses of OSError
            raise OSError(
                f"ImageNet weights of {backbone} are neither in torch's cache nor available for download ({error}); download "
                f"{weights.url.rsplit('/', 1)[-1]} elsewhere and name the file"
            ) from None
        return loaded
    path = Path(source)
    if not path.is_file():
        raise OSError(f"{path}: no such file of encoder weights")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the readers' errors have no common type
        raise ValueError(f"{path}: no readable weights ({error})") from None
    if not isinstance(loaded, dict):
        raise ValueError(f"{path}: no state dict of tensors")
    return loaded


_OWN_PREFIXES = {"conv1.": "stem.0.", "bn1.": "stem.1."} | {f"layer{i + 1}.": f"stages.{i}." for i in range(4)}


def _rename_keys(
    given: dict[str, Tensor], expected: dict[str, Tensor], source: str | os.PathLike[str], backbone: str
) -> dict[str, Tensor]:
    """Renames torchvision's keys, or the backbone's with a larger model's prefix, to the backbone's keys."""
    # torchvision's weights are trained; files of this package contain the value.
    found = {"trained": torch.ones((), dtype=torch.uint8)}
    for name, value in given.items():
        name = name.removeprefix("encoder.").removeprefix("trunk.")
        for old, new in _OWN_PREFIXES.items():
            if name.startswith(old):
                name = new + name.removeprefix(old)
        if name in expected:
            found[name] = value
    if not found["trained"]:
        raise ValueError(f"{source}: its encoder is untrained")
    # Batch norm's counters are not in every file and are not used.
    found |= {k: v for k, v in expected.items() if k.endswith("num_batches_tracked") and k not in found}
    missing = [k for k, v in expected.items() if k not in found or found[k].shape != v.shape]
    if missing:
        raise ValueError(
            f"{source}: not the weights of {backbone}: {missing[0]} and {len(missing) - 1} more are missing or misshapen"
        )
    return found
