from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from jointbert.checks import JointbertWarning  # noqa: E402
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
    operators._kernels.cache_clear()
    with pytest.warns(JointbertWarning, match="no GPU kernels; torch's own operators"):
        assert operators._kernels() is None
    assert operators._kernels() is None  # warnings are errors in this suite
    operators._kernels.cache_clear()
