from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.baselines import BASELINES, bone_projection, median_filter, one_euro
from training.data.nyu import VALIDATION, read_published

still = np.random.default_rng(0).normal(0, 50, (1, 14, 3)).repeat(20, 0)


@pytest.mark.parametrize("name", BASELINES)
def test_a_still_hand_stays(name: str) -> None:
    np.testing.assert_allclose(BASELINES[name](still), still, atol=1e-9)


def test_the_median_removes_a_spike() -> None:
    spiked = still.copy()
    spiked[7] += 100
    np.testing.assert_allclose(median_filter(spiked), still)


def test_one_euro_follows_a_step_by_its_closed_form() -> None:
    step = np.zeros((3, 14, 3))
    step[1:] = 1.0
    # beta 0: a plain exponential filter with alpha = r / (r + 1), r = 2 pi fc / fps.
    rate = 2 * np.pi * 4 / 25
    alpha = rate / (rate + 1)
    np.testing.assert_allclose(one_euro(step, beta=0.0)[:, 0, 0], [0, alpha, 1 - (1 - alpha) ** 2])


def test_projection_shortens_a_stretched_bone() -> None:
    poses = still.copy()
    poses[3, 8] = poses[3, 9] + 1.5 * (poses[3, 8] - poses[3, 9])
    length = np.linalg.norm(still[0, 8] - still[0, 9])
    before, after = (np.linalg.norm(p[3, 8] - p[3, 9]) for p in (poses, bone_projection(poses)))
    assert length < after < before


def test_published_figures(nyu_folder: Path) -> None:
    """What the data's own README states for the validation frames: 14.63 mm; median of 7 gains 1.87 %, One-Euro 1.39 %."""
    data = read_published(nyu_folder).frames(VALIDATION)

    def errors(filter):  # type: ignore[no-untyped-def]
        return np.array([np.linalg.norm(filter(p) - data.groundtruth, axis=-1).mean() for p in data.predictions.values()])

    before = errors(lambda p: p)
    assert before.mean() == pytest.approx(14.63, abs=0.005)
    assert 100 * (1 - errors(median_filter) / before).mean() == pytest.approx(1.87, abs=0.01)
    assert 100 * (1 - errors(one_euro) / before).mean() == pytest.approx(1.39, abs=0.03)
    assert -0.5 <= 100 * (1 - errors(bone_projection) / before).mean() <= 0.4
