"""The frozen encoder's feature maps of a set of images, computed once (thesis, section 4.3.1) and stored in memory-mapped
files.

The cache holds the maps of the four frozen stages in float16, 3.75 MiB for an image of 256 x 256. Each augmentation of an image
counts as an image. A header identifies the encoder and the images; a cache of others is refused.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from jointbert.models.estimator import HandPoseEstimator
from training.data.batches import ImageBatch, ImageSet
from training.data.images import HandImages

CHUNK = 32
"""Images in a pass of the encoder; progress is written after each chunk."""
SPARE_BYTES = 1 << 30
"""Disk space that has to remain free."""


class FeatureCache:
    """Cached maps as an :class:`ImageSet`.

    Raises:
        ValueError: there is no cache, or it is not finished, or it is of another encoder or other images.
    """

    def __init__(self, folder: str | Path, model: HandPoseEstimator, images_id: str) -> None:
        self.folder = Path(folder)
        header = _read_header(self.folder)
        if header is None:
            raise ValueError(f"{folder}: no feature cache there")
        _check(header, self.folder, model, images_id)
        if header["done"] < header["count"]:
            raise ValueError(f"{folder}: {header['done']} of {header['count']} images are cached; go on with cache-features")
        self.arrays = {name: _open(self.folder, name, header, "r") for name in header["shapes"]}
        self.count: int = header["count"]

    def __len__(self) -> int:
        return self.count

    def take(self, rows: list[int]) -> ImageBatch:
        """Rows of the cache, in float32."""

        def read(name: str) -> Tensor:
            values = np.stack([self.arrays[name][i] for i in rows])
            return torch.from_numpy(values) if values.dtype == bool else torch.from_numpy(values.astype(np.float32))

        maps = [read(name) for name in self.arrays if name.startswith("map")]
        return ImageBatch(HandImages(*(read(name) for name in HandImages._fields)), tuple(maps))


def encoder_hash(model: HandPoseEstimator) -> str:
    """Hash of the encoder's architecture and weights."""
    digest = hashlib.sha256(model.config.backbone.encode())
    for name, tensor in sorted(model.encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


@torch.inference_mode()
def build_cache(folder: str | Path, model: HandPoseEstimator, images: ImageSet, images_id: str) -> None:
    """Builds the cache on the model's device; resumes an interrupted run.

    Raises:
        ValueError: the encoder is not trained, or the folder holds another cache. OSError: too little disk space.
    """
    folder = Path(folder)
    if not model.encoder.trained:
        raise ValueError("the encoder's weights are random: features of it are worth nothing; load or pre-train it first")
    model.eval()
    device = next(model.encoder.parameters()).device
    header = _read_header(folder)
    if header is None:
        example = images.take([0]).images
        maps = model.encode(example.crops.to(device))
        tensors = dict(zip(HandImages._fields, example, strict=True)) | {f"map{i}": m for i, m in enumerate(maps)}
        header = {
            "encoder": encoder_hash(model),
            "images": images_id,
            "count": len(images),
            "done": 0,
            "shapes": {name: list(t.shape[1:]) for name, t in tensors.items()},
            "types": {name: _type(name, t).str for name, t in tensors.items()},
        }
        needed = size_of(header)
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if free < needed + SPARE_BYTES:
            sizes = f"take {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free"
            raise OSError(f"{folder}: the features of {len(images)} images {sizes}")
        for name in header["shapes"]:
            _open(folder, name, header, "w+")
        _write_header(folder, header)
    _check(header, folder, model, images_id)
    if header["count"] != len(images):
        raise ValueError(f"{folder}: features of {header['count']} images; there are {len(images)}")
    arrays = {name: _open(folder, name, header, "r+") for name in header["shapes"]}
    while header["done"] < header["count"]:
        rows = list(range(header["done"], min(header["done"] + CHUNK, header["count"])))
        batch = images.take(rows).images
        values = dict(zip(HandImages._fields, batch, strict=True))
        values |= {f"map{i}": m for i, m in enumerate(model.encode(batch.crops.to(device)))}
        for name, value in values.items():
            arrays[name][rows[0] : rows[-1] + 1] = value.cpu().numpy()
            arrays[name].flush()
        header["done"] += len(rows)
        _write_header(folder, header)  # after the rows, so that every counted row is complete


def size_of(header: dict[str, object]) -> int:
    """Size of a cache in bytes."""
    shapes, types, count = header["shapes"], header["types"], header["count"]
    assert isinstance(shapes, dict)
    assert isinstance(types, dict)
    assert isinstance(count, int)
    return count * sum(math.prod(shape) * np.dtype(types[name]).itemsize for name, shape in shapes.items())


def _type(name: str, tensor: Tensor) -> np.dtype:
    if tensor.dtype == torch.bool:
        return np.dtype(bool)
    return np.dtype(np.float16 if name.startswith("map") or name == "crops" else np.float32)


def _open(folder: Path, name: str, header: dict, mode: str) -> np.memmap:
    shape = (header["count"], *header["shapes"][name])
    return np.memmap(folder / f"{name}.bin", dtype=np.dtype(header["types"][name]), mode=mode, shape=shape)  # type: ignore[call-overload]


def _read_header(folder: Path) -> dict | None:
    path = folder / "header.json"
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise ValueError(f"{path}: can't be read; delete the folder and begin anew") from None


def _write_header(folder: Path, header: dict) -> None:
    new = folder / "header.new"
    new.write_text(json.dumps(header, indent=1), encoding="utf-8")
    new.replace(folder / "header.json")


def _check(header: dict, folder: Path, model: HandPoseEstimator, images_id: str) -> None:
    if header["encoder"] != encoder_hash(model):
        raise ValueError(f"{folder}: features of another encoder ({header['encoder']}; this is {encoder_hash(model)})")
    if header["images"] != images_id:
        raise ValueError(f"{folder}: features of other images ({header['images']}; expected {images_id})")
