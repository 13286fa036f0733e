"""What the networks of each table cell reached, beside what the paper prints.

A cell is `measured`, `partial` (some of its networks are), `failed` (with the cause) or `not run` (with the reason).
The spread is the population standard deviation, as the paper's codes print it. The interval is Student's, of the mean
over networks, so with one synthetic set per cell it speaks of training and not of distilling again.

Whether a difference is significant is asked only where it is a question: at the published scale, on the published
dataset, with a spread printed. Then Welch's test is made, the paper's networks taken as five (section 5.1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from jobs.table import Published, TableCell, TablesPlan
from jobs.table import Table as PaperTable
from jobs.table_filling import NETWORKS
from orchestrator.results import statistics
from orchestrator.results.cells import Reader, accuracy_of
from orchestrator.results.statistics import Sample

CellStatus = Literal["measured", "partial", "failed", "not run"]
CELL_STATUSES: tuple[CellStatus, ...] = ("measured", "partial", "failed", "not run")


@dataclass(frozen=True)
class MeasuredCell:
    """One cell as far as the store goes; accuracies in percent."""

    entry: TableCell
    status: CellStatus
    mean: float | None = None
    std: float | None = None
    n: int = 0
    interval: tuple[float, float] | None = None
    """95 %, of the mean; None for fewer than two networks."""
    difference: float | None = None
    """Measured minus published, where the setting is the published one."""
    significant: bool | None = None
    """None where it was not tested."""
    why: str = ""
    """Why it is not, or not wholly, measured."""
    command: str = ""
    """What fills exactly this table, typed again."""
    values: tuple[float, ...] = field(default=(), repr=False)


def measure(
    tables: TablesPlan,
    store: Reader,
    failures: Mapping[str, str],
    commands: Mapping[str, str] | None = None,
    left_out: Mapping[str, str] | None = None,
) -> dict[str, list[MeasuredCell]]:
    """By table, each of its cells, in order.

    Args:
        tables: the tables and the graph behind them.
        store: where the manifests are.
        failures: messages of the jobs that failed, by key.
        commands: by table, the command that fills it.
        left_out: by key of a job, why this run did not ask for it.
    """
    reading = _Reading(tables, store, failures, left_out or {})
    return {
        table.name: [reading.cell(table, entry, (commands or {}).get(table.name, "")) for entry in table.cells]
        for table in tables.tables
    }


@dataclass
class _Reading:
    """The store's answers, each asked for once however many tables share a job."""

    tables: TablesPlan
    store: Reader
    failures: Mapping[str, str]
    left_out: Mapping[str, str]
    accuracies: dict[str, float | None] = field(default_factory=dict)

    def cell(self, table: PaperTable, entry: TableCell, command: str) -> MeasuredCell:
        if entry.cell is None:
            return MeasuredCell(entry, "not run", why=entry.absent, command=command)
        accuracies = {key: self.accuracy(key) for key in entry.cell.jobs}
        values = tuple(value for value in accuracies.values() if value is not None)
        missing = [key for key, value in accuracies.items() if value is None]
        status, why = self.status(entry, values, missing)
        mean = statistics.mean(values)
        published = entry.published or Published(None, None)
        difference = None
        if is_published_setting(table) and mean is not None and published.mean is not None:
            difference = mean - published.mean
        tested = difference is not None and not missing
        return MeasuredCell(
            entry=entry,
            status=status,
            mean=mean,
            std=statistics.population_std(values),
            n=len(values),
            interval=interval(values),
            difference=difference,
            significant=differs(values, published, NETWORKS["paper"]) if tested else None,
            why=why,
            command=command,
            values=values,
        )

    def accuracy(self, key: str) -> float | None:
        if key not in self.accuracies:
            self.accuracies[key] = accuracy_of(self.store, key)
        return self.accuracies[key]

    def status(self, entry: TableCell, values: Sequence[float], missing: Sequence[str]) -> tuple[CellStatus, str]:
        """The status of a cell and why it is not, or not wholly, measured."""
        if not missing:
            return "measured", ""
        cause = self.cause(missing)
        if values:
            return "partial", cause or f"{len(values)} of {len(values) + len(missing)} networks are there"
        if cause:
            return "failed", cause
        reasons = dict.fromkeys(self.left_out[key] for key in missing if key in self.left_out)
        return "not run", entry.absent or "; ".join(reasons) or "the run ended before"

    def cause(self, missing: Sequence[str]) -> str:
        """The failed job on which a missing one hangs, with its message."""
        if not self.failures:
            return ""
        behind = self.tables.plan.graph.ancestors(missing)
        return next((f"{key}: {text}" for key, text in self.failures.items() if key in behind), "")


def is_published_setting(table: PaperTable) -> bool:
    """Whether a table is filled at the paper's scale on the paper's datasets, so that differences mean something."""
    return table.scale == "paper" and not table.dataset_note


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Student's 95 % interval of the mean accuracy within 0 to 100 %; None for fewer than two values."""
    bounds = statistics.interval(values)
    return None if bounds is None else (max(0.0, bounds[0]), min(100.0, bounds[1]))


def differs(values: Sequence[float], published: Published, networks: int) -> bool | None:
    """Whether measured accuracies differ from the published ones by Welch's test.

    Args:
        values: what was measured, in percent.
        published: the printed mean, and the spread, which is a population standard deviation (facts 9).
        networks: over how many networks the paper averages.

    Returns:
        None where it cannot be told: fewer than two values, or no spread printed.
    """
    if len(values) < 2 or published.mean is None or published.std is None:
        return None
    theirs = Sample.printed(published.mean, published.std, networks)
    return statistics.welch_difference(Sample.of(values), theirs).significant
