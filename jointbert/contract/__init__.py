"""What all runtimes agree on: the layout of features, a batch of poses, its result, and the protocol of a backend.

This package imports nothing else of jointbert, so that weights, runtimes and checks can all build on it.
"""

from jointbert.contract.backend import (
    ArrayBackend,
    Backend,
    Batch,
    JointbertWarning,
    OnlineSequence,
    Refinement,
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
    "Refinement",
    "Result",
    "SequenceBackend",
    "SequentialBackend",
    "Status",
    "Weights",
]
