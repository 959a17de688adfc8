"""The interface between the package and its runtimes: a batch of poses, its result, the layout of tensors, protocols.

This package imports nothing else of jointbert, so that weights, runtimes and checks can all import it.
"""

from jointbert.contract.backend import (
    ArrayBackend,
    Backend,
    Batch,
    JointbertWarning,
    OnlineSequence,
    PoseOptions,
    Refinement,
    RefineOptions,
    Result,
    SequenceBackend,
    SequentialBackend,
    Status,
    Weights,
)

__all__ = [
    "ArrayBackend",
    "Backend",
    "Batch",
    "JointbertWarning",
    "OnlineSequence",
    "PoseOptions",
    "RefineOptions",
    "Refinement",
    "Result",
    "SequenceBackend",
    "SequentialBackend",
    "Status",
    "Weights",
]
