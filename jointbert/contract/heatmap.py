"""What heatmaps may be: the limits that the reference in torch and the CUDA kernels share."""

from __future__ import annotations

from typing import Any

MAX_HEATMAP = 128
"""Neither side of a heatmap is longer."""
_MAX_BETA = 1e30  # stays finite in float32 when it is multiplied by a heatmap's values


def check_soft_argmax(shape: tuple[int, ...], mode: str, beta: Any, window: int | None) -> None:
    """Checks heatmaps' shape, and how their peaks are found.

    Raises:
        ValueError: a shape, mode, beta or window out of range; the message names it.
    """
    if len(shape) < 2 or not (1 <= shape[-1] <= MAX_HEATMAP and 1 <= shape[-2] <= MAX_HEATMAP):
        raise ValueError(f"heatmaps: got the shape {shape}; expected (..., H, W), up to {MAX_HEATMAP} x {MAX_HEATMAP}")
    if mode not in ("argmax", "soft"):
        raise ValueError(f"mode: got {mode!r}; expected 'argmax' or 'soft'")
    if not 0 < beta <= _MAX_BETA:
        raise ValueError(f"beta: got {beta!r}; expected a positive number, {_MAX_BETA:g} at most")
    if window is not None and (isinstance(window, bool) or not isinstance(window, int) or window < 0):
        raise ValueError(f"window: got {window!r}; expected a whole number of pixels, or None")
