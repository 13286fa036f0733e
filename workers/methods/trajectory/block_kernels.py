"""A ConvNet's instance norm, ReLU and pooling as one kernel a direction, written in Triton.

One program has one channel of one image, whose pixels it keeps in registers: it reads each map once and writes each
result once, where the operators of `instance_norm` read and write a map some thirty times on the way back. The formulas
are those of that module; M is the number of pixels, and a pixel's four neighbours in a pooled one are four vectors.

Importing this module takes Triton, which comes with PyTorch for CUDA. Kernels are compiled when they first run, about a
second each, and kept on the disk.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from workers.training.instance_norm import Block, InstanceNorm, by_operators

NEAR = 1e-4
"""Relative distance from the operators at most: both add float32 numbers, in another order."""
LARGEST = 4096
"""Pooled pixels of a map that a program keeps in its registers."""


@triton.jit
def _corners(plane, width: tl.constexpr, count: tl.constexpr, block: tl.constexpr):
    """The upper left pixels of a map's squares of four, and which places of the block have one."""
    place = tl.arange(0, block)
    half = width // 2
    return plane * 4 * count + (place // half) * 2 * width + (place % half) * 2, place < count


@triton.jit
def _squares(pointer, corner, inside, width: tl.constexpr):
    a = tl.load(pointer + corner, mask=inside, other=0.0)
    b = tl.load(pointer + corner + 1, mask=inside, other=0.0)
    c = tl.load(pointer + corner + width, mask=inside, other=0.0)
    d = tl.load(pointer + corner + width + 1, mask=inside, other=0.0)
    return a, b, c, d


@triton.jit
def _store_squares(pointer, corner, inside, width: tl.constexpr, a, b, c, d):
    tl.store(pointer + corner, a, mask=inside)
    tl.store(pointer + corner + 1, b, mask=inside)
    tl.store(pointer + corner + width, c, mask=inside)
    tl.store(pointer + corner + width + 1, d, mask=inside)


@triton.jit
def _centred(x, mean, rate, inside):
    return tl.where(inside, (x - mean) * rate, 0.0)


@triton.jit
def _passed(x_hat, weight, bias, value, inside):
    """A value where ReLU lets it through, else zero."""
    return tl.where(inside & (x_hat * weight + bias > 0.0), value, 0.0)


@triton.jit
def _forward(
    x, weight, bias, out, means, rates, channels, eps, width: tl.constexpr, count: tl.constexpr, block: tl.constexpr
):
    plane = tl.program_id(0).to(tl.int64)
    corner, inside = _corners(plane, width, count, block)
    x0, x1, x2, x3 = _squares(x, corner, inside, width)
    pixels = 4.0 * count
    mean = tl.sum(x0 + x1 + x2 + x3, 0) / pixels
    d0, d1 = _centred(x0, mean, 1.0, inside), _centred(x1, mean, 1.0, inside)
    d2, d3 = _centred(x2, mean, 1.0, inside), _centred(x3, mean, 1.0, inside)
    rate = 1.0 / tl.sqrt_rn(tl.sum(d0 * d0 + d1 * d1 + d2 * d2 + d3 * d3, 0) / pixels + eps)
    w, b = tl.load(weight + plane % channels), tl.load(bias + plane % channels)
    y0, y1 = tl.maximum(d0 * rate * w + b, 0.0), tl.maximum(d1 * rate * w + b, 0.0)
    y2, y3 = tl.maximum(d2 * rate * w + b, 0.0), tl.maximum(d3 * rate * w + b, 0.0)
    tl.store(out + plane * count + tl.arange(0, block), (y0 + y1 + y2 + y3) * 0.25, mask=inside)
    tl.store(means + plane, mean)
    tl.store(rates + plane, rate)


@triton.jit
def _backward(
    up, x, weight, bias, means, rates, to_x, sums, channels,
    planes, width: tl.constexpr, count: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    plane = tl.program_id(0).to(tl.int64)
    corner, inside = _corners(plane, width, count, block)
    x0, x1, x2, x3 = _squares(x, corner, inside, width)
    share = tl.load(up + plane * count + tl.arange(0, block), mask=inside, other=0.0) * 0.25
    mean, rate = tl.load(means + plane), tl.load(rates + plane)
    w, b = tl.load(weight + plane % channels), tl.load(bias + plane % channels)
    h0, h1 = _centred(x0, mean, rate, inside), _centred(x1, mean, rate, inside)
    h2, h3 = _centred(x2, mean, rate, inside), _centred(x3, mean, rate, inside)
    g0, g1 = _passed(h0, w, b, share, inside), _passed(h1, w, b, share, inside)
    g2, g3 = _passed(h2, w, b, share, inside), _passed(h3, w, b, share, inside)
    whole = tl.sum(g0 + g1 + g2 + g3, 0)
    along = tl.sum(g0 * h0 + g1 * h1 + g2 * h2 + g3 * h3, 0)
    m, s, rw = whole / (4.0 * count), along / (4.0 * count), rate * w
    _store_squares(
        to_x, corner, inside, width,
        rw * (g0 - m - h0 * s), rw * (g1 - m - h1 * s), rw * (g2 - m - h2 * s), rw * (g3 - m - h3 * s),
    )  # fmt: skip
    tl.store(sums + plane, along)
    tl.store(sums + planes + plane, whole)


@triton.jit
def _second(
    v, to_weight, to_bias, up, x, weight, bias, means, rates, to_up, to_x, alongs, channels,
    width: tl.constexpr, count: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    plane = tl.program_id(0).to(tl.int64)
    corner, inside = _corners(plane, width, count, block)
    x0, x1, x2, x3 = _squares(x, corner, inside, width)
    v0, v1, v2, v3 = _squares(v, corner, inside, width)
    place = plane * count + tl.arange(0, block)
    share = tl.load(up + place, mask=inside, other=0.0) * 0.25
    mean, rate = tl.load(means + plane), tl.load(rates + plane)
    w, beta = tl.load(weight + plane % channels), tl.load(bias + plane % channels)
    a, b = tl.load(to_weight + plane % channels), tl.load(to_bias + plane % channels)
    h0, h1 = _centred(x0, mean, rate, inside), _centred(x1, mean, rate, inside)
    h2, h3 = _centred(x2, mean, rate, inside), _centred(x3, mean, rate, inside)
    g0, g1 = _passed(h0, w, beta, share, inside), _passed(h1, w, beta, share, inside)
    g2, g3 = _passed(h2, w, beta, share, inside), _passed(h3, w, beta, share, inside)
    pixels = 4.0 * count
    v_mean, v_along = tl.sum(v0 + v1 + v2 + v3, 0) / pixels, tl.sum(v0 * h0 + v1 * h1 + v2 * h2 + v3 * h3, 0) / pixels
    g_mean, g_along = tl.sum(g0 + g1 + g2 + g3, 0) / pixels, tl.sum(g0 * h0 + g1 * h1 + g2 * h2 + g3 * h3, 0) / pixels
    v0, v1 = rate * (v0 - v_mean - h0 * v_along), rate * (v1 - v_mean - h1 * v_along)  # from here on r P(v)
    v2, v3 = rate * (v2 - v_mean - h2 * v_along), rate * (v3 - v_mean - h3 * v_along)
    along = tl.sum(g0 * v0 + g1 * v1 + g2 * v2 + g3 * v3, 0)  # g is zero outside
    rw = rate * w
    of_g, of_v, of_h = rate * (a - rw * v_along), rw * g_along, along * rw / pixels
    _store_squares(
        to_x, corner, inside, width,
        of_g * (g0 - g_mean - h0 * g_along) - of_v * v0 - of_h * h0,
        of_g * (g1 - g_mean - h1 * g_along) - of_v * v1 - of_h * h1,
        of_g * (g2 - g_mean - h2 * g_along) - of_v * v2 - of_h * h2,
        of_g * (g3 - g_mean - h3 * g_along) - of_v * v3 - of_h * h3,
    )  # fmt: skip
    t0 = _passed(h0, w, beta, b + a * h0 + w * v0, inside)
    t1 = _passed(h1, w, beta, b + a * h1 + w * v1, inside)
    t2 = _passed(h2, w, beta, b + a * h2 + w * v2, inside)
    t3 = _passed(h3, w, beta, b + a * h3 + w * v3, inside)
    tl.store(to_up + place, (t0 + t1 + t2 + t3) * 0.25, mask=inside)
    tl.store(alongs + plane, along)


def block(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    """The same as `by_operators`, by kernels where the map has an even number of rows and columns and not too many."""
    height, width = x.shape[2:]
    fits = height % 2 == width % 2 == 0 and height * width <= 4 * LARGEST and norm.weight.dtype == torch.float32
    if not fits:
        return by_operators(x, norm)
    y: Tensor = _Block.apply(x.float().contiguous(), norm.weight, norm.bias, norm.eps)
    return y


def require_agreement(device: torch.device) -> None:
    """Run the kernels on a few maps and refuse them unless they give what the operators give, to the second derivative.

    Raises:
        RuntimeError: they differ.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 16, 8, 12, generator=generator).to(device)
    norm = InstanceNorm(16)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.copy_(torch.randn(16, generator=generator))
    own, expected = (_derivatives(by, x, norm.to(device)) for by in (block, by_operators))
    far = max(float((a - b).norm() / b.norm()) for a, b in zip(own, expected, strict=True))
    if not far <= NEAR:
        raise RuntimeError(f"kernels of a block are {far:.1e} from the operators")


def _derivatives(by: Block, x: Tensor, norm: nn.GroupNorm) -> list[Tensor]:
    """What a block gives, its gradients, and those of a function of the gradients."""
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_(), norm.weight, norm.bias]
        out = by(leaves[0], norm)
        gradients = torch.autograd.grad((out.square() + out).sum(), leaves, create_graph=True)
        turned = torch.stack([(gradient - 0.1).square().sum() for gradient in gradients]).sum()
        seconds = torch.autograd.grad(turned, leaves)
    return [one.detach() for one in (out, *gradients, *seconds)]


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        count, channels, height, width = x.shape
        out = x.new_empty(count, channels, height // 2, width // 2)
        means, rates = x.new_empty(count * channels), x.new_empty(count * channels)
        _launch(_forward, x, weight, bias, out, means, rates, channels, eps, of=x)
        ctx.save_for_backward(x, weight, bias, means, rates)
        return out

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        return *_Gradient.apply(upstream.contiguous(), *ctx.saved_tensors), None


class _Gradient(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, upstream: Tensor, x: Tensor, weight: Tensor, bias: Tensor, means: Tensor, rates: Tensor
    ) -> tuple[Tensor, ...]:
        count, channels = x.shape[:2]
        to_x, sums = torch.empty_like(x), x.new_empty(2, count, channels)
        _launch(_backward, upstream, x, weight, bias, means, rates, to_x, sums, channels, count * channels, of=x)
        ctx.save_for_backward(upstream, x, weight, bias, means, rates)
        return to_x, *sums.sum(1).unbind()

    @staticmethod
    def backward(ctx: Any, v: Tensor, a: Tensor, b: Tensor) -> Any:
        upstream, x, *rest = ctx.saved_tensors
        count, channels = x.shape[:2]
        to_up, to_x, along = torch.empty_like(upstream), torch.empty_like(x), x.new_empty(count, channels)
        given = (v.contiguous(), a.contiguous(), b.contiguous(), upstream, x)
        _launch(_second, *given, *rest, to_up, to_x, along, channels, of=x)
        return to_up, to_x, along.sum(0), None, None, None


def _launch(kernel: Any, *arguments: Tensor | float, of: Tensor) -> None:
    """Run a kernel with one program for every channel of every image of the maps `of`."""
    count, channels, height, width = of.shape
    squares = height * width // 4
    block = triton.next_power_of_2(squares)
    warps = min(max(block // 64, 1), 8)
    kernel[(count * channels,)](*arguments, width=width, count=squares, block=block, num_warps=warps)
