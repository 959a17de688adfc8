"""The refiner on NVIDIA GPUs (``csrc/cuda``): loading the kernels, saying what is missing, packing weights, launching."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any

import numpy as np

from jointbert.backends import GPU_PRECISIONS
from jointbert.backends.base import Batch, Result, SequenceBackend
from jointbert.device_arrays import DeviceArray, Library
from jointbert.skeleton import NUM_JOINTS
from jointbert.weights import Weights

if TYPE_CHECKING:
    from jointbert.backends.graph_session import GraphSession

NUMBERS = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 3}
"""Types of coordinates, as ``csrc/cuda/refiner.h`` counts them."""
CHUNKS = 16
"""Parts of a layer's weights: 8 heads, 8 times 32 columns of the feed-forward network (``csrc/cuda/refiner.h``)."""
_INNER, _OUTER = 32, 128
_NOT_BUILT_FOR = (98, 200, 209, 218, 222)
"""What CUDA says where there is no code for a GPU: invalid function or image, no image, PTX that can't be translated."""
_SIZES = {"heads": 8, "width": 128, "ffn": 256, "features": 8, "outputs": 4}


@lru_cache(maxsize=1)
def load_module() -> Any:
    """``jointbert._cuda``.

    Raises:
        ImportError: this installation was built without it.
    """
    try:
        from jointbert import _cuda
    except ImportError as error:
        built = any(path.suffix in (".so", ".pyd") for path in Path(__file__).parents[1].glob("_cuda*"))
        reason = f" that load ({error})" if built else ""
        raise ImportError(
            f"jointbert: this installation has no GPU kernels{reason}; install it where nvcc and a GPU are found, or, "
            "with nvcc alone, with -C cmake.define.JOINTBERT_CUDA_ARCHS=all"
        ) from None
    return _cuda


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function of the module.

    Raises:
        RuntimeError: what CUDA says, and what this build and this machine have to do with it.
    """
    try:
        return function(*arguments)
    except RuntimeError as error:
        module = load_module()
        _, missing = module.devices()
        if not missing and any(f"(CUDA error {code})" in str(error) for code in _NOT_BUILT_FOR):
            missing = f"the kernels are built for {module.ARCHITECTURES}"
        raise RuntimeError(f"{error}; {missing}" if missing else str(error)) from None


@dataclass(frozen=True)
class DeviceBatch:
    """Poses on a GPU: :class:`jointbert.backends.base.Batch` there."""

    joints: DeviceArray  # (N, 14, 3)
    permutation: np.ndarray
    mm_per_unit: float
    mirror: DeviceArray | bool  # (N,) bool, or all or none
    visible: DeviceArray | None  # (N, 14) bool
    confidence: DeviceArray | None  # (N, 14) float32; outside [0, 1]: unknown
    error_mm: DeviceArray | float | None  # (N, 14) float32, or for all; not positive: unknown


@dataclass(frozen=True)
class DeviceResult:
    """:class:`jointbert.backends.base.Result` on a GPU; the last two where they were asked for."""

    joints: DeviceArray
    sigma: DeviceArray
    status: DeviceArray
    size_mm: DeviceArray | None
    chirality: DeviceArray | None


class CudaBackend:
    """Runs the refiner on GPUs, in one launch a batch; the result is the same alone or in a batch, bit for bit.

    Args:
        weights: any number of layers; the other sizes are the thesis's, which the kernels are compiled for.
        threads: not used.
        precision: of the weights and the products' factors, ``"f16"`` or ``"bf16"``; sums are float32, poses are encoded and
            decoded in float64.
        device: the GPU for NumPy arrays; arrays on a GPU stay on theirs.

    Raises:
        ImportError: an installation without GPU kernels. RuntimeError: no GPU. ValueError: another precision, weights of other
            sizes, or that a precision can't hold; when a GPU is first used, a precision that it does not multiply.
    """

    name = "cuda"
    measured_sizes: tuple[int, ...] = tuple(1 << k for k in range(13))
    """Numbers of poses for which the kernel's variants are timed when a GPU gets the weights: a tenth of a second by
    the latency model, after which the fastest is taken. All variants give the same bits."""
    _most_rows = 1024
    _most_sessions = 8

    def __init__(self, weights: Weights, threads: int = 1, precision: str = "f16", device: int = 0) -> None:
        if precision not in GPU_PRECISIONS:
            raise ValueError(f"precision: got {precision!r}; expected one of {', '.join(map(repr, GPU_PRECISIONS))}")
        self._module = load_module()
        count, missing = self._module.devices()
        if not count:
            raise RuntimeError(f"backend 'cuda' needs a GPU: {missing}")
        if isinstance(device, bool) or not isinstance(device, int):
            raise TypeError(f"device: got {type(device).__name__}; expected a GPU's number")
        if not 0 <= device < count:
            raise ValueError(f"device: got {device}; expected a GPU's number, 0 to {count - 1} here")
        self._process = os.getpid()
        self._packed = pack(weights, precision)
        self.layers, self.precision, self.device = weights.sizes["layers"], precision, device
        self._refiners: dict[int, Any] = {}
        self._sessions: OrderedDict[tuple[Any, ...], GraphSession] = OrderedDict()
        self._lock = RLock()

    def refiner(self, device: int) -> Any:
        """``_cuda.Refiner`` on a device, which holds the weights there; made and measured when it is first asked for.

        Raises:
            RuntimeError: what CUDA says. ValueError: ``bf16`` on a GPU before compute capability 8.0.
        """
        with self._lock:
            if device not in self._refiners:
                ends, chunks = (x.reshape(-1).view(np.uint8) for x in self._packed)
                code = GPU_PRECISIONS.index(self.precision)
                made = call(self._module.Refiner, ends, chunks, self.layers, code, device)
                call(made.measure, self.measured_sizes)
                self._refiners[device] = made
            return self._refiners[device]

    def enqueue(self, batch: DeviceBatch, out: DeviceResult, stream: int, variant: int = -1) -> None:
        """Enqueues one launch on a stream and waits for nothing.

        ``variant``: 0 clusters, 1 a cooperative grid, 2 tiles (``csrc/cuda/refiner.h``); -1: what measured fastest.

        Raises:
            RuntimeError: what CUDA says of the launch. ValueError: a variant that this GPU does not run; as :meth:`refiner`.
        """

        self.check_process()

        def address(array: object) -> int:
            return array.address if isinstance(array, DeviceArray) else 0

        call(
            self.refiner(batch.joints.device).run,
            batch.joints.address,
            NUMBERS[batch.joints.dtype],
            batch.joints.shape[0],
            batch.permutation.tolist(),
            batch.mm_per_unit,
            batch.mirror is True,
            *map(address, (batch.mirror, batch.visible, batch.confidence, batch.error_mm)),
            batch.error_mm if isinstance(batch.error_mm, float) else np.nan,
            *map(address, (out.joints, out.sigma, out.status, out.size_mm, out.chirality)),
            stream,
            variant,
        )

    def run_on_device(self, batch: DeviceBatch, library: Library, leading: tuple[int, ...], checks: bool) -> DeviceResult:
        """Refines poses where they are, on their library's stream; results have the ``leading`` dimensions of the input.
        ``checks``: with what the checks look at.

        Raises:
            RuntimeError, ValueError: as :meth:`enqueue`.
        """
        count = batch.joints.shape[0]
        out = DeviceResult(
            joints=library.empty((*leading, NUM_JOINTS, 3), batch.joints.dtype),
            sigma=library.empty((*leading, NUM_JOINTS), "float32"),
            status=library.empty(leading, "uint8"),
            size_mm=library.empty((count,), "float32") if checks else None,
            chirality=library.empty((count,), "float32") if checks else None,
        )
        if count:
            try:
                self.enqueue(batch, out, library.stream)
            finally:
                library.enqueued()
        return out

    def to_host(self, array: DeviceArray, stream: int) -> np.ndarray:
        """A copy in NumPy; waits for the stream."""
        out = np.empty(array.shape, array.dtype)
        if out.size:
            call(self._module.copy, out.ctypes.data, array.address, out.nbytes, array.device, stream)
            call(self._module.synchronize, stream, array.device)
        return out

    def run(self, batch: Batch) -> Result:
        """Refines poses in the host's memory, ``(N, 14, 3)``: one graph launch for up to 1024; see
        :class:`jointbert.backends.base.Backend`.

        Raises:
            RuntimeError, ValueError: as :meth:`enqueue`.
        """
        self.check_process()
        count = len(batch.joints)
        parts = [self._replay(batch, slice(i, min(i + self._most_rows, count))) for i in range(0, count, self._most_rows)]
        if not parts:
            none = np.empty(0, np.float32)
            return Result(batch.joints, np.empty((0, NUM_JOINTS), np.float32), np.empty(0, np.uint8), none, none)
        names = ("joints", "sigma", "status", "size_mm", "chirality")
        return Result(**{name: np.concatenate([part[name] for part in parts]) for name in names})

    def _replay(self, batch: Batch, rows: slice) -> dict[str, np.ndarray]:
        count = rows.stop - rows.start

        def part(array: np.ndarray | None, shape: tuple[int, ...], fill: Any, dtype: type) -> np.ndarray:
            return np.full((count, *shape), fill, dtype) if array is None else array[rows]

        session = self._session(batch)
        size = min(1 << (count - 1).bit_length(), self._most_rows)
        if size not in session.batches:
            self._record(session, batch, size)
        return session(
            joints=batch.joints[rows],
            mirror=part(batch.mirror, (), False, bool),
            visible=part(batch.visible, (NUM_JOINTS,), True, bool),
            confidence=part(batch.confidence, (NUM_JOINTS,), np.nan, np.float32),
            error_mm=part(batch.error_mm, (NUM_JOINTS,), np.nan, np.float32),
        )

    def _session(self, batch: Batch) -> GraphSession:
        """The graphs for poses of this type, unit and order, which are part of what was recorded."""
        from jointbert.backends.graph_session import GraphSession

        key = (batch.joints.dtype.name, batch.mm_per_unit, batch.permutation.tobytes())
        with self._lock:
            session = self._sessions.get(key)
            if session is None:
                per_joint = (NUM_JOINTS,)
                session = self._sessions[key] = GraphSession(
                    inputs={
                        "joints": ((NUM_JOINTS, 3), batch.joints.dtype.name),
                        "mirror": ((), "bool"),
                        "visible": (per_joint, "bool"),
                        "confidence": (per_joint, "float32"),
                        "error_mm": (per_joint, "float32"),
                    },
                    outputs={
                        "joints": ((NUM_JOINTS, 3), batch.joints.dtype.name),
                        "sigma": (per_joint, "float32"),
                        "status": ((), "uint8"),
                        "size_mm": ((), "float32"),
                        "chirality": ((), "float32"),
                    },
                    rows=self._most_rows,
                    device=self.device,
                )
            self._sessions.move_to_end(key)
            while len(self._sessions) > self._most_sessions:
                self._sessions.popitem(last=False)
            return session

    def _record(self, session: GraphSession, batch: Batch, size: int) -> None:
        self.refiner(self.device)  # weights can't be sent to the device within a capture

        def enqueue(rows: int) -> None:
            at = {name: session.input(name, rows) for name in ("joints", "mirror", "visible", "confidence", "error_mm")}
            out = {name: session.output(name, rows) for name in ("joints", "sigma", "status", "size_mm", "chirality")}
            given = DeviceBatch(permutation=batch.permutation, mm_per_unit=batch.mm_per_unit, **at)
            self.enqueue(given, DeviceResult(**out), session.stream)

        with self._lock:
            if size not in session.batches:
                session.capture(enqueue, (size,))

    def check_process(self) -> None:
        """Before any lock, which a thread may have held that does not exist here.

        Raises:
            RuntimeError: another process made this one.
        """
        if os.getpid() != self._process:
            raise RuntimeError(
                "backend 'cuda': this process was forked from the one that made it, and CUDA does not follow; start it by "
                "multiprocessing's 'spawn'"
            )

    def sequence(self, weights: Weights) -> SequenceBackend:
        raise ValueError(NO_SEQUENCES)


def compiled_for(sizes: Mapping[str, int]) -> bool:
    """Whether the kernels can run a refiner of these sizes; of layers they take any number."""
    return all(sizes[key] == size for key, size in _SIZES.items())


NO_SEQUENCES = "backend: 'cuda' has no second stage (sequences, streams, calibrated persons); take 'native', and CPU arrays"


def pack(weights: Weights, precision: str) -> tuple[np.ndarray, np.ndarray]:
    """The weights as the kernels read them: ``csrc/cuda/refiner.h``'s ``Ends`` and ``Chunk``.

    LayerNorm's weights and the attention's scale (for powers of 2) are multiplied into the matrices behind them before these
    are rounded. A bias of keys shifts all scores of a row alike, which softmax does not see; one of values passes through it.

    Returns:
        ``(4 k,)`` float32 ends; ``(layers, 16, 17024)`` bytes of chunks.

    Raises:
        ValueError: weights of other sizes, a value that the precision can't hold.
    """
    for key, size in _SIZES.items():
        if weights.sizes[key] != size:
            raise ValueError(f"weights: {key} is {weights.sizes[key]}; the GPU's kernels are compiled for {size}")
    w = {name: value.astype(np.float64) for name, value in weights.tensors.items()}
    head, bias = _folded(w["head.weight"], w["head.bias"], w["norm.weight"], w["norm.bias"])
    joints = w["joint_embedding"]
    parts = [w["embed.weight"].T, joints + w["embed.bias"], joints + w["mask"], head, bias, w["observed_gain"], np.zeros(3)]
    ends = _finite(np.concatenate([part.ravel() for part in parts]), np.float32, "f32")
    layers = [
        _pack_layer({k.removeprefix(f"layers.{i}."): v for k, v in w.items()}, precision)
        for i in range(weights.sizes["layers"])
    ]
    return ends, np.stack(layers)


def _pack_layer(w: dict[str, np.ndarray], precision: str) -> np.ndarray:
    qkv, qkv_bias = _folded(w["qkv.weight"], w["qkv.bias"], w["norm1.weight"], w["norm1.bias"])
    up, up_bias = _folded(w["fc1.weight"], w["fc1.bias"], w["norm2.weight"], w["norm2.bias"])
    query, key, value = qkv.reshape(3, 8, 16, 128)
    scale = 0.25 * np.log2(np.e)
    proj = w["proj.weight"]
    outer = np.zeros((CHUNKS, _OUTER))
    outer[0] = w["proj.bias"] + proj @ qkv_bias[256:]
    outer[8] = w["fc2.bias"]
    inner = np.zeros((CHUNKS, _INNER))
    inner[:8, :16] = scale * qkv_bias[:128].reshape(8, 16)
    inner[8:] = up_bias.reshape(8, 32)
    chunks = []
    for h in range(8):
        to_proj = _right(proj[:, 16 * h : 16 * h + 16])  # [16 tiles, 1 step, ...]: two tiles a lane's 16 bytes
        chunks.append(
            [_pairs(_right(scale * query[h])), _pairs(_right(key[h])), _left(value[h]), _pairs(to_proj.swapaxes(0, 1))]
        )
    for c in range(8):
        columns = slice(32 * c, 32 * c + 32)
        chunks.append([_pairs(_right(up[columns])), _pairs(_right(w["fc2.weight"][:, columns]))])
    matrices = np.stack([np.concatenate([part.reshape(-1, 32, 8) for part in chunk]) for chunk in chunks])
    sixteen = _rounded(matrices, precision).reshape(CHUNKS, -1).view(np.uint8)
    return np.concatenate([sixteen, _finite(np.concatenate([inner, outer], 1), np.float32, "f32").view(np.uint8)], 1)


def _folded(weight: np.ndarray, bias: np.ndarray, scale: np.ndarray, shift: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A linear layer that takes a LayerNorm's own weights in."""
    return weight * scale, bias + weight @ shift


def _right(weight: np.ndarray) -> np.ndarray:
    """``(N, K)`` of a torch Linear as right factors of ``csrc/cuda/warp.cuh``: ``(N / 8, K / 16, 32 lanes, 4 values)``."""
    n, k = weight.shape
    tiles = weight.reshape(n // 8, 8, k // 16, 2, 4, 2)  # tile, g, step, word, t, half
    return tiles.transpose(0, 2, 1, 4, 3, 5).reshape(n // 8, k // 16, 32, 4)


def _pairs(tiles: np.ndarray) -> np.ndarray:
    """Neighbours of the second axis side by side in each lane: ``(a, b, 32, 4)`` to ``(a, b / 2, 32, 8)``."""
    a, b = tiles.shape[:2]
    return tiles.reshape(a, b // 2, 2, 32, 4).swapaxes(2, 3).reshape(a, b // 2, 32, 8)


def _left(matrix: np.ndarray) -> np.ndarray:
    """``(16, K)`` as left factors: ``(K / 16, 32 lanes, 8 values)``."""
    tiles = matrix.reshape(2, 8, -1, 2, 4, 2)  # row's half, g, step, column's half, t, half of a word
    return tiles.transpose(2, 1, 4, 3, 0, 5).reshape(-1, 32, 8)


def _rounded(values: np.ndarray, precision: str) -> np.ndarray:
    if precision == "f16":
        return _finite(values, np.float16, "f16", "; take precision 'bf16'")
    bits = _finite(values, np.float32, "bf16").view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    if (rounded & 0x7F80 == 0x7F80).any():
        raise ValueError("weights: a value is too large for bf16, or is no number")
    return rounded.astype(np.uint16)


def _finite(values: np.ndarray, dtype: type, name: str, advice: str = "") -> np.ndarray:
    with np.errstate(over="ignore"):
        rounded: np.ndarray = values.astype(dtype)
    if not np.isfinite(rounded).all():
        raise ValueError(f"weights: a value is too large for {name}, or is no number{advice}")
    return rounded
