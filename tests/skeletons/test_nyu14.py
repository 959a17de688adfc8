from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jointbert.skeletons import NYU14


def test_the_canonical_order_is_that_of_the_published_files() -> None:
    # Index in NYU's 36 joints, as the published evaluation uses them.
    assert NYU14.indices["nyu36"] == (0, 3, 6, 9, 12, 15, 18, 21, 24, 25, 27, 30, 31, 32)
    assert len(NYU14.names) == len(set(NYU14.names)) == 14
    assert NYU14.names[8:] == ("thumb_tip", "thumb_mid", "thumb_base", "wrist_side_a", "wrist_side_b", "palm")


def test_fingers_and_palm_cover_each_joint_once() -> None:
    joints = [j for finger in NYU14.fingers.values() for j in finger] + list(NYU14.palm)
    assert sorted(joints) == list(range(14))


@given(st.permutations(NYU14.names))
def test_resolve_order_finds_each_name(names: list[str]) -> None:
    permutation = NYU14.resolve_order(names)
    assert [names[i] for i in permutation] == list(NYU14.names)


def test_palm_first_is_the_canonical_order_reversed() -> None:
    np.testing.assert_array_equal(NYU14.resolve_order("palm_first"), np.arange(14)[::-1])


@pytest.mark.parametrize(
    ("order", "kind", "part"),
    [
        ("nyu21", ValueError, "'nyu21'"),
        (["palm"], ValueError, "exactly once"),
        (["palm"] * 14, ValueError, "exactly once"),
        (["nose", *NYU14.names[1:]], ValueError, "'nose'"),
        ([*range(14)], TypeError, "int"),
        (7, TypeError, "int"),
        (None, TypeError, "NoneType"),
    ],
)
def test_bad_orders_are_named(order: object, kind: type[Exception], part: str) -> None:
    with pytest.raises(kind, match=rf"^order: .*{part}"):
        NYU14.resolve_order(order)  # type: ignore[arg-type]


def test_bones_make_one_hand() -> None:
    assert set(NYU14.rigid_bones) <= set(NYU14.bones)
    reached = {NYU14.parents.index(-1)}
    while more := {j for bone in NYU14.bones if reached & set(bone) for j in bone} - reached:
        reached |= more
    assert reached == set(range(14))


def test_chains_run_from_the_tips_to_the_palm() -> None:
    assert NYU14.chains == ((0, 1, 13), (2, 3, 13), (4, 5, 13), (6, 7, 13), (8, 9, 10, 13))


def test_every_joint_has_a_sentence_of_anatomy() -> None:
    assert len(set(NYU14.anatomy)) == 14
    assert all(sentence.endswith(".") and len(sentence) <= 110 for sentence in NYU14.anatomy)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"names": ("palm",) * 14}, "occurs twice"),
        ({"parents": (-1,) * 14}, "one root"),
        ({"parents": (13,) * 14}, "one root"),
        ({"parents": (1, 0, *NYU14.parents[2:])}, "never reach the root"),
        ({"anatomy": ("",) * 14}, "no sentence"),
        ({"mirror": (1.0, 2.0)}, "three factors"),
        ({"anatomy": ("A joint.",)}, "1 anatomy for 14 joints"),
        ({"bones": ((0, 14),)}, "not a joint"),
        ({"orders": {"short": ("palm",)}}, "'short'"),
        ({"indices": {"other": (1, 2)}}, "2 other for 14 joints"),
    ],
)
def test_a_skeleton_that_can_t_be_is_refused(change: dict[str, object], part: str) -> None:
    with pytest.raises(ValueError, match=f"^skeleton 'nyu14': .*{part}"):
        replace(NYU14, **change)  # type: ignore[arg-type]


def test_the_former_module_has_the_advertised_names() -> None:
    from jointbert import JOINT_NAMES, skeleton

    assert skeleton.JOINT_NAMES == JOINT_NAMES == NYU14.names
    assert NYU14.all_orders == skeleton.ORDERS
