"""Our average pooling on a CPU: PyTorch's bits, of the means and of their first and second derivatives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from workers.training import networks
from workers.training.networks import AveragePool


@pytest.fixture(autouse=True, params=["whole", "in pieces", "image by image"])
def maps_of_any_size(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.setattr(networks, "POOLED_BY_US", 0)
    if request.param != "whole":
        monkeypatch.setattr(networks, "LARGE_MAP", 1)
        monkeypatch.setattr(networks, "PIECE", 600 if request.param == "in pieces" else 1)


def maps(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Maps after a ReLU: half of the numbers are zeros."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype).relu()


def derivatives(pool: Callable[[Tensor], Tensor], x: Tensor) -> list[Tensor]:
    """The means, the gradient of a function of them, and the gradient of a function of that."""
    x = x.clone().requires_grad_()
    means = pool(x)
    weights = torch.linspace(-1, 1, means.numel(), dtype=x.dtype).view_as(means)
    (first,) = torch.autograd.grad((means.tanh() * weights).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad((first.sin() * x).sum(), x)
    return [means.detach(), first.detach(), second]


def bits(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.int32)


@pytest.mark.parametrize("shape", [(3, 4, 8, 8), (2, 5, 6, 2), (1, 1, 2, 2), (4, 16, 16)])
def test_means_and_two_derivatives_are_pytorchs_bits(shape: tuple[int, ...]) -> None:
    x = maps(*shape)
    for ours, theirs in zip(derivatives(AveragePool(), x), derivatives(lambda x: F.avg_pool2d(x, 2), x), strict=True):
        assert torch.equal(bits(ours), bits(theirs))


def test_so_are_those_of_maps_that_lie_otherwise_in_memory() -> None:
    for x in (maps(3, 4, 8, 8).transpose(2, 3), maps(3, 8, 8, 4).permute(0, 3, 1, 2)):
        assert not x.is_contiguous()
        assert torch.equal(bits(AveragePool()(x)), bits(F.avg_pool2d(x, 2)))


@pytest.mark.parametrize("x", [maps(2, 3, 7, 8), maps(2, 3, 8, 5), maps(2, 3, 8, 8, dtype=torch.float64)])
def test_odd_sides_and_other_numbers_are_pooled_by_pytorch(x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(networks, "_MeansOfSquares")
    assert torch.equal(AveragePool()(x), F.avg_pool2d(x, 2))
    with pytest.raises(NameError):
        AveragePool()(maps(2, 3, 8, 8))


def test_a_map_that_no_cache_holds_has_pytorchs_bits() -> None:
    x = maps(33, 32, 64, 64)
    assert x.numel() > networks.LARGE_MAP
    for ours, theirs in zip(derivatives(AveragePool(), x), derivatives(lambda x: F.avg_pool2d(x, 2), x), strict=True):
        assert torch.equal(bits(ours), bits(theirs))


def test_both_derivatives_are_those_of_finite_differences() -> None:
    x = maps(2, 2, 4, 4, dtype=torch.float64).requires_grad_()
    with torch.random.fork_rng(devices=[]):  # the checks draw
        assert torch.autograd.gradcheck(networks._MeansOfSquares.apply, (x,))
        assert torch.autograd.gradgradcheck(networks._MeansOfSquares.apply, (x,))
