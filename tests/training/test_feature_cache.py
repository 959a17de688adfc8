"""Image sets and the cache of the frozen encoder's features."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("torchvision")

from tests.support.training import experiment, model_of
from training.data import feature_cache
from training.data.batches import Endless, ImageBatch, OneByOne, Shuffled
from training.data.feature_cache import FeatureCache, build_cache, encoder_hash
from training.data.images import RenderConfig, RenderedHands
from training.estimator import EstimatorTraining, train, training_set

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice on workers and its own deprecations


def test_batches_of_a_set_that_stays() -> None:
    hands = RenderedHands(RenderConfig(), 32, 300.0, 1, 10, seed=1)
    sampler = Shuffled(OneByOne(hands), 4, 6, seed=0)
    seen = [sampler[i].images.joints for i in range(6)]
    for first in (0, 2, 4):  # two batches of four are one round over ten images
        both = torch.cat(seen[first : first + 2])
        assert len(torch.unique(both.flatten(1), dim=0)) == 8
    assert not torch.equal(seen[0], seen[2])
    sampler.offset = 2
    assert torch.equal(sampler[1].images.joints, seen[3])
    with pytest.raises(ValueError, match="there are 10 images; a batch takes 11"):
        Shuffled(OneByOne(hands), 11, 1, 0)
    with pytest.raises(IndexError):
        sampler[6]
    endless = Endless(RenderedHands(RenderConfig(), 32, 300.0, 2, 3, seed=1))
    assert len(endless) == 3
    endless.offset = 5
    assert not torch.equal(
        endless[0].images.joints, Endless(RenderedHands(RenderConfig(), 32, 300.0, 2, 3, 1))[0].images.joints
    )


def test_the_feature_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = experiment()
    images, name = training_set(run.data, run.model)
    assert images is not None
    model = model_of(run)
    monkeypatch.setattr(feature_cache, "CHUNK", 3)
    with pytest.raises(ValueError, match="no feature cache there"):
        FeatureCache(tmp_path, model, name)

    class Interrupted(OneByOne):
        def take(self, rows: list[int]) -> ImageBatch:
            if rows[-1] >= 6:
                raise KeyboardInterrupt
            return super().take(rows)

    with pytest.raises(KeyboardInterrupt):
        build_cache(tmp_path, model, Interrupted(images.items), name)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="6 of 8 images are cached; go on with cache-features"):
        FeatureCache(tmp_path, model, name)
    taken: list[int] = []

    class Counting(OneByOne):
        def take(self, rows: list[int]) -> ImageBatch:
            taken.extend(rows)
            return super().take(rows)

    build_cache(tmp_path, model, Counting(images.items), name)  # type: ignore[attr-defined]
    assert taken == [6, 7]
    cache = FeatureCache(tmp_path, model, name)
    assert len(cache) == 8
    rows = [7, 0, 3]
    direct, cached = images.take(rows).images, cache.take(rows)
    assert cached.maps is not None
    for a, b in zip(model.eval().encode(direct.crops), cached.maps, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-3, atol=2e-3)
    assert torch.equal(direct.joints, cached.images.joints)
    assert torch.equal(direct.visible, cached.images.visible)
    header = json.loads((tmp_path / "header.json").read_text())
    assert feature_cache.size_of(header) == sum(f.stat().st_size for f in tmp_path.glob("*.bin"))

    other = model_of(run)
    torch.nn.init.normal_(other.encoder.stem[0].weight)
    assert encoder_hash(other) != encoder_hash(model)
    with pytest.raises(ValueError, match="features of another encoder"):
        FeatureCache(tmp_path, other, name)
    with pytest.raises(ValueError, match="features of other images"):
        FeatureCache(tmp_path, model, "others")
    with pytest.raises(ValueError, match="features of other images"):
        build_cache(tmp_path, model, images, "others")
    with pytest.raises(ValueError, match="the encoder's weights are random"):
        build_cache(tmp_path / "new", model_of(run, trained=False), images, name)
    (tmp_path / "header.json").write_text("{")
    with pytest.raises(ValueError, match=r"header.json: can't be read"):
        FeatureCache(tmp_path, model, name)


def test_a_cache_that_would_fill_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = experiment()
    images, name = training_set(run.data, run.model)
    assert images is not None
    monkeypatch.setattr(feature_cache, "SPARE_BYTES", 1 << 60)
    with pytest.raises(OSError, match=r"the features of 8 images take 0.0 GiB, and \d+"):
        build_cache(tmp_path / "cache", model_of(run), images, name)
    assert not list((tmp_path / "cache").glob("*.bin"))


def test_training_from_a_cache_is_training(tmp_path: Path) -> None:
    """The losses of the same images, live and cached; and a run on a cache ends."""
    run = experiment()
    images, name = training_set(run.data, run.model)
    assert images is not None
    model = model_of(run)
    build_cache(tmp_path / "cache", model, images, name)
    training = EstimatorTraining(run, model, "estimator", images).eval()
    rows = [5, 2, 7]
    live, cached = (training.terms(x.take(rows)) for x in (images, FeatureCache(tmp_path / "cache", model, name)))
    assert live.keys() == cached.keys()
    for key, value in live.items():
        assert cached[key].item() == pytest.approx(value.item(), rel=5e-3)
    assert train(run, "estimator", model_of(run), tmp_path / "run", threads=1, cache=tmp_path / "cache").is_file()
    with pytest.raises(ValueError, match="--cache: the encoder learns in this stage"):
        train(run, "encoder", model_of(run), tmp_path / "x", cache=tmp_path / "cache")
