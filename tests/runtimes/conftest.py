"""The native backend for every instruction set of this machine, and the reference implementation that it is compared with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from jointbert import _core

if TYPE_CHECKING:
    from jointbert.runtimes.native import NativeBackend
    from jointbert.runtimes.torch import TorchBackend
    from jointbert.weights import Weights


@pytest.fixture(scope="session")
def weights() -> Weights:
    from tests.support.native import random_weights

    return random_weights()


@pytest.fixture(scope="session")
def reference(weights: Weights) -> TorchBackend:
    """The reference implementation, in float64."""
    torch = pytest.importorskip("torch")
    from jointbert.runtimes.torch import TorchBackend

    return TorchBackend(weights, dtype=torch.float64)


@pytest.fixture(scope="module", params=_core.supported_isas())
def native(request: pytest.FixtureRequest, weights: Weights) -> NativeBackend:
    from jointbert.runtimes.native import NativeBackend

    return NativeBackend(weights, isa=request.param)


@pytest.fixture(scope="session")
def tolerance_mm(weights: Weights, reference: TorchBackend) -> float:
    """Twice torch float32's own error plus 1e-5 mm; float64 joints, so that no camera frame's rounding hides it."""
    torch = pytest.importorskip("torch")
    from jointbert.runtimes.torch import TorchBackend
    from tests.support.native import full_batch, hands, make_batch

    single = TorchBackend(weights, dtype=torch.float32)
    worst = 0.0
    for batch in (make_batch(hands(100)), full_batch(100)):
        difference = single.run(batch).joints - reference.run(batch).joints
        worst = max(worst, float(np.nanmax(np.abs(difference))) * batch.mm_per_unit)
    assert 1e-6 < worst < 1e-3  # else this yardstick measures nothing
    return 2 * worst + 1e-5
