"""soft_argmax.cu, compiled for the host, against the torch twin in float64."""

from __future__ import annotations

import ctypes
import math
import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from jointbert.models.heatmap import Keypoints, soft_argmax  # noqa: E402
from tests.cuda.conftest import meetings  # noqa: E402

DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
SCHEDULES = {"forward": 0, "reverse": 1, "random": 2, "uneven": 3}
HARNESS = ("soft_argmax_host.cpp", "soft_argmax.cu")
BARRIERS = (Path(__file__).resolve().parents[2] / "csrc" / "cuda" / "soft_argmax.cu").read_text().count("__syncthreads();")


@pytest.fixture(scope="module")
def library(build_for_host: Callable[..., ctypes.CDLL]) -> ctypes.CDLL:
    return build_for_host(*HARNESS)


def pointer(tensor: torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def sizes(maps: torch.Tensor, mode: str, beta: float, window: int | None) -> tuple[Any, ...]:
    poses, _, h, w = maps.shape
    last = not maps.is_contiguous()
    assert not last or maps.is_contiguous(memory_format=torch.channels_last)
    return (
        pointer(maps),
        DTYPES[maps.dtype],
        poses,
        h,
        w,
        int(last),
        int(mode == "soft"),
        ctypes.c_float(beta),
        -1 if window is None else window,
    )


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
        *sizes(maps, mode, beta, window), pointer(uv), pointer(confidence), pointer(status), SCHEDULES[schedule], seed
    )
    if code:
        raise RuntimeError(f"code {code}")
    return Keypoints(uv, confidence, status)


def heatmaps(poses: int, h: int, w: int, seed: int = 0) -> torch.Tensor:
    """Blobs of any height at any place, with noise; some maps flat, some with equal peaks."""
    g = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    u, v = (torch.rand(poses, 14, 1, 1, generator=g) * n for n in (w, h))
    maps = torch.rand(poses, 14, 1, 1, generator=g) * 1.2 * torch.exp(-((x - u) ** 2 + (y - v) ** 2) / 8)
    maps = maps + 0.01 * torch.randn(poses, 14, h, w, generator=g)
    maps[:, 3] = 0.25
    maps[:, 4] = (maps[:, 4] * 4).round() / 4
    maps[:, 5] = -maps[:, 5] - 1
    return maps


def assert_equals_twin(found: Keypoints, maps: torch.Tensor, mode: str, beta: float, window: int | None) -> None:
    """At most twice torch's own float32 error, and 1e-5 pixels."""
    exact = soft_argmax(maps.double(), mode, beta, window)  # type: ignore[arg-type]
    single = soft_argmax(maps.float(), mode, beta, window)  # type: ignore[arg-type]
    assert torch.equal(found.status, exact.status)
    assert torch.equal(found.uv.isnan(), exact.uv.isnan())
    assert torch.equal(found.confidence, exact.confidence.float())
    good = exact.status == 0
    if good.any():
        own = (single.uv[good] - exact.uv[good]).abs().max()
        assert (found.uv[good] - exact.uv[good]).abs().max() <= 2 * own + 1e-5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(("h", "w"), [(64, 64), (128, 128), (1, 1), (7, 5), (128, 3), (60, 80), (1, 128), (33, 97)])
def test_equals_the_twin(library: ctypes.CDLL, h: int, w: int, last: bool, dtype: torch.dtype) -> None:
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
        assert_equals_twin(on_host(library, maps, mode, beta, window), maps, mode, beta, window)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("mode", ["argmax", "soft"])
def test_maps_that_are_not_valid(library: ctypes.CDLL, mode: str, last: bool) -> None:
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
    assert_equals_twin(found, maps, mode, 100.0, None)


def test_a_map_that_is_not_aligned(library: ctypes.CDLL) -> None:
    """Its first value stands anywhere: no vector may be read."""
    for dtype in DTYPES:
        whole = torch.zeros(14 * 64 * 64 + 1, dtype=dtype)
        maps = whole[1:].view(1, 14, 64, 64)
        maps.copy_(heatmaps(1, 64, 64).to(dtype))
        assert maps.data_ptr() % 16
        assert_equals_twin(on_host(library, maps), maps, "soft", 100.0, None)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(("schedule", "seed"), [("reverse", 0), ("random", 1), ("random", 2), ("uneven", 3)])
def test_every_schedule_gives_the_same(library: ctypes.CDLL, schedule: str, seed: int, last: bool) -> None:
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
    assert library.host_soft_argmax_backward(*sizes(maps, mode, beta, window), *given, SCHEDULES[schedule], seed) == 0
    return result


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(
    ("h", "w", "mode", "beta", "window"),
    [(64, 64, "soft", 20.0, None), (9, 13, "soft", 5.0, None), (32, 48, "soft", 8.0, 3), (16, 16, "argmax", 1.0, None)],
)
def test_backward_equals_autograd(
    library: ctypes.CDLL, h: int, w: int, mode: str, beta: float, window: int | None, last: bool, dtype: torch.dtype
) -> None:
    maps = heatmaps(2, h, w, seed=1).to(dtype)
    maps[1, 9, 0, 0] = math.nan
    if last:
        maps = maps.to(memory_format=torch.channels_last)
    found = on_host(library, maps, mode, beta, window)
    g = torch.Generator().manual_seed(5)
    to_uv, to_confidence = torch.randn(2, 14, 2, generator=g), torch.randn(2, 14, generator=g)
    result = backward(library, maps, found, to_uv, to_confidence, mode, beta, window)
    for schedule in ("reverse", "random", "uneven"):
        again = backward(library, maps, found, to_uv, to_confidence, mode, beta, window, schedule, 4)
        assert torch.equal(again, result)

    def by_autograd(kind: torch.dtype) -> torch.Tensor:
        leaf = maps.to(kind).requires_grad_()
        twin = soft_argmax(leaf, mode, beta, window)  # type: ignore[arg-type]
        good = (twin.status == 0).unsqueeze(-1)
        loss = (twin.confidence * to_confidence.to(kind)).sum()
        if twin.uv.requires_grad:
            loss = loss + (torch.where(good, twin.uv, 0) * to_uv.to(kind)).sum()
        return torch.autograd.grad(loss, leaf)[0]

    exact, single = by_autograd(torch.float64), by_autograd(torch.float32)
    own = (single.to(dtype).double() - exact).abs().max()
    assert (result.double() - exact).abs().max() <= 2 * own + 1e-5
    assert not result[1, 9].any()


@pytest.mark.parametrize("last", [False, True])
def test_barriers_are_as_many_as_the_table_says(library: ctypes.CDLL, last: bool) -> None:
    script = Path(__file__).resolve().parents[2] / "scripts" / "kernel_resources.py"
    barriers = runpy.run_path(str(script))["barriers"]
    maps = heatmaps(2, 16, 16).to(memory_format=torch.channels_last if last else torch.contiguous_format)
    blocks = 2 if last else 28
    assert meetings(library, lambda: on_host(library, maps)) == (blocks * barriers("pixels" if last else "maps<256, 1>")[0], 0)
    found, zeros = on_host(library, maps), torch.zeros(2, 14, 2)
    meet = meetings(library, lambda: backward(library, maps, found, zeros, zeros[..., 0].contiguous(), "soft", 20.0, None))
    good = int((found.status == 0).sum())  # the others have no gradient
    assert meet == (good * barriers("backward")[0], 0)


def without_barrier(index: int) -> Callable[[str], str]:
    def change(text: str) -> str:
        found = [m.start() for m in re.finditer(r"__syncthreads\(\);", text)]
        return text[: found[index]] + text[found[index] :].replace("__syncthreads();", "", 1)

    return change


@pytest.mark.parametrize("index", range(BARRIERS))
def test_a_dropped_barrier_is_caught(build_for_host: Callable[..., ctypes.CDLL], index: int) -> None:
    """Each of the file's barriers is needed, and this harness can fail."""
    broken = build_for_host(*HARNESS, without_barrier(index))
    maps = heatmaps(2, 40, 40)
    layouts = [maps, maps.to(memory_format=torch.channels_last)]
    wrong = 0
    for given in layouts:
        exact = soft_argmax(given.double(), "soft", 3.0)
        for schedule in SCHEDULES:
            found = on_host(broken, given, "soft", 3.0, schedule=schedule, seed=1)
            wrong += not torch.allclose(found.uv.double(), exact.uv, atol=1e-3)
            gradient = torch.zeros_like(given)
            ones = torch.ones(2, 14, 2)
            fine = Keypoints(exact.uv.float(), exact.confidence.float(), exact.status)
            code = broken.host_soft_argmax_backward(
                *sizes(given, "soft", 3.0, None),
                *(pointer(x) for x in (*fine, ones, ones, gradient)),
                SCHEDULES[schedule],
                1,
            )
            leaf = given.double().requires_grad_()
            twin = soft_argmax(leaf, "soft", 3.0)
            (expected,) = torch.autograd.grad(twin.uv.sum() + twin.confidence.sum(), leaf)
            wrong += code != 0 or not torch.allclose(gradient.double(), expected, atol=1e-2)
    assert wrong
