"""Kernels for NVIDIA GPUs behind device pointers (``csrc/bindings/cuda.cpp``); not in every installation."""

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
