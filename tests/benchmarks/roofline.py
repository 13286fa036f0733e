"""How near the operators of a loop are to what this core can do, one by one, and the whole loop with it.

Every operator is timed where it is called; its floating-point operations are counted, and the bytes of arguments and
results. At best a convolution or product goes at the convolution limit (`limits`), anything else at the bandwidth of a
triad of arrays of its size; the loop at best is the sum of both. So the largest share of the convolution limit that a
loop can have with these operators is a number, however well each of them is written.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from tests.benchmarks.cases import matching, training
from tests.benchmarks.cases.case import Case
from tests.benchmarks.limits import one_core, peak_gflops, seconds_each
from tests.benchmarks.measure import Row

FEW = 0.02
"""Operators with a smaller share of the time are summed up."""


@dataclass
class Spent:
    """What the calls of one operator took: seconds of CPU time, operations, and seconds at the limits."""

    calls: int = 0
    seconds: float = 0.0
    flops: float = 0.0
    bytes: float = 0.0
    best: float = 0.0

    def add(self, other: Spent) -> None:
        """Count other calls in."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


@cache
def bandwidth(size: int) -> float:
    """Bytes a second of a triad over arrays of 2**size bytes each."""
    x, y, z = (torch.ones(2**size // 4) for _ in range(3))
    (seconds,) = seconds_each(lambda: torch.add(x, y, alpha=2.0, out=z))
    return 3 * 2**size / seconds


class ByOperator(TorchDispatchMode):
    """Times every operator by name; those that only look at a tensor otherwise move no bytes."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit
        self.spent: dict[str, Spent] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        began = time.process_time()
        output = func(*args, **kwargs)
        seconds = time.process_time() - began
        count = flop_registry.get(func._overloadpacket)
        flops = float(count(*args, **kwargs, out_val=output)) if count is not None else 0.0
        moved = 0 if func.is_view else sum(t.numel() * t.element_size() for t in tensors((args, kwargs, output)))
        size = min(28, max(16, round(math.log2(moved / 3)))) if moved else 0
        best = flops / self.limit if flops else moved / bandwidth(size) if moved else 0.0
        name = func._overloadpacket.__name__
        self.spent.setdefault(name, Spent()).add(Spent(1, seconds, flops, moved, best))
        return output


def tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in nested arguments."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors(item)


def by_operator(work: Callable[[], object], limit: float) -> dict[str, Spent]:
    """What every operator of some work takes, the costliest first; `limit` in FLOP/s."""
    work()
    with ByOperator(limit) as first:  # bandwidths are measured on the way
        work()
    with ByOperator(limit) as timed:
        work()
    assert first.spent.keys() == timed.spent.keys()
    return dict(sorted(timed.spent.items(), key=lambda item: -item[1].seconds))


def rows_of(case: Case, limit: float) -> Iterator[Row]:
    """A row for each operator of the default engine that matters, and one for the loop.

    Args:
        case: the loop.
        limit: of convolutions, in FLOP/s.
    """
    spent = by_operator(case.sides()[case.default], limit)
    whole, few = Spent(), Spent()
    for each in spent.values():
        whole.add(each)
    for name, each in spent.items():
        if each.seconds < FEW * whole.seconds:
            few.add(each)
        else:
            yield row(f"{case.name}: {name}", each, whole.seconds)
    yield row(f"{case.name}: others", few, whole.seconds)
    note = f"at most {whole.flops / limit / whole.best:.2f} of the convolution limit with these operators"
    share = whole.flops / limit / whole.seconds
    yield Row(part="roofline", name=case.name, cpu_seconds=whole.seconds, per="call", share=share, note=note)


def row(name: str, spent: Spent, whole: float) -> Row:
    """What one operator takes; its share is of its own limit."""
    note = f"{spent.seconds / whole:.0%} of the time, {spent.calls} calls, {spent.bytes / 1e9:.2f} GB"
    share = spent.best / spent.seconds if spent.seconds else None
    return Row(part="roofline", name=name, cpu_seconds=spent.seconds, per="call", share=share, note=note)


def rows() -> list[Row]:
    """Matching and experts at width 128, where goals of shares are, and matching at width 32."""
    limit = 1e9 * peak_gflops()
    cases = (
        matching.case(width=128, batch=50, steps=2),
        training.experts(width=128, count=256),
        matching.case(width=32, batch=50, steps=5),
    )
    with one_core():
        return [figure for case in cases for figure in rows_of(case, limit)]
