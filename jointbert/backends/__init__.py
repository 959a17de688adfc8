"""Runtimes of the refiner, one file each, imported when asked for."""

from __future__ import annotations

from jointbert.backends.base import Backend, Batch, Result, SequenceBackend, SequenceStream, Status
from jointbert.weights import Weights

__all__ = [
    "BACKENDS",
    "GPU_PRECISIONS",
    "Backend",
    "Batch",
    "Result",
    "SequenceBackend",
    "SequenceStream",
    "Status",
    "load_backend",
]

BACKENDS = ("native", "cuda", "onnxruntime", "torch")
GPU_PRECISIONS = ("f16", "bf16")
"""Of the products of backend ``cuda``."""


def load_backend(name: str, weights: Weights, threads: int, precision: str = "f16") -> Backend:
    """The backend of a name; ``auto`` is the native one, and ONNX Runtime for an ONNX file. ``precision``: that of ``cuda``.

    Raises:
        ValueError: an unknown name, or one that does not run such a file. ImportError: the backend's library is not installed.
        RuntimeError: no GPU.
    """
    if not isinstance(name, str) or name not in ("auto", *BACKENDS):
        raise ValueError(f"backend: got {name!r}; expected 'auto' or one of {', '.join(map(repr, BACKENDS))}")
    is_onnx = weights.path.suffix == ".onnx"
    if is_onnx and name not in ("auto", "onnxruntime"):
        raise ValueError(
            f"backend: {name!r} can't run {str(weights.path)!r}; expected 'auto' or 'onnxruntime' for an ONNX file"
        )
    if name == "onnxruntime" and not is_onnx:
        raise ValueError("backend: 'onnxruntime' runs an ONNX file: write one by jointbert export, and give it as weights")
    if is_onnx:
        from jointbert.backends.onnxruntime import OnnxBackend

        return OnnxBackend(weights, threads)
    if name == "torch":
        try:
            from jointbert.backends.torch import TorchBackend
        except ImportError as error:
            raise ImportError(f"backend 'torch' needs torch, which can't be imported ({error}); pip install torch") from None
        return TorchBackend(weights, threads)
    if name == "cuda":
        from jointbert.backends.cuda import CudaBackend

        return CudaBackend(weights, threads, precision)
    from jointbert.backends.native import NativeBackend

    return NativeBackend(weights, threads)
