"""What the networks of each table cell reached, beside what the paper prints.

A cell is `measured`, `partial` (some of its networks are), `failed` (with the cause) or `not run` (with the reason).
The spread is the population standard deviation, as the paper's codes print it. The interval is Student's, of the mean
over networks, so with one synthetic set per cell it speaks of training and not of distilling again.

Whether a difference is significant is asked only where it is a question: at the published scale, on the published
dataset, with a spread printed. Then Welch's test is made, the paper's networks taken as five (section 5.1).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from jobs.table import NETWORKS, Published, Table, TableCell, TablesPlan
from orchestrator.results.cells import Reader, accuracy_in, manifest_of

CellStatus = Literal["measured", "partial", "failed", "not run"]
CELL_STATUSES: tuple[CellStatus, ...] = ("measured", "partial", "failed", "not run")
LEVEL = 0.05
"""The chance of calling a difference significant that is none."""


@dataclass(frozen=True)
class MeasuredCell:
    """One cell as far as the store goes; accuracies in percent, the difference is measured minus published."""

    cell: TableCell
    status: CellStatus
    mean: float | None = None
    std: float | None = None
    n: int = 0
    interval: tuple[float, float] | None = None
    """95 %, of the mean; None for fewer than two networks."""
    difference: float | None = None
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
        table.name: [reading.cell(table, one, (commands or {}).get(table.name, "")) for one in table.cells]
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

    def cell(self, table: Table, one: TableCell, command: str) -> MeasuredCell:
        if one.cell is None:
            return MeasuredCell(one, "not run", why=one.absent, command=command)
        found = [self.accuracy(key) for key in one.cell.jobs]
        values = tuple(value for value in found if value is not None)
        missing = [key for key, value in zip(one.cell.jobs, found, strict=True) if value is None]
        status, why = self.standing(one, values, missing)
        if not values:
            return MeasuredCell(one, status, why=why, command=command)
        mean = statistics.fmean(values)
        published = one.published if one.published and one.published.mean is not None else None
        asked = published is not None and not missing and table.scale == "paper" and not table.dataset_note
        return MeasuredCell(
            cell=one,
            status=status,
            mean=mean,
            std=statistics.pstdev(values),
            n=len(values),
            interval=interval(values),
            difference=mean - published.mean if published and published.mean is not None else None,
            significant=differs(values, published, NETWORKS["paper"]) if asked and published else None,
            why=why,
            command=command,
            values=values,
        )

    def accuracy(self, key: str) -> float | None:
        if key not in self.accuracies:
            manifest = manifest_of(self.store, key)
            self.accuracies[key] = None if manifest is None else accuracy_in(manifest)
        return self.accuracies[key]

    def standing(self, one: TableCell, values: Sequence[float], missing: Sequence[str]) -> tuple[CellStatus, str]:
        if not missing:
            return "measured", ""
        cause = self.cause(missing)
        if values:
            return "partial", cause or f"{len(values)} of {len(values) + len(missing)} networks are there"
        if cause:
            return "failed", cause
        reasons = dict.fromkeys(self.left_out[key] for key in missing if key in self.left_out)
        return "not run", one.absent or "; ".join(reasons) or "the run ended before"

    def cause(self, missing: Sequence[str]) -> str:
        """The failed job on which a missing one hangs, with its message."""
        if not self.failures:
            return ""
        behind = self.tables.plan.graph.ancestors(missing)
        return next((f"{key}: {text}" for key, text in self.failures.items() if key in behind), "")


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Student's 95 % interval of the mean accuracy in percent; None for fewer than two values."""
    n = len(values)
    if n < 2:
        return None
    half = _quantile(n - 1) * statistics.stdev(values) / math.sqrt(n)
    mean = statistics.fmean(values)
    return max(0.0, mean - half), min(100.0, mean + half)


def differs(values: Sequence[float], published: Published, networks: int) -> bool | None:
    """Whether the measured mean differs from the published one by Welch's test; None where it cannot be told.

    The printed spread is a population standard deviation (facts 9), which over n values is the sample's times
    sqrt((n - 1) / n).
    """
    n = len(values)
    if n < 2 or published.mean is None or published.std is None:
        return None
    ours, theirs = statistics.variance(values) / n, published.std**2 / (networks - 1)
    if not ours + theirs:
        return statistics.fmean(values) != published.mean
    freedom = (ours + theirs) ** 2 / (ours**2 / (n - 1) + theirs**2 / (networks - 1))
    return abs(statistics.fmean(values) - published.mean) / math.sqrt(ours + theirs) > _quantile(freedom)


def _quantile(freedom: float) -> float:
    """Of Student's distribution, two-sided."""
    from scipy import stats  # type: ignore[import-untyped]  # takes half a second, and only reports need it

    return float(stats.t.ppf(1 - LEVEL / 2, freedom))
