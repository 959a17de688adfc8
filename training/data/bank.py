"""Subject 1's recorded poses, recombined finger by finger, and the published methods' errors, which are applied to any pose.

Each finger on a palm may come from another frame: n frames give n^5 combinations of fingers for each palm. An error is not
applied to the pose on which it was made, because the relation between the two is specific to the subject.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from jointbert.skeletons import NYU14
from training.data.hand import ROOTS_MM, axis_rotations, palm_frame, rand
from training.data.nyu import Published

FINGER_OF_JOINT = torch.tensor(
    [next((i for i, js in enumerate(NYU14.fingers.values()) if j in js), 5) for j in range(NYU14.num_joints)]
)
"""Index of each joint's finger among the skeleton's; 5 for the palm."""


class PoseBank:
    """Draws true poses and errors.

    Args:
        published: the training frames, all methods.
    """

    def __init__(self, published: Published) -> None:
        truth = torch.from_numpy(published.groundtruth).float()
        self.rotation = palm_frame(truth)  # [N, 3, 3], palm's frame to camera
        self.position = truth[:, 13]  # [N, 3], of the palm
        self.local = (truth - truth[:, 13:]) @ self.rotation  # [N, 14, 3]
        predictions = torch.stack([torch.from_numpy(p).float() for p in published.predictions.values()])
        self.error = (predictions - truth) @ self.rotation  # [M, N, 14, 3], in the palm's frame
        self.method_mm = self.error.norm(dim=-1).mean((1, 2))  # [M]

    def sample_poses(self, recombine: Tensor, g: Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Poses, whose fingers come from another frame than the palm with a given probability.

        Args:
            recombine: ``(n,)``, the probability for each pose.

        Returns:
            ``(n, 14, 3)`` joints in the palm's frame at subject 1's size, their ``(n, 3, 3)`` views, into the camera frame, and
            the ``(n,)`` frames of the palm.
        """
        n = len(recombine)
        frames = torch.randint(len(self.local), (n, 6), generator=g)
        keep = torch.rand(n, 5, generator=g) >= recombine.unsqueeze(1)
        fingers = torch.where(keep, frames[:, 5:], frames[:, :5])
        frame = torch.cat([fingers, frames[:, 5:]], 1)[:, FINGER_OF_JOINT]
        return self.local[frame, torch.arange(NYU14.num_joints)], self.rotation[frames[:, 5]], frames[:, 5]

    def sample_errors(self, n: int, blend: float, g: Generator, frame: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Errors of whole frames ``(n, 14, 3)`` in the camera frame, and the mean error ``(n,)`` of their methods.

        Args:
            blend: probability of a random mean of two methods' errors on the frame. frame: ``(n,)``, the frames; random without
            it.
        """
        if frame is None:
            frame = torch.randint(len(self.local), (n,), generator=g)
        first, second = torch.randint(len(self.error), (2, n), generator=g)
        share = torch.rand(n, generator=g) * (torch.rand(n, generator=g) < blend)
        error = self.error[first, frame]
        error = error + share.view(-1, 1, 1) * (self.error[second, frame] - error)
        size = self.method_mm[first] + share * (self.method_mm[second] - self.method_mm[first])
        return error @ self.rotation[frame].transpose(-1, -2), size


def resize(
    true: Tensor, error: Tensor, scale: Tensor, variation: float, root_shift_mm: float, g: Generator
) -> tuple[Tensor, Tensor]:
    """Gives poses and their errors the size and proportions of another person.

    Each finger, each fingertip bone and the wrist get a factor, each finger's root a shift. Without them the refiner learns the
    proportions of the one training subject and applies them to everybody.

    Args:
        true, error: ``(B, 14, 3)``, or ``(B, T, 14, 3)``: T poses of one person, in the palm's frame. scale: ``(B,)``.
        variation: standard deviation of the factors. root_shift_mm: that of the roots' places along each axis.
    """
    n = len(true)
    poses = (n,) + (1,) * (true.ndim - 3)
    finger = 1 + variation * torch.randn(n, 6, 1, generator=g)[:, FINGER_OF_JOINT]
    shift = root_shift_mm * torch.randn(n, 6, 3, generator=g)
    shift[:, 5] = 0
    both = torch.stack([true, true + error])  # [2, B, (T,) 14, 3]
    both = both * finger.view(*poses, 14, 1) + shift[:, FINGER_OF_JOINT].view(*poses, 14, 3)
    for tip, mid in ((0, 1), (2, 3), (4, 5), (6, 7), (8, 9)):
        bone = (1 + variation * rand((n, 1), -1.7, 1.7, g)).view(*poses, 1)
        both[..., tip, :] = both[..., mid, :] + bone * (both[..., tip, :] - both[..., mid, :])
    both = both * scale.view(*poses, 1, 1)
    return both[0], both[1] - both[0]


def articulate(poses: Tensor, sigma: Tensor, g: Generator) -> Tensor:
    """Changes the articulation: each finger is rotated about its root, and each further bone about its joint.

    Args:
        poses: ``(B, 14, 3)`` in the palm's frame at the rest size, or ``(B, T, 14, 3)``, the same rotations for all T.
        sigma: ``(B,)`` or one standard deviation of the angles about each axis, radians.
    """
    n = len(poses)
    poses = poses.clone()
    single = (n, *(1,) * (poses.ndim - 3))

    def turn(joints: list[int], centre: Tensor) -> None:
        axis = torch.nn.functional.normalize(torch.randn(n, 3, generator=g), dim=-1)
        rotation = axis_rotations(axis, sigma * 3**0.5 * torch.randn(n, generator=g)).transpose(-1, -2)
        poses[..., joints, :] = centre + (poses[..., joints, :] - centre) @ rotation.view(*single, 3, 3)

    for finger, chain in enumerate(([1, 0], [3, 2], [5, 4], [7, 6], [10, 9, 8])):
        turn(chain, ROOTS_MM[finger])
        for i in range(1, len(chain)):
            turn(chain[i:], poses[..., [chain[i - 1]], :].clone())
    return poses
