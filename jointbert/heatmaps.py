"""Keypoints from heatmaps on a GPU by the former name of :mod:`jointbert.cuda.heatmaps`."""

from jointbert.cuda.heatmaps import soft_argmax, soft_argmax_depth

__all__ = ["soft_argmax", "soft_argmax_depth"]
