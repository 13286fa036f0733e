"""The report of the paper's tables: every measured cell beside the published one, and how it was come by.

    report.md  report.html       tables, figures, standing of every cell, time, lineage, environment
    cells.csv  cells.parquet     one row a cell with all its values
    figure*.png  gantt.png

A measured number never stands without its scale and dataset: the caption and every column's heading say them. What
differs from the published number says by sign and word whether the difference is significant. A cell without a number
says why, in a note below its table. Measuring is left to `orchestrator.results.tables`, setting to
`orchestrator.reports.page` and its two writers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from jobs.table import Published, Table, TablesPlan
from orchestrator.reports import lineage
from orchestrator.reports.markdown import markdown
from orchestrator.reports.page import (
    Beside,
    Block,
    Coverage,
    Entry,
    Fold,
    Gallery,
    Grid,
    Line,
    Note,
    Notes,
    Page,
    Picture,
    Prose,
    Section,
    entry,
    notes,
)
from orchestrator.reports.sections import environment, image_grid, provenance, put, timing
from orchestrator.reports.table_data import csv_of, parquet_of
from orchestrator.results.cells import manifest_of
from orchestrator.results.tables import CELL_STATUSES, LEVEL, MeasuredCell
from orchestrator.runs.timeline import Record, Timeline, duration
from workers.store.store import Store

REPORT, HTML = "report.md", "report.html"
TITLE = "Progressive dataset distillation: tables and figures, measured"
LEAD = "The tables and figures of the paper (Chen et al., ICLR 2024), each measured cell beside the published one."
FILES = (
    Beside(("cells.csv", "cells.parquet"), "every cell with all its values, for other programs"),
    Beside((HTML,), "this report in one file, for a browser"),
)
ENTRIES = (
    "An entry reads: measured mean ± population standard deviation over networks (how many networks), the number that "
    "the paper prints, and the difference in percentage points, measured minus published."
)
TESTED = (
    f"▲ higher or ▼ lower than published, significant at the level {LEVEL:g} (Welch's test, the paper's networks taken "
    "as five); ≈ n.s.: not significant; no sign: not tested, for want of networks or of a published spread."
)
UNTESTED = "The differences are not tested: what was measured here is not what was published."
UNFINISHED = (
    "Partial: the mean is over fewer networks than were asked for. A cell that failed or was not run names the note "
    "that says why."
)
Measured = Mapping[str, Sequence[MeasuredCell]]

_NAMED = 3
"""Cells that a note names before it counts the rest."""


def write(
    folder: Path,
    tables: TablesPlan,
    measured: Measured,
    store: Store,
    records: Iterable[Record] | None,
    command: str,
    predicted: float | None = None,
    predicted_from_measured: float | None = None,
    slurm: Sequence[str] = (),
) -> list[Path]:
    """Write the report over an earlier one in the same folder.

    Args:
        folder: made if absent (0700; its files 0600).
        tables: the tables, and the graph behind them.
        measured: by table, what became of its cells.
        store: where pictures, seconds and versions are looked up.
        records: the run's journal; None if there is none.
        command: the exact command line, to be run again.
        predicted: the makespan in seconds that was expected before the run.
        predicted_from_measured: the one that is expected with the times that the run's jobs took.
        slurm: what the run took of SLURM, in sentences.

    Returns:
        The files written, `report.md` first.
    """
    from orchestrator.reports.html import html

    page = page_of(tables, measured, store, list(records or ()), command, predicted, predicted_from_measured, slurm)
    files = {REPORT: markdown(page).encode(), HTML: html(page).encode()}
    files |= {picture.name: picture.png for picture in page.pictures()}
    return put(folder, files | {"cells.csv": csv_of(tables, measured), "cells.parquet": parquet_of(tables, measured)})


def page_of(
    tables: TablesPlan,
    measured: Measured,
    store: Store,
    records: Sequence[Record],
    command: str,
    predicted: float | None = None,
    predicted_from_measured: float | None = None,
    slurm: Sequence[str] = (),
) -> Page:
    """The report before it is set."""
    sections = [
        _overview(tables.tables, measured),
        *(_section(table, measured[table.name], tables, store) for table in tables.tables),
        timing(
            tables.plan,
            store,
            records,
            predicted,
            linked=True,
            predicted_from_measured=predicted_from_measured,
            slurm=slurm,
        ),
        provenance(command, FILES),
        environment(tables.plan, store, records),
        lineage.of_jobs(tables, store),
    ]
    return Page(TITLE, LEAD, _facts(tables.tables, measured, records), tuple(sections))


# Above the tables.


def _facts(tables: Sequence[Table], measured: Measured, records: Sequence[Record]) -> tuple[tuple[str, str], ...]:
    cells = [one for table in tables for one in measured[table.name]]
    there = sum(one.status == "measured" for one in cells)
    facts = [("Scale", _scales(tables)), ("Dataset", _datasets(cells)), ("Measured", f"{there} of {len(cells)} cells")]
    timeline = Timeline.of(records, {})
    if timeline.spans:
        workers = "1 worker" if timeline.slots == 1 else f"{timeline.slots} workers"
        facts.append(("Run", f"{duration(timeline.seconds)} on {workers}"))
    return tuple(facts)


def _overview(tables: Sequence[Table], measured: Measured) -> Section:
    tested = any(one.significant is not None for table in tables for one in measured[table.name])
    rows = tuple(_overview_row(table, measured[table.name], tested) for table in tables)
    caption = "How far each table is measured"
    caption += ", and how its measured cells compare with the published ones." if tested else "."
    header = ("Table or figure", "Standing", "Measured", *(("▲ higher", "▼ lower", "≈ n.s.") if tested else ()))
    grid = Grid("overview-table", header, rows, caption, words=2, title="Overview")
    reading = notes((ENTRIES, TESTED if tested else UNTESTED, UNFINISHED))
    return Section("overview", "Overview", (*_warning(tables), grid, *reading))


def _overview_row(table: Table, cells: Sequence[MeasuredCell], tested: bool) -> tuple[str | Entry | Coverage, ...]:
    counted = Counter(one.status for one in cells)
    signs = Counter(_role(one) for one in cells if one.difference is not None)
    coverage = Coverage(tuple((standing, counted[standing]) for standing in CELL_STATUSES))
    link = entry(Line(table.title, "link", table.name))
    compared = [str(signs[role] or "") for role in ("higher", "lower", "level")] if tested else []
    return (link, coverage, f"{counted['measured']} of {len(cells)}", *compared)


def _warning(tables: Sequence[Table]) -> Iterator[Prose]:
    """What keeps the numbers of this report from being a reproduction, if anything does."""
    reduced = sorted({table.scale for table in tables} - {"paper"})
    others = list(dict.fromkeys(table.dataset_note for table in tables if table.dataset_note))
    if reduced or others:
        causes = [f"the scale is {' and '.join(reduced)}"] if reduced else []
        causes += ["another dataset stands in for the paper's"] if others else []
        yield Prose(
            f"Not a reproduction: {', and '.join(causes)}. The published numbers are of the paper's own datasets and "
            "settings; they stand here to show where they belong, and differences from them say nothing of the method.",
            notice=True,
        )


# One table or figure.


def _section(table: Table, cells: Sequence[MeasuredCell], tables: TablesPlan, store: Store) -> Section:
    reasons = _reasons(cells)
    grid = _grid(table, cells, reasons)
    shown = _shown(table, cells, tables, store)
    numbers: Block = Fold("The numbers", (replace(grid, caption=""),), f"{table.name}-numbers") if shown else grid
    why = tuple(Note(_why(number, cells, text), _note(table, number)) for text, number in reasons.items())
    blocks: list[Block] = [*shown, numbers, *notes(table.notes)]
    blocks += [Notes(why)] if why else []
    behind = Fold(f"Commands and lineage of {table.title}", (lineage.of_cells(table, cells),), f"{table.name}-lineage")
    group = "Tables" if table.kind == "table" else "Figures"
    return Section(table.name, table.title, (*blocks, behind), group)


def _grid(table: Table, cells: Sequence[MeasuredCell], reasons: Mapping[str, int]) -> Grid:
    places = {(one.cell.row, one.cell.column): one for one in cells}
    rows = tuple(
        (row, *(_entry(table, places.get((row, column)), reasons) for column in table.columns)) for row in table.rows
    )
    header: tuple[str | Entry, ...] = ("", *(_column(table, column, cells) for column in table.columns))
    return Grid(f"{table.name}-table", header, rows, _caption(table, cells), title=table.title)


def _caption(table: Table, cells: Sequence[MeasuredCell]) -> str:
    measured = table.dataset_note or f"measured on {_datasets(cells)}"
    printed = any(one.cell.published is not None and one.cell.published.mean is not None for one in cells)
    published = "; the published numbers are of the paper's own datasets at its own scale" if printed else ""
    return f"{table.caption.rstrip('.')}. Scale {table.scale}, {measured}{published}."


def _column(table: Table, column: str, cells: Sequence[MeasuredCell]) -> Entry:
    dataset = _datasets([one for one in cells if one.cell.column == column])
    return entry(Line(column), Line(f"measured, scale {table.scale}, dataset {dataset}", "minor"))


def _entry(table: Table, one: MeasuredCell | None, reasons: Mapping[str, int]) -> str | Entry:
    if one is None:
        return ""
    return entry(_value(one), _state(table, one, reasons), _published(one.cell.published), _difference(one))


def _value(one: MeasuredCell) -> Line | None:
    if one.mean is None:
        return None
    spread = f" ± {one.std:.1f}" if one.n > 1 and one.std is not None else ""
    return Line(f"{one.mean:.1f}{spread} ({one.n})", "measured")


def _state(table: Table, one: MeasuredCell, reasons: Mapping[str, int]) -> Line | None:
    if one.status == "measured":
        return None
    sign = {"partial": "◐", "failed": "✕", "not run": "○"}[one.status]
    number = reasons.get(one.why)
    said = f"{sign} {one.status}" + (f", note {number}" if number else "")
    return Line(said, "state", _note(table, number) if number else "")


def _published(number: Published | None) -> Line | None:
    if number is None:
        return None
    if number.mean is None:
        return Line("paper –", "published")
    spread = f" ± {number.std:.1f}" if number.std is not None else ""
    return Line(f"paper {number.mean:.1f}{spread}", "published")


def _difference(one: MeasuredCell) -> Line | None:
    if one.difference is None:
        return None
    role = _role(one)
    value = f"{one.difference:+.1f}".replace("-", "−")
    match role:
        case "higher" | "lower":
            return Line(f"{'▲' if role == 'higher' else '▼'} {value} significant", role)
        case "level":
            return Line(f"≈ {value} n.s.", role)
    return Line(value, "minor")


def _role(one: MeasuredCell) -> Literal["higher", "lower", "level", "minor"]:
    if one.significant is None:
        return "minor"
    if not one.significant:
        return "level"
    return "higher" if (one.difference or 0.0) > 0 else "lower"


# Figures.


def _shown(table: Table, cells: Sequence[MeasuredCell], tables: TablesPlan, store: Store) -> tuple[Block, ...]:
    """The figure as pictures; nothing for a table, or while there is nothing to draw."""
    if table.kind == "pictures":
        grids = tuple(_images(table, tables, store))
        return (Gallery(grids, _caption(table, cells)),) if grids else ()
    if table.kind == "curve":
        from orchestrator.reports import images, plots

        drawn = tuple(
            Picture(
                f"{table.name}-{number}.png",
                images.png(plots.plot([panel])),
                f"{panel.title}: accuracy over images per class, with full data as a line",
            )
            for number, panel in enumerate(plots.panels_of(table, cells), start=1)
        )
        return (Gallery(drawn, _caption(table, cells)),) if drawn else ()
    return ()


def _images(table: Table, tables: TablesPlan, store: Store) -> Iterator[Picture]:
    """A grid for every chain of sets in the figure: the stages it shows, as far as they are made."""
    stages = sorted({one.cell.stage for one in table.cells if one.cell is not None})
    for number, (title, sets) in enumerate(_chains(table, tables).items(), start=1):
        made = [stage for stage in stages if stage <= len(sets) and manifest_of(store, sets[stage - 1]) is not None]
        for stage in made:
            name = f"{table.name}-{number}-stage-{stage}.png"
            yield image_grid(store, [sets[stage - 1]], title, [f"stage {stage}"], name, classes=_classes(table))


def _classes(table: Table) -> tuple[str, ...]:
    """The rows, if they are classes: rows of the same networks can differ in nothing else."""
    cells = {
        column: {one.cell and one.cell.jobs for one in table.cells if one.column == column} for column in table.columns
    }
    return table.rows if len(table.rows) > 1 and all(len(jobs) == 1 for jobs in cells.values()) else ()


def _chains(table: Table, tables: TablesPlan) -> dict[str, tuple[str, ...]]:
    """The longest chain of sets behind the cells of each arm."""
    found: dict[str, tuple[str, ...]] = {}
    for one in table.cells:
        if one.cell is not None:
            sets = tables.plan.graph[one.cell.jobs[0]].parents.get("sets", ())
            name = f"{one.cell.method} ({one.cell.dataset})"
            found[name] = max(found.get(name, ()), sets, key=len)
    return found


# Why.


def _reasons(cells: Sequence[MeasuredCell]) -> dict[str, int]:
    """The reasons why cells are not whole, numbered in order."""
    reasons = dict.fromkeys(one.why for one in cells if one.status != "measured" and one.why)
    return {text: number for number, text in enumerate(reasons, start=1)}


def _note(table: Table, number: int) -> str:
    return f"{table.name}-note-{number}"


def _why(number: int, cells: Sequence[MeasuredCell], text: str) -> str:
    about = [one for one in cells if one.why == text and one.status != "measured"]
    names = [f"{one.cell.row} / {one.cell.column}" for one in about[:_NAMED]]
    rest = f" and {len(about) - _NAMED} more" if len(about) > _NAMED else ""
    standing = " or ".join(dict.fromkeys(one.status for one in about))
    return f"Note {number}, {standing} ({'; '.join(names)}{rest}): {text}"


# Words.


def _scales(tables: Sequence[Table]) -> str:
    return " and ".join(dict.fromkeys(table.scale for table in tables))


def _datasets(cells: Sequence[MeasuredCell]) -> str:
    named = dict.fromkeys(one.cell.cell.dataset for one in cells if one.cell.cell is not None)
    return ", ".join(named) or "no dataset"
