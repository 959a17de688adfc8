"""The front door: :func:`refine` and :class:`Refiner`."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import lru_cache
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jointbert.arrays import Restore, to_numpy
from jointbert.backends import GPU_PRECISIONS, Batch, Result, SequenceBackend, Status, load_backend
from jointbert.backends.layout import KNOWN_FRAMES
from jointbert.checks import (
    UNITS_MM,
    check_confidence,
    check_device_joints,
    check_device_stated,
    check_error,
    check_flag,
    check_hand,
    check_joints,
    check_threads,
    check_units,
    check_visible,
    report,
)
from jointbert.device_arrays import NUMPY_TYPES, DeviceArray, is_on_gpu, read
from jointbert.skeleton import JOINT_NAMES, NUM_JOINTS, RIGID_BONES, resolve_order
from jointbert.stream import Refined, Stream
from jointbert.weights import load_sequence_weights, load_weights

if TYPE_CHECKING:
    from jointbert.backends.cuda import CudaBackend

_STEP = 1024  # frames between two looks at interrupts: some tenths of a second


class _Prepared(NamedTuple):
    """Checked arguments."""

    batch: Batch
    given: np.ndarray
    restore: Restore
    leading: tuple[int, ...]


class Refiner:
    """Loads weights once; call it on poses thereafter. Safe to use from several threads.

    Args:
        weights: a shipped name, or the path of a ``.safetensors`` file, or of an ``.onnx`` one (``jointbert export``).
        backend: ``auto`` (``native``; ``cuda`` for arrays on a GPU, ``onnxruntime`` for an ONNX file), or one of ``native``,
            ``cuda``, ``onnxruntime``, ``torch``.
        threads: CPU threads for a batch, 256 at most (``native``; ``torch`` follows ``torch.set_num_threads``).
        precision: of the products on a GPU, ``f16`` or ``bf16`` (for weights beyond float16's range); sums are float32.

    Raises:
        ValueError: unknown weights, backend or precision, a file that does not fit, a bad number of threads.
        ImportError: the backend's library is missing. RuntimeError: backend ``cuda`` without a GPU.
    """

    def __init__(
        self,
        weights: str | os.PathLike[str] = "nyu14",
        backend: str = "auto",
        threads: int = 1,
        precision: str = "f16",
    ) -> None:
        threads = check_threads(threads)
        if precision not in GPU_PRECISIONS:
            raise ValueError(f"precision: got {precision!r}; expected one of {', '.join(map(repr, GPU_PRECISIONS))}")
        self._arguments = (weights, backend, threads, precision)
        self._weights = load_weights(weights)
        self._backend = load_backend(backend, self._weights, threads, precision)
        self._second: SequenceBackend | None = None
        self._gpu: CudaBackend | None = None
        self._gpu_lock = Lock()
        self._lengths_mm: np.ndarray | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles and copies as what it was made of, and the person; weights given by path are read again."""
        return Refiner, self._arguments, self._lengths_mm

    def __setstate__(self, lengths_mm: np.ndarray | None) -> None:
        self._lengths_mm = lengths_mm

    def __repr__(self) -> str:
        person = "" if self._lengths_mm is None else ", calibrated"
        return f"Refiner(weights={self._weights.name!r}, backend={self._backend.name!r}{person})"

    def __call__(
        self,
        joints: Any,
        *,
        confidence: Any = None,
        visible: Any = None,
        error_mm: Any = None,
        order: str | Sequence[str] = "nyu14",
        units: str = "mm",
        hand: str | Sequence[str] = "right",
        sequence: bool = False,
        check: bool = False,
        return_details: bool = False,
    ) -> Any:
        """Refines poses; arguments, result and errors are those of :func:`refine`."""
        return self._call(
            joints,
            confidence=confidence,
            visible=visible,
            error_mm=error_mm,
            order=order,
            units=units,
            hand=hand,
            sequence=sequence,
            check=check,
            return_details=return_details,
        )

    def calibrate(
        self,
        joints: Any,
        *,
        confidence: Any = None,
        visible: Any = None,
        error_mm: Any = None,
        order: str | Sequence[str] = "nyu14",
        units: str = "mm",
        hand: str | Sequence[str] = "right",
    ) -> dict[tuple[str, str], float]:
        """Learns a person's hand from frames of it; later calls, sequences and streams use it.

        The lengths of nine bones that hardly change for one person (fingertip to mid, the thumb's, the palm's sides) are the
        medians over the refined frames; a bone that fewer than 8 frames show stays unknown.

        Args:
            joints: ``(N, 14, 3)`` or ``(..., 14, 3)``: frames of one person, in any order; ``None`` forgets the person.
                The other arguments are those of :func:`refine`.

        Returns:
            Lengths in ``units`` by the names of the bone's two joints; empty where a person was forgotten.

        Raises:
            ValueError: as :func:`refine`; too few frames; weights without a second stage.
        """
        if joints is None:
            self._lengths_mm = None
            return {}
        prepared = self._prepare(joints, confidence, visible, error_mm, order, units, hand)
        lengths, counts, result = self._second_stage().calibrate(prepared.batch)
        report(result, units, prepared.batch.mirror, self._sigma_tells(prepared.batch), 3)
        if not np.isfinite(lengths).any():
            raise ValueError(
                f"joints: at most {int(counts.max())} of {len(result.status)} frames show a bone; a calibration needs "
                f"{KNOWN_FRAMES} frames"
            )
        self._lengths_mm = lengths
        scale = UNITS_MM[units]
        named = {(JOINT_NAMES[a], JOINT_NAMES[b]): float(mm / scale) for (a, b), mm in zip(RIGID_BONES, lengths, strict=True)}
        return {bone: length for bone, length in named.items() if math.isfinite(length)}

    def stream(
        self,
        look_ahead: int = 0,
        *,
        order: str | Sequence[str] = "nyu14",
        units: str = "mm",
        hand: str = "right",
        return_details: bool = False,
    ) -> Stream:
        """Starts an online sequence: a pose in, the refined pose of ``look_ahead`` frames before out.

        Each stream has state of its own; a calibrated person is that of the moment when it starts.

        Args:
            look_ahead: frames by which the result is late, 0 to 20.
            order, units, hand, return_details: as in :func:`refine`, for all frames.

        Raises:
            ValueError: an argument out of range; weights without a second stage; a backend without streams.
            TypeError: an argument of another type.
        """
        if isinstance(look_ahead, bool) or not isinstance(look_ahead, (int, np.integer)):
            raise TypeError(f"look_ahead: got {type(look_ahead).__name__}; expected an integer")
        check_units(units)
        check_flag("return_details", return_details)
        mirror = check_hand(hand, ())
        start = self._second_stage().stream
        core = start(resolve_order(order), UNITS_MM[units], mirror is not None, self._lengths_mm, int(look_ahead))
        return Stream(core, units, mirror, self._weights.predicts_sigma, bool(return_details))

    def _sigma_tells(self, batch: Batch) -> bool:
        """Whether a large sigma comes from what the points look like, and not from what was said of them."""
        return self._weights.predicts_sigma and batch.error_mm is None and batch.confidence is None

    def _second_stage(self) -> SequenceBackend:
        if self._second is None:
            self._second = self._backend.sequence(load_sequence_weights(self._weights))
        return self._second

    def _prepare(
        self, joints: Any, confidence: Any, visible: Any, error_mm: Any, order: Any, units: Any, hand: Any
    ) -> _Prepared:
        check_units(units)
        permutation = resolve_order(order)
        given, restore = to_numpy(joints, "joints")
        poses = check_joints(given)
        leading = poses.shape[:-2]
        per_joint = (*leading, NUM_JOINTS)
        batch = Batch(
            joints=poses.reshape(-1, NUM_JOINTS, 3),
            permutation=permutation,
            mm_per_unit=UNITS_MM[units],
            mirror=check_hand(hand, leading),
            visible=None if visible is None else check_visible(visible, per_joint),
            confidence=None if confidence is None else check_confidence(confidence, per_joint),
            error_mm=None if error_mm is None else check_error(error_mm, per_joint),
        )
        return _Prepared(batch, given, restore, leading)

    def _call(
        self,
        joints: Any,
        *,
        confidence: Any = None,
        visible: Any = None,
        error_mm: Any = None,
        order: str | Sequence[str] = "nyu14",
        units: str = "mm",
        hand: str | Sequence[str] = "right",
        sequence: bool = False,
        check: bool = False,
        return_details: bool = False,
        stacklevel: int = 3,
        progress: Callable[[int], None] | None = None,
    ) -> Any:
        check_flag("sequence", sequence)
        check_flag("check", check)
        check_flag("return_details", return_details)
        if is_on_gpu(joints):
            if sequence or self._lengths_mm is not None:
                raise ValueError("joints: on a GPU there are no sequences and no calibrated persons; pass a CPU array")
            stated = (confidence, visible, error_mm)
            return self._call_on_gpu(joints, stated, order, units, hand, check, return_details, stacklevel + 1)
        prepared = self._prepare(joints, confidence, visible, error_mm, order, units, hand)
        batch, leading = prepared.batch, prepared.leading
        if sequence:
            if not leading:
                raise ValueError("joints: got the shape (14, 3); expected (frames, 14, 3) for a sequence")
            second = self._second_stage()
            lengths = self._lengths_mm
            result = _in_steps(lambda part: second.run(part, lengths, False), batch, leading[-1], progress)
        elif self._lengths_mm is not None:
            second, lengths = self._second_stage(), self._lengths_mm
            result = _in_steps(lambda part: second.run(part, lengths, True), batch, _STEP, progress)
        else:
            result = _in_steps(self._backend.run, batch, _STEP, progress)
        report(result, units, batch.mirror, self._sigma_tells(batch), stacklevel + 1)

        given = prepared.given
        out = result.joints.reshape(given.shape)
        if given.dtype.kind == "f" and out.dtype != given.dtype:  # float16, longdouble, swapped bytes
            with np.errstate(over="ignore"):  # beyond float16: infinite, as in any arithmetic of that type
                out = out.astype(given.dtype)
            kept = (result.status != Status.REFINED).reshape(leading)
            out[kept] = given[kept]
        restore = prepared.restore
        if not return_details:
            return restore(out)
        sigma = result.sigma.reshape((*leading, NUM_JOINTS)).astype(out.dtype, copy=False)
        return Refined(restore(out), restore(sigma), restore(result.status.reshape(leading)))

    def _call_on_gpu(
        self,
        joints: Any,
        stated: tuple[Any, Any, Any],
        order: Any,
        units: Any,
        hand: Any,
        check: bool,
        return_details: bool,
        stacklevel: int,
    ) -> Any:
        """Refines poses where they are; without ``check`` nothing waits for the GPU."""
        from jointbert.backends.cuda import DeviceBatch

        check_units(units)
        permutation = resolve_order(order)
        backend = self._gpu_backend()
        backend.check_process()
        given, library = read(joints, "joints")
        check_device_joints(given.shape, given.dtype)
        leading = given.shape[:-2]
        count, per_joint = math.prod(leading), (*leading, NUM_JOINTS)
        flat = replace(given, shape=(count, NUM_JOINTS, 3))
        mirror = check_hand(hand, leading)
        side: DeviceArray | bool = mirror is not None and bool(mirror.all())
        if mirror is not None and mirror.any() and not side:
            side = library.converted(mirror, (count,), "bool", "hand")

        def on_gpu(value: Any, name: str, dtype: str, checked: Callable[[Any, tuple[int, ...]], np.ndarray]) -> Any:
            if value is None:
                return None
            if not is_on_gpu(value):
                value = checked(value, per_joint).reshape(per_joint)
                return library.converted(value, per_joint, dtype, name)
            there, _ = read(value, name, library.stream)
            check_device_stated(name, there.shape, there.dtype, per_joint)
            array = library.converted(there, per_joint, dtype, name)
            if check:  # as it was given: rounding hides what is out of range
                checked(backend.to_host(there if there.dtype in NUMPY_TYPES else array, library.stream), per_joint)
            return array

        confidence, visible, error_mm = stated
        batch = DeviceBatch(
            joints=flat,
            permutation=permutation,
            mm_per_unit=UNITS_MM[units],
            mirror=side,
            visible=on_gpu(visible, "visible", "bool", check_visible),
            confidence=on_gpu(confidence, "confidence", "float32", check_confidence),
            error_mm=float(check_error(error_mm, (NUM_JOINTS,))[0, 0])
            if np.isscalar(error_mm)
            else on_gpu(error_mm, "error_mm", "float32", check_error),
        )
        result = backend.run_on_device(batch, library, leading, check)
        if check and count:
            assert result.size_mm is not None
            assert result.chirality is not None
            looked_at = (result.status, result.sigma, result.size_mm, result.chirality)
            status, sigma, size, side_mm = (backend.to_host(x, library.stream) for x in looked_at)
            noticed = Result(np.empty(0), sigma.reshape(-1, NUM_JOINTS), status.reshape(-1), size, side_mm)
            tells = self._weights.predicts_sigma and error_mm is None and confidence is None
            report(noticed, units, mirror, tells, stacklevel + 1)
        joints, sigma, status = (library.result(x) for x in (result.joints, result.sigma, result.status))
        return Refined(joints, sigma, status) if return_details else joints

    def _gpu_backend(self) -> CudaBackend:
        """The runtime for arrays on a GPU."""
        from jointbert.backends.cuda import CudaBackend

        if isinstance(self._backend, CudaBackend):
            return self._backend
        if self._arguments[1] != "auto" or self._backend.name != "native":
            raise ValueError(
                f"joints: the array is on a GPU, and backend {self._backend.name!r} computes on the CPU; take 'auto' or "
                "'cuda', or pass a CPU array"
            )
        if self._gpu is None:
            with self._gpu_lock:  # made once, by whoever comes first: it measures
                if self._gpu is None:
                    try:
                        self._gpu = CudaBackend(self._weights, precision=self._arguments[3])
                    except ImportError as error:
                        raise ImportError(f"joints: the array is on a GPU; {error}, or pass a CPU array") from None
        return self._gpu


def _in_steps(run: Callable[[Batch], Result], batch: Batch, step: int, progress: Callable[[int], None] | None) -> Result:
    """Runs ``step`` frames at a time; between steps there is time for an interrupt and for progress."""
    if len(batch.joints) <= step:
        return run(batch)

    def part(rows: np.ndarray | None, start: int) -> np.ndarray | None:
        return None if rows is None else rows[start : start + step]

    results = []
    for start in range(0, len(batch.joints), step):
        results.append(
            run(
                replace(
                    batch,
                    joints=batch.joints[start : start + step],
                    mirror=part(batch.mirror, start),
                    visible=part(batch.visible, start),
                    confidence=part(batch.confidence, start),
                    error_mm=part(batch.error_mm, start),
                )
            )
        )
        if progress is not None:
            progress(len(results[-1].status))
    return Result(**{f.name: np.concatenate([getattr(r, f.name) for r in results]) for f in fields(Result)})


def refine(
    joints: Any,
    *,
    confidence: Any = None,
    visible: Any = None,
    error_mm: Any = None,
    order: str | Sequence[str] = "nyu14",
    units: str = "mm",
    hand: str | Sequence[str] = "right",
    sequence: bool = False,
    weights: str | os.PathLike[str] = "nyu14",
    backend: str = "auto",
    check: bool = False,
    return_details: bool = False,
) -> Any:
    """Refines 3D hand poses of 14 joints.

    Args:
        joints: ``(14, 3)`` or ``(..., 14, 3)``; NumPy, torch, anything with DLPack or ``__array__``, or nested lists; in the
            camera frame of OpenCV (x right, y down, z away). A joint with a non-finite coordinate is missing and comes back
            filled in. A frame needs at least 4 joints.
        confidence: ``(..., 14)`` in [0, 1], the heatmap's peak; NaN for a joint, or ``None``: unknown.
        visible: ``(..., 14)`` bool; False marks a joint as missing.
        error_mm: the expected joint error of the method in millimetres, a number or ``(..., 14)``; NaN or ``None``: inferred.
        order: ``nyu14``, ``palm_first`` or the 14 joint names in the order of ``joints`` and every per-joint argument.
        units: ``mm``, ``cm`` or ``m``.
        hand: ``right``, ``left``, or one of these words for each frame; left hands are mirrored on the way in and out.
        sequence: the second-last axis but one is time: ``(T, 14, 3)`` or ``(..., T, 14, 3)`` frames of one person in order,
            refined with the frames around them (20 on either side) and the person's bone lengths. A cut is found where the
            median joint moves more than 60 mm between two frames, and what is beyond it is not looked at.
        weights: a shipped name or a ``.safetensors`` path.
        backend: ``auto``, ``native`` (C++ on the CPU), ``cuda`` or ``torch``. ``auto`` is ``native``, and ``cuda`` for arrays
            on a GPU: they stay there and are refined on their library's current stream (that of DLPack alone: the legacy
            stream). Nothing waits, but the first call on a GPU (weights, a measurement of the kernel's variants), and
            taking and giving back memory that libraries other than torch and CuPy can't be asked for. Those get no
            broadcasting, and ``sigma`` is float32. Whoever captures a call in a CUDA graph keeps its :class:`Refiner`, which
            owns the weights, for as long.
        check: for arrays on a GPU: wait for the result, and check and warn as for others. Without it a confidence outside
            [0, 1] and an error that is not positive count as unknown, and ``status`` alone tells what became of a frame.
        return_details: return :class:`Refined` instead of the joints alone.

        The leading dimensions of a per-joint argument may be left out, or 1.

    Returns:
        Joints of the same type, shape, dtype, unit and order; lists and integers come back as float64 NumPy, subclasses and
        what has no library behind it as plain arrays. A frame with too few joints, or that can't be a hand, comes back as it
        was.

    Raises:
        ValueError: a wrong shape or word, a confidence or error out of range, no frame with 4 joints, weights that don't fit.
        TypeError: no array, a dtype that holds no coordinates, a tensor that requires grad.
        ImportError: the backend's library is missing. RuntimeError: no GPU for backend ``cuda``, or what CUDA says.

    Warns:
        JointbertWarning: once a call, if frames came back as they were, or sizes or sides look wrong.

    >>> import numpy as np, jointbert
    >>> poses = jointbert.load_demo().predictions[:2]
    >>> jointbert.refine(poses).shape
    (2, 14, 3)
    """
    refiner = _cached_refiner(weights, backend)
    return refiner._call(
        joints,
        confidence=confidence,
        visible=visible,
        error_mm=error_mm,
        order=order,
        units=units,
        hand=hand,
        sequence=sequence,
        check=check,
        return_details=return_details,
    )


@lru_cache(maxsize=8)
def _load(weights: str, stamp: tuple[int, ...] | None, backend: str) -> Refiner:
    return Refiner(weights, backend)


def _cached_refiner(weights: Any, backend: Any) -> Refiner:
    """The refiner of a name or file; a file is read again once it has changed or another stands at its path."""
    if not isinstance(weights, (str, os.PathLike)) or not isinstance(backend, str):
        return Refiner(weights, backend)  # which says what is wrong
    path = os.fspath(weights)
    if isinstance(weights, str) and os.path.basename(path) == path and not path.endswith(".safetensors"):
        return _load(path, None, backend)  # a shipped name, whatever file is called so
    try:
        stat = os.stat(path)
    except (OSError, ValueError):
        stat = None
    if stat is None:
        return Refiner(weights, backend)  # which says what is wrong
    return _load(os.path.abspath(path), (stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_size), backend)
