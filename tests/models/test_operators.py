from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

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


@pytest.mark.parametrize("window", [-1, 2])
def test_opcheck(window: int) -> None:
    good = torch.rand(1, 14, 5, 6, dtype=torch.float64, requires_grad=True)
    torch.library.opcheck(torch.ops.jointbert.soft_argmax, (good, "soft", 3.0, window))


def test_it_compiles_whole() -> None:
    compiled = torch.compile(operators.soft_argmax, backend="aot_eager", fullgraph=True)
    given = torch.rand(2, 14, 5, 6)
    for a, b in zip(compiled(given, "soft", 3.0), soft_argmax(given, "soft", 3.0), strict=True):
        torch.testing.assert_close(a, b)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="beta: got -1"):
        operators.soft_argmax(maps(), "soft", -1.0)
