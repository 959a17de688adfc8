"""Batches for the estimator: images and, where they are cached, the frozen encoder's feature maps."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Generator, Tensor
from torch.utils.data import Dataset

from training.data.images import HandImages, RenderConfig, RenderedHands


class ImageBatch(NamedTuple):
    """Images and their feature maps."""

    images: HandImages
    maps: tuple[Tensor, ...] | None  # four [B, C_i, H_i, W_i]; None: the encoder has to compute them


class ImageSet(Protocol):
    """A set of images that are taken by their numbers."""

    def __len__(self) -> int: ...

    def take(self, rows: list[int]) -> ImageBatch: ...


class OneByOne:
    """An image set from a data set whose items are batches of one image."""

    def __init__(self, items: Dataset[HandImages]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)  # type: ignore[arg-type]

    def take(self, rows: list[int]) -> ImageBatch:
        parts = [self.items[i] for i in rows]
        return ImageBatch(HandImages(*(torch.cat(column) for column in zip(*parts, strict=True))), None)


def rendered_set(config: RenderConfig, size: int, cube_mm: float, images: int, seed: int) -> OneByOne:
    """A fixed set of ``images`` rendered images."""
    return OneByOne(RenderedHands(config, size, cube_mm, 1, images, seed))


class Endless(Dataset[ImageBatch]):
    """Sampler of rendered hands, new ones in every batch."""

    def __init__(self, hands: RenderedHands) -> None:
        self.hands, self.length, self.offset = hands, hands.length, 0

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> ImageBatch:
        self.hands.offset = self.offset
        return ImageBatch(self.hands[index], None)


class Shuffled(Dataset[ImageBatch]):
    """Sampler of batches from a fixed set, in a new order in each pass; batch ``offset + index`` is always the same.

    Raises:
        ValueError: the set is smaller than a batch.
    """

    def __init__(self, images: ImageSet, batch_size: int, length: int, seed: int) -> None:
        if len(images) < batch_size:
            raise ValueError(f"there are {len(images)} images; a batch takes {batch_size}")
        self.images, self.batch_size, self.length, self.seed = images, batch_size, length, seed
        self.offset = 0

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> ImageBatch:
        if not 0 <= index < self.length:
            raise IndexError(index)
        whole, k = divmod(self.offset + index, len(self.images) // self.batch_size)
        order = torch.randperm(len(self.images), generator=Generator().manual_seed(self.seed * 1_000_003 + whole))
        return self.images.take(order[k * self.batch_size : (k + 1) * self.batch_size].tolist())
