"""soft_argmax_depth.cu in the emulator: keypoints and depth offsets against the torch references in float64."""

from __future__ import annotations

import ctypes
import math
import re
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

torch = pytest.importorskip("torch")

from jointbert.models.heatmap import Keypoints  # noqa: E402
from tests.support.cuda_builds import (  # noqa: E402
    CSRC,
    ROOT,
    SCHEDULES,
    barrier_counts,
    synchronisations,
    with_droppable_synchronisations,
)
from tests.support.heatmaps import assert_equals_reference, heatmaps, kernel_arguments, pointer  # noqa: E402

HARNESS = ("soft_argmax_depth_host.cpp", "heatmaps/soft_argmax_depth.cu")
BARRIERS = synchronisations(HARNESS[1])
NOT_SHOWN = "__syncwarp();"
"""Lanes that diverged give the right products in the emulator, so that it can't show this one to be needed."""


def small(*values: object) -> object:
    """Parameters of a case that also runs under the sanitizers."""
    return pytest.param(*values, marks=pytest.mark.sanitize)


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
    resident_blocks: int = 1,
) -> Found:
    poses = len(maps)
    uv, confidence = torch.full((poses, 14, 2), 777.0), torch.full((poses, 14), 777.0)
    status, depth = torch.full((poses, 14), 77, dtype=torch.uint8), torch.full((poses, 14), 777.0)
    library.host_memory.restype = ctypes.c_size_t
    if memory is None:
        memory = torch.randint(0, 256, (library.host_memory(poses),), dtype=torch.uint8, generator=torch.Generator())
    code = library.host_soft_argmax_depth(
        *kernel_arguments(maps, mode, beta, window),
        *(pointer(x) for x in (*head, uv, confidence, status, depth, memory)),
        SCHEDULES[schedule],
        seed,
        resident_blocks,
    )
    if code:
        raise RuntimeError(f"code {code}")
    return Found(Keypoints(uv, confidence, status), depth)


def assert_depth(found: torch.Tensor, maps: torch.Tensor, head: Linear) -> None:
    """At most twice torch's float32 error, and 1e-6 of the values' size. Products of 16-bit values are exact in float32."""
    exact = torch.nn.functional.linear(maps.double().flatten(1), head.weight.double(), head.bias.double())
    single = torch.nn.functional.linear(maps.float().flatten(1), head.weight.float(), head.bias)
    assert torch.equal(found.isfinite(), exact.isfinite())
    good = exact.isfinite()
    own = (single[good] - exact[good]).abs().max()
    assert (found[good] - exact[good]).abs().max() <= 2 * own + 1e-6 * exact[good].abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("poses", "h", "w"),
    [
        (3, 64, 64),
        small(19, 16, 24),
        (2, 1, 1),
        small(17, 7, 5),
        small(1, 33, 97),
        pytest.param(2, 128, 8, marks=pytest.mark.full),
    ],
)
def test_equals_the_references(library: ctypes.CDLL, poses: int, h: int, w: int, dtype: torch.dtype) -> None:
    maps, head = heatmaps(poses, h, w).to(dtype), linear(h, w, dtype)
    for mode, beta, window in (("argmax", 1.0, None), ("soft", 100.0, None), ("soft", 3.0, None), ("soft", 10.0, 4)):
        found = on_host(library, maps, head, mode, beta, window)
        assert_equals_reference(found.keypoints, maps, mode, beta, window)
        assert_depth(found.depth, maps, head)


@pytest.mark.sanitize
@pytest.mark.parametrize("window", [None, 2])
def test_invalid_maps(library: ctypes.CDLL, window: int | None) -> None:
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
    assert_equals_reference(found.keypoints, maps, "soft", 20.0, window)
    assert_depth(found.depth[1:2], maps[1:2], head)
    assert found.depth[0].isnan().all()
    assert not found.depth[2].isfinite().any()


@pytest.mark.sanitize
def test_unaligned_maps_and_weights(library: ctypes.CDLL) -> None:
    """A vector load would fail: the first value is not aligned to one."""
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


@pytest.mark.parametrize(
    ("schedule", "seed"), [("reverse", 0), ("random", 1), ("uneven", 2), pytest.param("uneven", 3, marks=pytest.mark.full)]
)
@pytest.mark.parametrize("resident_blocks", [1, 5, 28])
def test_schedules_give_the_same_bits(library: ctypes.CDLL, schedule: str, seed: int, resident_blocks: int) -> None:
    """Blocks in another order, one or several at a time."""
    maps, head = heatmaps(18, 24, 24).half(), linear(24, 24, torch.float16)
    first, other = (
        on_host(library, maps, head),
        on_host(library, maps, head, schedule=schedule, seed=seed, resident_blocks=resident_blocks),
    )
    for a, b in zip((*first.keypoints, first.depth), (*other.keypoints, other.depth), strict=True):
        assert torch.equal(a, b)


@pytest.mark.sanitize
def test_any_contents_of_its_memory(library: ctypes.CDLL) -> None:
    maps, head = heatmaps(18, 8, 8), linear(8, 8, torch.float32)
    expected = on_host(library, maps, head).depth
    memory = torch.full((library.host_memory(18),), 255, dtype=torch.uint8)
    for _ in range(3):  # the contents that the launch before left
        assert torch.equal(on_host(library, maps, head, memory=memory).depth, expected)


def test_channels_last_are_refused(library: ctypes.CDLL) -> None:
    maps = heatmaps(2, 8, 8).to(memory_format=torch.channels_last)
    with pytest.raises(RuntimeError, match="code 1"):
        on_host(library, maps, linear(8, 8, torch.float32))


def test_barrier_counts_are_those_of_kernel_resources(library: ctypes.CDLL) -> None:
    barriers = runpy.run_path(str(ROOT / "scripts" / "kernel_resources.py"))["barriers"]
    blocks = 2 * 14  # two tiles of poses
    counts = barrier_counts(library, lambda: on_host(library, heatmaps(17, 8, 8), linear(8, 8, torch.float32)))
    assert counts == (blocks * barriers("depth<1>")[0], 0)


@pytest.fixture(scope="module")
def droppable(build_for_host: Callable[..., ctypes.CDLL], tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The kernel, with barriers that can be left out."""
    return build_for_host(*HARNESS, with_droppable_synchronisations(tmp_path_factory.mktemp("droppable"), HARNESS[1]))


def test_all_barriers_but_one_are_tried() -> None:
    assert [b.text for b in BARRIERS if b.text != "__syncthreads();"] == [NOT_SHOWN]


@pytest.mark.parametrize("index", [i for i, b in enumerate(BARRIERS) if b.text != NOT_SHOWN])
def test_every_barrier_is_needed(droppable: ctypes.CDLL, index: int) -> None:
    """One of them completes a block's results before it counts as arrived: only blocks that run together show that."""
    maps, head = heatmaps(16, 4, 8).half(), linear(4, 8, torch.float16)

    def is_wrong(seed: int) -> bool:
        try:
            found = on_host(droppable, maps, head, "soft", 3.0, schedule="uneven", seed=seed, resident_blocks=14)
            assert_equals_reference(found.keypoints, maps, "soft", 3.0, None)
            assert_depth(found.depth, maps, head)
        except (AssertionError, RuntimeError):
            return True
        return False

    assert not is_wrong(0)
    droppable.host_drop_synchronisation(index)
    try:
        assert any(is_wrong(seed) for seed in range(12))
    finally:
        droppable.host_drop_synchronisation(-1)


def test_counts_of_another_launch_are_not_trusted(build_for_host: Callable[..., ctypes.CDLL], tmp_path: Path) -> None:
    """A kernel that trusts the count it finds in memory takes a wrong block for the last one, or none."""
    copy = Path(shutil.copytree(CSRC, tmp_path / "csrc"))
    source = copy / "cuda" / HARNESS[1]
    text, replaced = re.subn(
        r"\(before & ~0xffull\) == launch_id \? unsigned\(before & 0xff\) : 0u", "unsigned(before & 0xff)", source.read_text()
    )
    assert replaced == 1
    source.write_text(text)
    broken = build_for_host(*HARNESS, copy)
    maps, head = heatmaps(2, 8, 8), linear(8, 8, torch.float32)
    memory = torch.full((broken.host_memory(2),), 5, dtype=torch.uint8)
    with pytest.raises(AssertionError):
        assert_depth(on_host(broken, maps, head, memory=memory).depth, maps, head)
