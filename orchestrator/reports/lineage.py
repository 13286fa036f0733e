"""What every cell of a report was made of: its command, its jobs, and the jobs that these were made from.

Keys are links inside the page: from a cell to its networks, to the sets they were trained on, to the experts, down to
the dataset.
"""

from __future__ import annotations

from collections.abc import Sequence

from jobs.graph import Job
from jobs.table import Table, TablesPlan
from orchestrator.reports.page import Entry, Fold, Grid, Line, Prose, Section, entry
from orchestrator.reports.sections import RUN_GROUP, job_anchor
from orchestrator.results.cells import manifest_of
from orchestrator.results.tables import MeasuredCell
from workers.store.store import Store


def of_cells(table: Table, cells: Sequence[MeasuredCell]) -> Grid:
    """For every cell of a table its standing, interval, command and jobs."""
    header = ("Cell", "Standing", "95 % interval", "Command", "Jobs")
    rows = tuple(map(_cell_row, cells))
    return Grid(f"{table.name}-cells", header, rows, words=5, title=f"Lineage of {table.title}")


def of_jobs(tables: TablesPlan, store: Store) -> Section:
    """Every job once, with what it was made from and, if it is made, its digest."""
    rows = tuple(_job_row(job, store) for job in tables.plan.graph)
    header = ("Job", "Seconds", "Digest", "Made from")
    grid = Grid("jobs-table", header, rows, words=4, title="Every job, parents before children")
    said = Prose("Equal digests are equal results, byte for byte. A job that several cells need is here once.")
    return Section("jobs", "Jobs", (said, Fold(f"All {len(rows)} jobs", (grid,))), RUN_GROUP)


def _cell_row(one: MeasuredCell) -> tuple[str | Entry, ...]:
    jobs = one.cell.cell.jobs if one.cell.cell is not None else ()
    return (
        f"{one.cell.row} / {one.cell.column}",
        one.status,
        f"{one.interval[0]:.1f}–{one.interval[1]:.1f}" if one.interval else "",
        entry(Line(one.command, "code") if one.command else None),
        entry(*(Line(key, "code", job_anchor(key)) for key in jobs)),
    )


def _job_row(job: Job, store: Store) -> tuple[str | Entry, ...]:
    manifest = manifest_of(store, job.key)
    return (
        entry(Line(job.key, "code"), anchor=job_anchor(job.key)),
        f"{manifest.seconds:.1f}" if manifest else "",
        entry(Line(manifest.digest[:16], "code")) if manifest else "not made",
        entry(*(Line(key, "code", job_anchor(key)) for key in job.parent_keys())),
    )
