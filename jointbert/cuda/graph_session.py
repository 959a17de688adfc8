"""Work for a GPU, recorded once and replayed without Python: CUDA graphs behind NumPy arrays."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from jointbert.cuda.device_array import NUMPY_TYPES, DeviceArray
from jointbert.cuda.module import call, load_module

_MOST_BYTES = 1 << 40

Spec = Mapping[str, tuple[tuple[int, ...], str]]


class GraphSession:
    """Pinned and device memory for a batch, a stream, and a CUDA graph for each recorded size of batch.

    Whatever can be enqueued on a stream can be recorded: this package's kernels, torch, CuPy, a TensorRT context, one behind
    the other. A call copies NumPy arrays to pinned memory, replays the smallest graph that holds them (which copies them to the
    device, works, and copies back) and waits, all in C++ with the GIL released. Rows behind the batch, up to the graph's size,
    hold what was there before. Any thread may call; one at a time is at work, and all wait while one records.

    A graph holds addresses: what was recorded has to keep its memory for as long as the session lives. The refiner's weights
    are their backend's; torch gives a temporary back that it takes outside a graph of its own, so write to memory that stays
    (``out=``).

    Args:
        inputs, outputs: shape of one row, and NumPy dtype, by name.
        rows: the largest batch.
        device: the GPU's number.

    Attributes:
        rows, device: as given.

    Raises:
        ImportError: an installation without GPU kernels. RuntimeError: what CUDA says, by the call's name. ValueError: no rows,
            no outputs, an unknown dtype, a negative side. TypeError: other types than these.

    A linear layer of torch in a graph::

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
        if rows * largest > _MOST_BYTES:
            raise ValueError(f"GraphSession: got {rows} rows of {largest} bytes; expected {_MOST_BYTES} bytes at most")
        self._core = call(load_module().GraphSession, *sizes, rows, device)

    @property
    def stream(self) -> int:
        """The stream to enqueue on, a ``cudaStream_t``; it waits for no other."""
        return int(self._core.stream)

    @property
    def batches(self) -> tuple[int, ...]:
        """The recorded sizes."""
        return tuple(self._core.recorded)

    def input(self, name: str, batch: int | None = None) -> DeviceArray:
        """The first ``batch`` rows of an input on the device (all of them by default)."""
        return self._array(self._inputs, self._core.input, name, batch)

    def output(self, name: str, batch: int | None = None) -> DeviceArray:
        """The same of an output."""
        return self._array(self._outputs, self._core.output, name, batch)

    def _array(
        self, spec: dict[str, tuple[tuple[int, ...], np.dtype]], at: Callable[[int], int], name: str, batch: int | None
    ) -> DeviceArray:
        if name not in spec:
            raise ValueError(f"GraphSession: got the name {name!r}; expected one of {sorted(spec)}")
        shape, dtype = spec[name]
        rows = self.rows if batch is None else operator.index(batch)
        if not 0 <= rows <= self.rows:
            raise ValueError(f"batch: got {rows}; this session has room for 1 to {self.rows}")
        return DeviceArray(at(list(spec).index(name)), (rows, *shape), dtype.name, self.device, self, self.stream)

    def capture(self, enqueue: Callable[[int], object], batches: Sequence[int]) -> None:
        """Records ``enqueue(batch)``, which enqueues on :attr:`stream` and waits for nothing, for each size of batch.

        Raises:
            ValueError: a size that is not 1 to ``rows``. RuntimeError: what CUDA says of what can't be recorded; whatever
            ``enqueue`` raises. Earlier graphs stay.
        """
        for batch in batches:
            if not 1 <= operator.index(batch) <= self.rows:
                raise ValueError(f"batch: got {batch}; this session has room for 1 to {self.rows}")
        for batch in batches:
            call(self._core.begin, batch)
            try:
                enqueue(batch)
                call(self._core.end)
            except BaseException:  # an interrupt, too
                self._core.abandon()
                raise

    def __call__(self, **arrays: np.ndarray) -> dict[str, np.ndarray]:
        """Replays the graph on a batch: arrays ``(batch, ...)`` by the inputs' names, the outputs by theirs.

        Raises:
            ValueError: a name, shape or dtype that is none of this session's, more rows than were recorded.
            RuntimeError: what CUDA says.
        """
        if arrays.keys() != self._inputs.keys():
            raise ValueError(f"GraphSession: got {sorted(arrays)}; expected {sorted(self._inputs)}")
        first = next(iter(arrays.values()), None)
        # Without inputs: the largest that was captured.
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
