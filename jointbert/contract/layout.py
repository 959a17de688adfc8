"""The tensors between a pose and the refiner, the same in every backend and export.

In, ``(B, 14, 8)`` float32: x y z minus the mean of the observed joints, over 100 mm, canonical order, right hand (0 where
missing); observed (0 or 1); confidence and confidence-known; log of the expected error over 10 mm and error-known. The last
four are 0 where a joint is missing.
Out, ``(B, 14, 4)`` float32: correction over 100 mm; log of the refined joint's expected Euclidean error over 100 mm.
"""

from __future__ import annotations

LAYOUT = "pose14-xyz-observed-confidence-error"
"""Written into the weights' metadata; a backend refuses weights of another layout."""

NUM_JOINTS = 14
"""Joints of a pose in this layout; the kernels are compiled for it."""

SCALE_MM = 100.0
ERROR_UNIT_MM = 10.0
ERROR_RANGE_MM = (0.1, 200.0)
"""``error_mm`` is clamped to this range before its logarithm is taken."""
LOG_SIGMA_RANGE = (-9.0, 3.0)
"""Clamp of the log sigma output: 0.01 mm to 2 m."""

MIN_JOINTS = 4
"""Fewer observed joints than this: the frame comes back as it was."""
HAND_SIZE_MM = (8.0, 150.0)
"""A frame whose observed joints have another root mean square distance from their mean is not a hand: an adult's open hand
has 60 to 95 mm, a fist 25 to 35; one joint half a metre away adds some 60."""

SEQUENCE_LAYOUT = "sequence14-blocks-bones"
"""The sequence refiner's features, ``(B, 14, 63)``, on top of the pose's: see :mod:`jointbert.models.sequence`."""

BLOCKS = ((1, 1), (2, 2), (3, 3), (4, 6), (7, 11), (12, 20))
"""First and last distance, in frames, of the neighbours that are averaged: once in the past, once in the future."""
STEP_UNIT_MM = 10.0
"""Unit of differences between frames and of bone lengths' deviations."""
SEQUENCE_FEATURES = 2 * len(BLOCKS) * 4 + 3 + 2 * 5 + 2
CUT_MM = 60.0
"""The median joint moves further than this between two frames: a cut. The neighbours beyond it are not looked at."""
KNOWN_FRAMES = 8
"""So many frames of a person are needed before bone lengths and roughness count as known."""
HISTORY_FRAMES = 512
"""A stream takes bone lengths and roughness from so many last frames."""
ROUGHNESS_FLOOR_MM = 0.1
"""Added to a joint's acceleration (mm per frame squared) before its logarithm is averaged."""

ESTIMATOR_LAYOUT = "estimator14"
"""Written into an estimator's file; another is refused."""
