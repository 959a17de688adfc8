"""The estimator for those who use it: images in, 14 joints out, by torch or by ONNX Runtime, NumPy on both sides."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from jointbert.camera import Camera
from jointbert.checks import check_threads

DEVICES = ("cpu", "cuda")
PRECISIONS = ("f32", "f16", "bf16")


class Estimated(NamedTuple):
    """What an estimator says of a batch of images."""

    joints: np.ndarray  # (B, 14, 3): camera frame, mm, before refinement
    refined: np.ndarray  # (B, 14, 3)
    confidence: np.ndarray  # (B, 14) in [0, 1]: the heatmaps' peaks
    sigma: np.ndarray  # (B, 14): the refined joints' expected error, mm; NaN where nothing was refined: without a refiner,
    # and, by the GPU's kernel, joints that can't be a hand's, which stay as they are
    heatmaps: np.ndarray  # (B, 14, S / 4, S / 4)
    crops: np.ndarray  # (B, 1, S, S) depth in half-cubes around the centre, or (B, 3, S, S) RGB
    uv: np.ndarray  # (B, 14, 2): the refined joints in the crop, pixels


class Runtime(Protocol):
    """What runs an estimator; arrays that come here are checked."""

    image: str
    cube_mm: float

    def __call__(self, images: np.ndarray, centres: np.ndarray, camera: np.ndarray, left: np.ndarray) -> Estimated:
        """float32 images ``(B, C, H, W)``, centres ``(B, 3)``, camera ``(B, 4)``; left ``(B,)`` bool."""


class Estimator:
    """An estimator's file, ready for images.

    Args:
        path: ``.safetensors``, which torch runs, or ``.onnx`` (``jointbert export``), which ONNX Runtime runs without torch.
        threads: CPU threads, 256 at most.
        device: ``cpu`` or, for ``.safetensors``, ``cuda``: torch's current GPU, with this package's kernels where they are.
        precision: the network's, of ``.safetensors``: ``f32``, ``f16`` or ``bf16``; geometry stays float32. Without it ``f32``
            on the CPU, ``f16`` on a GPU.

    Raises:
        OSError: there is no such file. ValueError: not an estimator's; another device or precision. ImportError: its runtime
        is not installed. RuntimeError: no GPU.
    """

    def __init__(
        self, path: str | os.PathLike[str], threads: int = 1, device: str = "cpu", precision: str | None = None
    ) -> None:
        path, threads = Path(path), check_threads(threads)
        if device not in DEVICES:
            raise ValueError(f"device: got {device!r}; expected {' or '.join(map(repr, DEVICES))}")
        if precision not in (None, *PRECISIONS):
            raise ValueError(f"precision: got {precision!r}; expected one of {', '.join(map(repr, PRECISIONS))}")
        if not path.is_file():
            raise OSError(f"{path}: no such file")
        self._model: Runtime
        if path.suffix == ".onnx":
            if device != "cpu" or precision not in (None, "f32"):
                raise ValueError(f"{path}: ONNX files run on the CPU in float32 here; a GPU takes the .safetensors file")
            from jointbert.backends.onnxruntime import OnnxEstimator

            self._model = OnnxEstimator(path, threads)
        elif path.suffix == ".safetensors":
            try:
                from jointbert.backends.torch_estimator import TorchEstimator
            except ImportError as error:
                raise ImportError(
                    f'{path}: this file needs torch and torchvision ({error}); pip install "jointbert[estimator]", or export '
                    "it to ONNX where they are"
                ) from None
            self._model = TorchEstimator(path, threads, device, precision)
        else:
            raise ValueError(f"{path}: expected an estimator as .safetensors or .onnx")

    @property
    def image(self) -> str:
        """``depth`` or ``rgb``: what it takes."""
        return self._model.image

    @property
    def cube_mm(self) -> float:
        """Side of the cube around the centre that it looks at."""
        return self._model.cube_mm

    def __call__(self, images: np.ndarray, centres: np.ndarray, camera: Camera, left: np.ndarray | bool = False) -> Estimated:
        """Joints of one hand in each image.

        Args:
            images: ``(B, 1, H, W)`` or ``(B, H, W)`` depth in millimetres (0: no reading), or ``(B, 3, H, W)`` RGB in [0, 1].
            centres: ``(B, 3)`` x y z of the hand's middle in the camera frame, mm.
            left: left hands, for all or ``(B,)``.

        Raises:
            ValueError: shapes, a centre outside the image, no reading within the cube. TypeError: dtypes.
        """
        if not isinstance(camera, Camera):
            raise TypeError(f"camera: got {type(camera).__name__}; expected a jointbert.camera.Camera")
        images = np.asarray(images)
        channels = 1 if self.image == "depth" else 3
        if images.ndim == 3 and self.image == "depth":
            images = images[:, None]
        if images.ndim != 4 or images.shape[1] != channels or 0 in images.shape[2:]:
            raise ValueError(f"images: got the shape {images.shape}; expected (B, {channels}, H, W) for {self.image} images")
        if images.dtype.kind not in "fiu" or (self.image == "rgb" and images.dtype.kind != "f"):
            raise TypeError(f"images: got the dtype {images.dtype}; expected floating point")
        n, (h, w) = len(images), images.shape[2:]
        centres = np.asarray(centres, dtype=np.float32)
        if centres.shape != (n, 3):
            raise ValueError(f"centres: got the shape {centres.shape}; expected ({n}, 3), x y z in millimetres")
        for i, centre in enumerate(centres):
            if not np.isfinite(centre).all() or centre[2] <= 0:
                raise ValueError(f"centres: got {centre.tolist()} for image {i}; expected x y z in front of the camera, mm")
            u, v, _ = camera.xyz_to_uvd(centre)
            if not (-0.5 <= u < w - 0.5 and -0.5 <= v < h - 0.5):
                raise ValueError(
                    f"centres: that of image {i} falls on pixel ({u:.0f}, {v:.0f}), outside of its {w} x {h} pixels: is it in "
                    "millimetres, in the camera frame, and the camera that of the images?"
                )
        sides = np.asarray(left)
        if sides.dtype != bool or sides.shape not in ((), (n,)):
            raise ValueError(f"left: got {sides.dtype} of the shape {sides.shape}; expected bool, one or ({n},)")
        sides = np.broadcast_to(sides, (n,))
        intrinsics = np.broadcast_to(np.array([camera.fx, camera.fy, camera.cx, camera.cy], np.float32), (n, 4))
        found = self._model(images.astype(np.float32), centres, intrinsics, sides)
        if self.image == "depth":
            empty = (found.crops >= 1).all((1, 2, 3))
            if empty.any():
                raise ValueError(
                    f"images: there is no depth within the cube around the centre of image {int(np.flatnonzero(empty)[0])}"
                )
        return found
