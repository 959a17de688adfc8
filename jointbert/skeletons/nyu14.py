"""The 14 joints of the NYU protocol: joints 0 3 6 9 12 15 18 21 24 25 27 30 31 32 of the 36 that the NYU Hand Pose data set
annotates (Tompson et al., ACM TOG 2014), in the order of the published prediction files."""

from __future__ import annotations

from jointbert.skeletons.skeleton import PalmFrame, Skeleton

# For each joint: its name, its parent's index, its anatomy.
_JOINTS = (
    ("pinky_tip", 1, "Tip of the little finger: end of its distal phalanx."),
    ("pinky_mid", 13, "PIP joint of the little finger: proximal end of its middle phalanx."),
    ("ring_tip", 3, "Tip of the ring finger: end of its distal phalanx."),
    ("ring_mid", 13, "PIP joint of the ring finger: proximal end of its middle phalanx."),
    ("middle_tip", 5, "Tip of the middle finger: end of its distal phalanx."),
    ("middle_mid", 13, "PIP joint of the middle finger: proximal end of its middle phalanx."),
    ("index_tip", 7, "Tip of the index finger: end of its distal phalanx."),
    ("index_mid", 13, "PIP joint of the index finger: proximal end of its middle phalanx."),
    ("thumb_tip", 9, "Tip of the thumb: end of its distal phalanx."),
    ("thumb_mid", 10, "IP joint of the thumb: proximal end of its distal phalanx."),
    ("thumb_base", 13, "Near the thumb's MCP joint: proximal end of its proximal phalanx."),
    ("wrist_side_a", 13, "The little finger's side of the wrist (ulnar), inside the outline."),
    ("wrist_side_b", 13, "The thumb's side of the wrist (radial), inside the outline."),
    ("palm", -1, "Centre of the palm, near the middle of the middle finger's metacarpal bone."),
)
_NAMES = tuple(name for name, _, _ in _JOINTS)
_FINGER_BONES = ((0, 1), (2, 3), (4, 5), (6, 7), (8, 9), (9, 10))
_PALM_SIDES = ((11, 12), (11, 13), (12, 13))
PALM_TO_MID = ((1, 13), (3, 13), (5, 13), (7, 13))
"""Bones from the palm to each finger's mid joint. Their lengths change a little, so that they are not rigid."""

NYU14 = Skeleton(
    name="nyu14",
    names=_NAMES,
    parents=tuple(parent for _, parent, _ in _JOINTS),
    bones=(*_FINGER_BONES, *_PALM_SIDES, *PALM_TO_MID, (10, 13)),
    rigid_bones=(*_FINGER_BONES, *_PALM_SIDES),
    fingers={"pinky": (0, 1), "ring": (2, 3), "middle": (4, 5), "index": (6, 7), "thumb": (8, 9, 10)},
    palm=(11, 12, 13),
    palm_frame=PalmFrame(
        across=(1, 7),
        up=((1, 3, 5, 7), (11, 12)),
        curl=((0, 1), (2, 3), (4, 5), (6, 7)),
        thumb=(9, 13),
    ),
    anatomy=tuple(sentence for _, _, sentence in _JOINTS),
    orders={"palm_first": _NAMES[::-1]},  # root to leaf, thumb to pinky
    indices={"nyu36": (0, 3, 6, 9, 12, 15, 18, 21, 24, 25, 27, 30, 31, 32)},
)
