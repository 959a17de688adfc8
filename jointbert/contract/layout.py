"""The layout of the refiner's input and output tensors, and the constants of their encoding, the same in every runtime and
export.

Input, ``(B, 14, 8)`` float32, canonical order, right hand:
    0 to 2: x y z minus the mean of the observed joints, in units of 100 mm; 0 if the joint is missing.
    3: observed, 0 or 1.
    4, 5: confidence, and 1 if it is known; both 0 if the joint is missing.
    6, 7: logarithm of the expected error in units of 10 mm, and 1 if it is known; both 0 if the joint is missing.

Output, ``(B, 14, 4)`` float32:
    0 to 2: correction in units of 100 mm.
    3: logarithm of the refined joint's expected Euclidean error in units of 100 mm.
"""

from __future__ import annotations

LAYOUT = "pose14-xyz-observed-confidence-error"
"""Name of the layout in the weights' metadata. Weights of another layout are refused."""

NUM_JOINTS = 14
"""Joints of a pose in this layout, for which the kernels are compiled."""

SCALE_MM = 100.0
"""Unit of coordinates, corrections and sigma."""
ERROR_UNIT_MM = 10.0
"""Unit of expected errors."""
ERROR_RANGE_MM = (0.1, 200.0)
"""``error_mm`` is clamped to this range before its logarithm is taken."""
LOG_SIGMA_RANGE = (-9.0, 3.0)
"""The log sigma output is clamped to this range: 0.01 mm to 2 m."""

MIN_JOINTS = 4
"""A frame with fewer observed joints is returned unchanged."""
HAND_SIZE_MM = (8.0, 150.0)
"""Range of the root mean square distance of a hand's observed joints from their mean; a frame outside it is returned unchanged.
An adult's open hand has 60 to 95 mm, a fist 25 to 35 mm; a single joint half a metre off adds about 60 mm."""

SEQUENCE_LAYOUT = "sequence14-blocks-bones"
"""Name of the layout of the second stage's features, ``(B, 14, 63)``: see :mod:`jointbert.models.sequence`."""

BLOCKS = ((1, 1), (2, 2), (3, 3), (4, 6), (7, 11), (12, 20))
"""Blocks of neighbouring frames that are averaged, by their smallest and largest distance in frames. Each block is used once
for the past and once for the future."""
STEP_UNIT_MM = 10.0
"""Unit of differences between frames and of deviations of bone lengths."""
SEQUENCE_FEATURES = 2 * len(BLOCKS) * 4 + 3 + 2 * 5 + 2
"""63 features of each joint: blocks, first correction, two bones, roughness."""
CUT_MM = 60.0
"""A cut is assumed where the median joint moves further between two frames. Frames beyond a cut are not used."""
KNOWN_FRAMES = 8
"""Number of frames of a person from which bone lengths and roughness count as known."""
HISTORY_FRAMES = 512
"""Online refinement computes bone lengths and roughness from at most this number of latest frames."""
ROUGHNESS_FLOOR_MM = 0.1
"""Added to a joint's acceleration (mm per frame squared) before its logarithm is averaged."""

ESTIMATOR_LAYOUT = "estimator14"
"""Name of the layout in an estimator's file. Files of another layout are refused."""
