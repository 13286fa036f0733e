"""What this card can do at most: convolutions in three precisions, memory, the start of a kernel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch.nn import functional as F

from tests.benchmarks.card.measured import measured
from tests.benchmarks.measure import Row
from workers.runtime.card_speed import time_card

SHAPES = {  # images, channels in, channels out, side
    "second layer, width 128": (256, 128, 128, 16),
    "third layer, width 128": (256, 128, 128, 8),
    "first layer, width 128": (256, 3, 128, 32),
    "ResNet-18, last group": (256, 512, 512, 4),
}


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Convolutions and products in TF32, or in float32 throughout."""
    convolutions, products = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = allowed
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = convolutions
        torch.set_float32_matmul_precision(products)


def convolution_flops(
    device: torch.device,
    shape: str,
    dtype: torch.dtype = torch.float32,
    layout: torch.memory_format = torch.contiguous_format,
) -> tuple[float, float]:
    """FLOP/s of a convolution with its backward pass, and the seconds of one."""
    images, incoming, outgoing, side = SHAPES[shape]
    draws = torch.Generator().manual_seed(0)
    sizes = (images, incoming, side, side), (outgoing, incoming, 3, 3), (images, outgoing, side, side)
    x, weight, upstream = (
        torch.randn(size, generator=draws).to(device, dtype).contiguous(memory_format=layout) for size in sizes
    )
    wanted = [x.requires_grad_(), weight.requires_grad_()]
    taken = measured(device, lambda: torch.autograd.grad(F.conv2d(x, weight, padding=1), wanted, upstream))
    return 3 * 2.0 * images * incoming * outgoing * side**2 * 9 / taken.seconds, taken.seconds


@cache
def peak_flops(device: torch.device) -> float:
    """The most that any of the shapes reaches with TF32: what shares are shares of."""
    with tf32(True):
        return max(convolution_flops(device, shape)[0] for shape in SHAPES)


def rows(device: torch.device) -> Iterator[Row]:
    """The rates, as notes beside the seconds they come from."""
    precisions = {
        "float32": (False, torch.float32, torch.contiguous_format),
        "TF32": (True, torch.float32, torch.contiguous_format),
        "TF32, channels last": (True, torch.float32, torch.channels_last),
        "bfloat16": (True, torch.bfloat16, torch.contiguous_format),
        "bfloat16, channels last": (True, torch.bfloat16, torch.channels_last),
    }
    for shape in SHAPES:
        for name, (allowed, dtype, layout) in precisions.items():
            with tf32(allowed):
                flops, seconds = convolution_flops(device, shape, dtype, layout)
            yield Row(
                part="card limits", name=f"convolution and its gradients, {shape}, {name}", cpu_seconds=None,
                wall_seconds=seconds, per="call", note=f"{flops / 1e12:.1f} TFLOP/s",
            )  # fmt: skip
    speed = time_card(device, seconds=0.5)
    yield Row(
        part="card limits", name="as doctor --gpu times it", cpu_seconds=None,
        note=f"{speed.convolution / 1e12:.1f} TFLOP/s, {speed.bandwidth / 1e12:.2f} TB/s, "
        f"{speed.launch * 1e6:.2f} us a kernel",
    )  # fmt: skip
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info()
        outside = (total - free - torch.cuda.memory_reserved()) / 2**20
        yield Row(part="card limits", name="memory outside the allocator", cpu_seconds=None, peak_mib=outside)
