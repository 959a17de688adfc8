"""Names and shapes of the tensors of a refiner and of a second stage, computed from their sizes."""

from __future__ import annotations

from jointbert.contract.layout import NUM_JOINTS


def tensor_shapes(sizes: dict[str, int]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a refiner of these sizes."""
    d = sizes["width"]
    shapes: dict[str, tuple[int, ...]] = {"joint_embedding": (NUM_JOINTS, d), "mask": (d,), "observed_gain": (1,)}
    return shapes | _transformer_shapes(sizes, {"embed": (d, sizes["features"])})


def sequence_tensor_shapes(sizes: dict[str, int]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a sequence refiner of these sizes."""
    d, f = sizes["width"], sizes["ffn"]
    return {"gain": (1,)} | _transformer_shapes(sizes, {"embed1": (f, sizes["features"]), "embed2": (d, f)})


def _transformer_shapes(sizes: dict[str, int], embedding: dict[str, tuple[int, int]]) -> dict[str, tuple[int, ...]]:
    d, f = sizes["width"], sizes["ffn"]
    linear = {**embedding, "head": (sizes["outputs"], d)}
    norms = ["norm"]
    for i in range(sizes["layers"]):
        layer = f"layers.{i}"
        linear.update({f"{layer}.qkv": (3 * d, d), f"{layer}.proj": (d, d), f"{layer}.fc1": (f, d), f"{layer}.fc2": (d, f)})
        norms += [f"{layer}.norm1", f"{layer}.norm2"]
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in linear.items():
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]
    for name in norms:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (d,)
    return shapes
