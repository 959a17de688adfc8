"""The runtimes that can run the refiner: a registry of their specs, and one module or package each, imported on demand."""

from jointbert.runtimes.registry import (
    BACKENDS,
    RUNTIMES,
    RuntimeSpec,
    candidates,
    capability_table,
    choose_precision,
    load,
    load_any,
    refusal,
    runtime,
)

__all__ = [
    "BACKENDS",
    "RUNTIMES",
    "RuntimeSpec",
    "candidates",
    "capability_table",
    "choose_precision",
    "load",
    "load_any",
    "refusal",
    "runtime",
]
