"""Statistics of a refiner's attention: shares on neighbours by bone and by index in each layer (thesis, chapters 5 and 6)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jointbert.skeletons import NYU14, Bone

NUM_JOINTS = NYU14.num_joints


def _adjacency(pairs: tuple[Bone, ...]) -> np.ndarray:
    matrix = np.zeros((NUM_JOINTS, NUM_JOINTS))
    for a, b in pairs:
        matrix[a, b] = matrix[b, a] = 1
    return matrix


BY_BONE = _adjacency(NYU14.bones)
"""``(14, 14)``: 1 if a bone connects the two joints."""
BY_INDEX = _adjacency(tuple((i, i + 1) for i in range(NUM_JOINTS - 1)))
"""``(14, 14)``: 1 if the two joints are adjacent in the canonical order."""


@dataclass(frozen=True)
class AttentionShares:
    """Shares of attention, as means over joints, heads and poses."""

    bone: float
    """Share on the joints at the other end of a bone."""
    index: float
    """Share on the joints directly before and after in the canonical order."""
    both: float
    """Share on joints that are neighbours in both senses."""
    itself: float
    """Share on the joint itself."""
    span: float
    """Mean distance of attention in the canonical order, in joints."""


UNIFORM = AttentionShares(
    float(BY_BONE.mean()),
    float(BY_INDEX.mean()),
    float((BY_BONE * BY_INDEX).mean()),
    1 / NUM_JOINTS,
    (NUM_JOINTS**2 - 1) / (3 * NUM_JOINTS),
)
"""The shares of uniform attention."""


def attention_shares(attention: np.ndarray) -> AttentionShares:
    """The shares of ``(..., 14, 14)`` attention, whose rows add up to 1.

    Raises:
        ValueError: another shape, an empty array, or rows that do not add up to 1.
    """
    attention = np.asarray(attention, np.float64)
    if attention.shape[-2:] != (NUM_JOINTS, NUM_JOINTS):
        raise ValueError(f"attention: got the shape {attention.shape}; expected (..., {NUM_JOINTS}, {NUM_JOINTS})")
    if not attention.size:
        raise ValueError(f"attention: got the shape {attention.shape}; there is nothing to take a mean of")
    if not np.allclose(attention.sum(-1), 1, atol=1e-3):
        raise ValueError("attention: rows that do not add up to 1")
    mean = attention.reshape(-1, NUM_JOINTS, NUM_JOINTS).mean(0)
    distance = np.abs(np.subtract.outer(np.arange(NUM_JOINTS), np.arange(NUM_JOINTS)))
    weights = (BY_BONE, BY_INDEX, BY_BONE * BY_INDEX, np.eye(NUM_JOINTS), distance)
    return AttentionShares(*(float((mean * w).sum() / NUM_JOINTS) for w in weights))


def print_shares(layers: np.ndarray) -> None:
    """Prints a line for each layer of ``(layers, ..., 14, 14)`` attention, and one for uniform attention.

    Raises:
        ValueError: as :func:`attention_shares`; no layers.
    """
    if not len(layers):
        raise ValueError("attention: there are no layers")
    print(f"{'layer':>8s}{'by bone':>12s}{'by index':>12s}{'both':>12s}{'itself':>12s}{'span':>12s}")
    rows = [(str(i), attention_shares(layer)) for i, layer in enumerate(layers, 1)]
    for name, row in [*rows, ("uniform", UNIFORM)]:
        shares = "".join(f"{100 * share:10.1f} %" for share in (row.bone, row.index, row.both, row.itself))
        print(f"{name:>8s}{shares}{row.span:12.2f}")
