from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from jointbert.contract import JointbertWarning  # noqa: E402
from jointbert.models import operators  # noqa: E402
from jointbert.models.heatmap import soft_argmax  # noqa: E402


def maps(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    values = torch.rand(2, 14, 9, 12, generator=torch.Generator().manual_seed(0)).to(dtype)
    values[1, 3, 0, 0] = math.nan
    return values


@pytest.mark.parametrize(("mode", "window"), [("soft", None), ("soft", 2), ("argmax", None)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_the_operator_is_the_reference(mode: str, window: int | None, dtype: torch.dtype) -> None:
    found, expected = (f(maps(dtype), mode, 5.0, window) for f in (operators.soft_argmax, soft_argmax))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("mode", "window"), [("soft", None), ("soft", 2), ("argmax", None)])
def test_its_gradient_is_the_reference_s(mode: str, window: int | None) -> None:
    def gradient(f: object) -> torch.Tensor:
        leaf = maps(torch.float64).requires_grad_()
        uv, confidence, status = f(leaf, mode, 5.0, window)  # type: ignore[operator]
        loss = (confidence * torch.arange(14)).sum()
        if uv.requires_grad:
            loss = loss + torch.where((status == 0).unsqueeze(-1), uv, 0).square().sum()
        return torch.autograd.grad(loss, leaf)[0]

    torch.testing.assert_close(gradient(operators.soft_argmax), gradient(soft_argmax))


LAYOUTS = {
    "contiguous": lambda x: x,
    "channels last": lambda x: x.to(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(-1, -2),
    "sliced": lambda x: x.to(memory_format=torch.channels_last)[:, :, ::2],
}


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # opcheck's own, in torch 2.14
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("mode", "window"), [("soft", -1), ("soft", 2), ("argmax", -1)])
def test_opcheck(mode: str, window: int, layout: str) -> None:
    good = LAYOUTS[layout](torch.rand(2, 14, 6, 5, dtype=torch.float64)).detach().requires_grad_()
    torch.library.opcheck(torch.ops.jointbert.soft_argmax, (good, mode, 3.0, window))
    given = (torch.zeros(2, 14, dtype=torch.uint8), torch.rand(2, 14, 2).double(), torch.rand(2, 14).double())
    maps = good.detach()
    torch.library.opcheck(torch.ops.jointbert.soft_argmax_backward, (maps, *given, mode, 3.0, window))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_gradients_of_any_layout_and_precision(layout: str, dtype: torch.dtype) -> None:
    values = LAYOUTS[layout](torch.rand(2, 14, 8, 6, generator=torch.Generator().manual_seed(3)).to(dtype))

    def gradient(leaf: torch.Tensor, f: object) -> torch.Tensor:
        leaf = leaf.detach().requires_grad_()
        uv, confidence, _ = f(leaf, "soft", 4.0, None)  # type: ignore[operator]
        return torch.autograd.grad(uv.sum() + confidence.sum(), leaf)[0]

    exact = gradient(values.double(), soft_argmax)
    own = (gradient(values.float(), soft_argmax).to(dtype).double() - exact).abs().max()
    found = gradient(values, operators.soft_argmax)
    assert found.dtype == dtype
    assert (found.double() - exact).abs().max() <= 2 * own + 1e-6


def test_argmax_places_have_no_gradient() -> None:
    uv, confidence, _ = operators.soft_argmax(torch.rand(1, 14, 4, 4, requires_grad=True), "argmax")
    assert not uv.requires_grad
    assert confidence.requires_grad


def test_training_compiles_channels_last() -> None:
    def loss(x: torch.Tensor) -> torch.Tensor:
        uv, confidence, _ = operators.soft_argmax(x, "soft", 3.0)
        return uv.square().sum() + confidence.sum()

    torch.manual_seed(0)
    maps = torch.rand(2, 14, 5, 6).to(memory_format=torch.channels_last).requires_grad_()
    (expected,) = torch.autograd.grad(loss(maps), maps)
    (found,) = torch.autograd.grad(torch.compile(loss, backend="aot_eager", fullgraph=True)(maps), maps)
    torch.testing.assert_close(found, expected)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is")  # which torch.func.jvp uses
@pytest.mark.parametrize("mode", ["soft", "argmax"])
def test_derivatives_that_the_operators_lack_are_the_reference_s(mode: str) -> None:
    """In forward mode, and by beta: never a silent zero."""
    maps, direction = torch.rand(2, 14, 6, 5, dtype=torch.float64), torch.rand(2, 14, 6, 5, dtype=torch.float64)
    weight, bias = torch.rand(14, 14 * 30, dtype=torch.float64), torch.rand(14, dtype=torch.float64)

    def mine(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = operators.soft_argmax_depth(x, weight, bias, mode, 5.0)  # type: ignore[arg-type]
        return operators.soft_argmax(x, mode, 5.0).confidence, found.uv, found.confidence, found.depth  # type: ignore[arg-type]

    def reference(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        uv, confidence, _ = soft_argmax(x, mode, 5.0)  # type: ignore[arg-type]
        return confidence, uv, confidence, torch.nn.functional.linear(x.flatten(1), weight, bias)

    for a, b in zip(torch.func.jvp(mine, (maps,), (direction,)), torch.func.jvp(reference, (maps,), (direction,)), strict=True):
        for found, expected in zip(a, b, strict=True):
            torch.testing.assert_close(found, expected)
    assert torch.func.jvp(mine, (maps,), (direction,))[1][0].abs().max() > 0.01
    if mode == "soft":
        beta = torch.tensor(5.0, dtype=torch.float64, requires_grad=True)
        (found,) = torch.autograd.grad(operators.soft_argmax(maps, "soft", beta).uv.sum(), beta)  # type: ignore[arg-type]
        (expected,) = torch.autograd.grad(soft_argmax(maps, "soft", beta).uv.sum(), beta)  # type: ignore[arg-type]
        torch.testing.assert_close(found, expected)


def test_arguments_that_no_kernel_takes() -> None:
    maps = torch.rand(1, 14, 4, 4)
    with pytest.raises(TypeError, match="heatmaps: got ndarray; expected a torch tensor"):
        operators.soft_argmax(maps.numpy())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"beta: got 1e\+39; expected a positive number, 1e\+30 at most"):
        operators.soft_argmax(maps, "soft", 1e39)
    with pytest.raises(ValueError, match=r"heatmaps: got the shape \(1, 7, 4, 4\); expected \(B, 14, H, W\)"):
        operators.soft_argmax_depth(maps[:, :7], torch.rand(14, 112), torch.rand(14))


def test_it_compiles_whole() -> None:
    compiled = torch.compile(operators.soft_argmax, backend="aot_eager", fullgraph=True)
    given = torch.rand(2, 14, 5, 6)
    for a, b in zip(compiled(given, "soft", 3.0), soft_argmax(given, "soft", 3.0), strict=True):
        torch.testing.assert_close(a, b)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="beta: got -1"):
        operators.soft_argmax(maps(), "soft", -1.0)
    far = operators.soft_argmax(maps(), "soft", 1.0, 10**12)
    torch.testing.assert_close(far.uv, soft_argmax(maps(), "soft", 1.0).uv, equal_nan=True)


def test_without_kernels_there_is_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise ImportError("no GPU kernels")

    monkeypatch.setattr(operators, "load_module", missing)
    operators.has_kernels.cache_clear()
    with pytest.warns(JointbertWarning, match="no GPU kernels; torch's own operators"):
        assert not operators.has_kernels()
    assert not operators.has_kernels()  # warnings are errors in this suite
    operators.has_kernels.cache_clear()


def head(dtype: torch.dtype = torch.float32, inputs: int = 14 * 9 * 12) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(14, inputs, generator=g).to(dtype) / inputs**0.5, torch.randn(14, generator=g).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_depth_is_a_linear_layer_s(dtype: torch.dtype) -> None:
    weight, bias = head(dtype)
    found = operators.soft_argmax_depth(maps(dtype), weight, bias, "soft", 5.0, 2)
    for a, b in zip(found[:3], soft_argmax(maps(dtype), "soft", 5.0, 2), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    expected = torch.einsum("bchw,nchw->bn", maps(dtype).to(wide), weight.to(wide).view(14, 14, 9, 12)) + bias.to(wide)
    torch.testing.assert_close(found.depth, expected, equal_nan=True)
    assert found.depth.dtype == wide
    assert found.depth[1].isnan().all()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # opcheck's own, in torch 2.14
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("mode", "window"), [("soft", -1), ("soft", 2), ("argmax", -1)])
def test_depth_opcheck(mode: str, window: int, layout: str) -> None:
    """Gradients of maps, weight and bias by finite differences, too."""
    good = LAYOUTS[layout](torch.rand(2, 14, 6, 4, dtype=torch.float64)).detach().requires_grad_()
    weight, bias = (x.requires_grad_() for x in head(torch.float64, good[0].numel()))
    torch.library.opcheck(torch.ops.jointbert.soft_argmax_depth, (good, weight, bias, mode, 3.0, window))
    with_gradient = (1, 3) if mode == "argmax" else (0, 1, 3)

    def results(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = operators.soft_argmax_depth(*inputs, mode, 3.0, None if window < 0 else window)  # type: ignore[arg-type]
        return tuple(found[i] for i in with_gradient)

    torch.autograd.gradcheck(results, (good, weight, bias), fast_mode=True)


def test_depth_trains_in_half_precision() -> None:
    """Weights in float32, maps in bfloat16: what autocast gives."""
    weight, bias = (x.requires_grad_() for x in head(inputs=14 * 8 * 8))
    leaf = torch.rand(3, 14, 8, 8).bfloat16().requires_grad_()
    operators.soft_argmax_depth(leaf, weight, bias).depth.square().sum().backward()
    assert weight.grad is not None
    assert bias.grad is not None
    assert (weight.grad.dtype, bias.grad.dtype) == (torch.float32, torch.float32)
    exact = [x.detach().double().requires_grad_() for x in (leaf, weight, bias)]
    torch.nn.functional.linear(exact[0].flatten(1), *exact[1:]).square().sum().backward()
    for a, b in zip((leaf, weight, bias), exact, strict=True):
        assert a.grad is not None
        assert b.grad is not None
        torch.testing.assert_close(a.grad.double(), b.grad, rtol=0.03, atol=0.03 * b.grad.abs().max().item())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.zeros(14, 5)}, r"weight: got the shape \(14, 5\); expected \(14, 1512\) for heatmaps"),
        ({"bias": torch.zeros(13)}, r"bias: got the shape \(13,\); expected \(14,\)"),
        ({"bias": torch.zeros(14, dtype=torch.int64)}, "bias: got the dtype torch.int64"),
        ({"heatmaps": torch.zeros(14, 9, 12)}, r"heatmaps: got the shape \(14, 9, 12\); expected \(B, 14, H, W\)"),
        ({"weight": torch.zeros(14, 1512, device="meta")}, "weight: got a tensor on meta; expected cpu"),
    ],
)
def test_bad_heads_are_named(change: dict[str, torch.Tensor], message: str) -> None:
    weight, bias = head()
    given = {"heatmaps": maps(), "weight": weight, "bias": bias, **change}
    with pytest.raises((ValueError, TypeError), match=message):
        operators.soft_argmax_depth(**given)


def test_depth_exports_with_any_batch() -> None:
    class Head(torch.nn.Module):
        def forward(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return tuple(operators.soft_argmax_depth(x, weight, bias))

    batch = torch.export.Dim("batch", min=1)
    given = (torch.rand(3, 14, 9, 12), *head())
    exported = torch.export.export(Head(), given, dynamic_shapes={"x": {0: batch}, "weight": None, "bias": None}).module()
    other = torch.rand(5, 14, 9, 12)
    for a, b in zip(exported(other, *head()), operators.soft_argmax_depth(other, *head()), strict=True):
        torch.testing.assert_close(a, b)


def test_no_poses() -> None:
    found = operators.soft_argmax_depth(maps()[:0], *head())
    assert [tuple(x.shape) for x in found] == [(0, 14, 2), (0, 14), (0, 14), (0, 14)]
