"""Images of the NYU Hand Pose data set (Tompson et al., ACM TOG 2014): ``joint_data.mat`` and ``depth_1_0000001.png``, ...

Annotations are those of camera 1, y up in ``joint_xyz``.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Generator
from torch.utils.data import Dataset

from jointbert.camera import NYU
from jointbert.inputs.images import centre_of_mass, read_depth
from jointbert.models.crop import Crop
from jointbert.skeletons import NYU14
from training.data.hand import rand
from training.data.images import HandImages

CUBE_MM = 300.0
SUBJECT2, SUBJECT2_CUBE = 2440, 250 / 300
"""Test frames from here on show a smaller hand, which gets a smaller cube."""
JOINTS = 36
"""Annotated joints, of which the protocol uses 14."""


@dataclass(frozen=True)
class Augmentation:
    """Augmentation in 3D. It acts on the crop's window, so that the joints do not change."""

    angle: float = 180.0
    """Largest rotation about the line of sight, degrees."""
    scale: float = 0.1
    """Largest change of the cube's side, as a fraction."""
    shift_mm: float = 10.0
    """Largest shift of the centre along each axis."""


class NyuImages(Dataset[HandImages]):
    """Crops of one split's folder; an item is a batch of one.

    Args:
        folder: holds ``joint_data.mat`` and the images. size: of the crops.
        centres: a text file, x y z in millimetres a line (y down) or u v d by ``centre_format``; without one, the centre of
            mass of what is nearest to the camera.
        augmentation: None: as recorded. variants, seed: item ``i * variants + k`` is frame i, changed the k-th way.
        test: two cubes, by subject. cube_mm: the first subject's.

    Raises:
        ValueError: a file has other contents, or another number of centres. OSError: a file is missing.
    """

    def __init__(
        self,
        folder: str | Path,
        size: int,
        centres: str | Path | None = None,
        centre_format: str = "xyz",
        augmentation: Augmentation | None = None,
        variants: int = 1,
        seed: int = 0,
        test: bool = False,
        cube_mm: float = CUBE_MM,
    ) -> None:
        self.folder, self.size = Path(folder), size
        self.joints = read_annotations(self.folder / "joint_data.mat")
        self.augmentation, self.variants, self.seed = augmentation, variants, seed
        self.test, self.cube_mm = test, cube_mm
        self.centres = None if centres is None else _read_centres(Path(centres), centre_format, len(self.joints))

    def digest(self) -> str:
        """Hash of the annotations and the centres."""
        digest = hashlib.sha256(self.joints.tobytes())
        if self.centres is not None:
            digest.update(np.ascontiguousarray(self.centres).tobytes())
        return digest.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.joints) * self.variants

    def __getitem__(self, index: int) -> HandImages:
        if not 0 <= index < len(self):
            raise IndexError(index)
        frame, variant = divmod(index, self.variants)
        depth = read_depth(self.folder / f"depth_1_{frame + 1:07d}.png")
        cube = self.cube_mm * (SUBJECT2_CUBE if self.test and frame >= SUBJECT2 else 1)
        found = centre_of_mass(depth, NYU, cube) if self.centres is None else self.centres[frame]
        centre = torch.from_numpy(found).float()
        angle, cube_mm = torch.zeros(1), torch.tensor([cube])
        if self.augmentation is not None:
            g = Generator().manual_seed((self.seed * 1_000_003 + frame) * 1_009 + variant)
            angle = math.radians(self.augmentation.angle) * rand((1,), -1, 1, g)
            cube_mm = cube_mm * (1 + self.augmentation.scale * rand((1,), -1, 1, g))
            centre = centre + self.augmentation.shift_mm * rand((3,), -1, 1, g)
        crop = Crop.around(centre.unsqueeze(0), NYU, cube_mm, self.size, angle)
        crops = crop.depth(torch.from_numpy(depth)[None, None])
        joints = torch.from_numpy(self.joints[frame]).unsqueeze(0)
        visible = torch.ones(1, joints.shape[1], dtype=torch.bool)
        return HandImages(crops, joints, visible, crop.centres, crop.camera, cube_mm, angle)


def read_annotations(path: Path) -> np.ndarray:
    """``(frames, 14, 3)`` float32: the protocol's joints in the camera frame (y down), mm, of camera 1.

    Raises:
        OSError: there is no such file. ValueError: it can't be read, or holds something else.
    """
    if not path.is_file():
        raise OSError(f"{path}: no such file; it comes with the NYU Hand Pose data set")
    from scipy.io import loadmat

    try:
        content = loadmat(path, variable_names=["joint_xyz"])
        joints = np.asarray(content["joint_xyz"], dtype=np.float32)
    except KeyError:
        raise ValueError(f"{path}: there is no joint_xyz in it") from None
    except Exception as error:  # scipy's readers raise whatever they meet in a truncated file
        raise ValueError(f"{path}: can't be read ({error})") from None
    if joints.ndim != 4 or joints.shape[2:] != (JOINTS, 3):
        raise ValueError(f"{path}: joint_xyz has the shape {joints.shape}; expected (cameras, frames, {JOINTS}, 3)")
    return joints[0][:, NYU14.indices["nyu36"]] * np.array([1, -1, 1], np.float32)


def _read_centres(path: Path, kind: str, frames: int) -> np.ndarray:
    if not path.is_file():
        raise OSError(f"{path}: no such file of hand centres")
    try:
        numbers = np.loadtxt(path, dtype=np.float64, ndmin=2)
    except ValueError as error:
        raise ValueError(f"{path}: can't be read as three numbers a line ({error})") from None
    if numbers.shape != (frames, 3):
        raise ValueError(f"{path}: got {numbers.shape[0]} lines of {numbers.shape[1]} numbers; expected {frames} of 3")
    if kind == "uvd":
        return NYU.uvd_to_xyz(numbers)
    if kind != "xyz":
        raise ValueError(f"centre_format: got {kind!r}; expected 'xyz' or 'uvd'")
    return numbers
