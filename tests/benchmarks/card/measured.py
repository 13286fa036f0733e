"""Time, kernels and memory of some work on a card; on a CPU the time alone, so that it can be tried without one."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from tests.benchmarks.card.kernels import kernels_of

ENOUGH, FEWEST, MOST = 0.5, 3, 30
"""Seconds that are timed, and repetitions."""


@dataclass(frozen=True)
class Measured:
    """What one call takes.

    Attributes:
        seconds: the median.
        kernels: that it starts.
        busy: seconds in which kernels run.
        peak_mib: MiB over what was there before.
    """

    seconds: float
    kernels: float | None = None
    busy: float | None = None
    peak_mib: float | None = None


def measured(
    device: torch.device, work: Callable[[], object], profiled: Callable[[], object] | None = None, times: float = 1.0
) -> Measured:
    """Measure some work.

    Args:
        device: on which it is done.
        work: what is called over and over; the first call does not count.
        profiled: work whose kernels are counted, in a call of its own; without it time alone is measured.
        times: how many times as much `work` is.
    """
    wait(device)
    work()
    wait(device)
    taken: list[float] = []
    while len(taken) < FEWEST or (sum(taken) < ENOUGH and len(taken) < MOST):
        began = time.perf_counter()
        work()
        wait(device)
        taken.append(time.perf_counter() - began)
    seconds = statistics.median(taken)
    if profiled is None or device.type != "cuda":
        return Measured(seconds)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    wait(device)
    peak = (torch.cuda.max_memory_allocated() - before) / 2**20
    profiled()
    kernels = kernels_of(profiled)
    return Measured(seconds, kernels.number * times, kernels.busy * times, peak)


def wait(device: torch.device) -> None:
    """Wait until the device has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
