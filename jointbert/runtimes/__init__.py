"""The runtimes of the refiner: a registry of specs, and one file or folder a runtime, imported when it is loaded."""

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
