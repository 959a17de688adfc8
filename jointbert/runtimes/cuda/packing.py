"""Packs a refiner's weights into the layout that the CUDA kernels read (``csrc/cuda/refiner``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jointbert.contract import Weights
from jointbert.contract.layout import NUM_JOINTS

PRECISIONS = ("f16", "bf16")
"""Types of the weights and of the products' factors, the default first."""


class KernelSizes(NamedTuple):
    """Sizes for which the kernels are compiled."""

    heads: int
    width: int
    ffn: int
    features: int
    outputs: int
    chunks: int
    """Chunks of a layer's weights: one for each head, then as many for the feed-forward network."""
    inner: int
    """Inner biases of a chunk, and columns of the feed-forward network in a chunk."""
    outer: int
    """Output biases of a chunk."""

    @classmethod
    def of(cls, module: Any) -> KernelSizes:
        """The sizes that the native module states."""
        if module.NUM_JOINTS != NUM_JOINTS:
            raise ImportError(f"jointbert._cuda is compiled for {module.NUM_JOINTS} joints; this version needs {NUM_JOINTS}")
        network = (module.HEADS, module.WIDTH, module.FFN, module.FEATURES, module.OUTPUTS)
        return cls(*network, module.CHUNKS, module.CHUNK_INNER, module.CHUNK_OUTER)

    def misfit(self, sizes: Mapping[str, int]) -> str | None:
        """The name of a size that the kernels do not support, or None. The number of layers is free."""
        return next((key for key in ("heads", "width", "ffn", "features", "outputs") if sizes[key] != getattr(self, key)), None)


def pack(weights: Weights, precision: str, kernels: KernelSizes) -> tuple[np.ndarray, np.ndarray]:
    """Packs weights into ``Ends`` and ``Chunk`` of ``csrc/cuda/refiner/refiner.h``.

    LayerNorm's scale and shift, and the attention's scale (for a softmax with powers of 2), are folded into the following
    linear layers before these are rounded. The keys' bias is left out, because it adds the same number to all scores of a row,
    which softmax ignores. The values' bias is folded into the projection, because attention weights add up to 1.

    Returns:
        The embedding and the head, ``(4 k,)`` float32, and the layers' chunks, ``(layers, 16, 17024)`` bytes.

    Raises:
        ValueError: weights of other sizes, or a value outside the precision's range.
    """
    key = kernels.misfit(weights.sizes)
    if key is not None:
        raise ValueError(f"weights: {key} is {weights.sizes[key]}; the GPU's kernels are compiled for {getattr(kernels, key)}")
    w = {name: value.astype(np.float64) for name, value in weights.tensors.items()}
    head, bias = _fold_norm(w["head.weight"], w["head.bias"], w["norm.weight"], w["norm.bias"])
    joints = w["joint_embedding"]
    parts = [w["embed.weight"].T, joints + w["embed.bias"], joints + w["mask"], head, bias, w["observed_gain"], np.zeros(3)]
    ends = _convert_finite(np.concatenate([part.ravel() for part in parts]), np.float32, "f32")
    layers = [
        _pack_layer({k.removeprefix(f"layers.{i}."): v for k, v in w.items()}, precision, kernels)
        for i in range(weights.sizes["layers"])
    ]
    return ends, np.stack(layers)


def _pack_layer(w: dict[str, np.ndarray], precision: str, kernels: KernelSizes) -> np.ndarray:
    heads, width, columns = kernels.heads, kernels.width, kernels.inner
    dims = width // heads
    qkv, qkv_bias = _fold_norm(w["qkv.weight"], w["qkv.bias"], w["norm1.weight"], w["norm1.bias"])
    up, up_bias = _fold_norm(w["fc1.weight"], w["fc1.bias"], w["norm2.weight"], w["norm2.bias"])
    query, key, value = qkv.reshape(3, heads, dims, width)
    scale = dims**-0.5 * np.log2(np.e)
    proj = w["proj.weight"]
    outer = np.zeros((kernels.chunks, kernels.outer))
    outer[0] = w["proj.bias"] + proj @ qkv_bias[2 * width :]
    outer[heads] = w["fc2.bias"]
    inner = np.zeros((kernels.chunks, columns))
    inner[:heads, :dims] = scale * qkv_bias[:width].reshape(heads, dims)
    inner[heads:] = up_bias.reshape(-1, columns)
    chunks = []
    for h in range(heads):
        to_proj = _fragment_b(
            proj[:, dims * h : dims * (h + 1)]
        )  # [16 tiles, 1 step, ...]: each lane reads 16 bytes, two tiles
        chunks.append(
            [
                _join_pairs(_fragment_b(scale * query[h])),
                _join_pairs(_fragment_b(key[h])),
                _fragment_a(value[h]),
                _join_pairs(to_proj.swapaxes(0, 1)),
            ]
        )
    for c in range(kernels.chunks - heads):
        part = slice(columns * c, columns * (c + 1))
        chunks.append([_join_pairs(_fragment_b(up[part])), _join_pairs(_fragment_b(w["fc2.weight"][:, part]))])
    matrices = np.stack([np.concatenate([part.reshape(-1, 32, 8) for part in chunk]) for chunk in chunks])
    sixteen = _round_to(matrices, precision).reshape(kernels.chunks, -1).view(np.uint8)
    return np.concatenate([sixteen, _convert_finite(np.concatenate([inner, outer], 1), np.float32, "f32").view(np.uint8)], 1)


def _fold_norm(weight: np.ndarray, bias: np.ndarray, scale: np.ndarray, shift: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A linear layer with the scale and shift of the LayerNorm before it folded in: its weight and bias."""
    return weight * scale, bias + weight @ shift


def _fragment_b(weight: np.ndarray) -> np.ndarray:
    """``(N, K)`` of a torch Linear as B fragments of ``csrc/cuda/common/mma.cuh``: ``(N / 8, K / 16, 32 lanes, 4 values)``."""
    n, k = weight.shape
    tiles = weight.reshape(n // 8, 8, k // 16, 2, 4, 2)  # tile, g, step, word, t, half
    return tiles.transpose(0, 2, 1, 4, 3, 5).reshape(n // 8, k // 16, 32, 4)


def _join_pairs(tiles: np.ndarray) -> np.ndarray:
    """Joins each two neighbours of the second axis in each lane: ``(a, b, 32, 4)`` to ``(a, b / 2, 32, 8)``."""
    a, b = tiles.shape[:2]
    return tiles.reshape(a, b // 2, 2, 32, 4).swapaxes(2, 3).reshape(a, b // 2, 32, 8)


def _fragment_a(matrix: np.ndarray) -> np.ndarray:
    """``(16, K)`` as A fragments: ``(K / 16, 32 lanes, 8 values)``."""
    tiles = matrix.reshape(2, 8, -1, 2, 4, 2)  # row's half, g, step, column's half, t, half of a word
    return tiles.transpose(2, 1, 4, 3, 0, 5).reshape(-1, 32, 8)


def _round_to(values: np.ndarray, precision: str) -> np.ndarray:
    if precision == "f16":
        return _convert_finite(values, np.float16, "f16", "; take precision 'bf16'")
    bits = _convert_finite(values, np.float32, "bf16").view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    if (rounded & 0x7F80 == 0x7F80).any():
        raise ValueError("weights: a value is too large for bf16, or is no number")
    return rounded.astype(np.uint16)


def _convert_finite(values: np.ndarray, dtype: type, name: str, advice: str = "") -> np.ndarray:
    with np.errstate(over="ignore"):
        rounded: np.ndarray = values.astype(dtype)
    if not np.isfinite(rounded).all():
        raise ValueError(f"weights: a value is too large for {name}, or is no number{advice}")
    return rounded
