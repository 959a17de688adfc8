"""The class :class:`Estimator`, which checks images and runs an estimator's file with torch or ONNX Runtime."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from jointbert.camera import Camera
from jointbert.estimator.result import Estimated, EstimatorRuntime
from jointbert.inputs.arguments import check_threads
from jointbert.inputs.estimator import check_camera_images, check_centre_pixels, check_centres, check_left, check_not_empty

DEVICES = ("cpu", "cuda")
PRECISIONS = ("f32", "f16", "bf16")


class Estimator:
    """Estimates the joints of hands in images with a trained estimator.

    Args:
        path: a ``.safetensors`` file for torch, or an ``.onnx`` file (``jointbert export``) for ONNX Runtime without torch.
        threads: CPU threads, 256 at most.
        device: ``cpu`` or, for ``.safetensors``, ``cuda``: torch's current GPU, with this package's kernels if they are
            installed.
        precision: of the network, for ``.safetensors``: ``f32``, ``f16`` or ``bf16``; geometry is always float32. None: ``f32``
            on the CPU, ``f16`` on a GPU.

    Raises:
        OSError: there is no such file. ValueError: not an estimator's file; another device or precision. ImportError: the
            file's runtime is not installed. RuntimeError: no GPU.
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
        self._model: EstimatorRuntime
        if path.suffix == ".onnx":
            if device != "cpu" or precision not in (None, "f32"):
                raise ValueError(f"{path}: ONNX files run on the CPU in float32 here; a GPU takes the .safetensors file")
            from jointbert.estimator.onnx_runtime import OnnxEstimator

            self._model = OnnxEstimator(path, threads)
        elif path.suffix == ".safetensors":
            try:
                from jointbert.estimator.torch_runtime import TorchEstimator
            except ImportError as error:
                raise ImportError(
                    f'{path}: this file needs torch and torchvision ({error}); pip install "jointbert[estimator]", or export '
                    "it to ONNX on a machine that has them"
                ) from None
            self._model = TorchEstimator(path, threads, device, precision)
        else:
            raise ValueError(f"{path}: expected an estimator as .safetensors or .onnx")

    @property
    def image(self) -> str:
        """The kind of images: ``depth`` or ``rgb``."""
        return self._model.image

    @property
    def cube_mm(self) -> float:
        """Side of the cube around the centre that the network sees, mm."""
        return self._model.cube_mm

    def __call__(self, images: np.ndarray, centres: np.ndarray, camera: Camera, left: np.ndarray | bool = False) -> Estimated:
        """Joints of one hand in each image.

        Args:
            images: ``(B, 1, H, W)`` or ``(B, H, W)`` depth in millimetres (0: no reading), or ``(B, 3, H, W)`` RGB in [0, 1].
            centres: ``(B, 3)`` x y z of the hand's middle in the camera frame, mm.
            left: True for left hands; one value for all, or ``(B,)``.

        Raises:
            ValueError: wrong shapes, a centre outside the image, no reading within the cube. TypeError: wrong dtypes.
        """
        if not isinstance(camera, Camera):
            raise TypeError(f"camera: got {type(camera).__name__}; expected a jointbert.camera.Camera")
        images = np.asarray(images)
        if images.ndim == 3 and self.image == "depth":
            images = images[:, None]
        check_camera_images(self.image, images.shape, images.dtype.kind, str(images.dtype))
        centres = np.asarray(centres, dtype=np.float32)
        check_centres(centres, len(images))
        check_centre_pixels(camera.xyz_to_uvd(centres)[:, :2], images.shape)
        sides = check_left(left, len(images))
        intrinsics = np.array([camera.fx, camera.fy, camera.cx, camera.cy], np.float32)
        given = images.astype(np.float32)
        found = self._model(given, centres, np.broadcast_to(intrinsics, (len(images), 4)), sides)
        if self.image == "depth":
            check_not_empty(np.asarray((found.crops >= 1).all((1, 2, 3))))
        return found
