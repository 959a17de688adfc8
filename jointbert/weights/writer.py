"""Writes weight files of refiners, second stages and estimators."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np


def write_weights(path: str | Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes tensors and metadata as safetensors, with read permission for all users.

    Raises:
        OSError: the file can't be written.
    """
    from safetensors.numpy import save_file

    save_file({name: np.asarray(value, order="C") for name, value in tensors.items()}, path, metadata=dict(metadata))
    Path(path).chmod(0o644)  # safetensors gives read permission to the owner only, and a wheel would keep that
