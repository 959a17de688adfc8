"""Names that earlier versions of the README advertised go on working."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import jointbert


def test_former_modules_have_the_same_objects() -> None:
    from jointbert import cuda, estimator
    from jointbert.backends.graph_session import GraphSession
    from jointbert.estimate import Estimated, Estimator
    from jointbert.heatmaps import soft_argmax, soft_argmax_depth
    from jointbert.skeleton import JOINT_NAMES, ORDERS
    from jointbert.skeletons import NYU14

    assert GraphSession is cuda.GraphSession
    assert (Estimator, Estimated) == (estimator.Estimator, estimator.Estimated)
    assert (soft_argmax, soft_argmax_depth) == (cuda.soft_argmax, cuda.soft_argmax_depth)
    assert JOINT_NAMES == jointbert.JOINT_NAMES == NYU14.names
    assert NYU14.all_orders == ORDERS


@pytest.mark.parametrize("name", ["jointbert.skeleton.ORDERS", "jointbert.camera.NYU", "jointbert.skeletons.NYU14"])
def test_modules_are_attributes_of_the_package(name: str) -> None:
    root = str(Path(jointbert.__file__).parents[1])
    code = f"import sys; sys.path.insert(0, {root!r}); import jointbert; {name}"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_attribute_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"module 'jointbert' has no attribute 'refiner'"):
        _ = jointbert.refiner  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match=r"module 'jointbert.cuda' has no attribute 'cpu'"):
        _ = jointbert.cuda.cpu  # type: ignore[attr-defined]
