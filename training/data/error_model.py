"""A statistical model of estimators' errors, fitted to those on subject 1; it generates the errors of the demo's sample."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from training.data.bank import PoseBank


@dataclass(frozen=True)
class ErrorModel:
    """Errors of a frame in the palm's frame: a log-normal size times a Gaussian of the 42 coordinates.

    A scale mixture of Gaussians: heavy-tailed, as the recorded errors are, with their correlations between joints.
    """

    mean: Tensor  # [42], at unit size
    factor: Tensor  # [42, 42], Cholesky factor of the covariance at unit size
    log_size_mean: float
    log_size_sigma: float

    @classmethod
    def fit(cls, bank: PoseBank) -> ErrorModel:
        """Moments of the errors of all methods, each frame divided by its own mean error."""
        errors = bank.error.flatten(0, 1)  # [M * N, 14, 3]
        size = errors.norm(dim=-1).mean(1)
        shape = (errors / size.view(-1, 1, 1)).flatten(1)
        covariance = torch.cov(shape.T) + 1e-5 * torch.eye(42)
        log_size = size.log()
        return cls(shape.mean(0), torch.linalg.cholesky(covariance), float(log_size.mean()), float(log_size.std()))

    def sample(self, n: int, g: Generator) -> Tensor:
        """``(n, 14, 3)`` errors in millimetres, in the palm's frame."""
        size = (self.log_size_mean + self.log_size_sigma * torch.randn(n, 1, generator=g)).exp()
        return (size * (self.mean + torch.randn(n, 42, generator=g) @ self.factor.T)).view(n, 14, 3)
