"""Subject 1's real poses and the published methods' errors on them, recombined finger by finger.

A pair is a true pose and a prediction of it. Both are kept in the true palm's frame, so that a finger of one frame can stand on
the palm of another together with the error that a method made on it: the relation between a finger's pose and its error
stays, and the number of poses grows with the fifth power.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from jointbert.skeleton import FINGERS, NUM_JOINTS
from training.data.hand import palm_frame, rand
from training.data.nyu import Published

FINGER_OF_JOINT = torch.tensor([next((i for i, js in enumerate(FINGERS.values()) if j in js), 5) for j in range(NUM_JOINTS)])
"""Index of each joint's finger in :data:`FINGERS`; 5 for the palm."""


class PairBank:
    """Draws pairs of true and predicted poses.

    Args:
        published: the training frames, all methods.
    """

    def __init__(self, published: Published) -> None:
        truth = torch.from_numpy(published.groundtruth).float()
        self.rotation = palm_frame(truth)  # [N, 3, 3], palm's frame to camera
        self.local = (truth - truth[:, 13:]) @ self.rotation  # [N, 14, 3]
        predictions = torch.stack([torch.from_numpy(p).float() for p in published.predictions.values()])
        self.error = (predictions - truth) @ self.rotation  # [M, N, 14, 3], in the palm's frame
        self.method_mm = self.error.norm(dim=-1).mean((1, 2))  # [M]

    def _frames(self, n: int, recombine: float, g: Generator) -> Tensor:
        """``(n, 14)`` frame of each joint: the palm's, or for each finger with probability ``recombine`` another's.

        Of 16 candidates the one whose palm looks in the most similar direction is taken: what a method gets wrong depends on
        the view.
        """
        frames = len(self.local)
        base = torch.randint(frames, (n,), generator=g)
        candidates = torch.randint(frames, (n, 5, 16), generator=g)
        similarity = (self.rotation[candidates].flatten(-2) * self.rotation[base].flatten(-2)[:, None, None]).sum(-1)
        other = candidates.gather(2, similarity.argmax(-1, keepdim=True)).squeeze(-1)
        keep = torch.rand(n, 5, generator=g) >= recombine
        fingers = torch.where(keep, base.unsqueeze(1), other)
        return torch.cat([fingers, base.unsqueeze(1)], 1)[:, FINGER_OF_JOINT]

    def sample(self, n: int, recombine: float, g: Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Draws ``n`` pairs.

        Returns:
            true joints and errors, both ``(n, 14, 3)`` in the palm's frame at subject 1's size; the ``(n, 3, 3)`` rotations
            into the camera frame; the ``(n,)`` mean error of the method that each came from.
        """
        frame = self._frames(n, recombine, g)
        joint = torch.arange(NUM_JOINTS)
        method = torch.randint(len(self.error), (n,), generator=g)
        error = self.error[method.unsqueeze(1), frame, joint]
        # A finger brings its error within its hand; the hand's own offset is the palm's frame's.
        offset = self.error.mean(2)  # [M, N, 3]
        palm = frame[:, -1]
        error = error - offset[method.unsqueeze(1), frame] + offset[method, palm].unsqueeze(1)
        return self.local[frame, joint], error, self.rotation[palm], self.method_mm[method]

    def sample_errors(self, n: int, g: Generator) -> tuple[Tensor, Tensor]:
        """Errors of whole frames in the camera frame ``(n, 14, 3)``, and their methods' mean error ``(n,)``."""
        method = torch.randint(len(self.error), (n,), generator=g)
        frame = torch.randint(len(self.local), (n,), generator=g)
        return self.error[method, frame] @ self.rotation[frame].transpose(-1, -2), self.method_mm[method]


def resize(
    true: Tensor, error: Tensor, scale: Tensor, variation: float, root_shift_mm: float, g: Generator
) -> tuple[Tensor, Tensor]:
    """Another person's hand: both poses of a pair scaled, with proportions of their own.

    Each finger, each fingertip bone and the wrist get their own factor, each finger's root its own place. Without that the
    refiner learns the one training subject's index finger by heart and pulls everybody's there.

    Args:
        true, error: ``(B, 14, 3)`` in the palm's frame. scale: ``(B,)``. variation: standard deviation of the factors.
        root_shift_mm: standard deviation of the roots' places along each axis.
    """
    n = len(true)
    finger = 1 + variation * torch.randn(n, 6, 1, generator=g)[:, FINGER_OF_JOINT]
    shift = root_shift_mm * torch.randn(n, 6, 3, generator=g)
    shift[:, 5] = 0
    both = torch.stack([true, true + error]) * finger + shift[:, FINGER_OF_JOINT]  # [2, B, 14, 3]
    for tip, mid in ((0, 1), (2, 3), (4, 5), (6, 7), (8, 9)):
        bone = 1 + variation * rand((n, 1), -1.7, 1.7, g)
        both[:, :, tip] = both[:, :, mid] + bone * (both[:, :, tip] - both[:, :, mid])
    both = both * scale.view(-1, 1, 1)
    return both[0], both[1] - both[0]
