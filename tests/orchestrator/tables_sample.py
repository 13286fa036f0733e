"""A small report of tables for tests: a table, a curve and pictures over one plan, with cells of every status."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs.experiment import Plan
from jobs.table import Published, TableCell, TablesPlan
from jobs.table import Table as PaperTable
from orchestrator.reports import table_report
from orchestrator.reports.sections import RunFacts
from orchestrator.results.tables import MeasuredCell
from tests.orchestrator.reports.test_experiment_report import half_done, journal
from tests.orchestrator.results.test_cells import cell_of
from workers.store.store import Store

COMMAND = "pdd reproduce sample --scale tiny --dataset digits"
EVIL = "<script>alert('x')</script> & \"quotes\""
"""A name as a hostile recipe could have it."""
LOST = "the dataset is not here; get it from https://example.org/data and name its folder in cluster.yaml"
DIVERGED = "distil-x: diverged: the loss is NaN"


def plan_of(plan: Plan, **changes: Any) -> TablesPlan:
    """A table of five statuses, a curve with its bound, and pictures of classes `one` and `two`."""
    random, pdd = cell_of(plan, "Random", "convnet"), cell_of(plan, "PDD+MTT", "convnet", 1)
    later, full = cell_of(plan, "PDD+MTT", "convnet", 2), cell_of(plan, "Full data", "convnet", 0)
    common: dict[str, Any] = {"notes": ("A remark of the paper.",), "scale": "tiny", "dataset_note": ""}
    common |= {"caption": "Accuracy.", **changes}
    table = PaperTable(
        name="table1",
        title="Table 1",
        kind="table",
        rows=("Random", f"PDD+MTT {EVIL}"),
        columns=("CIFAR-10, 10", "CIFAR-10, 50", "Tiny-ImageNet, 10"),
        cells=(
            TableCell("Random", "CIFAR-10, 10", Published(26.0, 1.2), random),
            TableCell("Random", "CIFAR-10, 50", Published(None, None), full),
            TableCell("Random", "Tiny-ImageNet, 10", Published(5.0, 0.2), None, LOST),
            TableCell(f"PDD+MTT {EVIL}", "CIFAR-10, 10", Published(66.9, 0.4), pdd),
            TableCell(f"PDD+MTT {EVIL}", "CIFAR-10, 50", Published(74.2, 0.5), later),
            TableCell(f"PDD+MTT {EVIL}", "Tiny-ImageNet, 10", Published(27.3, None), random),
        ),
        **common,
    )
    curve = PaperTable(
        name="figure3",
        title="Figure 3",
        kind="curve",
        rows=("CIFAR-10, 1 per stage", "CIFAR-10, full data"),
        columns=("stage 1", "stage 2"),
        cells=(
            TableCell("CIFAR-10, 1 per stage", "stage 1", Published(None, None), pdd),
            TableCell("CIFAR-10, 1 per stage", "stage 2", Published(70.0, None), later),
            TableCell("CIFAR-10, full data", "stage 1", Published(88.1, None), full),
            TableCell("CIFAR-10, full data", "stage 2", Published(88.1, None), full),
        ),
        **common,
    )
    pictures = PaperTable(
        name="figure4",
        title="Figure 4",
        kind="pictures",
        rows=("one", "two"),
        columns=("stage 1", "stage 2"),
        cells=tuple(
            TableCell(row, column, None, cell)
            for row in ("one", "two")
            for column, cell in (("stage 1", pdd), ("stage 2", later))
        ),
        **common,
    )
    tables = (table, curve, pictures)
    by_table = {one.name: tuple(key for cell in one.cells if cell.cell for key in cell.cell.jobs) for one in tables}
    return TablesPlan(plan, tables, by_table)


def measured_cells(tables: TablesPlan) -> dict[str, list[MeasuredCell]]:
    """What became of them: the table has every status and every sign, the figures lack their stage 2."""
    table, curve, pictures = tables.tables
    tested = table.scale == "paper" and not table.dataset_note
    fates: tuple[Mapping[str, Any], ...] = (
        {
            "mean": 26.3,
            "std": 0.5,
            "n": 5,
            "interval": (25.7, 26.9),
            "difference": 0.3 if tested else None,
            "significant": False if tested else None,
        },
        {"mean": 30.0, "std": 0.1, "n": 5, "interval": (29.9, 30.1)},
        {"status": "not run", "why": LOST},
        {
            "mean": 69.0,
            "std": 0.4,
            "n": 5,
            "interval": (68.5, 69.5),
            "values": (68.6, 69.4),
            "difference": 2.1 if tested else None,
            "significant": True if tested else None,
        },
        {
            "mean": 70.1,
            "std": 0.4,
            "n": 5,
            "interval": (69.6, 70.6),
            "difference": -4.1 if tested else None,
            "significant": True if tested else None,
        },
        {
            "status": "partial",
            "mean": 27.0,
            "std": 0.0,
            "n": 1,
            "difference": -0.3 if tested else None,
            "why": "1 of 2 networks",
        },
    )
    seen: dict[str, Any] = {"mean": 60.0, "std": 0.5, "n": 2, "interval": (59.0, 61.0)}
    lost: dict[str, Any] = {"status": "failed", "why": DIVERGED}
    full: dict[str, Any] = {"mean": 98.5, "std": 0.5, "n": 2}
    return {
        table.name: [cell(one, **fate) for one, fate in zip(table.cells, fates, strict=True)],
        curve.name: [cell(one, **fate) for one, fate in zip(curve.cells, (seen, lost, full, full), strict=True)],
        pictures.name: [cell(one, **(lost if one.column == "stage 2" else seen)) for one in pictures.cells],
    }


def cell(one: TableCell, **fate: Any) -> MeasuredCell:
    """A cell with this fate; `measured` unless it says otherwise."""
    return MeasuredCell(**{"entry": one, "status": "measured", "command": COMMAND, **fate})


def write(folder: Path, **changes: Any) -> list[Path]:
    """The report of the sample, over a store of its own, with a journal of one job."""
    store = Store.open(folder / "store")
    plan, _ = half_done(store)
    tables = plan_of(plan, **changes)
    job = {"key": next(job.key for job in plan.graph if job.kind == "distil"), "kind": "distil", "slot": "worker 0"}
    records = journal(
        ("run_began", 0.0, {"versions": {"ray": "2.54"}}),
        ("slot_joined", 0.0, {"slot": "worker 0"}),
        ("job_started", 1.0, job),
        ("job_done", 9.0, job),
        ("run_ended", 10.0, {}),
    )
    measured = measured_cells(tables)
    return table_report.write(
        folder / "report", tables, measured, store, RunFacts(command=COMMAND, records=records, predicted=8.0)
    )
