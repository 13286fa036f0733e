"""The instance norm for cards is PyTorch's on a CPU, to the second derivative."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from workers.training.instance_norm import InstanceNorm, analytic_instance_norm, blocks_by, by_operators, norm_relu_pool

EPS = 1e-5


def _arguments(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    shapes = ((2, 3, 4, 5), (3,), (3,))
    x, weight, bias = (torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes)
    return x, weight, bias


def _ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return analytic_instance_norm(x, weight, bias, EPS)


def test_both_derivatives_agree_with_finite_differences() -> None:
    with torch.random.fork_rng():  # gradgradcheck takes no generator
        assert torch.autograd.gradcheck(_ours, _arguments())
        assert torch.autograd.gradgradcheck(_ours, _arguments())


def test_second_derivatives_are_those_of_group_norm() -> None:
    def second(norm: object) -> list[Tensor]:
        arguments = _arguments()
        loss = norm(*arguments).tanh().square().sum()  # type: ignore[operator]
        gradients = torch.autograd.grad(loss, arguments, create_graph=True)
        distance = torch.stack([(gradient - 0.1).abs().pow(1.5).sum() for gradient in gradients]).sum()
        return list(torch.autograd.grad(distance, arguments))

    for ours, theirs in zip(second(_ours), second(lambda x, w, b: F.group_norm(x, 3, w, b, EPS)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_a_constant_map_of_one_pixel_has_finite_second_derivatives() -> None:
    x = torch.ones(2, 3, 1, 1, requires_grad=True)
    weight, bias = torch.ones(3, requires_grad=True), torch.zeros(3, requires_grad=True)
    (gradient,) = torch.autograd.grad(_ours(x, weight, bias).exp().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), x)
    assert second.isfinite().all()


def test_on_a_cpu_the_layer_is_group_norm_bit_for_bit() -> None:
    x, weight, bias = _arguments(torch.float32)
    layer = InstanceNorm(3)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    assert torch.equal(layer(x), F.group_norm(x, 3, weight, bias, EPS))


def _norm_of(weight: Tensor, bias: Tensor) -> InstanceNorm:
    """A layer whose weights are these very tensors."""
    layer = InstanceNorm(len(weight)).to(weight.dtype)
    del layer.weight, layer.bias
    layer.weight, layer.bias = weight, bias  # type: ignore[assignment]
    return layer


def _block(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return norm_relu_pool(x, _norm_of(weight, bias))


def test_both_derivatives_of_a_block_agree_with_finite_differences() -> None:
    """Of maps with an odd side, whose last column no pooling sees."""
    with torch.random.fork_rng():
        assert torch.autograd.gradcheck(_block, _arguments())
        assert torch.autograd.gradgradcheck(_block, _arguments())


def test_a_block_is_its_three_layers_to_the_second_derivative() -> None:
    def layers(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.avg_pool2d(F.group_norm(x, 3, weight, bias, EPS).relu(), 2)

    def second(block: Callable[..., Tensor]) -> list[Tensor]:
        arguments = _arguments()
        out = block(*arguments)
        gradients = torch.autograd.grad(out.tanh().square().sum(), arguments, create_graph=True)
        distance = torch.stack([(gradient - 0.1).abs().pow(1.5).sum() for gradient in gradients]).sum()
        return [out, *gradients, *torch.autograd.grad(distance, arguments)]

    for ours, theirs in zip(second(_block), second(layers), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_maps_of_fewer_bits_are_normalised_in_the_dtype_of_the_weights() -> None:
    x, weight, bias = _arguments(torch.float32)
    for layer in (_ours, _block):
        narrow = layer(x.bfloat16(), weight, bias)
        assert narrow.dtype == torch.float32
        torch.testing.assert_close(narrow, layer(x.bfloat16().float(), weight, bias), rtol=0, atol=0)


def test_a_block_is_done_by_another_function_only_where_that_is_said() -> None:
    x, weight, bias = _arguments()
    with blocks_by(lambda x, norm: x.sum(1)):
        assert torch.equal(_block(x, weight, bias), x.sum(1))
    assert torch.equal(_block(x, weight, bias), by_operators(x, _norm_of(weight, bias)))


@pytest.mark.slow
def test_a_compiler_of_pytorch_sees_through_a_block() -> None:
    """Compiled trainings on a card run it whole; what is compiled here is compiled to PyTorch's own operators."""
    x, weight, bias = _arguments(torch.float32)
    compiled = torch.compile(norm_relu_pool, fullgraph=True, dynamic=False, backend="aot_eager")
    norm = _norm_of(weight, bias)
    torch.testing.assert_close(compiled(x, norm), norm_relu_pool(x, norm))
