"""soft_argmax.cu in the emulator, against the torch reference in float64."""

from __future__ import annotations

import ctypes
import math
import runpy
from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch")

from jointbert.models.heatmap import Keypoints, soft_argmax  # noqa: E402
from tests.support.cuda_builds import (  # noqa: E402
    ROOT,
    SCHEDULES,
    barrier_counts,
    synchronisations,
    with_droppable_synchronisations,
)
from tests.support.heatmaps import DTYPES, assert_equals_reference, heatmaps, kernel_arguments, pointer  # noqa: E402

HARNESS = ("soft_argmax_host.cpp", "heatmaps/soft_argmax.cu")
BARRIERS = synchronisations(HARNESS[1])


def full_size(*values: object) -> object:
    """Parameters of a case for --full."""
    return pytest.param(*values, marks=pytest.mark.full)


def small(*values: object) -> object:
    """Parameters of a case that also runs under the sanitizers."""
    return pytest.param(*values, marks=pytest.mark.sanitize)


@pytest.fixture(scope="module")
def library(build_for_host: Callable[..., ctypes.CDLL]) -> ctypes.CDLL:
    return build_for_host(*HARNESS)


def on_host(
    library: ctypes.CDLL,
    maps: torch.Tensor,
    mode: str = "soft",
    beta: float = 100.0,
    window: int | None = None,
    schedule: str = "forward",
    seed: int = 0,
) -> Keypoints:
    uv, confidence = torch.full((*maps.shape[:2], 2), 777.0), torch.full(maps.shape[:2], 777.0)
    status = torch.full(maps.shape[:2], 77, dtype=torch.uint8)
    code = library.host_soft_argmax(
        *kernel_arguments(maps, mode, beta, window),
        pointer(uv),
        pointer(confidence),
        pointer(status),
        SCHEDULES[schedule],
        seed,
    )
    if code:
        raise RuntimeError(f"code {code}")
    return Keypoints(uv, confidence, status)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(
    ("h", "w"), [(64, 64), (128, 128), (1, 1), small(7, 5), (128, 3), full_size(60, 80), full_size(1, 128), small(33, 97)]
)
def test_equals_the_reference(library: ctypes.CDLL, h: int, w: int, last: bool, dtype: torch.dtype) -> None:
    maps = heatmaps(2, h, w).to(dtype)
    if last:
        maps = maps.to(memory_format=torch.channels_last)
        if maps.is_contiguous():
            pytest.skip("one pixel: both layouts are the same")
    for mode, beta, window in (
        ("argmax", 1.0, None),
        ("soft", 100.0, None),
        ("soft", 3.0, None),
        ("soft", 10.0, 4),
        ("soft", 5.0, 0),
    ):
        assert_equals_reference(on_host(library, maps, mode, beta, window), maps, mode, beta, window)


@pytest.mark.sanitize
def test_vector_loads_of_a_large_map(library: ctypes.CDLL) -> None:
    maps = heatmaps(1, 60, 80).half()
    assert_equals_reference(on_host(library, maps), maps, "soft", 100.0, None)


@pytest.mark.sanitize
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("mode", ["argmax", "soft"])
def test_invalid_maps(library: ctypes.CDLL, mode: str, last: bool) -> None:
    maps = heatmaps(1, 16, 12)
    maps[0, 0, 15, 11] = math.nan
    maps[0, 1, 3, 3] = -math.nan
    maps[0, 2, 0, 0] = math.inf
    maps[0, 6] = -math.inf
    maps[0, 7, 4:] = -math.inf
    maps[0, 8] = -0.0
    maps[0, 8, 5, 5] = 0.0  # equal to its neighbours: the first pixel wins
    if last:
        maps = maps.to(memory_format=torch.channels_last)
    found = on_host(library, maps, mode)
    assert found.status[0, :8].tolist() == [1, 1, 1, 0, 0, 0, 1, 0]
    assert_equals_reference(found, maps, mode, 100.0, None)


@pytest.mark.sanitize
def test_unaligned_maps(library: ctypes.CDLL) -> None:
    """A vector load would fail: the first value is not aligned to one."""
    for dtype in DTYPES:
        whole = torch.zeros(14 * 64 * 64 + 1, dtype=dtype)
        maps = whole[1:].view(1, 14, 64, 64)
        maps.copy_(heatmaps(1, 64, 64).to(dtype))
        assert maps.data_ptr() % 16
        assert_equals_reference(on_host(library, maps), maps, "soft", 100.0, None)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(("schedule", "seed"), [("reverse", 0), ("random", 1), ("random", 2), ("uneven", 3)])
def test_schedules_give_the_same_bits(library: ctypes.CDLL, schedule: str, seed: int, last: bool) -> None:
    maps = heatmaps(2, 30, 40)
    if last:
        maps = maps.to(memory_format=torch.channels_last)
    first, other = on_host(library, maps), on_host(library, maps, schedule=schedule, seed=seed)
    for a, b in zip(first, other, strict=True):
        assert torch.equal(a, b)


def backward(
    library: ctypes.CDLL,
    maps: torch.Tensor,
    found: Keypoints,
    to_uv: torch.Tensor,
    to_confidence: torch.Tensor,
    mode: str,
    beta: float,
    window: int | None,
    schedule: str = "forward",
    seed: int = 0,
) -> torch.Tensor:
    result = torch.full_like(maps, 7)
    given = (pointer(x) for x in (*found, to_uv, to_confidence, result))
    assert (
        library.host_soft_argmax_backward(*kernel_arguments(maps, mode, beta, window), *given, SCHEDULES[schedule], seed) == 0
    )
    return result


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(
    ("h", "w", "mode", "beta", "window"),
    [(64, 64, "soft", 20.0, None), small(9, 13, "soft", 5.0, None), (32, 48, "soft", 8.0, 3), (16, 16, "argmax", 1.0, None)],
)
def test_backward_equals_autograd(
    library: ctypes.CDLL, h: int, w: int, mode: str, beta: float, window: int | None, last: bool, dtype: torch.dtype, full: bool
) -> None:
    maps = heatmaps(2, h, w, seed=1).to(dtype)
    maps[1, 9, 0, 0] = math.nan
    if last:
        maps = maps.to(memory_format=torch.channels_last)
    found = on_host(library, maps, mode, beta, window)
    g = torch.Generator().manual_seed(5)
    to_uv, to_confidence = torch.randn(2, 14, 2, generator=g), torch.randn(2, 14, generator=g)
    result = backward(library, maps, found, to_uv, to_confidence, mode, beta, window)
    for schedule in ("reverse", "random", "uneven") if full else ("uneven",):
        again = backward(library, maps, found, to_uv, to_confidence, mode, beta, window, schedule, 4)
        assert torch.equal(again, result)

    def by_autograd(kind: torch.dtype) -> torch.Tensor:
        leaf = maps.to(kind).requires_grad_()
        reference = soft_argmax(leaf, mode, beta, window)  # type: ignore[arg-type]
        good = (reference.status == 0).unsqueeze(-1)
        loss = (reference.confidence * to_confidence.to(kind)).sum()
        if reference.uv.requires_grad:
            loss = loss + (torch.where(good, reference.uv, 0) * to_uv.to(kind)).sum()
        return torch.autograd.grad(loss, leaf)[0]

    exact, single = by_autograd(torch.float64), by_autograd(torch.float32)
    own = (single.to(dtype).double() - exact).abs().max()
    assert (result.double() - exact).abs().max() <= 2 * own + 1e-5
    assert not result[1, 9].any()


@pytest.mark.parametrize("last", [False, True])
def test_barrier_counts_are_those_of_kernel_resources(library: ctypes.CDLL, last: bool) -> None:
    barriers = runpy.run_path(str(ROOT / "scripts" / "kernel_resources.py"))["barriers"]
    maps = heatmaps(2, 16, 16).to(memory_format=torch.channels_last if last else torch.contiguous_format)
    blocks = 2 if last else 28
    assert barrier_counts(library, lambda: on_host(library, maps)) == (
        blocks * barriers("pixels" if last else "maps<256, 1>")[0],
        0,
    )
    found, zeros = on_host(library, maps), torch.zeros(2, 14, 2)
    counts = barrier_counts(
        library, lambda: backward(library, maps, found, zeros, zeros[..., 0].contiguous(), "soft", 20.0, None)
    )
    good = int((found.status == 0).sum())  # the others have no gradient
    assert counts == (good * barriers("backward")[0], 0)


@pytest.fixture(scope="module")
def droppable(build_for_host: Callable[..., ctypes.CDLL], tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The kernels, with barriers that can be left out."""
    return build_for_host(*HARNESS, with_droppable_synchronisations(tmp_path_factory.mktemp("droppable"), HARNESS[1]))


@pytest.mark.parametrize("index", range(len(BARRIERS)), ids=map(str, BARRIERS))
def test_every_barrier_is_needed(droppable: ctypes.CDLL, index: int) -> None:
    """Without it some schedule gives a wrong result, which shows that this harness can fail."""
    maps = heatmaps(2, 40, 40)

    def is_wrong(given: torch.Tensor, schedule: str) -> bool:
        exact = soft_argmax(given.double(), "soft", 3.0)
        found = on_host(droppable, given, "soft", 3.0, schedule=schedule, seed=1)
        if not torch.allclose(found.uv.double(), exact.uv, atol=1e-3):
            return True
        gradient = torch.zeros_like(given)
        ones = torch.ones(2, 14, 2)
        fine = Keypoints(exact.uv.float(), exact.confidence.float(), exact.status)
        code = droppable.host_soft_argmax_backward(
            *kernel_arguments(given, "soft", 3.0, None),
            *(pointer(x) for x in (*fine, ones, ones, gradient)),
            SCHEDULES[schedule],
            1,
        )
        leaf = given.double().requires_grad_()
        reference = soft_argmax(leaf, "soft", 3.0)
        (expected,) = torch.autograd.grad(reference.uv.sum() + reference.confidence.sum(), leaf)
        return code != 0 or not torch.allclose(gradient.double(), expected, atol=1e-2)

    layouts = [maps, maps.to(memory_format=torch.channels_last)]
    assert not any(is_wrong(given, "forward") for given in layouts)
    droppable.host_drop_synchronisation(index)
    try:
        assert any(is_wrong(given, schedule) for given in layouts for schedule in SCHEDULES)
    finally:
        droppable.host_drop_synchronisation(-1)
