"""What this core can do at most: convolutions at the shapes of the loops, and memory.

Shares of these limits carry over from host to host, where seconds do not. One thread on one core, CPU time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch.nn import functional as F

from tests.benchmarks.measure import Row, medians
from workers.runtime.process import keep_freed_pages

SHAPES = {  # images, channels in, channels out, side
    "first layer, width 128": (100, 3, 128, 32),
    "second layer, width 128": (100, 128, 128, 16),
    "third layer, width 128": (100, 128, 128, 8),
    "second layer, width 32": (100, 32, 32, 16),
    "ResNet-18, first group": (32, 64, 64, 32),
    "ResNet-18, last group": (32, 512, 512, 4),
}
LAYOUTS = {"nchw": torch.contiguous_format, "channels last": torch.channels_last}
KERNEL = 3
MEGABYTES = 256
"""Of an array that is copied: it fits into no cache."""


@contextmanager
def one_core() -> Iterator[None]:
    """One thread on one core, as a worker has it, with the allocator of a worker."""
    cores, threads = os.sched_getaffinity(0), torch.get_num_threads()
    os.sched_setaffinity(0, {max(cores)})
    torch.set_num_threads(1)
    keep_freed_pages()
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
        torch.set_num_threads(threads)


def repeated(work: Callable[[], object], seconds: float = 0.05) -> Callable[[], None]:
    """The same work so many times that it can be timed."""
    (once,) = medians(work, repeats=2)
    count = max(1, round(seconds / max(once.cpu, 1e-6)))

    def many() -> None:
        for _ in range(count):
            work()

    many.count = count  # type: ignore[attr-defined]
    return many


def seconds_each(*work: Callable[[], object]) -> list[float]:
    """CPU seconds of each piece of work, the median of five, in turns."""
    many = [repeated(piece) for piece in work]
    return [taken.cpu / piece.count for taken, piece in zip(medians(*many, repeats=5), many, strict=True)]  # type: ignore[attr-defined]


def convolution(shape: str, layout: str, dtype: torch.dtype = torch.float32) -> Callable[[], object]:
    """A forward convolution of one of `SHAPES`."""
    images, incoming, outgoing, side = SHAPES[shape]
    x = torch.randn(images, incoming, side, side).to(dtype, memory_format=LAYOUTS[layout])
    weight = torch.randn(outgoing, incoming, KERNEL, KERNEL).to(dtype, memory_format=LAYOUTS[layout])
    return lambda: F.conv2d(x, weight, padding=1)


def operations(shape: str) -> float:
    """Of one such convolution: a multiplication and an addition are two."""
    images, incoming, outgoing, side = SHAPES[shape]
    return 2.0 * images * incoming * outgoing * side**2 * KERNEL**2


@cache
def gflops() -> dict[tuple[str, str], float]:
    """GFLOP/s of float32 convolutions by shape and layout."""
    cases = [(shape, layout) for shape in SHAPES for layout in LAYOUTS]
    with one_core(), torch.no_grad():
        seconds = seconds_each(*(convolution(*case) for case in cases))
    return {case: operations(case[0]) / each / 1e9 for case, each in zip(cases, seconds, strict=True)}


def peak_gflops() -> float:
    """The most that any of these convolutions reaches: what shares are shares of."""
    return max(gflops().values())


def rows() -> list[Row]:
    """The rates, as notes beside the seconds they come from."""
    figures = []
    for (shape, layout), rate in gflops().items():
        seconds = operations(shape) / rate / 1e9
        figures.append(
            Row(
                part="limits",
                name=f"convolution, {shape}, {layout}",
                cpu_seconds=seconds,
                per="call",
                share=rate / peak_gflops(),
                note=f"{rate:.0f} GFLOP/s",
            )
        )
    best = max(gflops(), key=lambda case: gflops()[case])
    with one_core(), torch.no_grad():
        source = torch.zeros(MEGABYTES << 18)
        target, third = torch.ones_like(source), torch.ones_like(source)
        copy, triad, half = seconds_each(
            lambda: target.copy_(source),
            lambda: torch.add(source, third, alpha=2.0, out=target),
            convolution(*best, torch.bfloat16),
        )
    bandwidth = [("copy", 2, copy), ("triad", 3, triad)]
    figures += [
        Row(
            part="limits",
            name=f"memory, {name}",
            cpu_seconds=seconds,
            per="call",
            note=f"{arrays * MEGABYTES / 1024 / seconds:.0f} GB/s over {MEGABYTES} MB arrays",
        )
        for name, arrays, seconds in bandwidth
    ]
    rate = operations(best[0]) / half / 1e9
    note = f"{rate:.0f} GFLOP/s, {rate / gflops()[best]:.2f} times float32"
    return [
        *figures,
        Row(part="limits", name=f"bfloat16, {best[0]}, {best[1]}", cpu_seconds=half, per="call", note=note),
    ]
