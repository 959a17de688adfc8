"""Skeletons: for each joint protocol, the names, orders, bones and anatomy of its joints."""

from __future__ import annotations

from jointbert.skeletons.nyu14 import NYU14
from jointbert.skeletons.skeleton import Bone, PalmFrame, Skeleton

__all__ = ["NYU14", "SKELETONS", "Bone", "PalmFrame", "Skeleton"]

SKELETONS: dict[str, Skeleton] = {skeleton.name: skeleton for skeleton in (NYU14,)}
"""All skeletons by name."""
