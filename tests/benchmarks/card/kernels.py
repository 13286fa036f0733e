"""The kernels that a card really starts, counted by PyTorch's profiler."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile


def kernels_of(work: Callable[[], object]) -> int:
    """How many kernels some work starts; copies and fills of memory are none."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        work()
        torch.cuda.synchronize()
    started = [event for event in profiler.events() or () if event.device_type == DeviceType.CUDA]
    return sum(not event.name.startswith(("Memcpy", "Memset")) for event in started)
