"""The backend ``cuda`` (``csrc/cuda/refiner``): weights on each GPU, kernel launches, CUDA graphs for NumPy arrays."""

from __future__ import annotations

import os
from collections import OrderedDict
from threading import RLock
from typing import Any

import numpy as np

from jointbert.contract import Batch, Refinement, RefineOptions, Result, Weights
from jointbert.contract.layout import NUM_JOINTS
from jointbert.cuda.arrays import DeviceArray, Library
from jointbert.cuda.graph_session import GraphSession
from jointbert.cuda.module import call, load_module
from jointbert.runtimes.cuda.packing import PRECISIONS, KernelSizes, pack
from jointbert.runtimes.cuda.poses import DeviceBatch, DeviceResult
from jointbert.runtimes.cuda.user_arrays import refine_arrays


class CudaBackend:
    """Runs the refiner on GPUs with one launch per batch. A pose's result is bit-equal alone and in any batch.

    Args:
        weights: of any number of layers. The other sizes must be the thesis's, for which the kernels are compiled.
        precision: of the weights and the products' factors, ``"f16"`` or ``"bf16"``; sums are float32, poses are encoded and
            decoded in float64.
        device: the GPU for NumPy arrays; arrays on a GPU stay on theirs.

    Raises:
        ImportError: an installation without GPU kernels. RuntimeError: no GPU. ValueError: another precision; weights of other
            sizes or outside the precision's range; at the first use of a GPU, a precision that the GPU does not support.
    """

    name = "cuda"
    detail = ""
    measured_sizes: tuple[int, ...] = tuple(1 << k for k in range(13))
    """Batch sizes for which the kernel's variants are timed when the weights are first sent to a GPU. Later launches use the
    fastest variant. By the latency model this takes a tenth of a second. All variants give bit-equal results."""
    _max_rows = 1024
    _max_sessions = 8

    def __init__(self, weights: Weights, precision: str = "f16", device: int = 0) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"precision: got {precision!r}; expected one of {', '.join(map(repr, PRECISIONS))}")
        self._module = load_module()
        count, missing = self._module.devices()
        if not count:
            raise RuntimeError(f"backend 'cuda' needs a GPU: {missing}")
        if isinstance(device, bool) or not isinstance(device, int):
            raise TypeError(f"device: got {type(device).__name__}; expected a GPU's number")
        if not 0 <= device < count:
            raise ValueError(f"device: got {device}; expected a GPU's number, 0 to {count - 1} here")
        self._process = os.getpid()
        self._packed = pack(weights, precision, KernelSizes.of(self._module))
        self.layers, self.precision, self.device = weights.sizes["layers"], precision, device
        self._refiners: dict[int, Any] = {}
        self._sessions: OrderedDict[tuple[Any, ...], GraphSession] = OrderedDict()
        self._lock = RLock()

    def refiner(self, device: int) -> Any:
        """The ``_cuda.Refiner`` that holds the weights on a GPU. The first call makes it and times the kernel's variants.

        Raises:
            RuntimeError: a CUDA error. ValueError: ``bf16`` on a GPU before compute capability 8.0.
        """
        with self._lock:
            if device not in self._refiners:
                ends, chunks = (x.reshape(-1).view(np.uint8) for x in self._packed)
                code = self._module.PRECISIONS[self.precision]
                made = call(self._module.Refiner, ends, chunks, self.layers, code, device)
                call(made.measure, self.measured_sizes)
                self._refiners[device] = made
            return self._refiners[device]

    def enqueue(self, batch: DeviceBatch, out: DeviceResult, cuda_stream: int, variant: int = -1) -> None:
        """Enqueues one launch on a CUDA stream, without waiting for it.

        ``variant``: 0 clusters, 1 a cooperative grid, 2 tiles (``csrc/cuda/refiner/refiner.h``); -1: the fastest in the timing.

        Raises:
            RuntimeError: a CUDA error. ValueError: a variant that this GPU does not support; as :meth:`refiner`.
        """
        self.check_process()

        def address(array: object) -> int:
            return array.address if isinstance(array, DeviceArray) else 0

        call(
            self.refiner(batch.joints.device).run,
            batch.joints.address,
            self._module.NUMBERS[batch.joints.dtype],
            batch.joints.shape[0],
            batch.permutation.tolist(),
            batch.mm_per_unit,
            batch.mirror is True,
            *map(address, (batch.mirror, batch.visible, batch.confidence, batch.error_mm)),
            batch.error_mm if isinstance(batch.error_mm, float) else np.nan,
            *map(address, (out.joints, out.sigma, out.status, out.size_mm, out.chirality)),
            cuda_stream,
            variant,
        )

    def run_on_device(self, batch: DeviceBatch, library: Library, leading: tuple[int, ...], checks: bool) -> DeviceResult:
        """Refines poses on their GPU, on their library's CUDA stream.

        The results have the ``leading`` dimensions of the input. ``checks``: also give size and chirality, for the checks.

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
                self.enqueue(batch, out, library.cuda_stream)
            finally:
                library.enqueued()
        return out

    def refine_arrays(self, joints: Any, options: RefineOptions) -> Refinement:
        """Refines an array of any library on a GPU: see :func:`jointbert.runtimes.cuda.user_arrays.refine_arrays`."""
        return refine_arrays(self, joints, options)

    def to_host(self, array: DeviceArray, cuda_stream: int) -> np.ndarray:
        """Copies an array to NumPy, after all work on the CUDA stream has finished."""
        out = np.empty(array.shape, array.dtype)
        if out.size:
            call(self._module.copy, out.ctypes.data, array.address, out.nbytes, array.device, cuda_stream)
            call(self._module.synchronize, cuda_stream, array.device)
        return out

    def run(self, batch: Batch) -> Result:
        """Refines NumPy poses ``(N, 14, 3)``, with one launch of a CUDA graph for each 1024; see
        :class:`jointbert.contract.Backend`.

        Raises:
            RuntimeError, ValueError: as :meth:`enqueue`.
        """
        self.check_process()
        count = len(batch.joints)
        parts = [self._replay(batch, slice(i, min(i + self._max_rows, count))) for i in range(0, count, self._max_rows)]
        if not parts:
            none = np.empty(0, np.float32)
            return Result(batch.joints, np.empty((0, NUM_JOINTS), np.float32), np.empty(0, np.uint8), none, none)
        return Result.joined([Result(**part) for part in parts])

    def _replay(self, batch: Batch, rows: slice) -> dict[str, np.ndarray]:
        count = rows.stop - rows.start

        def part(array: np.ndarray | None, shape: tuple[int, ...], fill: Any, dtype: type) -> np.ndarray:
            return np.full((count, *shape), fill, dtype) if array is None else array[rows]

        session = self._session(batch)
        size = min(1 << (count - 1).bit_length(), self._max_rows)
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
        """The session whose graphs were recorded for this type, unit and joint order; at most eight are kept."""
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
                    rows=self._max_rows,
                    device=self.device,
                )
            self._sessions.move_to_end(key)
            while len(self._sessions) > self._max_sessions:
                self._sessions.popitem(last=False)
            return session

    def _record(self, session: GraphSession, batch: Batch, size: int) -> None:
        self.refiner(self.device)  # the weights can't be sent to the device during a capture

        def enqueue(rows: int) -> None:
            at = {name: session.input(name, rows) for name in ("joints", "mirror", "visible", "confidence", "error_mm")}
            out = {name: session.output(name, rows) for name in ("joints", "sigma", "status", "size_mm", "chirality")}
            given = DeviceBatch(permutation=batch.permutation, mm_per_unit=batch.mm_per_unit, **at)
            self.enqueue(given, DeviceResult(**out), session.stream)

        with self._lock:
            if size not in session.batches:
                session.capture(enqueue, (size,))

    def check_process(self) -> None:
        """Checks that this process made the backend. It takes no lock, because a fork may have copied a lock that is held.

        Raises:
            RuntimeError: the backend was made before a fork.
        """
        if os.getpid() != self._process:
            raise RuntimeError(
                "backend 'cuda': this process was forked from the one that made it, and CUDA does not work after a fork; "
                "start it by multiprocessing's 'spawn'"
            )
