"""The heatmap operators on a GPU, against the torch reference."""

from __future__ import annotations

import math
import os

import pytest

torch = pytest.importorskip("torch")

if not os.environ.get("JOINTBERT_NEEDS_GPU"):  # where it is set, what is missing fails
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU", allow_module_level=True)
    pytest.importorskip("jointbert._cuda", reason="built without GPU kernels")

from jointbert.models import operators  # noqa: E402
from jointbert.models.heatmap import soft_argmax  # noqa: E402

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def sanitized(*values: object) -> object:
    """Parameters of a case that also runs under compute-sanitizer."""
    return pytest.param(*values, marks=pytest.mark.sanitize)


def heatmaps(poses: int, h: int, w: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    u, v = (torch.rand(poses, 14, 1, 1, generator=g) * n for n in (w, h))
    maps = torch.rand(poses, 14, 1, 1, generator=g) * torch.exp(-((x - u) ** 2 + (y - v) ** 2) / 8)
    maps = maps + 0.01 * torch.randn(poses, 14, h, w, generator=g)
    maps[0, 2] = 0.5
    maps[0, 3, 0, 0] = math.nan
    return maps


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(
    ("poses", "h", "w"), [(1, 64, 64), (256, 64, 64), sanitized(3, 128, 128), sanitized(5, 7, 5), (2, 60, 80)]
)
@pytest.mark.parametrize(("mode", "beta", "window"), [("argmax", 1.0, None), ("soft", 100.0, None), ("soft", 10.0, 4)])
def test_equals_the_reference(
    poses: int, h: int, w: int, last: bool, dtype: torch.dtype, mode: str, beta: float, window: int | None
) -> None:
    maps = heatmaps(poses, h, w).to(dtype)
    if last:
        maps = maps.to(memory_format=torch.channels_last)
    exact = soft_argmax(maps.double(), mode, beta, window)  # type: ignore[arg-type]
    single = soft_argmax(maps.float(), mode, beta, window)  # type: ignore[arg-type]
    found = operators.soft_argmax(maps.cuda(), mode, beta, window)  # type: ignore[arg-type]
    uv, confidence, status = (x.cpu() for x in found)
    assert torch.equal(status, exact.status)
    assert torch.equal(confidence, exact.confidence.float())
    good = exact.status == 0
    own = (single.uv[good] - exact.uv[good]).abs().max()
    assert (uv[good] - exact.uv[good]).abs().max() <= 2 * own + 1e-5
    assert uv[~good].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("last", [False, True])
def test_gradient_equals_autograd(dtype: torch.dtype, last: bool) -> None:
    maps = heatmaps(4, 64, 64).to(dtype)
    if last:
        maps = maps.to(memory_format=torch.channels_last)

    def gradient(leaf: torch.Tensor, f: object) -> torch.Tensor:
        leaf = leaf.detach().requires_grad_()
        uv, confidence, status = f(leaf, "soft", 20.0, 5)  # type: ignore[operator]
        loss = torch.where((status == 0).unsqueeze(-1), uv, 0).sum() + confidence.square().sum()
        return torch.autograd.grad(loss, leaf)[0]

    exact = gradient(maps.double(), soft_argmax)
    own = (gradient(maps.float(), soft_argmax).to(dtype).double() - exact).abs().max()
    found = gradient(maps.cuda(), operators.soft_argmax).cpu().double()
    assert (found - exact).abs().max() <= 2 * own + 1e-5


@pytest.mark.sanitize
@pytest.mark.parametrize("mode", ["soft", "argmax"])
def test_gradients_of_any_layout(mode: str) -> None:
    whole = heatmaps(3, 40, 36).cuda()
    for maps in (whole, whole.transpose(-1, -2), whole.to(memory_format=torch.channels_last)[:, :, ::2], whole[1:], whole[:0]):

        def gradient(f: object, given: torch.Tensor = maps) -> torch.Tensor:
            leaf = given.detach().requires_grad_()
            uv, confidence, status = f(leaf, mode, 5.0)  # type: ignore[operator]
            loss = confidence.square().sum()
            if uv.requires_grad:
                loss = loss + torch.where((status == 0).unsqueeze(-1), uv, 0).sum()
            return torch.autograd.grad(loss, leaf)[0]

        torch.testing.assert_close(gradient(operators.soft_argmax), gradient(soft_argmax), atol=1e-4, rtol=1e-4)


def test_unsupported_types_and_shapes_use_the_reference() -> None:
    for maps in (heatmaps(2, 16, 16).cuda().double(), heatmaps(2, 16, 16).cuda()[:, :13]):
        for a, b in zip(operators.soft_argmax(maps), soft_argmax(maps), strict=True):
            torch.testing.assert_close(a, b, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_without_the_operators(dtype: torch.dtype) -> None:
    """By the functions for arrays of any library, with torch's."""
    from jointbert import heatmaps as any_library

    maps, (weight, bias) = heatmaps(3, 64, 64).to(dtype).cuda(), (x.cuda() for x in head(dtype, 64, 64))
    for found, expected in zip(any_library.soft_argmax(maps), operators.soft_argmax(maps), strict=True):
        assert torch.equal(found.nan_to_num(), expected.nan_to_num())
    both = zip(any_library.soft_argmax_depth(maps, weight, bias), operators.soft_argmax_depth(maps, weight, bias), strict=True)
    for found, expected in both:
        assert torch.equal(found.nan_to_num(), expected.nan_to_num())


def test_it_runs_on_the_current_stream() -> None:
    """The maps are written late on that stream: a launch on another stream would read the zeros before."""
    final = heatmaps(2, 64, 64).cuda()
    expected = operators.soft_argmax(final).uv
    maps = torch.zeros_like(final)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)
        maps.copy_(final)
        found = operators.soft_argmax(maps).uv
    stream.synchronize()
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def test_it_compiles_as_one_graph() -> None:
    maps = heatmaps(2, 64, 64).cuda().to(memory_format=torch.channels_last).requires_grad_()

    def loss(x: torch.Tensor) -> torch.Tensor:
        uv, confidence, status = operators.soft_argmax(x)
        return torch.where((status == 0).unsqueeze(-1), uv, 0).sum() + confidence.sum()

    (expected,) = torch.autograd.grad(loss(maps), maps)
    (found,) = torch.autograd.grad(torch.compile(loss, fullgraph=True)(maps), maps)
    torch.testing.assert_close(found, expected)


def head(dtype: torch.dtype, h: int, w: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(2)
    inputs = 14 * h * w
    return (torch.randn(14, inputs, generator=g) / inputs**0.5).to(dtype), torch.randn(14, generator=g)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("poses", "h", "w"), [(1, 64, 64), (257, 64, 64), sanitized(3, 128, 128), sanitized(17, 7, 5), (2, 60, 80)]
)
@pytest.mark.parametrize("window", [None, 4])
def test_depth_equals_the_reference(poses: int, h: int, w: int, dtype: torch.dtype, window: int | None) -> None:
    maps, (weight, bias) = heatmaps(poses, h, w).to(dtype), head(dtype, h, w)
    maps[0, 3, 0, 0] = 0.1
    exact = torch.nn.functional.linear(maps.double().flatten(1), weight.double(), bias.double())
    single = torch.nn.functional.linear(maps.float().flatten(1), weight.float(), bias)
    given = (maps.cuda(), weight.cuda(), bias.cuda())
    found = operators.soft_argmax_depth(*given, "soft", 20.0, window)
    plain = soft_argmax(maps.double(), "soft", 20.0, window)
    own = (soft_argmax(maps.float(), "soft", 20.0, window).uv - plain.uv).abs().max()
    assert (found.uv.cpu() - plain.uv).abs().max() <= 2 * own + 1e-5
    assert torch.equal(found.confidence.cpu(), plain.confidence.float())
    assert (found.depth.cpu() - exact).abs().max() <= 2 * (single - exact).abs().max() + 1e-6 * exact.abs().max()
    for _ in range(5):  # blocks end in any order; the sums must not depend on it
        assert torch.equal(operators.soft_argmax_depth(*given, "soft", 20.0, window).depth, found.depth)


def test_depth_replays_in_a_graph() -> None:
    maps, (weight, bias) = heatmaps(40, 64, 64).cuda().half(), (x.cuda() for x in head(torch.float16, 64, 64))
    expected = operators.soft_argmax_depth(maps, weight, bias).depth
    still = torch.zeros_like(maps)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = operators.soft_argmax_depth(still, weight, bias).depth
    still.copy_(maps)
    for _ in range(3):
        graph.replay()
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found[1:], expected[1:])


def test_depth_gradients() -> None:
    maps, (weight, bias) = heatmaps(5, 16, 24)[1:].cuda(), (x.cuda() for x in head(torch.float32, 16, 24))

    def gradients(f: object) -> tuple[torch.Tensor, ...]:
        leaves = [x.detach().requires_grad_() for x in (maps, weight, bias)]
        uv, confidence, _, depth = f(*leaves, "soft", 5.0)  # type: ignore[operator]
        return torch.autograd.grad(uv.sum() + confidence.square().sum() + depth.square().sum(), leaves)

    def reference(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor, mode: str, beta: float) -> tuple[torch.Tensor, ...]:
        return *soft_argmax(x, mode, beta), torch.nn.functional.linear(x.flatten(1), w, b)  # type: ignore[arg-type]

    for a, b in zip(gradients(operators.soft_argmax_depth), gradients(reference), strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)
