"""The thesis's estimator (figure 4.1): image, heatmaps (dense representation), joints (3D regression), refined joints."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jointbert.camera import Camera
from jointbert.contract.layout import ESTIMATOR_LAYOUT
from jointbert.inputs.estimator import check_camera_images, check_centre_pixels, check_centres_shape, check_not_empty
from jointbert.models.crop import Crop
from jointbert.models.encoder import STRIDE, Backbone, FPNNeck, ResNetBackbone
from jointbert.models.heatmap import Mode, to_image_pixels
from jointbert.models.hourglass import Hourglass
from jointbert.models.refiner import JointRefiner, RefinerConfig, decode, encode
from jointbert.models.regression import AdaptiveWeighting, CropJoints, LinearDepth
from jointbert.weights import write_weights

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class EstimatorConfig:
    """Sizes of a :class:`HandPoseEstimator`; the defaults are the thesis's."""

    image: Literal["depth", "rgb"] = "depth"
    """Depth: one channel, millimetres. RGB: three channels in [0, 1]."""
    size: int = 256
    """Side of the crop, a multiple of 32; heatmaps are a quarter of it."""
    cube_mm: float = 300.0
    backbone: Backbone = "resnet50"
    width: int = 256
    """Channels of the features and of the hourglass."""
    depth: int = 4
    """Number of times that the hourglass halves the heatmaps' size."""
    head: Literal["linear", "awr"] = "linear"
    peak: Mode = "soft"
    """How the linear head finds a heatmap's peak. The thesis uses ``argmax``, which has no gradient."""
    beta: float = 100.0
    window: int | None = None
    refiner: RefinerConfig | None = field(default_factory=RefinerConfig)
    """None: without a refiner."""

    def __post_init__(self) -> None:
        if self.image not in ("depth", "rgb"):
            raise ValueError(f"image: got {self.image!r}; expected 'depth' or 'rgb'")
        if self.head not in ("linear", "awr"):
            raise ValueError(f"head: got {self.head!r}; expected 'linear' or 'awr'")
        if self.head == "awr" and self.image == "rgb":
            raise ValueError("head: 'awr' uses the pixels' depth; it needs depth images")
        if self.size < 32 or self.size % 32:
            raise ValueError(f"size: got {self.size}; expected a multiple of 32")
        if self.heatmap_size % 2**self.depth:
            raise ValueError(f"depth: got {self.depth}; heatmaps of {self.heatmap_size} pixels can't be halved so often")

    @property
    def heatmap_size(self) -> int:
        """Side of a heatmap, pixels."""
        return self.size // STRIDE

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> EstimatorConfig:
        """A config from a mapping, as in json or yaml files.

        Raises:
            ValueError: an unknown key or an invalid value.
        """
        values = dict(content)
        try:
            if isinstance(values.get("refiner"), Mapping):
                values["refiner"] = RefinerConfig(**values["refiner"])
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"config: {error}") from None


class Estimate(NamedTuple):
    """The estimator's result for a batch of images."""

    joints: Tensor  # [B, 14, 3]: camera frame, mm, before refinement
    refined: Tensor  # [B, 14, 3]; the same as `joints` without a refiner
    confidence: Tensor  # [B, 14] in [0, 1]: the heatmaps' peaks
    sigma: Tensor  # [B, 14]: the refined joints' expected error, mm; NaN without a refiner
    heatmaps: Tensor  # [B, 14, S / 4, S / 4]
    crops: Tensor  # [B, 1 or 3, S, S]: the network's input
    uv: Tensor  # [B, 14, 2]: the refined joints in the crop, pixels


class Dense(NamedTuple):
    """The intermediate results of a forward pass that training uses."""

    joints: CropJoints
    heatmaps: Tensor  # [B, 14, S, S]; closeness for an AWR head
    directions: Tensor | None  # [B, 14, 3, S, S] for an AWR head


Refine = Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]
"""A function with the arguments and result of :meth:`HandPoseEstimator.refine`."""


class HandPoseEstimator(nn.Module):
    """Estimates 14 refined joints from an image: encoder, neck, hourglass, 3D regression, refiner.

    By default it has 30.5M parameters, 5.2 % of them in the refiner.
    """

    def __init__(self, config: EstimatorConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or EstimatorConfig()
        self.encoder = ResNetBackbone(config.backbone)
        self.neck = FPNNeck(self.encoder.channels, config.width)
        self.hourglass = Hourglass(config.width, config.depth)
        self.regression: LinearDepth | AdaptiveWeighting
        if config.head == "linear":
            self.regression = LinearDepth(config.heatmap_size, config.peak, config.beta, config.window)
        else:
            self.regression = AdaptiveWeighting(config.width)
        self.refiner = JointRefiner(config.refiner) if config.refiner is not None else None
        self.mean: Tensor
        self.std: Tensor
        for name, values in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        """Accepts files and checkpoints of earlier versions, whose keys call the neck ``top_down``."""
        old = f"{prefix}top_down."
        for key in [key for key in state_dict if key.startswith(old)]:
            state_dict[f"{prefix}neck.{key.removeprefix(old)}"] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    @classmethod
    def from_config(
        cls,
        config: EstimatorConfig | Mapping[str, Any] | str | os.PathLike[str],
        encoder: str | os.PathLike[str] | None = "imagenet",
        refiner: str | os.PathLike[str] | None = None,
    ) -> HandPoseEstimator:
        """A new estimator, to be trained.

        Args:
            config: sizes; a mapping of them, or a yaml or json file.
            encoder: weights of the encoder: ``"imagenet"``, or a file; None: random, to be pre-trained
                (see :meth:`ResNetBackbone.load_weights`).
            refiner: weights of the refiner, a shipped name or a file, of the config's sizes; None: random.

        Raises:
            ValueError: an invalid config, weights of other sizes. OSError: a file or ImageNet's weights are not available.
        """
        if isinstance(config, (str, os.PathLike)):
            config = _read_config(Path(config))
        if not isinstance(config, EstimatorConfig):
            config = EstimatorConfig.of(config)
        model = cls(config)
        if encoder is not None:
            model.encoder.load_weights(encoder)
        if refiner is not None:
            if model.refiner is None:
                raise ValueError("refiner: got weights for a config without a refiner")
            loaded = JointRefiner.load(refiner)
            if loaded.config != config.refiner:
                raise ValueError(f"refiner: {refiner} has {loaded.config}; the config says {config.refiner}")
            model.refiner.load_state_dict(loaded.state_dict())
        return model

    def forward(
        self,
        images: Tensor,
        centres: Tensor,
        camera: Camera | Tensor,
        cube_mm: float | Tensor | None = None,
        left: Tensor | None = None,
    ) -> Estimate:
        """Joints of one hand in each image.

        Args:
            images: ``(B, 1, H, W)`` depth in millimetres (0: no reading), or ``(B, 3, H, W)`` RGB in [0, 1].
            centres: ``(B, 3)`` x y z of the hand's middle in the camera frame, mm.
            camera: the images' camera, or ``(4,)`` or ``(B, 4)`` fx, fy, cx, cy.
            cube_mm: side of the cube around the centre that the network sees; None: the config's.
            left: ``(B,)`` bool: True for left hands, which are mirrored for the refiner.

        Raises:
            ValueError: wrong shapes, centres outside the image, no reading within the cube. TypeError: wrong dtypes.
        """
        self.check(images, centres)
        if left is not None and (left.dtype != torch.bool or tuple(left.shape) != (images.shape[0],)):
            raise ValueError(f"left: got {left.dtype} of the shape {tuple(left.shape)}; expected bool ({images.shape[0]},)")
        crop = Crop.around(centres.float(), camera, self.config.cube_mm if cube_mm is None else cube_mm, self.config.size)
        self.check_centres(images, crop)
        found = self._estimate(images.float(), crop, left, self.refine)
        if self.config.image == "depth":
            check_not_empty((found.crops >= 1).flatten(1).all(1).cpu().numpy())
        return found

    def run(self, images: Tensor, centres: Tensor, camera: Tensor, left: Tensor, refine: Refine | None = None) -> Estimate:
        """:meth:`forward` without its checks, which read values: for exports and CUDA graphs.

        Shapes: ``(B, C, H, W)``, ``(B, 3)``, ``(B, 4)``, ``(B,)``; ``left`` is bool, the others float32. ``refine`` replaces
        :meth:`refine`.
        """
        half = torch.full_like(centres[:, 0], self.config.cube_mm / 2)
        turn = torch.eye(2, dtype=centres.dtype, device=centres.device).expand(centres.shape[0], 2, 2)
        return self._estimate(images, Crop(centres, camera, half, turn, self.config.size), left, refine or self.refine)

    def _estimate(self, images: Tensor, crop: Crop, left: Tensor | None, refine: Refine) -> Estimate:
        crops = crop.depth(images) if self.config.image == "depth" else crop.rgb(images)
        dense = self.dense(crops)
        joints = self.to_xyz(dense.joints, crop)
        confidence = dense.joints.confidence.float()
        refined, sigma = refine(joints, confidence, left)
        return Estimate(joints, refined, confidence, sigma, dense.heatmaps, crops, crop.from_xyz(refined)[0])

    def check(self, images: Tensor, centres: Tensor) -> None:
        """Checks shapes and dtypes; raises as :meth:`forward`."""
        kind = "f" if images.is_floating_point() else "b" if images.dtype == torch.bool else "i"
        check_camera_images(self.config.image, tuple(images.shape), kind, str(images.dtype))
        check_centres_shape(tuple(centres.shape), images.shape[0])

    def check_centres(self, images: Tensor, crop: Crop) -> None:
        """Raises ValueError if a crop's centre lies outside its image."""
        check_centre_pixels(crop.middle.detach().cpu().numpy(), tuple(images.shape))

    def encode(self, crops: Tensor) -> list[Tensor]:
        """Runs the frozen encoder on crops ``(B, 1, S, S)`` in half-cubes or ``(B, 3, S, S)`` RGB; gives its four maps."""
        channels = 1 if self.config.image == "depth" else 3
        if crops.shape[1] != channels:
            raise ValueError(f"crops: got the shape {tuple(crops.shape)}; expected (B, {channels}, S, S)")
        if self.config.image == "rgb":
            return list(self.encoder((crops - self.mean) / self.std))
        return list(self.encoder(crops.expand(-1, 3, -1, -1)))

    def dense(self, crops: Tensor) -> Dense:
        """Crops to joints in the crop, with the intermediate results for training."""
        return self.dense_from_maps(self.encode(crops), crops)

    def dense_from_maps(self, maps: list[Tensor], crops: Tensor) -> Dense:
        """Like :meth:`dense`, from the encoder's maps, which may be cached."""
        features, heatmaps = self.hourglass(self.neck(maps))
        if isinstance(self.regression, LinearDepth):
            return Dense(self.regression(heatmaps), heatmaps, None)
        joints, directions = self.regression(features, heatmaps, self.surface(crops))
        return Dense(joints, heatmaps, directions)

    def surface(self, crops: Tensor) -> Tensor:
        """``(B, 1, S / 4, S / 4)``: the crop's depth at the heatmaps' pixels, from the nearest crop pixel."""
        return F.interpolate(crops, size=(self.config.heatmap_size,) * 2, mode="nearest-exact")

    def to_xyz(self, joints: CropJoints, crop: Crop) -> Tensor:
        """Joints in the crop to ``(B, 14, 3)`` millimetres in the camera frame."""
        size, small = self.config.size, self.config.heatmap_size
        return crop.to_xyz(to_image_pixels(joints.uv.float(), (small, small), (size, size)), joints.depth.float())

    def refine(self, joints: Tensor, confidence: Tensor, left: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Refined joints ``(B, 14, 3)``, and their expected errors ``(B, 14)``, mm."""
        if self.refiner is None:
            return joints, torch.full_like(confidence, torch.nan)
        sign = torch.ones_like(joints[:, :1])
        if left is not None:
            side = torch.where(left, -1.0, 1.0).to(joints.dtype).view(-1, 1)
            sign = torch.stack([side, torch.ones_like(side), torch.ones_like(side)], -1)
        right = joints * sign
        features, mean = self.refiner_features(right, confidence)
        refined, sigma = decode(right, torch.ones_like(confidence, dtype=torch.bool), mean, self.refiner(features).float())
        return refined * sign, sigma

    @staticmethod
    def refiner_features(joints: Tensor, confidence: Tensor) -> tuple[Tensor, Tensor]:
        """The refiner's features, and the joints' mean, of right hands ``(B, 14, 3)``, mm, with confidence ``(B, 14)``."""
        unknown = torch.full_like(joints[..., 0], torch.nan)
        return encode(joints, torch.ones_like(confidence, dtype=torch.bool), confidence.to(joints.dtype), unknown)

    def save(self, path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
        """Writes the estimator as safetensors, with its config."""
        tensors = {key: value.detach().cpu().numpy() for key, value in self.state_dict().items()}
        config = json.dumps(asdict(self.config))
        write_weights(path, tensors, {"layout": ESTIMATOR_LAYOUT, "config": config, **(metadata or {})})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> HandPoseEstimator:
        """Reads an estimator's file; the estimator is in evaluation mode.

        Raises:
            ValueError: not an estimator's file, or weights that do not fit its config. OSError: the file can't be read.
        """
        from safetensors import SafetensorError, safe_open

        if not Path(path).is_file():
            raise OSError(f"{path}: no such file")
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("layout") != ESTIMATOR_LAYOUT:
                    raise ValueError(
                        f"{path}: the layout {metadata.get('layout')!r} is not an estimator's, {ESTIMATOR_LAYOUT!r}"
                    )
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            model = cls(EstimatorConfig.of(json.loads(metadata["config"])))
            model.load_state_dict(tensors)
        except (SafetensorError, json.JSONDecodeError, KeyError) as error:
            raise ValueError(f"{path}: no readable estimator ({error})") from None
        except RuntimeError as error:
            raise ValueError(f"{path}: its weights do not fit its config ({_first_line(error)})") from None
        return model.eval()


def _read_config(path: Path) -> Mapping[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            content = json.loads(text)
        else:
            import yaml

            content = yaml.safe_load(text)
    except OSError:
        raise
    except Exception as error:  # yaml's errors have no common type
        raise ValueError(f"{path}: can't be read ({' '.join(str(error).split())})") from None
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: expected a mapping")
    return content


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split("\n", 2)[:2])
