"""Kernels for NVIDIA GPUs behind device pointers (``csrc/bindings/cuda.cpp``); not in every installation."""

from collections.abc import Sequence
from typing import Any

import numpy as np

ARCHITECTURES: str

def devices() -> tuple[int, str]: ...
def soft_argmax(
    values: int,
    element: int,
    poses: int,
    height: int,
    width: int,
    channels_last: bool,
    soft: bool,
    beta: float,
    window: int,
    uv: int,
    confidence: int,
    status: int,
    stream: int,
) -> None: ...
def soft_argmax_depth(
    values: int,
    element: int,
    poses: int,
    height: int,
    width: int,
    soft: bool,
    beta: float,
    window: int,
    weight: int,
    bias: int,
    uv: int,
    confidence: int,
    status: int,
    depth: int,
    memory: int,
    stream: int,
) -> None: ...
def soft_argmax_depth_memory(poses: int) -> int: ...
def soft_argmax_backward(
    values: int,
    element: int,
    poses: int,
    height: int,
    width: int,
    channels_last: bool,
    soft: bool,
    beta: float,
    window: int,
    status: int,
    to_uv: int,
    to_confidence: int,
    gradient: int,
    stream: int,
) -> None: ...

class Refiner:
    device: int
    clusters: int

    def __init__(self, ends: np.ndarray, chunks: np.ndarray, layers: int, precision: int, device: int) -> None: ...
    def run(
        self,
        joints: int,
        number: int,
        count: int,
        order: Sequence[int],
        mm_per_unit: float,
        mirror_all: bool,
        mirror: int,
        visible: int,
        confidence: int,
        error_mm: int,
        error_all_mm: float,
        refined: int,
        sigma: int,
        status: int,
        size_mm: int,
        chirality: int,
        stream: int,
        variant: int = -1,
    ) -> None: ...
    measured: list[tuple[int, int, float]]
    def measure(self, sizes: Sequence[int]) -> None: ...
    def choose(self, poses: int) -> int: ...

class GraphSession:
    stream: int
    recorded: list[int]

    def __init__(self, inputs: Sequence[int], outputs: Sequence[int], rows: int, device: int) -> None: ...
    def input(self, i: int) -> int: ...
    def output(self, i: int) -> int: ...
    def begin(self, rows: int) -> None: ...
    def end(self) -> None: ...
    def abandon(self) -> None: ...
    def run(self, rows: int, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> None: ...

class Memory:
    address: int

    def __init__(self, bytes: int, device: int) -> None: ...

def copy(to: int, source: int, bytes: int, device: int, stream: int) -> None: ...
def order(first: int, later: int, device: int) -> None: ...
def device_of(address: int) -> int: ...
def synchronize(stream: int, device: int) -> None: ...
def read_dlpack(capsule: Any) -> tuple[int, tuple[int, ...], tuple[int, ...] | None, str, int, int, Any]: ...
def write_dlpack(data: int, shape: Sequence[int], code: int, bits: int, device: int, owner: Any) -> Any: ...
