"""soft_argmax_depth.cu, compiled for the host: its keypoints and depth offsets against the torch twins in float64."""

from __future__ import annotations

import ctypes
import math
import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

torch = pytest.importorskip("torch")

from jointbert.models.heatmap import Keypoints  # noqa: E402
from tests.cuda.conftest import meetings  # noqa: E402
from tests.cuda.test_soft_argmax_host import (  # noqa: E402
    SCHEDULES,
    assert_equals_twin,
    heatmaps,
    pointer,
    sizes,
    without_barrier,
)

HARNESS = ("soft_argmax_depth_host.cpp", "soft_argmax_depth.cu")
SOURCE = Path(__file__).resolve().parents[2] / "csrc" / "cuda" / HARNESS[1]
BARRIERS = SOURCE.read_text().count("__syncthreads();")


class Found(NamedTuple):
    keypoints: Keypoints
    depth: torch.Tensor


class Linear(NamedTuple):
    weight: torch.Tensor
    bias: torch.Tensor


@pytest.fixture(scope="module")
def library(build_for_host: Callable[..., ctypes.CDLL]) -> ctypes.CDLL:
    return build_for_host(*HARNESS)


def linear(h: int, w: int, dtype: torch.dtype) -> Linear:
    g = torch.Generator().manual_seed(9)
    inputs = 14 * h * w
    return Linear((torch.randn(14, inputs, generator=g) / math.sqrt(inputs)).to(dtype), torch.randn(14, generator=g))


def on_host(
    library: ctypes.CDLL,
    maps: torch.Tensor,
    head: Linear,
    mode: str = "soft",
    beta: float = 100.0,
    window: int | None = None,
    schedule: str = "forward",
    seed: int = 0,
    memory: torch.Tensor | None = None,
    overlap: int = 1,
) -> Found:
    poses = len(maps)
    uv, confidence = torch.full((poses, 14, 2), 777.0), torch.full((poses, 14), 777.0)
    status, depth = torch.full((poses, 14), 77, dtype=torch.uint8), torch.full((poses, 14), 777.0)
    library.host_memory.restype = ctypes.c_size_t
    if memory is None:
        memory = torch.randint(0, 256, (library.host_memory(poses),), dtype=torch.uint8, generator=torch.Generator())
    code = library.host_soft_argmax_depth(
        *sizes(maps, mode, beta, window),
        *(pointer(x) for x in (*head, uv, confidence, status, depth, memory)),
        SCHEDULES[schedule],
        seed,
        overlap,
    )
    if code:
        raise RuntimeError(f"code {code}")
    return Found(Keypoints(uv, confidence, status), depth)


def assert_depth(found: torch.Tensor, maps: torch.Tensor, head: Linear) -> None:
    """At most twice the error of torch in float32, and 1e-6 of the values' size: factors of 16 bits are exact in float32."""
    exact = torch.nn.functional.linear(maps.double().flatten(1), head.weight.double(), head.bias.double())
    single = torch.nn.functional.linear(maps.float().flatten(1), head.weight.float(), head.bias)
    assert torch.equal(found.isfinite(), exact.isfinite())
    good = exact.isfinite()
    own = (single[good] - exact[good]).abs().max()
    assert (found[good] - exact[good]).abs().max() <= 2 * own + 1e-6 * exact[good].abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("poses", "h", "w"), [(3, 64, 64), (19, 16, 24), (2, 1, 1), (17, 7, 5), (1, 33, 97), (2, 128, 8)])
def test_equals_the_twins(library: ctypes.CDLL, poses: int, h: int, w: int, dtype: torch.dtype) -> None:
    maps, head = heatmaps(poses, h, w).to(dtype), linear(h, w, dtype)
    for mode, beta, window in (("argmax", 1.0, None), ("soft", 100.0, None), ("soft", 3.0, None), ("soft", 10.0, 4)):
        found = on_host(library, maps, head, mode, beta, window)
        assert_equals_twin(found.keypoints, maps, mode, beta, window)
        assert_depth(found.depth, maps, head)


@pytest.mark.parametrize("window", [None, 2])
def test_maps_that_are_not_valid(library: ctypes.CDLL, window: int | None) -> None:
    """Keypoints of the other maps are not touched; depth, to which all of a pose's maps contribute, is a linear layer's."""
    maps, head = heatmaps(3, 16, 16), linear(16, 16, torch.float32)
    maps[0, 0, 15, 11] = math.nan
    maps[0, 1, 3, 3] = -math.nan
    maps[0, 2, 0, 0] = math.inf
    maps[0, 6] = -math.inf
    maps[2, 7, 4:] = -math.inf
    maps[1, 8] = -0.0
    maps[1, 8, 5, 5] = 0.0  # equal to its neighbours: the first pixel wins
    found = on_host(library, maps, head, "soft", 20.0, window)
    assert found.keypoints.status.nonzero().tolist() == [[0, 0], [0, 1], [0, 2], [0, 6]]
    assert_equals_twin(found.keypoints, maps, "soft", 20.0, window)
    assert_depth(found.depth[1:2], maps[1:2], head)
    assert found.depth[0].isnan().all()
    assert not found.depth[2].isfinite().any()


def test_what_is_not_aligned(library: ctypes.CDLL) -> None:
    """The first value of maps or weights stands anywhere: no vector may be read."""
    maps, head = heatmaps(2, 16, 16), linear(16, 16, torch.float32)
    expected = on_host(library, maps, head)

    def moved(x: torch.Tensor) -> torch.Tensor:
        whole = torch.zeros(x.numel() + 1)
        whole[1:] = x.flatten()
        return whole[1:].view(x.shape)

    for given, weight in ((moved(maps), head.weight), (maps, moved(head.weight))):
        found = on_host(library, given, Linear(weight, head.bias))
        torch.testing.assert_close(found.depth, expected.depth)
        torch.testing.assert_close(found.keypoints.uv, expected.keypoints.uv)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_alone_and_in_a_batch(library: ctypes.CDLL, dtype: torch.dtype) -> None:
    maps, head = heatmaps(18, 16, 16).to(dtype), linear(16, 16, dtype)
    together = on_host(library, maps, head)
    for i in (0, 7, 17):
        alone = on_host(library, maps[i : i + 1].clone(), head)
        assert torch.equal(alone.depth[0], together.depth[i])
        assert torch.equal(alone.keypoints.uv[0], together.keypoints.uv[i])


@pytest.mark.parametrize(("schedule", "seed"), [("reverse", 0), ("random", 1), ("uneven", 2), ("uneven", 3)])
@pytest.mark.parametrize("overlap", [1, 5, 28])
def test_every_schedule_gives_the_same(library: ctypes.CDLL, schedule: str, seed: int, overlap: int) -> None:
    """Blocks that come in another order, one after the other or side by side."""
    maps, head = heatmaps(18, 24, 24).half(), linear(24, 24, torch.float16)
    first, other = on_host(library, maps, head), on_host(library, maps, head, schedule=schedule, seed=seed, overlap=overlap)
    for a, b in zip((*first.keypoints, first.depth), (*other.keypoints, other.depth), strict=True):
        assert torch.equal(a, b)


def test_its_memory_may_hold_anything(library: ctypes.CDLL) -> None:
    maps, head = heatmaps(18, 8, 8), linear(8, 8, torch.float32)
    expected = on_host(library, maps, head).depth
    memory = torch.full((library.host_memory(18),), 255, dtype=torch.uint8)
    for _ in range(3):  # what the launch before left there
        assert torch.equal(on_host(library, maps, head, memory=memory).depth, expected)


def test_channels_last_are_refused(library: ctypes.CDLL) -> None:
    maps = heatmaps(2, 8, 8).to(memory_format=torch.channels_last)
    with pytest.raises(RuntimeError, match="code 1"):
        on_host(library, maps, linear(8, 8, torch.float32))


def test_barriers_are_as_many_as_the_table_says(library: ctypes.CDLL) -> None:
    barriers = runpy.run_path(str(SOURCE.parents[2] / "scripts" / "kernel_resources.py"))["barriers"]
    blocks = 2 * 14  # two tiles of poses
    meet = meetings(library, lambda: on_host(library, heatmaps(17, 8, 8), linear(8, 8, torch.float32)))
    assert meet == (blocks * barriers("depth<1>")[0], 0)


@pytest.mark.parametrize("index", range(BARRIERS))
def test_a_dropped_barrier_is_caught(build_for_host: Callable[..., ctypes.CDLL], index: int) -> None:
    """One of them makes a block's results complete before it counts as arrived: that takes blocks side by side."""
    broken = build_for_host(*HARNESS, without_barrier(index))
    maps, head = heatmaps(16, 4, 8).half(), linear(4, 8, torch.float16)
    wrong = 0
    for seed in range(12):
        try:
            found = on_host(broken, maps, head, "soft", 3.0, schedule="uneven", seed=seed, overlap=14)
            assert_equals_twin(found.keypoints, maps, "soft", 3.0, None)
            assert_depth(found.depth, maps, head)
        except (AssertionError, RuntimeError):
            wrong += 1
    assert wrong


def test_an_arrival_that_is_not_counted_anew_is_caught(build_for_host: Callable[..., ctypes.CDLL]) -> None:
    """A count that trusted what it found in memory would take a block for the last one, or none."""

    def trusting(text: str) -> str:
        return re.sub(r"\(before & ~0xffull\) == launch \? unsigned\(before & 0xff\) : 0u", "unsigned(before & 0xff)", text)

    broken = build_for_host(*HARNESS, trusting)
    maps, head = heatmaps(2, 8, 8), linear(8, 8, torch.float32)
    memory = torch.full((broken.host_memory(2),), 5, dtype=torch.uint8)
    with pytest.raises(AssertionError):
        assert_depth(on_host(broken, maps, head, memory=memory).depth, maps, head)
