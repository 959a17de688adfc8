"""Kernels for NVIDIA GPUs and CUDA resources, by device pointers (``csrc/bindings/cuda.cpp``); not in every installation.

Pointers are device addresses, 0 for an argument that is not given; ``stream`` is a ``cudaStream_t``. ``element`` (type of
heatmaps), ``number`` (type of coordinates), ``precision`` (type of weights) and ``variant`` are codes: see the dicts below.
``variant`` -1 is the fastest one, ``window`` -1 none. RuntimeError: a CUDA call failed, which the message names; ValueError:
arguments that no kernel takes. The kernels are compiled for poses of 14 joints and for the refiner's default sizes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

ARCHITECTURES: str  # that the kernels were compiled for

# Sizes that the kernels are compiled for, as jointbert._core's.
NUM_JOINTS: int
HEADS: int
WIDTH: int
FFN: int
FEATURES: int
OUTPUTS: int
CHUNKS: int  # parts of a layer's weights: 8 attention heads, 8 times 32 columns of the feed-forward network
CHUNK_INNER: int  # inner biases of a chunk
CHUNK_OUTER: int  # output biases of a chunk
MAX_HEATMAP: int  # pixels, either side

# Codes by name.
NUMBERS: dict[str, int]  # float32, float64, float16, bfloat16
ELEMENTS: dict[str, int]  # float32, float16, bfloat16
PRECISIONS: dict[str, int]  # f16, bf16
VARIANTS: dict[str, int]  # cluster, grid, tiles

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
    device: int,
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
    device: int,
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
    device: int,
) -> None: ...

class Refiner:
    @property
    def device(self) -> int: ...
    @property
    def clusters(self) -> int: ...  # of 8 blocks, at once
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
    @property
    def measured(self) -> list[tuple[int, int, float]]: ...  # poses, fastest variant, microseconds
    def measure(self, sizes: Sequence[int]) -> None: ...
    def choose(self, poses: int) -> int: ...

class GraphSession:
    @property
    def stream(self) -> int: ...
    @property
    def recorded(self) -> list[int]: ...
    def __init__(self, inputs: Sequence[int], outputs: Sequence[int], rows: int, device: int) -> None: ...
    def input(self, i: int) -> int: ...
    def output(self, i: int) -> int: ...
    def begin(self, rows: int) -> None: ...
    def end(self) -> None: ...
    def abandon(self) -> None: ...
    def run(self, rows: int, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> None: ...

class Event:
    def __init__(self, stream: int, device: int) -> None: ...
    @property
    def passed(self) -> bool: ...

class Memory:
    @property
    def address(self) -> int: ...
    def __init__(self, bytes: int, device: int) -> None: ...

def copy(to: int, source: int, bytes: int, device: int, stream: int) -> None: ...
def order(first: int, later: int, device: int) -> None: ...
def is_capturing(stream: int, device: int) -> bool: ...
def device_of(address: int) -> int: ...
def synchronize(stream: int, device: int) -> None: ...
def read_dlpack(capsule: Any) -> tuple[int, tuple[int, ...], tuple[int, ...] | None, str, int, int, Any]: ...
def write_dlpack(data: int, shape: Sequence[int], code: int, bits: int, device: int, owner: Any) -> Any: ...
