"""What every loop of the project is worth on this host: plain code, the default engine and the named ones.

CPU time of one pinned thread in turns, by that of plain code; the share of the convolution limit of `limits`, counting
the operations that an engine itself does; memory over what the process held, in a process of its own; and the relative
distance of the result (what the images, or the parameters, moved by) to the same in float64.
"""

from __future__ import annotations

import multiprocessing
import re
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from tests.benchmarks.cases import classwise, files, matching, training
from tests.benchmarks.cases.case import EXACT, PLAIN, Case, Sides, distance
from tests.benchmarks.limits import convolution, gflops, one_core, peak_gflops, repeated
from tests.benchmarks.limits import operations as operations_of
from tests.benchmarks.measure import Row, Timer, medians, record
from workers.runtime.process import keep_freed_pages

SLOWER = 1.03
"""By which a default may be slower than plain code."""
REPEATS = 3
INITIALISATIONS = 10
"""Over which engines are compared with float64."""
NEIGHBOURS = 2
SHORT, PUBLISHED, LONG = 10, 30, 50
"""Inner steps: between the first and the last the adjoint's memory may grow by a tenth; MTT has 30 on CIFAR-10."""


def cases() -> Iterator[Case]:
    """All loops, at sizes of about a second."""
    yield matching.case(width=32, batch=50, steps=5, engines=matching.of_this_host())
    yield matching.case(width=128, batch=50, steps=2, engines=matching.of_this_host())
    yield training.experts(width=32, count=1024)
    yield training.experts(width=128, count=256)
    yield training.test_pass(width=32, count=2048)
    for ipc, epochs in ((1, 40), (10, 6), (50, 2)):
        yield training.evaluation(ipc=ipc, epochs=epochs)
    yield training.resnet(count=32)
    for method in classwise.METHODS:
        yield classwise.case(method)


def rows() -> list[Row]:
    """All loops, then matching over ten initialisations and at two lengths, then a file of trajectories."""
    figures: list[Row] = []
    for case in cases():
        print(f"  {case.name} ...", file=sys.stderr, flush=True)
        figures += map(record, measured(case, peak_gflops()))
    return [*figures, *distances(), *growth(), *file_rows()]


def measured(case: Case, limit: float, repeats: int = REPEATS) -> list[Row]:
    """A row for every side of a loop.

    Args:
        case: the loop.
        limit: GFLOP/s that shares are shares of.
        repeats: of which the median is taken.

    Raises:
        AssertionError: the default and plain code do not give the same numbers.
    """
    with one_core():
        sides = case.sides()
        results = {name: work() for name, work in sides.items()}
        exact = results.pop(EXACT)
        require_same(case, results, exact)
        flops = {name: operations(sides[case.counted.get(name, name)]) for name in results}
        timers = timed({name: sides[name] for name in results}, repeats)
    return [
        Row(
            part="loops",
            name=f"{case.name}: {name}" + (" (default)" if name == case.default else ""),
            cpu_seconds=timers[name].cpu / case.count,
            wall_seconds=timers[name].wall / case.count,
            per=case.per,
            ratio=timers[name].cpu / timers[PLAIN].cpu if name != PLAIN else None,
            goal=SLOWER if name == case.default else None,
            share=flops[name] / timers[name].cpu / 1e9 / limit,
            peak_mib=None if "compiled" in name else alone(peak_mib, case, name),  # the compiler takes more
            error=distance(result, exact),
        )
        for name, result in results.items()
    ]


def timed(sides: Sides, repeats: int) -> dict[str, Timer]:
    """The median time of every side."""
    return dict(zip(sides, medians(*sides.values(), repeats=repeats), strict=True))


def slowdown(case: Case, repeats: int = 5) -> float:
    """CPU time of the default engine by that of plain code, both already warm."""
    with one_core():
        every = case.sides()
        sides = {name: every[name] for name in (PLAIN, case.default)}
        timed(sides, 1)
        timers = timed(sides, repeats)
    return timers[case.default].cpu / timers[PLAIN].cpu


def shares(case: Case, repeats: int = 5) -> tuple[float, float]:
    """The shares of the convolution limit that the default engine and plain code reach, all three timed in turns."""
    best = max(gflops(), key=lambda shape: gflops()[shape])
    with one_core():
        sides = case.sides()
        works, limit = [sides[case.default], sides[PLAIN]], repeated(convolution(*best))
        flops = [operations(sides[case.counted.get(name, name)]) for name in (case.default, PLAIN)]
        *loops, convolutions = medians(*works, limit, repeats=repeats)
    rate = operations_of(best[0]) * limit.count / convolutions.cpu  # type: ignore[attr-defined]
    ours, plain = (count / loop.cpu / rate for count, loop in zip(flops, loops, strict=True))
    return ours, plain


def require_same(case: Case, results: dict[str, Tensor], exact: Tensor) -> None:
    """Refuse a default that is further from plain code than rounding explains."""
    rounding = distance(results[PLAIN], exact)
    apart = distance(results[case.default], results[PLAIN])
    assert apart <= 1e-5 + 10 * rounding, f"{case.name}: {case.default} is {apart:.1e} from plain code"


class Operations(TorchDispatchMode):
    """Counts floating-point operations of convolutions and products; a multiplication and an addition are two."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0.0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if (count := flop_registry.get(func._overloadpacket)) is not None:
            self.total += count(*args, **kwargs, out_val=output)
        return output


def operations(work: Callable[[], object]) -> float:
    """Floating-point operations of some work."""
    with Operations() as counter:
        work()
    return counter.total


def distances() -> list[Row]:
    """How far the gradients of matching are from float64, the worst and the median of ten initialisations."""
    figures, engines = [], matching.of_this_host()
    for width in (32, 128):
        apart: dict[str, list[float]] = {}
        with one_core():
            for seed in range(INITIALISATIONS):
                sides = matching.sides(width, batch=10, steps=2, seed=seed, engines=engines)
                results = {name: work() for name, work in sides.items()}
                exact = results.pop(EXACT)
                for name, result in results.items():
                    apart.setdefault(name, []).append(distance(result, exact))
        figures += [
            Row(
                part="loops",
                name=f"MTT, width {width}, {INITIALISATIONS} initialisations: {name}",
                cpu_seconds=None,
                error=max(errors),
                note=f"the largest distance to float64; the median is {statistics.median(errors):.1e}",
            )
            for name, errors in apart.items()
        ]
    return figures


def growth(width: int = 32, batch: int = 50) -> list[Row]:
    """The adjoint's memory by that of plain code at the published number of steps, and its growth from ten to fifty."""
    published = matching.case(width, batch, PUBLISHED)
    plain, adjoint = alone(peak_mib, published, PLAIN), alone(peak_mib, published, "adjoint")
    least, most = (most_mib(width, batch, steps) for steps in (SHORT, LONG))
    of_plain = Row(
        part="loops",
        name=f"memory of {published.name}: adjoint",
        cpu_seconds=None,
        ratio=adjoint / plain,
        goal=1 / 6,
        peak_mib=adjoint,
        note=f"of plain code's {plain:.0f} MiB",
    )
    grown = Row(
        part="loops",
        name=f"memory of {matching.case(width, batch, LONG).name}: adjoint",
        cpu_seconds=None,
        ratio=most / least,
        goal=1.1,
        peak_mib=most,
        note=f"of that of {SHORT} steps; the most of {2 * NEIGHBOURS + 1} lengths each",
    )
    return [of_plain, grown]


def most_mib(width: int, batch: int, steps: int) -> float:
    """The adjoint's memory, the most over neighbouring numbers of steps: gaps in the heap move one by a tenth."""
    lengths = range(steps - NEIGHBOURS, steps + NEIGHBOURS + 1)
    return max(alone(peak_mib, matching.case(width, batch, length), "adjoint") for length in lengths)


def file_rows(experts: int = 100) -> list[Row]:
    """Opening a file of so many experts and reading two snapshots of the last one."""
    with tempfile.TemporaryDirectory() as folder:
        files.write(Path(folder), experts)
        files.write(Path(folder) / "small", experts=1)
        with one_core():
            files.read_ours(folder)
            plain, ours = medians(lambda: files.read_plain(folder), lambda: files.read_ours(folder), repeats=5)
        memory = [alone(anonymous_mib, read, folder) for read in (files.read_plain, files.read_ours)]
    return [
        Row(
            part="loops",
            name=f"two snapshots of a file of {experts} experts",
            cpu_seconds=ours.cpu,
            wall_seconds=ours.wall,
            ratio=ours.wall / plain.wall,
            goal=0.01,
            note=f"of the wall time of torch.load, {1000 * plain.wall:.0f} ms",
        ),
        Row(
            part="loops",
            name="anonymous memory of that",
            cpu_seconds=None,
            ratio=memory[1] / memory[0],
            goal=0.1,
            peak_mib=memory[1],
            note=f"of torch.load's {memory[0]:.0f} MiB",
        ),
    ]


def alone(measure: Callable[..., float], *arguments: object) -> float:
    """What a measurement gives in a process of its own, which has imported torch and done nothing yet."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.benchmarks.loops"])
    with context.Pool(1) as pool:
        return pool.apply(measure, arguments)


def peak_mib(case: Case, side: str) -> float:
    """The most memory that a side of a loop takes over what its process held before, in MiB."""
    torch.set_num_threads(1)
    keep_freed_pages()
    matching.sides(width=2, batch=2, steps=1, size=8)[PLAIN]()  # what libraries keep for themselves is no part of it
    work = case.sides()[side]
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = _kilobytes("VmRSS")
    work()
    return (_kilobytes("VmHWM") - before) / 1024


def anonymous_mib(read: Callable[[str], object], folder: str) -> float:
    """Memory that is no page of a file, held while a result is, over what the process held before, in MiB."""
    read(f"{folder}/small")  # what libraries keep for themselves is no part of it
    before = _kilobytes("RssAnon")
    result = read(folder)
    after = _kilobytes("RssAnon")
    del result
    return (after - before) / 1024


def _kilobytes(name: str) -> int:
    (found,) = re.findall(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found)
