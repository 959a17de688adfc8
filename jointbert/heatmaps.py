"""Former name of :mod:`jointbert.cuda.heatmaps`, kept for existing imports."""

from jointbert.cuda.heatmaps import soft_argmax, soft_argmax_depth

__all__ = ["soft_argmax", "soft_argmax_depth"]
