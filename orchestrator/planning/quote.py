"""A quote: what tables would compute, share and take, before anything runs.

Every job has a price with a witness (`orchestrator.planning.durations.DurationSource`). Prices at the published scale
are GPU-hours on the machine that `jobs.cost` assumes, at reduced scales hours of a CPU core, and the quote says which.

`naive` is what it would take if every arm of every table (a method on a dataset, its stages and images per stage) were
run by itself; `shared` what the one graph takes. `marginal` is what only that table asks for. The makespans are
simulated by the decision core that will run the graph.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table as Grid
from rich.text import Text

from jobs import cost
from jobs.experiment import Plan
from jobs.keys import kind_of
from jobs.table import DASH, Table, TableCell, TablesPlan, is_dash, walk
from orchestrator.planning import budget as budgets
from orchestrator.planning import durations, simulate
from orchestrator.runs.timeline import duration
from orchestrator.scheduler.schedule import Schedule
from workers.store.store import Store

SIZES = (1, 4, 16, 64, 256)
"""The numbers of workers for which a makespan is simulated."""
Entries = Sequence[tuple[Table, TableCell]]
_HOUR = 3600.0


@dataclass(frozen=True)
class Span:
    """One simulated run: seconds from its begin to its end, and the share of the workers' time that is work."""

    seconds: float
    utilisation: float


@dataclass(frozen=True)
class TablePrice:
    """What one table takes, in seconds: alone, and beyond what the other tables take anyway."""

    cells: int
    jobs: int
    alone: float
    marginal: float


@dataclass(frozen=True)
class BudgetSelection:
    """What a budget buys: its seconds, the cells to be completed, and those left out with their prices."""

    budget: float
    seconds: float
    cells: tuple[tuple[Table, TableCell], ...]
    left_out: tuple[tuple[Table, TableCell, float], ...]


@dataclass(frozen=True)
class Quote:
    """The whole answer; seconds throughout, of one worker unless said otherwise."""

    machine: cost.Machine
    scale: str
    kinds: Mapping[str, tuple[int, int, float]]
    """By kind: jobs cached, jobs to run, seconds to run."""
    requested: int
    total: int
    tables: Mapping[str, TablePrice]
    naive: float
    shared: float
    printed: tuple[float, float]
    """Both without the cells in which the paper prints a dash: naive and shared."""
    path: tuple[tuple[str, float, durations.DurationSource], ...]
    spans: Mapping[int, Span]
    witnesses: Mapping[str, tuple[int, float]]
    """By witness: jobs to run, and their seconds."""
    covered: int
    out_of_scope: tuple[tuple[str, str], ...]
    """Cells without jobs, each with the reason; those in which the paper prints a dash are counted in `dashes`."""
    dashes: int = 0
    """Cells left out because the paper prints a dash there."""
    absent: tuple[str, ...] = ()
    """Datasets that are planned with and not here, each with where to get it."""
    purchase: BudgetSelection | None = None
    prices: durations.Durations = field(repr=False, default_factory=lambda: durations.Durations({}, {}))

    @property
    def sharing(self) -> float:
        """How many times as much the arms would take by themselves."""
        return self.naive / self.shared if self.shared else 1.0

    def to_json(self) -> dict[str, Any]:
        """The interface of `plan --json` for tables."""
        cached, running = (sum(row[place] for row in self.kinds.values()) for place in (0, 1))
        return {
            "schema": 1,
            "scale": self.scale,
            "machine": vars(self.machine),
            "jobs": {
                "total": self.total,
                "cached": cached,
                "to_run": running,
                "shared": self.requested - self.total,
                "by_kind": {kind: {"cached": row[0], "to_run": row[1]} for kind, row in self.kinds.items()},
            },
            "cells": self.covered,
            "dashes_left_out": self.dashes,
            "gpu_hours": {
                "naive": self.naive / _HOUR,
                "shared": self.shared / _HOUR,
                "sharing_factor": self.sharing,
                "without_dashes": dict(zip(("naive", "shared"), (one / _HOUR for one in self.printed), strict=True)),
                "by_table": {name: one.alone / _HOUR for name, one in self.tables.items()},
                "marginal": {name: one.marginal / _HOUR for name, one in self.tables.items()},
            },
            "critical_path": [
                {"key": key, "kind": kind_of(key), "seconds": seconds, "price": witness}
                for key, seconds, witness in self.path
            ],
            "makespan_hours": {str(size): span.seconds / _HOUR for size, span in self.spans.items()},
            "utilisation": {str(size): span.utilisation for size, span in self.spans.items()},
            "price_source": {
                "measured": self.prices.measured,
                "calibrated": self.total - self.prices.measured,
                "to_run": {
                    witness: {"jobs": jobs, "gpu_hours": seconds / _HOUR}
                    for witness, (jobs, seconds) in self.witnesses.items()
                },
            },
            "absent": list(self.absent),
            "out_of_scope": [{"cell": cell, "reason": reason} for cell, reason in self.out_of_scope],
            "budget": _purchase_json(self.purchase),
        }

    def lines(self) -> Iterator[Any]:
        """The same for people."""
        unit = f"{self.machine.name}-hours"
        yield _grid(
            ("table", "cells", "jobs", f"{unit} alone", "beyond the others"),
            [
                (name, str(one.cells), str(one.jobs), hours(one.alone), hours(one.marginal))
                for name, one in self.tables.items()
            ],
        )
        yield _grid(
            ("kind", "cached", "to run", unit),
            [(kind, str(cached), str(run), hours(seconds)) for kind, (cached, run, seconds) in self.kinds.items()],
        )
        yield _grid(
            ("critical path", "time", "price"),
            [(key, duration(seconds), witness) for key, seconds, witness in self.path],
        )
        yield _grid(
            (f"{self.machine.name}s", "makespan", "utilisation"),
            [(str(size), duration(span.seconds), f"{span.utilisation:.0%}") for size, span in self.spans.items()],
        )
        yield Text(
            f"{self.total} jobs fill {self.covered} cells; {hours(self.shared)} {unit} to run. "
            f"Every arm by itself would take {hours(self.naive)}: sharing saves a factor of {self.sharing:.2f}."
        )
        naive, shared = self.printed
        if shared < self.shared * (1 - 1e-9):
            yield Text(
                f"Without the cells in which the paper prints a dash: {hours(shared)} instead of {hours(naive)}, "
                f"a factor of {naive / shared if shared else 1:.2f}."
            )
        if self.dashes:
            yield Text(f"left out: {self.dashes} cells in which the paper prints a dash; --with-dashes plans them, too")
        sources = ", ".join(
            f"{jobs} {witness} ({hours(seconds)})" for witness, (jobs, seconds) in self.witnesses.items() if jobs
        )
        yield Text(f"prices: {sources or 'nothing to run'}; {_assumed(self.machine)}")
        yield from (Text(f"not here: {reason}") for reason in self.absent)
        yield from (Text(f"out of scope: {cell}: {reason}") for cell, reason in self.out_of_scope)
        if self.purchase is not None:
            yield from _purchase_lines(self.purchase, unit)


def quote(
    tables: TablesPlan,
    store: Store,
    workers: int,
    absent: Sequence[str] = (),
    budget: float | None = None,
    machine: cost.Machine | None = None,
) -> Quote:
    """Everything `plan` says of tables; `budget` in seconds of worker time, `machine` by default the scale's."""
    plan, graph = tables.plan, tables.plan.graph
    scale = next((table.scale for table in tables.tables), "paper")
    machine = machine or machine_of(scale, workers)
    priced = durations.estimate_durations(graph, store, machine)
    seconds = priced.seconds
    schedule = schedule_of(plan, priced)
    cached = durations.stored_keys(graph, store)
    running = simulate.jobs_to_run(schedule, cached)
    todo = set(running)
    behind = _Behind(plan, todo)
    path = graph.critical_path(lambda job: seconds[job.key] if job.key in todo else 0.0) if todo else []
    shared = sum(seconds[key] for key in running)
    whole = [(table, one) for table, one in walk(tables.tables) if one.cell is not None]
    return Quote(
        machine=machine,
        scale=scale,
        kinds=_kinds((job.kind for job in graph), running, cached, seconds),
        requested=graph.requested,
        total=len(graph),
        tables=_by_table(tables, behind, seconds),
        naive=behind.naive(whole, seconds),
        shared=shared,
        printed=behind.both([entry for entry in whole if not is_dash(*entry)], seconds),
        path=tuple((key, seconds[key], priced.witnesses[key]) for key in path if key in todo),
        spans=spans(schedule, cached, seconds, sorted({workers, *SIZES}), shared),
        witnesses=_witnesses(running, priced),
        covered=len(whole),
        out_of_scope=tuple(
            (f"{table.name}: {one.row} / {one.column}", one.absent)
            for table, one in walk(tables.tables)
            if one.cell is None and one.absent != DASH
        ),
        dashes=sum(one.absent == DASH for _, one in walk(tables.tables)),
        absent=tuple(absent),
        purchase=None if budget is None else purchase(whole, behind, seconds, budget),
        prices=priced,
    )


def machine_of(scale: str, workers: int) -> cost.Machine:
    """What a worker is thought to be: the published scale is for GPUs, the others are for cores such as this one."""
    return cost.GPU if scale == "paper" else durations.core_here(workers)


def schedule_of(plan: Plan, priced: durations.Durations, **limits: Any) -> Schedule:
    """The driver's plan for a graph at these prices."""
    return Schedule.of(plan.graph, plan.wanted(), priced.of, exclusive=plan.exclusive, limits=plan.limits, **limits)


def spans(
    schedule: Schedule, cached: Iterable[str], seconds: Mapping[str, float], sizes: Sequence[int], work: float
) -> dict[int, Span]:
    """The simulated run on each number of workers.

    A single worker is never idle. Where a run takes no more than its longest chain, no larger number of workers can be
    faster, and none is simulated.
    """
    there, found = frozenset(cached), dict[int, Span]()
    longest = max((schedule.remaining_path[key] for key in schedule.keys), default=0.0)
    taken = float("inf")
    for size in sizes:
        if size == 1:
            taken = work
        elif taken > longest * (1 + 1e-9):
            taken = simulate.makespan(schedule, there, seconds.__getitem__, size)
        found[size] = Span(taken, work / (size * taken) if taken else 1.0)
    return found


def purchase(cells: Entries, behind: _Behind, seconds: Mapping[str, float], budget: float) -> BudgetSelection:
    """What a budget buys of these cells, all of which have jobs."""
    needs = [behind.of(one.cell.jobs) for _, one in cells if one.cell]
    bought = budgets.choose(needs, seconds, budget)
    paid = {key for cell in bought.cells for key in needs[cell]}
    left = [number for number in range(len(cells)) if number not in set(bought.cells)]
    dear = {number: sum(seconds[key] for key in set(needs[number]) - paid) for number in left}
    return BudgetSelection(
        budget,
        bought.seconds,
        tuple(cells[number] for number in bought.cells),
        tuple((*cells[number], dear[number]) for number in left),
    )


def hours(seconds: float) -> str:
    """Hours for people: three digits."""
    value = seconds / _HOUR
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


class _Behind:
    """The jobs to run behind keys; the answer for the same keys is kept, since tables share cells."""

    def __init__(self, plan: Plan, todo: set[str]) -> None:
        self.graph, self.todo = plan.graph, todo
        self.known: dict[tuple[str, ...], frozenset[str]] = {}

    def of(self, keys: tuple[str, ...]) -> frozenset[str]:
        if keys not in self.known:
            self.known[keys] = frozenset(self.graph.ancestors(keys) & self.todo)
        return self.known[keys]

    def both(self, cells: Entries, seconds: Mapping[str, float]) -> tuple[float, float]:
        """The seconds of these cells if every arm were run by itself, and in one graph."""
        keys = tuple(dict.fromkeys(key for _, one in cells if one.cell for key in one.cell.jobs))
        return self.naive(cells, seconds), sum(seconds[key] for key in self.of(keys))

    def naive(self, cells: Entries, seconds: Mapping[str, float]) -> float:
        """The seconds of these cells if every arm of every table were run by itself."""
        arms: dict[tuple[object, ...], tuple[str, ...]] = {}
        for table, one in cells:
            if (cell := one.cell) is not None:
                name = (table.name, cell.dataset, cell.method, cell.base_method, cell.ipc_per_stage, cell.stages)
                arms[name] = (*arms.get(name, ()), *cell.jobs)
        return sum(sum(seconds[key] for key in self.of(keys)) for keys in arms.values())


def _kinds(
    kinds: Iterable[str], running: Sequence[str], cached: set[str], seconds: Mapping[str, float]
) -> dict[str, tuple[int, int, float]]:
    there, todo, took = Counter(map(kind_of, cached)), Counter(map(kind_of, running)), Counter[str]()
    for key in running:
        took[kind_of(key)] += seconds[key]  # type: ignore[assignment]
    return {kind: (there[kind], todo[kind], float(took[kind])) for kind in dict.fromkeys(kinds)}


def _by_table(tables: TablesPlan, behind: _Behind, seconds: Mapping[str, float]) -> dict[str, TablePrice]:
    needed = {name: behind.of(keys) for name, keys in tables.by_table.items()}
    owners = Counter(key for keys in needed.values() for key in keys)
    cells = Counter(table.name for table, one in walk(tables.tables) if one.cell)
    return {
        name: TablePrice(
            cells[name],
            len(keys),
            sum(seconds[key] for key in keys),
            sum(seconds[key] for key in keys if owners[key] == 1),
        )
        for name, keys in needed.items()
    }


def _witnesses(running: Sequence[str], priced: durations.Durations) -> dict[str, tuple[int, float]]:
    found: dict[str, tuple[int, float]] = dict.fromkeys(("measured", "corrected", "calibrated"), (0, 0.0))
    for key in running:
        jobs, seconds = found[priced.witnesses[key]]
        found[priced.witnesses[key]] = jobs + 1, seconds + priced.seconds[key]
    return found


def _assumed(machine: cost.Machine) -> str:
    if machine.name == cost.GPU.name:
        return f"estimates assume {machine.rate / 1e12:g} TFLOP/s, reported of an RTX 3090; no GPU was measured"
    return f"estimates are for a core that does {machine.rate / 1e9:.3g} GFLOP/s, as one here did for a moment"


def _purchase_json(bought: BudgetSelection | None) -> dict[str, Any] | None:
    if bought is None:
        return None
    return {
        "gpu_hours": bought.budget / _HOUR,
        "spent": bought.seconds / _HOUR,
        "cells": [f"{table.name}: {one.row} / {one.column}" for table, one in bought.cells],
        "left_out": [
            {"cell": f"{table.name}: {one.row} / {one.column}", "gpu_hours": seconds / _HOUR}
            for table, one, seconds in bought.left_out
        ],
    }


def _purchase_lines(bought: BudgetSelection, unit: str) -> Iterator[Any]:
    of, cells = len(bought.cells) + len(bought.left_out), len(bought.cells)
    yield Text(f"{hours(bought.budget)} {unit} complete {cells} of {of} cells and take {hours(bought.seconds)}.")
    if bought.left_out:
        rows = [(table.name, one.row, one.column, hours(seconds)) for table, one, seconds in bought.left_out]
        yield _grid(("left out", "row", "column", f"{unit} more"), rows)


def _grid(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Grid:
    grid = Grid()
    for name in header:
        grid.add_column(Text(name), overflow="fold")
    for row in rows:
        grid.add_row(*map(Text, row))
    return grid
