"""The kernels that a card really runs, counted and timed by PyTorch's profiler."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile


@dataclass(frozen=True)
class Kernels:
    """How often each kernel ran, by its name, and the seconds that it took; copies and fills of memory are none."""

    runs: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def number(self) -> int:
        """Of all."""
        return self.runs.total()

    @property
    def busy(self) -> float:
        """Seconds in which the card computed, if kernels ran one after another."""
        return sum(self.seconds.values())


def kernels_of(work: Callable[[], object]) -> Kernels:
    """The kernels that some work starts."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        work()
        torch.cuda.synchronize()
    kernels = Kernels()
    for event in profiler.events() or ():
        if event.device_type == DeviceType.CUDA and not event.name.startswith(("Memcpy", "Memset")):
            kernels.runs[event.name] += 1
            kernels.seconds[event.name] = kernels.seconds.get(event.name, 0.0) + event.time_range.elapsed_us() / 1e6
    return kernels
