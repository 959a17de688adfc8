"""Packs a refiner's weights into the layout that the CUDA kernels read (``csrc/cuda/refiner``)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from jointbert.contract import Weights

PRECISIONS = ("f16", "bf16")
"""Types of the weights and of the products' factors, the default first."""
CHUNKS = 16
"""Chunks of a layer's weights: one for each of 8 heads, and 8 of 32 columns of the feed-forward network each."""
_INNER, _OUTER = 32, 128
_SIZES = {"heads": 8, "width": 128, "ffn": 256, "features": 8, "outputs": 4}


def compiled_for(sizes: Mapping[str, int]) -> bool:
    """Whether the kernels can run a refiner of these sizes. The number of layers is free."""
    return all(sizes[key] == size for key, size in _SIZES.items())


def pack(weights: Weights, precision: str) -> tuple[np.ndarray, np.ndarray]:
    """Packs weights into ``Ends`` and ``Chunk`` of ``csrc/cuda/refiner.h``.

    LayerNorm's scale and shift, and the attention's scale (for a softmax with powers of 2), are folded into the following
    linear layers before these are rounded. The keys' bias is left out, because it adds the same number to all scores of a row,
    which softmax ignores. The values' bias is folded into the projection, because attention weights add up to 1.

    Returns:
        The embedding and the head, ``(4 k,)`` float32, and the layers' chunks, ``(layers, 16, 17024)`` bytes.

    Raises:
        ValueError: weights of other sizes, or a value outside the precision's range.
    """
    for key, size in _SIZES.items():
        if weights.sizes[key] != size:
            raise ValueError(f"weights: {key} is {weights.sizes[key]}; the GPU's kernels are compiled for {size}")
    w = {name: value.astype(np.float64) for name, value in weights.tensors.items()}
    head, bias = _fold_norm(w["head.weight"], w["head.bias"], w["norm.weight"], w["norm.bias"])
    joints = w["joint_embedding"]
    parts = [w["embed.weight"].T, joints + w["embed.bias"], joints + w["mask"], head, bias, w["observed_gain"], np.zeros(3)]
    ends = _convert_finite(np.concatenate([part.ravel() for part in parts]), np.float32, "f32")
    layers = [
        _pack_layer({k.removeprefix(f"layers.{i}."): v for k, v in w.items()}, precision)
        for i in range(weights.sizes["layers"])
    ]
    return ends, np.stack(layers)


def _pack_layer(w: dict[str, np.ndarray], precision: str) -> np.ndarray:
    qkv, qkv_bias = _fold_norm(w["qkv.weight"], w["qkv.bias"], w["norm1.weight"], w["norm1.bias"])
    up, up_bias = _fold_norm(w["fc1.weight"], w["fc1.bias"], w["norm2.weight"], w["norm2.bias"])
    query, key, value = qkv.reshape(3, 8, 16, 128)
    scale = 0.25 * np.log2(np.e)
    proj = w["proj.weight"]
    outer = np.zeros((CHUNKS, _OUTER))
    outer[0] = w["proj.bias"] + proj @ qkv_bias[256:]
    outer[8] = w["fc2.bias"]
    inner = np.zeros((CHUNKS, _INNER))
    inner[:8, :16] = scale * qkv_bias[:128].reshape(8, 16)
    inner[8:] = up_bias.reshape(8, 32)
    chunks = []
    for h in range(8):
        to_proj = _b_fragments(proj[:, 16 * h : 16 * h + 16])  # [16 tiles, 1 step, ...]: each lane reads 16 bytes, two tiles
        chunks.append(
            [
                _join_pairs(_b_fragments(scale * query[h])),
                _join_pairs(_b_fragments(key[h])),
                _a_fragments(value[h]),
                _join_pairs(to_proj.swapaxes(0, 1)),
            ]
        )
    for c in range(8):
        columns = slice(32 * c, 32 * c + 32)
        chunks.append([_join_pairs(_b_fragments(up[columns])), _join_pairs(_b_fragments(w["fc2.weight"][:, columns]))])
    matrices = np.stack([np.concatenate([part.reshape(-1, 32, 8) for part in chunk]) for chunk in chunks])
    sixteen = _round_to(matrices, precision).reshape(CHUNKS, -1).view(np.uint8)
    return np.concatenate([sixteen, _convert_finite(np.concatenate([inner, outer], 1), np.float32, "f32").view(np.uint8)], 1)


def _fold_norm(weight: np.ndarray, bias: np.ndarray, scale: np.ndarray, shift: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A linear layer with the scale and shift of the LayerNorm before it folded in: its weight and bias."""
    return weight * scale, bias + weight @ shift


def _b_fragments(weight: np.ndarray) -> np.ndarray:
    """A torch Linear's weight ``(N, K)`` as B fragments of tensor cores: ``(N / 8, K / 16, 32 lanes, 4 values)``."""
    n, k = weight.shape
    tiles = weight.reshape(n // 8, 8, k // 16, 2, 4, 2)  # tile, g, step, word, t, half
    return tiles.transpose(0, 2, 1, 4, 3, 5).reshape(n // 8, k // 16, 32, 4)


def _join_pairs(tiles: np.ndarray) -> np.ndarray:
    """Joins each two neighbours of the second axis in each lane: ``(a, b, 32, 4)`` to ``(a, b / 2, 32, 8)``."""
    a, b = tiles.shape[:2]
    return tiles.reshape(a, b // 2, 2, 32, 4).swapaxes(2, 3).reshape(a, b // 2, 32, 8)


def _a_fragments(matrix: np.ndarray) -> np.ndarray:
    """A matrix ``(16, K)`` as A fragments of tensor cores: ``(K / 16, 32 lanes, 8 values)``."""
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
