"""Limits of heatmaps and of soft-argmax options, which the torch reference implementation and the CUDA kernels share."""

from __future__ import annotations

from typing import Any

MAX_HEATMAP = 128
"""The largest height and width of a heatmap, in pixels."""
_MAX_BETA = 1e30  # its product with a heatmap's values stays finite in float32


def check_soft_argmax(shape: tuple[int, ...], mode: str, beta: Any, window: int | None) -> None:
    """Checks the shape of heatmaps and the options of a soft-argmax.

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
