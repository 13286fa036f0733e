"""How fast a card is: its convolutions, its memory and the start of a kernel, timed in some seconds.

The convolution is the one in which jobs spend their time, forward and backward: the second block of the paper's ConvNet
on a batch of 256. On a CPU the same code times the CPU, so it can be tried without a card.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

IMAGES, CHANNELS, SIDE = 256, 128, 16
SMALL = 1_000
"""Kernels in a row whose work is nothing beside their start."""


@dataclass(frozen=True)
class CardSpeed:
    """What was timed: FLOP/s of convolutions, bytes/s of copies in memory, seconds of a kernel's start.

    The convolutions are in TF32, as jobs have it by default.
    """

    convolution: float
    bandwidth: float
    launch: float


def time_card(device: torch.device, seconds: float = 3.0) -> CardSpeed:
    """Time a card.

    Args:
        device: the card, or the CPU.
        seconds: how long each of the three is timed, after a first run that does not count.
    """
    images = torch.randn(IMAGES, CHANNELS, SIDE, SIDE, generator=torch.Generator().manual_seed(0)).to(device)
    weights = torch.full((CHANNELS, CHANNELS, 3, 3), 0.01, device=device, requires_grad=True)
    images.requires_grad_()
    large, one = torch.zeros(1 << 26, device=device), torch.zeros(1, device=device)
    target = torch.empty_like(large)

    def convolve() -> None:
        torch.autograd.grad(F.conv2d(images, weights, padding=1).sum(), [images, weights])

    def start_kernels() -> None:
        for _ in range(SMALL):
            one.add_(1.0)

    flops = 3 * 2.0 * IMAGES * SIDE**2 * 9 * CHANNELS**2
    return CardSpeed(
        convolution=flops / _median_seconds(convolve, device, seconds),
        bandwidth=2.0
        * large.numel()
        * large.element_size()
        / _median_seconds(lambda: target.copy_(large), device, seconds),
        launch=_median_seconds(start_kernels, device, seconds) / SMALL,
    )


def _median_seconds(work: Callable[[], object], device: torch.device, seconds: float) -> float:
    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    work()
    wait()
    took: list[float] = []
    until = time.perf_counter() + seconds
    while not took or time.perf_counter() < until:
        began = time.perf_counter()
        work()
        wait()
        took.append(time.perf_counter() - began)
    return statistics.median(took)
