"""Instance norm whose second derivative is one formula, for cards.

PyTorch takes the gradient of a `GroupNorm`'s gradient through some hundred small operators, and of a ReLU's and a
pooling's through zeros that it adds. An inner step of trajectory matching launches 425 kernels on a card by them, and
less than half by the formula below. On a CPU, where launching costs little, both take the same time (0.93x to 1.05x
measured), so the CPU keeps PyTorch's own and its bits.

With x^ = (x - mean) * r over the pixels of one channel of one image, r = 1 / sqrt(variance + eps), M pixels and

    P(z) = z - mean(z) - x^ mean(z x^),                     which is its own transpose,

the layer y = w x^ + b has the gradient  dx = r w P(g),  dw = sum(g x^),  db = sum(g)  of an upstream g. For cotangents
(v, a, b) of (dx, dw, db), the gradients of  <v, dx> + <a, dw> + <b, db>  are

    with respect to g:   w r P(v) + a x^ + b
    with respect to w:   sum(g r P(v))
    with respect to x:   r P(u) - x^ w r sum(g r P(v)) / M,    u = g (a - r w mean(v x^)) - v r w mean(g x^),

where P(u) is put together from P(g) and P(v), since the factors of g and v are the same for all pixels. The derivation
is ours; the tests check it against finite differences in float64, to second order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_norm = torch.ops.aten.native_group_norm.default
_norm_backward = torch.ops.aten.native_group_norm_backward.default
_batch_norm_backward = torch.ops.aten.native_batch_norm_backward.default
_pool_backward = torch.ops.aten.avg_pool2d_backward.default
_relu_backward = torch.ops.aten.threshold_backward.default


class InstanceNorm(nn.GroupNorm):
    """One group per channel, affine, without running statistics; on a card with the second derivative above."""

    def __init__(self, channels: int) -> None:
        """Start as the identity."""
        super().__init__(channels, channels)

    def forward(self, input: Tensor) -> Tensor:
        """Normalise images [n, channels, H, W] over their pixels."""
        if not input.is_cuda:
            return super().forward(input)
        return analytic_instance_norm(input, self.weight, self.bias, self.eps)


def analytic_instance_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """The norm w x^ + b of x [n, C, H, W], with weight and bias [C]; differentiable twice."""
    y: Tensor = _Norm.apply(x.to(weight.dtype).contiguous(), weight, bias, eps)
    return y


def norm_relu_pool(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    """Instance norm of maps x [n, C, H, W], ReLU, and the means of 2x2 pixels; differentiable twice."""
    return _blocks[-1](x, norm)


def by_operators(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    """The same by PyTorch's operators."""
    y: Tensor = _Block.apply(x.to(norm.weight.dtype).contiguous(), norm.weight, norm.bias, norm.eps)
    return y


Block = Callable[[Tensor, nn.GroupNorm], Tensor]
_blocks: list[Block] = [by_operators]
"""The last does the work: a plain list, through which compilers of PyTorch see."""


@contextmanager
def blocks_by(block: Block) -> Iterator[None]:
    """Inside, `norm_relu_pool` is done by this function."""
    _blocks.append(block)
    try:
        yield
    finally:
        _blocks.pop()


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        y, mean, rate = _norm(x, weight, bias, *_sizes(x), eps)
        ctx.save_for_backward(x, mean, rate, weight)
        ctx.eps = eps
        return y  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        x, mean, rate, weight = ctx.saved_tensors
        gradients = _Gradient.apply(upstream.contiguous(), x, mean, rate, weight, ctx.eps)
        return *gradients, None


class _Gradient(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, g: Tensor, x: Tensor, mean: Tensor, rate: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(g, x, mean, rate, weight)
        ctx.eps = eps
        return _norm_backward(g, x, mean, rate, weight, *_sizes(x), [True, True, True])  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, v: Tensor, a: Tensor, b: Tensor) -> Any:
        g, x, mean, rate, weight = ctx.saved_tensors
        to_g, to_x, to_weight = _second(v, a, b, g, x, mean, rate, weight, ctx.eps)
        return to_g, to_x, None, None, to_weight, None


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        y, mean, rate = _norm(x, weight, bias, *_sizes(x), eps)
        y.relu_()
        ctx.save_for_backward(x, mean, rate, weight, y)
        ctx.eps = eps
        return F.avg_pool2d(y, 2)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        return *_BlockGradient.apply(upstream, *ctx.saved_tensors, ctx.eps), None


class _BlockGradient(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, upstream: Tensor, x: Tensor, mean: Tensor, rate: Tensor, weight: Tensor, y: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        halves = ([2, 2], [2, 2], [0, 0])
        g = _relu_backward(_pool_backward(upstream.contiguous(), y, *halves, False, True, None), y, 0)
        ctx.save_for_backward(g, x, mean, rate, weight, y)
        ctx.eps = eps
        return _norm_backward(g, x, mean, rate, weight, *_sizes(x), [True, True, True])  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, v: Tensor, a: Tensor, b: Tensor) -> Any:
        g, x, mean, rate, weight, y = ctx.saved_tensors
        to_g, to_x, to_weight = _second(v, a, b, g, x, mean, rate, weight, ctx.eps)
        return F.avg_pool2d(_relu_backward(to_g, y, 0), 2), to_x, None, None, to_weight, None, None


def _second(
    v: Tensor,
    a: Tensor,
    b: Tensor,
    g: Tensor,
    x: Tensor,
    mean: Tensor,
    rate: Tensor,
    weight: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of  <v, dx> + <a, dw> + <b, db>  with respect to g, x and w, as the module says.

    Args:
        v: cotangent of dx, [n, C, H, W].
        a: that of dw, [C].
        b: that of db, [C].
        g: upstream of the norm, [n, C, H, W].
        x: what is normalised, [n, C, H, W].
        mean: over the pixels, [n, C].
        rate: r, [n, C].
        weight: w, [C].
        eps: added to variances.
    """
    count, channels, pixels, _ = sizes = _sizes(x)
    maps = (1, count * channels, *x.shape[2:])
    a, b, w = (one.view(1, channels, 1, 1) for one in (a, b, weight))
    rw = rate.view(count, channels, 1, 1) * w

    ones = torch.ones_like(rate).view(-1)  # CUDA's batch norm gives sums only beside a weight

    def projected(z: Tensor) -> tuple[Tensor, Tensor]:  # r P(z) and sum(z x^): an instance's norm is a batch norm of 1
        statistics = (mean.view(-1), rate.view(-1))
        whole, along, _ = _batch_norm_backward(
            z.reshape(maps), x.view(maps), ones, None, None, *statistics, True, eps, [True, True, False]
        )
        return whole.view_as(x), along.view_as(rw)

    x_hat = _norm(x, None, None, *sizes, eps)[0]
    (rpv, v_along), (rpg, g_along) = projected(v), projected(g)
    along = (g * rpv).sum((2, 3), keepdim=True)
    to_g = torch.addcmul(torch.addcmul(b, x_hat, a), rpv, w)
    of_g = torch.addcmul(a, rw, v_along, value=-1 / pixels) * rpg
    to_x = torch.addcmul(of_g, rw * g_along, rpv, value=-1 / pixels)
    to_x = torch.addcmul(to_x, x_hat, along * rw, value=-1 / pixels)
    return to_g, to_x, along.sum(0).view(channels)


def _sizes(x: Tensor) -> tuple[int, int, int, int]:
    """Images, channels, pixels of a map and groups, as PyTorch's group norm takes them."""
    count, channels, height, width = x.shape
    return count, channels, height * width, channels
