from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jointbert.camera import NYU, Camera

number = st.floats(-500, 500)


def test_the_principal_point_lies_on_the_axis() -> None:
    np.testing.assert_allclose(NYU.uvd_to_xyz(np.array([320.0, 240.0, 750.0])), [0, 0, 750])


def test_one_focal_length_from_the_centre_is_45_degrees() -> None:
    np.testing.assert_allclose(NYU.uvd_to_xyz(np.array([320 + 588.03, 240 + 587.07, 1000.0])), [1000, 1000, 1000])


@given(number, number, st.floats(100, 2000))
def test_round_trip(x: float, y: float, z: float) -> None:
    xyz = np.array([[x, y, z]])
    np.testing.assert_allclose(NYU.uvd_to_xyz(NYU.xyz_to_uvd(xyz)), xyz, atol=1e-9)


def test_integers_are_no_trap() -> None:
    assert NYU.uvd_to_xyz(np.array([321, 240, 1])).dtype == np.float64


def test_parse() -> None:
    assert Camera.parse("nyu") is NYU
    assert Camera.parse("500,501,320,240.5") == Camera(500, 501, 320, 240.5)


@pytest.mark.parametrize(
    "text", ["", "kinect", "1,2,3", "1,2,3,4,5", "a,b,c,d", "0,1,2,3", "-1,1,2,3", "nan,1,2,3", "inf,1,2,3"]
)
def test_parse_refuses(text: str) -> None:
    with pytest.raises(ValueError, match=r"^camera: got"):
        Camera.parse(text)


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"uvd: got the shape \(14, 2\)"):
        NYU.uvd_to_xyz(np.zeros((14, 2)))
