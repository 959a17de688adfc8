"""CUDA graphs for NumPy arrays: GPU work that is recorded once and replayed without Python."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from jointbert.cuda.device_array import NUMPY_TYPES, DeviceArray
from jointbert.cuda.module import call, load_module

_MAX_BYTES = 1 << 40

Spec = Mapping[str, tuple[tuple[int, ...], str]]


class GraphSession:
    """A CUDA stream, pinned and device memory for a batch, and a CUDA graph for each recorded batch size.

    All work that can be enqueued on a CUDA stream can be recorded: kernels of this package, of torch and of CuPy, or a TensorRT
    context, also several in sequence. A call copies NumPy arrays to pinned memory, replays the smallest graph that is large
    enough (it copies the arrays to the device, runs the recorded work, and copies the results back), and waits for the results.
    It runs in C++ with the GIL released. Rows of the graph beyond the batch keep their old values. Several threads may call a
    session; the calls and recordings run one after another.

    A graph stores addresses, so that all memory that it uses must exist as long as the session. The refiner's weights belong to
    their backend, which must be kept. torch frees temporary tensors, so that a torch function must write to an existing tensor
    (``out=``).

    Args:
        inputs, outputs: by name, the shape of one row and the NumPy dtype.
        rows: the largest batch.
        device: the GPU's number.

    Attributes:
        rows, device: as given.

    Raises:
        ImportError: an installation without GPU kernels. RuntimeError: a CUDA error; the message names the CUDA function.
            ValueError: no rows, no outputs, an unknown dtype, a negative side. TypeError: an argument of another type.

    Example: a linear layer of torch::

        session = GraphSession({"x": ((16,), "float32")}, {"y": ((4,), "float32")}, rows=64)
        x, y = (torch.as_tensor(a, device="cuda") for a in (session.input("x"), session.output("y")))

        def enqueue(batch):
            with torch.cuda.stream(torch.cuda.ExternalStream(session.stream)):
                torch.addmm(layer.bias, x[:batch], layer.weight.T, out=y[:batch])

        session.capture(enqueue, batches=(1, 8, 64))
        result = session(x=np.zeros((5, 16), np.float32))["y"]
    """

    def __init__(self, inputs: Spec, outputs: Spec, rows: int, device: int = 0) -> None:
        for name, spec in (("inputs", inputs), ("outputs", outputs)):
            if not isinstance(spec, Mapping):
                raise TypeError(f"{name}: got {type(spec).__name__}; expected shape and dtype by name, in a dict")
        for name, number in (("rows", rows), ("device", device)):
            if isinstance(number, bool) or not hasattr(number, "__index__"):
                raise TypeError(f"{name}: got {type(number).__name__}; expected an integer")
        if rows < 1 or not outputs:
            raise ValueError("GraphSession: expected at least one row and one output")
        self.rows, self.device = rows, device = operator.index(rows), operator.index(device)
        self._inputs, self._outputs = ({k: (tuple(s), _dtype(d)) for k, (s, d) in spec.items()} for spec in (inputs, outputs))
        sizes = [[_row_bytes(*x) for x in spec.values()] for spec in (self._inputs, self._outputs)]
        largest = max(sizes[0] + sizes[1])
        if rows * largest > _MAX_BYTES:
            raise ValueError(f"GraphSession: got {rows} rows of {largest} bytes; expected {_MAX_BYTES} bytes at most")
        self._core = call(load_module().GraphSession, *sizes, rows, device)

    @property
    def stream(self) -> int:
        """The CUDA stream to enqueue on, a ``cudaStream_t``; it does not synchronize with other streams."""
        return int(self._core.stream)

    @property
    def batches(self) -> tuple[int, ...]:
        """The recorded batch sizes."""
        return tuple(self._core.recorded)

    def input(self, name: str, batch: int | None = None) -> DeviceArray:
        """The first ``batch`` rows of an input on the device (all of them by default)."""
        return self._array(self._inputs, self._core.input, name, batch)

    def output(self, name: str, batch: int | None = None) -> DeviceArray:
        """The first ``batch`` rows of an output on the device (all of them by default)."""
        return self._array(self._outputs, self._core.output, name, batch)

    def _array(
        self, spec: dict[str, tuple[tuple[int, ...], np.dtype]], address_of: Callable[[int], int], name: str, batch: int | None
    ) -> DeviceArray:
        if name not in spec:
            raise ValueError(f"GraphSession: got the name {name!r}; expected one of {sorted(spec)}")
        shape, dtype = spec[name]
        rows = self.rows if batch is None else operator.index(batch)
        if not 0 <= rows <= self.rows:
            raise ValueError(f"batch: got {rows}; this session has room for 1 to {self.rows}")
        return DeviceArray(address_of(list(spec).index(name)), (rows, *shape), dtype.name, self.device, self, self.stream)

    def capture(self, enqueue: Callable[[int], object], batches: Sequence[int]) -> None:
        """Records ``enqueue(batch)`` for each batch size. The function enqueues work on :attr:`stream` and must not
        synchronize.

        Raises:
            ValueError: a size outside 1 to ``rows``. RuntimeError: a CUDA error, as for work that can't be recorded. Errors of
            ``enqueue`` pass through. Graphs that were recorded before stay.
        """
        for batch in batches:
            if not 1 <= operator.index(batch) <= self.rows:
                raise ValueError(f"batch: got {batch}; this session has room for 1 to {self.rows}")
        for batch in batches:
            call(self._core.begin, batch)
            try:
                enqueue(batch)
                call(self._core.end)
            except BaseException:  # including KeyboardInterrupt
                self._core.abandon()
                raise

    def __call__(self, **arrays: np.ndarray) -> dict[str, np.ndarray]:
        """Runs the recorded work on a batch: takes arrays ``(batch, ...)`` by the inputs' names, returns the outputs by name.

        Raises:
            ValueError: an unknown or missing name, another shape or dtype, more rows than were recorded. TypeError: no
                plain NumPy array. RuntimeError: a CUDA error.
        """
        if arrays.keys() != self._inputs.keys():
            raise ValueError(f"GraphSession: got {sorted(arrays)}; expected {sorted(self._inputs)}")
        first = next(iter(arrays.values()), None)
        # Without inputs: the largest recorded batch.
        rows = max(self.batches, default=self.rows) if first is None else (np.shape(first) or (0,))[0]
        given = []
        for name, (shape, dtype) in self._inputs.items():
            array = arrays[name]
            if not isinstance(array, np.ndarray) or isinstance(array, np.ma.MaskedArray):
                raise TypeError(f"{name}: got {type(array).__name__}; expected a plain NumPy array")
            if array.shape != (rows, *shape) or array.dtype != dtype:
                raise ValueError(
                    f"{name}: got {array.dtype} of the shape {array.shape}; expected {dtype} of the shape {(rows, *shape)}"
                )
            given.append(np.ascontiguousarray(array))
        out = {name: np.empty((rows, *shape), dtype) for name, (shape, dtype) in self._outputs.items()}
        call(self._core.run, rows, given, list(out.values()))
        return out


def _dtype(name: str) -> np.dtype:
    try:
        dtype = np.dtype(name)
    except TypeError:
        dtype = None
    if dtype is None or dtype.name not in NUMPY_TYPES or not dtype.isnative:
        raise ValueError(f"GraphSession: got the dtype {name!r}; expected one of {', '.join(NUMPY_TYPES)}")
    return dtype


def _row_bytes(shape: tuple[int, ...], dtype: np.dtype) -> int:
    if any(side < 0 for side in shape):
        raise ValueError(f"GraphSession: got the shape {shape}; expected sides of at least 0")
    return math.prod(shape) * dtype.itemsize
