"""What the tests of `refine()` share: backends that are there, and an array of a library of its own."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

BACKENDS = ["native", pytest.param("torch", marks=pytest.mark.skipif(not find_spec("torch"), reason="torch is not installed"))]


class ArrayOnly:
    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self.array
