"""The estimator in torch, on the CPU or, with CUDA graphs, on a GPU."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from torch import Tensor, nn

from jointbert.contract import Weights
from jointbert.contract.layout import NUM_JOINTS
from jointbert.cuda.arrays import read
from jointbert.cuda.module import load_module
from jointbert.estimator.result import Estimated
from jointbert.models.estimator import Estimate, HandPoseEstimator
from jointbert.models.operators import has_kernels
from jointbert.models.refiner import JointRefiner, Layer, float_tensors
from jointbert.models.regression import LinearDepth
from jointbert.runtimes.cuda import CudaBackend, DeviceBatch
from jointbert.runtimes.cuda.packing import KernelSizes

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
_MAX_GRAPHS = 8
_WARM_UP_CALLS = 3
"""Number of calls before a graph is recorded; cuDNN chooses its algorithms in the first one."""


class TorchEstimator:
    """Runs an estimator's ``.safetensors`` file; :class:`jointbert.estimator.Estimator` checks the arguments.

    In ``f16`` and ``bf16`` the network computes in that precision; batch norm's statistics, geometry and depths stay float32.
    On a GPU (torch's current one when the object is made), the work for each input shape is recorded as a CUDA graph. If GPU
    kernels are installed, a linear head's peaks and depths are one launch, and in ``f16`` and ``bf16`` a refiner of the
    thesis's width runs in the backend ``cuda``.

    Args:
        path: of the file. threads: torch's CPU threads. device: ``cpu`` or ``cuda``.
        precision: ``f32``, ``f16`` or ``bf16``; None: ``f16`` on a GPU, ``f32`` on the CPU.
        kernels: False uses torch's operators only, and none of this package's kernels.

    Raises:
        ValueError: not an estimator's file. RuntimeError: no GPU. ImportError: torchvision is not installed.
    """

    def __init__(
        self, path: Path, threads: int = 1, device: str = "cpu", precision: str | None = None, kernels: bool = True
    ) -> None:
        if device == "cuda" and not torch.cuda.is_available():
            raise RuntimeError("device: got 'cuda'; torch finds no GPU")
        on_gpu = device == "cuda"
        precision = precision or ("f16" if on_gpu else "f32")
        self.model = HandPoseEstimator.load(path)
        self.image: str = self.model.config.image
        self.cube_mm = self.model.config.cube_mm
        self.threads, self.dtype = threads, DTYPES[precision]
        self.device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
        self._graphs: OrderedDict[tuple[int, ...], _Graph] = OrderedDict()
        self._lock = Lock()
        self._refine: OneLaunch | None = None
        refiner, regression = self.model.refiner, self.model.regression
        if isinstance(regression, LinearDepth):
            regression.plain = not kernels
        if self.dtype != torch.float32:
            if on_gpu and kernels and refiner is not None and OneLaunch.fits(refiner):
                self._refine = OneLaunch(refiner, precision)
            _reduce_precision(self.model, self.dtype)
        self.model.to(self.device)
        if on_gpu:
            self.model.to(memory_format=torch.channels_last)

    def __call__(self, images: np.ndarray, centres: np.ndarray, camera: np.ndarray, left: np.ndarray) -> Estimated:
        """float32 images ``(B, C, H, W)``, centres ``(B, 3)`` in mm, cameras ``(B, 4)``, left ``(B,)`` bool."""
        given = tuple(torch.from_numpy(x.copy()) for x in (images, centres, camera, left))
        if self.device.type == "cuda":
            with self._lock, torch.cuda.device(self.device):  # a graph has one set of input tensors
                return _to_numpy(self.replay(*given))
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            return _to_numpy(self.run(*given))
        finally:
            torch.set_num_threads(before)

    @torch.no_grad()
    def run(self, images: Tensor, centres: Tensor, camera: Tensor, left: Tensor) -> Estimate:
        """:meth:`HandPoseEstimator.run` on tensors of this device, in this precision."""
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32, cache_enabled=False):
            return self.model.run(images, centres, camera, left, self._refine)

    def replay(self, images: Tensor, centres: Tensor, camera: Tensor, left: Tensor) -> Estimate:
        """Like :meth:`run`, by a CUDA graph on the GPU's current CUDA stream; the GPU must be torch's current one.

        The call waits only for the recording of a new shape and for copies from CPU tensors. The next call with the same shapes
        overwrites the result's memory. Only one thread may call at a time.
        """
        given = (images, centres, camera, left)
        if not len(images):
            return self.run(*(x.to(self.device) for x in given))
        shape = tuple(images.shape)
        if shape not in self._graphs:
            if len(self._graphs) == _MAX_GRAPHS:
                self._graphs.popitem(last=False)
            self._graphs[shape] = _Graph(self.run, tuple(x.to(self.device) for x in given))
        self._graphs.move_to_end(shape)
        return self._graphs[shape](*given)


class OneLaunch:
    """A refiner in the backend ``cuda``, on GPU tensors: a replacement for :meth:`HandPoseEstimator.refine`.

    Joints that can't be a hand are returned unchanged, as by :func:`jointbert.refine`.
    """

    def __init__(self, refiner: JointRefiner, precision: str) -> None:
        self.backend = CudaBackend(_refiner_weights(refiner), precision=precision)

    @staticmethod
    def fits(refiner: JointRefiner) -> bool:
        """Whether this installation has kernels for this refiner; warns once if it has no GPU kernels."""
        return has_kernels() and KernelSizes.of(load_module()).misfit(asdict(refiner.config)) is None

    def __call__(self, joints: Tensor, confidence: Tensor, left: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``(B, 14, 3)`` mm, ``(B, 14)`` in [0, 1], ``(B,)`` bool: refined joints and sigma ``(B, 14)``, in mm."""
        given, library = read(joints, "joints")
        count = len(joints)
        batch = DeviceBatch(
            joints=given,
            permutation=np.arange(NUM_JOINTS, dtype=np.int32),
            mm_per_unit=1.0,
            mirror=left is not None and library.converted(read(left, "left")[0], (count,), "bool", "left"),
            visible=None,
            confidence=library.converted(read(confidence, "confidence")[0], (count, NUM_JOINTS), "float32", "confidence"),
            error_mm=None,
        )
        found = self.backend.run_on_device(batch, library, (count,), False)
        return library.result(found.joints), library.result(found.sigma)


class _Graph:
    """The CUDA graph for one input shape."""

    def __init__(self, run: Callable[..., Estimate], inputs: tuple[Tensor, ...]) -> None:
        self.inputs = tuple(x.clone() for x in inputs)
        side_stream: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side_stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side_stream):
            for _ in range(_WARM_UP_CALLS):
                run(*self.inputs)
        torch.cuda.current_stream().wait_stream(side_stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.outputs = run(*self.inputs)

    def __call__(self, *given: Tensor) -> Estimate:
        for place, x in zip(self.inputs, given, strict=True):
            place.copy_(x)
        self.graph.replay()
        return self.outputs


def _reduce_precision(model: nn.Module, dtype: torch.dtype) -> None:
    """Rounds the weights of layers that autocast computes in ``dtype`` once, and not in every call.

    The depths' bias stays float32, because it is added to float32 sums.
    """
    for module in model.modules():
        if isinstance(module, LinearDepth):
            module.linear.weight.data = module.linear.weight.data.to(dtype)
        elif isinstance(module, (nn.Conv2d, Layer)):
            for inner in module.modules():
                if isinstance(inner, (nn.Conv2d, nn.Linear)):
                    inner.to(dtype)


def _refiner_weights(refiner: JointRefiner) -> Weights:
    return Weights("an estimator's", float_tensors(refiner), asdict(refiner.config), {})


def _to_numpy(found: Estimate) -> Estimated:
    return Estimated(*(x.float().cpu().numpy() for x in found))
