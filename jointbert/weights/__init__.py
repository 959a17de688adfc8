"""The shipped weights, and functions that read and write weight files."""

from jointbert.contract import Weights
from jointbert.weights.reader import (
    check_layout,
    find_weights,
    fingerprint,
    is_shipped_name,
    load_sequence_weights,
    load_weights,
    read_sizes,
    shipped,
)
from jointbert.weights.shapes import sequence_tensor_shapes, tensor_shapes
from jointbert.weights.writer import write_weights

__all__ = [
    "Weights",
    "check_layout",
    "find_weights",
    "fingerprint",
    "is_shipped_name",
    "load_sequence_weights",
    "load_weights",
    "read_sizes",
    "sequence_tensor_shapes",
    "shipped",
    "tensor_shapes",
    "write_weights",
]
