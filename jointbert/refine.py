"""The main API: the function :func:`refine`, and the class :class:`Refiner`, which loads weights once."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from threading import RLock
from typing import Any, cast

import numpy as np

from jointbert.contract import (
    ArrayBackend,
    Backend,
    Batch,
    PoseOptions,
    RefineOptions,
    Result,
    SequenceBackend,
    SequentialBackend,
    Status,
)
from jointbert.contract.layout import KNOWN_FRAMES, NUM_JOINTS
from jointbert.cuda.detect import is_on_gpu
from jointbert.inputs.arguments import UNITS_MM, check_flag, check_hand, check_threads, check_units
from jointbert.inputs.poses import PreparedPoses, check_flags, prepare
from jointbert.inputs.report import report
from jointbert.runtimes import RuntimeSpec, candidates, choose_precision, load, load_any, refusal
from jointbert.runtimes.registry import Capability
from jointbert.skeletons import NYU14
from jointbert.stream import Refined, Stream
from jointbert.weights import find_weights, is_shipped_name, load_sequence_weights

_STEP = 1024  # frames per step; a keyboard interrupt takes effect between steps, some tenths of a second apart
Progress = Callable[[int], None]


class Refiner:
    """Refines poses with weights that are loaded once. Several threads may share a refiner.

    Args:
        weights: a shipped name, or the path of a ``.safetensors`` or ``.onnx`` file (``jointbert export`` writes ``.onnx``).
        backend: ``auto`` (``native``; ``cuda`` for arrays on a GPU, ``onnxruntime`` for an ONNX file), or one of ``native``,
            ``cuda``, ``onnxruntime``, ``torch``.
        threads: CPU threads for a batch, 256 at most (``native``; ``torch`` follows ``torch.set_num_threads``).
        precision: of the network's products: ``auto``, or one that the backend has (``native`` and ``torch``: ``f32``;
            ``cuda``: ``f16``, or ``bf16`` for weights beyond float16's range; an ONNX file fixes its own). Sums are float32.
            With ``backend="auto"``, a call raises if the backend for its array does not have the precision.

    Raises:
        ValueError: unknown weights or backend, a precision or file that the backend does not support, fewer than one thread.
        ImportError: the backend's library is missing. RuntimeError: backend ``cuda`` without a GPU.
    """

    def __init__(
        self,
        weights: str | os.PathLike[str] = "nyu14",
        backend: str = "auto",
        threads: int = 1,
        precision: str = "auto",
    ) -> None:
        threads = check_threads(threads)
        self._arguments = (weights, backend, threads, precision)
        self._specs = candidates(backend, find_weights(weights))
        self._precision = choose_precision(precision, self._specs)
        self._weights = load_any(weights)
        self._backends: dict[str, Backend] = {}
        self._second: SequenceBackend | None = None
        self._lock = RLock()
        self._lengths_mm: np.ndarray | None = None
        spec = self._specs.get("cpu")
        if spec is not None and self._precision in ("auto", *spec.precisions):  # else another place's runtime has it
            self._backend("cpu")

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles the arguments and the calibrated person; unpickling reads the weights again."""
        return Refiner, self._arguments, self._lengths_mm

    def __setstate__(self, lengths_mm: np.ndarray | None) -> None:
        self._lengths_mm = lengths_mm

    def __repr__(self) -> str:
        person = "" if self._lengths_mm is None else ", calibrated"
        spec = next(spec for spec in self._specs.values() if self._precision in ("auto", *spec.precisions))
        precision = "" if self._precision == "auto" else f", precision={self._precision!r}"
        return f"Refiner(weights={self._weights.name!r}, backend={spec.name!r}{precision}{person})"

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
        progress: Progress | None = None,
    ) -> Any:
        """Refines poses; arguments, result and errors are those of :func:`refine`.

        ``progress`` is called with the number of frames that were refined since its last call, for CPU arrays of many frames.
        """
        options = RefineOptions(confidence, visible, error_mm, order, units, hand, sequence, check, return_details)
        return self._refine(joints, options, progress)

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
        """Measures the bone lengths of a person's hand, which later calls, sequences and streams use.

        The lengths of nine rigid bones (fingertip to mid, the thumb's, the palm's sides) are medians over the refined frames. A
        bone that is observed in fewer than 8 frames stays unknown.

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
        options = PoseOptions(confidence, visible, error_mm, order, units, hand)
        batch = prepare(joints, options).batch
        lengths, counts, result = self._second_stage("calibration").calibrate(batch)
        report(result, units, batch.mirror, self._sigma_is_informative(options), 3)
        if not np.isfinite(lengths).any():
            raise ValueError(
                f"joints: at most {int(counts.max())} of {len(result.status)} frames show a bone; a calibration needs "
                f"{KNOWN_FRAMES} frames"
            )
        self._lengths_mm = lengths
        scale, names = UNITS_MM[units], NYU14.names
        bones = zip(NYU14.rigid_bones, lengths, strict=True)
        return {(names[a], names[b]): float(mm / scale) for (a, b), mm in bones if math.isfinite(mm)}

    def stream(
        self,
        look_ahead: int = 0,
        *,
        order: str | Sequence[str] = "nyu14",
        units: str = "mm",
        hand: str = "right",
        return_details: bool = False,
    ) -> Stream:
        """Starts online refinement: each call takes a pose and returns the refined pose of ``look_ahead`` frames earlier.

        Each stream has its own state. It uses the person who is calibrated when it starts.

        Args:
            look_ahead: delay of the result in frames, 0 to 20.
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
        start = self._second_stage("streams").stream
        core = start(NYU14.resolve_order(order), UNITS_MM[units], mirror is not None, self._lengths_mm, int(look_ahead))
        return Stream(core, units, mirror, self._weights.predicts_sigma, bool(return_details))

    def _sigma_is_informative(self, options: PoseOptions) -> bool:
        """Whether a large sigma indicates unusual poses: sigma was trained, and no argument stated a large error."""
        return self._weights.predicts_sigma and not options.states_error

    def _spec(self, place: str) -> RuntimeSpec:
        """The spec of the runtime for arrays on the ``cpu`` or the ``gpu``."""
        spec = self._specs.get(place)
        if spec is None:
            other = next(iter(self._specs.values()))
            if place == "cpu":
                raise ValueError(f"joints: backend {other.name!r} takes arrays on a GPU only")
            raise ValueError(
                f"joints: the array is on a GPU, and backend {other.name!r} computes on the CPU; take 'auto' or 'cuda', or "
                "pass a CPU array"
            )
        return spec

    def _backend(self, place: str) -> Backend:
        """The backend for arrays on the ``cpu`` or the ``gpu``; the first call loads it."""
        spec = self._spec(place)
        backend = self._backends.get(spec.name)
        if backend is None:
            with self._lock:
                if spec.name not in self._backends:
                    _, _, threads, _ = self._arguments
                    self._backends[spec.name] = load(spec, self._weights, threads, self._precision, place)
                backend = self._backends[spec.name]
        return backend

    def _second_stage(self, capability: Capability) -> SequenceBackend:
        spec = self._spec("cpu")
        if not getattr(spec, capability):
            raise refusal(spec, capability)
        if self._second is None:
            with self._lock:
                if self._second is None:
                    first = cast(SequentialBackend, self._backend("cpu"))
                    self._second = first.sequence(load_sequence_weights(self._weights))
        return self._second

    def _refine(self, joints: Any, options: RefineOptions, progress: Progress | None = None) -> Any:
        check_flags(options)
        lengths = self._lengths_mm
        if is_on_gpu(joints):
            return self._refine_on_gpu(joints, options, lengths is not None)
        poses = prepare(joints, options)
        result = self._run(poses, options.sequence, lengths, progress)
        report(result, options.units, poses.batch.mirror, self._sigma_is_informative(options), 4)
        return _restore_type(poses, result, options.return_details)

    def _run(self, poses: PreparedPoses, sequence: bool, lengths_mm: np.ndarray | None, progress: Progress | None) -> Result:
        batch, leading = poses.batch, poses.leading
        if sequence:
            if not leading:
                raise ValueError("joints: got the shape (14, 3); expected (frames, 14, 3) for a sequence")
            second = self._second_stage("sequences")
            return _run_in_steps(lambda part: second.run(part, lengths_mm, False), batch, leading[-1], progress)
        if lengths_mm is not None:
            second = self._second_stage("calibration")
            return _run_in_steps(lambda part: second.run(part, lengths_mm, True), batch, _STEP, progress)
        return _run_in_steps(self._backend("cpu").run, batch, _STEP, progress)

    def _refine_on_gpu(self, joints: Any, options: RefineOptions, calibrated: bool) -> Any:
        check_units(options.units)  # before a first call sends weights to the GPU
        NYU14.resolve_order(options.order)
        spec = self._spec("gpu")
        asked: tuple[tuple[bool, Capability], ...] = ((options.sequence, "sequences"), (calibrated, "calibration"))
        for requested, capability in asked:
            if requested and not getattr(spec, capability):
                raise refusal(spec, capability, "gpu")
        try:
            backend = cast(ArrayBackend, self._backend("gpu"))
        except ImportError as error:
            raise ImportError(f"joints: the array is on a GPU; {error}, or pass a CPU array") from None
        refined = backend.refine_arrays(joints, options)
        if refined.diagnostics is not None:
            report(refined.diagnostics, options.units, refined.mirror, self._sigma_is_informative(options), 5)
        return Refined(refined.joints, refined.sigma, refined.status) if options.return_details else refined.joints


def _restore_type(poses: PreparedPoses, result: Result, return_details: bool) -> Any:
    """Converts a result to the type, shape and dtype of the input."""
    given, restore, leading = poses.given, poses.restore, poses.leading
    out = result.joints.reshape(given.shape)
    if given.dtype.kind == "f" and out.dtype != given.dtype:  # float16, longdouble, swapped bytes
        with np.errstate(over="ignore"):  # values beyond float16's range become infinite
            out = out.astype(given.dtype)
        unchanged = (result.status != Status.REFINED).reshape(leading)
        out[unchanged] = given[unchanged]
    if not return_details:
        return restore(out)
    sigma = result.sigma.reshape((*leading, NUM_JOINTS)).astype(out.dtype, copy=False)
    return Refined(restore(out), restore(sigma), restore(result.status.reshape(leading)))


def _run_in_steps(run: Callable[[Batch], Result], batch: Batch, step: int, progress: Progress | None) -> Result:
    """Runs ``step`` frames at a time, so that interrupts take effect and progress is reported between steps."""
    count = len(batch.joints)
    if count <= step:
        return run(batch)
    results = []
    for start in range(0, count, step):
        results.append(run(batch.rows(start, start + step)))
        if progress is not None:
            progress(len(results[-1].status))
    return Result.joined(results)


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
            camera frame of OpenCV (x right, y down, z away). A joint with a non-finite coordinate is missing and is predicted
            from the others. A frame needs at least 4 joints.
        confidence: ``(..., 14)`` in [0, 1], the peak of each joint's heatmap; NaN or ``None``: unknown.
        visible: ``(..., 14)`` bool; False marks a joint as missing.
        error_mm: the expected joint error of the method in millimetres, a number or ``(..., 14)``; NaN or ``None``: inferred.
        order: ``nyu14``, ``palm_first`` or the 14 joint names in the order of ``joints`` and every per-joint argument.
        units: ``mm``, ``cm`` or ``m``.
        hand: ``right``, ``left``, or one of these words for each frame. Left hands are mirrored before and after refinement.
        sequence: the third-last axis is time: ``(T, 14, 3)`` or ``(..., T, 14, 3)`` consecutive frames of one person. Each
            frame is refined with up to 20 frames on either side and the person's bone lengths. A cut is assumed where the
            median joint moves more than 60 mm between two frames; frames beyond a cut are not used.
        weights: a shipped name or a ``.safetensors`` path.
        backend: ``auto``, ``native`` (C++ on the CPU), ``cuda`` or ``torch``. ``auto`` is ``native``, and ``cuda`` for arrays
            on a GPU. These stay there and are refined on the current CUDA stream of torch or CuPy; for other libraries, on the
            stream that ``__cuda_array_interface__`` names, or the legacy stream. Calls do not wait for the result, except for
            the first call on a GPU, which sends the weights and times the kernel's variants. Libraries other than torch and
            CuPy get no broadcasting, and allocating their results may wait. ``sigma`` is float32. If a call is captured in a
            CUDA graph, its :class:`Refiner`, which owns the weights, must be kept as long as the graph.
        check: for arrays on a GPU: wait for the result, and check and warn as for CPU arrays. Without it, a confidence outside
            [0, 1] and an error that is not positive count as unknown, and only ``status`` reports frames that were not refined.
        return_details: return :class:`Refined` instead of the joints alone.

        Leading dimensions of a per-joint argument may be omitted or 1; they are broadcast.

    Returns:
        Joints of the same type, shape, dtype, unit and order. For lists and integers the result is float64 NumPy, for
        subclasses a plain array of their library, for other objects with ``__array__`` or DLPack a NumPy array. A frame that
        has too few joints, or that can't be a hand, is returned unchanged.

    Raises:
        ValueError: a wrong shape or option, a confidence or error out of range, no frame with 4 joints, unsuitable weights.
        TypeError: not an array, a dtype that holds no coordinates, a tensor that requires grad.
        ImportError: the backend's library is missing. RuntimeError: no GPU for backend ``cuda``, or a CUDA error.

    Warns:
        JointbertWarning: at most one per call, if frames were returned unchanged, or sizes or sides look wrong.

    >>> import numpy as np, jointbert
    >>> poses = jointbert.load_demo().predictions[:2]
    >>> jointbert.refine(poses).shape
    (2, 14, 3)
    """
    options = RefineOptions(confidence, visible, error_mm, order, units, hand, sequence, check, return_details)
    return _cached_refiner(weights, backend)._refine(joints, options)


@lru_cache(maxsize=8)
def _load_cached(weights: str, file_version: tuple[int, ...] | None, backend: str) -> Refiner:
    return Refiner(weights, backend)


def _cached_refiner(weights: Any, backend: Any) -> Refiner:
    """The cached refiner of a shipped name or file; a file is read again if it has changed or was replaced."""
    if not isinstance(weights, (str, os.PathLike)) or not isinstance(backend, str):
        return Refiner(weights, backend)  # raises an error
    path = os.fspath(weights)
    if is_shipped_name(weights):
        return _load_cached(path, None, backend)  # a shipped name, even if a file has the same name
    try:
        stat = os.stat(path)
    except (OSError, ValueError):
        stat = None
    if stat is None:
        return Refiner(weights, backend)  # raises an error
    return _load_cached(os.path.abspath(path), (stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_size), backend)
