"""The report of the paper's tables: every measured cell beside the published one, and how it was come by.

    cells.csv  cells.parquet     one row a cell with all its values, its command and its jobs
    figure*.png                  the figures

A measured number never stands without its scale and dataset: the caption and every column's heading say them. What
differs from the published number says by sign and word whether the difference is significant. A cell without a number
says why, in a note below its table. Measuring is left to `orchestrator.results.tables`, the folder and what is said of
the run to `orchestrator.reports.folder`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from jobs.table import Published, TablesPlan
from jobs.table import Table as PaperTable
from orchestrator.reports import folder as folders
from orchestrator.reports.page import (
    Block,
    Coverage,
    Details,
    Entry,
    Gallery,
    Line,
    Note,
    Notes,
    Page,
    Paragraph,
    Picture,
    Role,
    Section,
    Table,
    entry_of,
    notes,
)
from orchestrator.reports.sections import RunFacts, image_grids, verdict_sections
from orchestrator.reports.table_data import csv_of, parquet_of
from orchestrator.results.cells import manifest_of
from orchestrator.results.result_table import SCALES, best_of
from orchestrator.results.statistics import LEVEL
from orchestrator.results.tables import CELL_STATUSES, MeasuredCell
from orchestrator.results.verdict import headlines, verdicts
from orchestrator.runs.timeline import Record, Timeline, duration
from workers.store.store import Store

TITLE = "Progressive dataset distillation: tables and figures, measured"
LEAD = "The tables and figures of the paper (Chen et al., ICLR 2024), each measured cell beside the published one."
ENTRIES = (
    "An entry reads: measured mean ± population standard deviation over networks (how many networks), and the number "
    "that the paper prints with its own. The best of a column is bold, full data aside."
)
TESTED = (
    "Below them the difference in percentage points, measured minus published. ▲ higher or ▼ lower than published, "
    f"significant at the level {LEVEL:g} (Welch's test, the paper's networks taken as five); ≈ n.s.: not significant; "
    "no sign: not tested, for want of networks or of a published spread."
)
UNTESTED = "No difference to the paper is given: what was measured here is not what was published."
UNFINISHED = (
    "Partial: the mean is over fewer networks than were asked for. A cell that failed or was not run names the note "
    "that says why."
)
CellsByTable = Mapping[str, Sequence[MeasuredCell]]

Fact = tuple[str, str]
"""What one wants to know first, by name."""

_NAMED = 3
"""Cells that a note names before it counts the rest."""


def write(folder: Path, tables: TablesPlan, measured: CellsByTable, store: Store, run: RunFacts) -> list[Path]:
    """Write the report over an earlier one in the same folder.

    Args:
        folder: made if absent.
        tables: the tables, and the graph behind them.
        measured: by table, what became of its cells.
        store: where pictures, seconds and versions are looked up.
        run: the command, the journal, and how long the run was expected to take.

    Returns:
        The files written, `report.md` first.
    """
    page = page_of(tables, measured, store, run.records)
    data = {"cells.csv": csv_of(tables, measured), "cells.parquet": parquet_of(tables, measured)}
    about = "every cell with all its values, the command that fills it and its jobs, for other programs"
    return folders.write(folder, page, tables.plan, store, run, data, about)


def page_of(tables: TablesPlan, measured: CellsByTable, store: Store, records: Sequence[Record]) -> Page:
    """The report before it is set, without its run."""
    titles, judged = {table.name: table.title for table in tables.tables}, verdicts(tables.plan, store)
    sections = [_section(table, measured[table.name], tables, store) for table in tables.tables]
    sections = [*verdict_sections(judged, titles), _overview(tables.tables, measured), *sections]
    facts = _facts(tables.tables, measured, records)
    return Page(TITLE, LEAD, facts, tuple(sections), tuple(headlines(judged, titles)))


# Above the tables.


def _facts(
    tables: Sequence[PaperTable], measured: CellsByTable, records: Sequence[Record]
) -> tuple[tuple[str, str], ...]:
    cells = [cell for table in tables for cell in measured[table.name]]
    complete = sum(cell.status == "measured" for cell in cells)
    facts = [
        ("Scale", _scales(tables)),
        ("Dataset", _datasets(cells)),
        ("Measured", f"{complete} of {len(cells)} cells"),
    ]
    timeline = Timeline.of(records, {})
    if timeline.spans:
        workers = "1 worker" if timeline.slots == 1 else f"{timeline.slots} workers"
        facts.append(("Run", f"{duration(timeline.seconds)} on {workers}"))
    return tuple(facts)


def _overview(tables: Sequence[PaperTable], measured: CellsByTable) -> Section:
    tested = any(cell.significant is not None for table in tables for cell in measured[table.name])
    rows = tuple(_overview_row(table, measured[table.name], tested) for table in tables)
    caption = "How far each table is measured"
    caption += ", and how its measured cells compare with the published ones." if tested else "."
    header = ("Table or figure", "Status", "Measured", *(("▲ higher", "▼ lower", "≈ n.s.") if tested else ()))
    overview = Table("overview-table", header, rows, caption, words=2, title="Overview")
    reading = notes((ENTRIES, TESTED if tested else UNTESTED, UNFINISHED))
    return Section("overview", "Overview", (*_warning(tables), overview, *reading))


def _overview_row(table: PaperTable, cells: Sequence[MeasuredCell], tested: bool) -> tuple[str | Entry | Coverage, ...]:
    counted = Counter(cell.status for cell in cells)
    signs = Counter(_role(cell) for cell in cells if cell.difference is not None)
    coverage = Coverage(tuple((status, counted[status]) for status in CELL_STATUSES))
    link = entry_of(Line(table.title, "link", table.name))
    compared = [str(signs[role] or "") for role in ("higher", "lower", "level")] if tested else []
    return (link, coverage, f"{counted['measured']} of {len(cells)}", *compared)


def _warning(tables: Sequence[PaperTable]) -> Iterator[Paragraph]:
    """What keeps the numbers of this report from being a reproduction, if anything does."""
    reduced = sorted({table.scale for table in tables} - {"paper"})
    others = list(dict.fromkeys(table.dataset_note for table in tables if table.dataset_note))
    if reduced or others:
        causes = [f"the scale is {' and '.join(reduced)}"] if reduced else []
        causes += ["another dataset stands in for the paper's"] if others else []
        yield Paragraph(
            f"Not a reproduction: {', and '.join(causes)}. The published numbers are of the paper's own datasets and "
            "settings; they stand here to show where they belong.",
            notice=True,
        )


# One table or figure.


def _section(table: PaperTable, cells: Sequence[MeasuredCell], tables: TablesPlan, store: Store) -> Section:
    reasons = _reasons(cells)
    grid, shown = _grid(table, cells, reasons), _shown(table, cells, tables, store)
    numbers: Block = Details("The numbers", (replace(grid, caption=""),), f"{table.name}-numbers") if shown else grid
    why = tuple(Note(_why(number, cells, text), _note(table, number)) for text, number in reasons.items())
    blocks: list[Block] = [*shown, numbers, *notes(table.notes)]
    blocks += [Notes(why)] if why else []
    group = "Tables" if table.kind == "table" else "Figures"
    return Section(table.name, table.title, tuple(blocks), group)


def _grid(table: PaperTable, cells: Sequence[MeasuredCell], reasons: Mapping[str, int]) -> Table:
    by_place = {(cell.entry.row, cell.entry.column): cell for cell in cells}
    best = _best(table, by_place)
    rows = tuple(
        (row, *(_content(table, by_place.get((row, column)), reasons, best) for column in table.columns))
        for row in table.rows
    )
    header: tuple[str | Entry, ...] = ("", *(_column(table, column, cells) for column in table.columns))
    return Table(f"{table.name}-table", header, rows, _caption(table, cells), title=table.title)


def _caption(table: PaperTable, cells: Sequence[MeasuredCell]) -> str:
    measured = table.dataset_note or f"measured on {_datasets(cells)}"
    printed = any(cell.entry.published is not None and cell.entry.published.mean is not None for cell in cells)
    published = "; the published numbers are of the paper's own datasets at its own scale" if printed else ""
    scale = f"{table.scale}, {measured}{published}"
    cut = f" {SCALES[table.scale].capitalize()}." if table.scale == "medium" else ""
    return f"{table.caption.rstrip('.')}. Scale {scale}.{cut}"


def _column(table: PaperTable, column: str, cells: Sequence[MeasuredCell]) -> Entry:
    dataset = _datasets([cell for cell in cells if cell.entry.column == column])
    return entry_of(Line(column), Line(f"measured, scale {table.scale}, dataset {dataset}", "minor"))


def _best(table: PaperTable, by_place: Mapping[tuple[str, str], MeasuredCell]) -> set[tuple[str, str]]:
    """Row and column of the best measured number of each column, full data aside."""

    def mean(row: str, column: str) -> float | None:
        cell = by_place.get((row, column))
        distilled = cell is not None and cell.entry.cell is not None and cell.entry.cell.stage
        return cell.mean if cell is not None and distilled else None

    return {
        (table.rows[number], column)
        for column in table.columns
        for number in best_of([mean(row, column) for row in table.rows])
    }


def _content(
    table: PaperTable, cell: MeasuredCell | None, reasons: Mapping[str, int], best: Collection[tuple[str, str]]
) -> str | Entry:
    if cell is None:
        return ""
    role: Role = "best" if (cell.entry.row, cell.entry.column) in best else "measured"
    return entry_of(
        _value(cell, role), _state(table, cell, reasons), _published(cell.entry.published), _difference(cell)
    )


def _value(cell: MeasuredCell, role: Role) -> Line | None:
    if cell.mean is None:
        return None
    spread = f" ± {cell.std:.1f}" if cell.n > 1 and cell.std is not None else ""
    return Line(f"{cell.mean:.1f}{spread} ({cell.n})", role)


def _state(table: PaperTable, cell: MeasuredCell, reasons: Mapping[str, int]) -> Line | None:
    if cell.status == "measured":
        return None
    sign = {"partial": "◐", "failed": "✕", "not run": "○"}[cell.status]
    number = reasons.get(cell.why)
    text = f"{sign} {cell.status}" + (f", note {number}" if number else "")
    return Line(text, "state", _note(table, number) if number else "")


def _published(number: Published | None) -> Line | None:
    if number is None:
        return None
    if number.mean is None:
        return Line("paper –", "published")
    spread = f" ± {number.std:.1f}" if number.std is not None else ""
    return Line(f"paper {number.mean:.1f}{spread}", "published")


def _difference(cell: MeasuredCell) -> Line | None:
    if cell.difference is None:
        return None
    role = _role(cell)
    value = f"{cell.difference:+.1f}".replace("-", "−")
    match role:
        case "higher" | "lower":
            return Line(f"{'▲' if role == 'higher' else '▼'} {value} significant", role)
        case "level":
            return Line(f"≈ {value} n.s.", role)
    return Line(value, "minor")


def _role(cell: MeasuredCell) -> Literal["higher", "lower", "level", "minor"]:
    if cell.significant is None:
        return "minor"
    if not cell.significant:
        return "level"
    return "higher" if (cell.difference or 0.0) > 0 else "lower"


# Figures.


def _shown(table: PaperTable, cells: Sequence[MeasuredCell], tables: TablesPlan, store: Store) -> tuple[Block, ...]:
    """The figure as pictures; nothing for a table, or while there is nothing to draw."""
    if table.kind == "pictures":
        caption = _caption(table, cells)
        return tuple(
            replace(block, caption=f"{caption} {block.caption}.") if isinstance(block, Gallery) else block
            for block in _images(table, tables, store)
        )
    if table.kind == "curve":
        from orchestrator.reports import images, plots

        curves = tuple(
            Picture(
                f"{table.name}-{number}.png",
                images.png(plots.plot([panel])),
                f"{panel.title}: accuracy over images per class, with full data as a line",
            )
            for number, panel in enumerate(plots.panels_of(table, cells), start=1)
        )
        return (Gallery(curves, _caption(table, cells)),) if curves else ()
    return ()


def _images(table: PaperTable, tables: TablesPlan, store: Store) -> Iterator[Gallery | Paragraph]:
    """The grids of every chain of sets in the figure: the stages it shows, as far as they are made."""
    stages = sorted({entry.cell.stage for entry in table.cells if entry.cell is not None})
    for number, (title, sets) in enumerate(_chains(table, tables).items(), start=1):
        distilled = [stage for stage in stages if stage <= len(sets) and manifest_of(store, sets[stage - 1])]
        if distilled:
            keys, headings = [sets[stage - 1] for stage in distilled], [f"stage {stage}" for stage in distilled]
            yield image_grids(store, keys, title, headings, f"{table.name}-{number}", classes=_classes(table))


def _classes(table: PaperTable) -> tuple[str, ...]:
    """The rows, if they are classes: rows of the same networks can differ in nothing else."""
    cells = {
        column: {entry.cell and entry.cell.jobs for entry in table.cells if entry.column == column}
        for column in table.columns
    }
    return table.rows if len(table.rows) > 1 and all(len(jobs) == 1 for jobs in cells.values()) else ()


def _chains(table: PaperTable, tables: TablesPlan) -> dict[str, tuple[str, ...]]:
    """The longest chain of sets behind the cells of each arm."""
    longest: dict[str, tuple[str, ...]] = {}
    for cell in (entry.cell for entry in table.cells if entry.cell is not None):
        sets = tables.plan.graph[cell.jobs[0]].parents.get("sets", ())
        name = f"{cell.method} ({cell.dataset})"
        longest[name] = max(longest.get(name, ()), sets, key=len)
    return longest


# Why.


def _reasons(cells: Sequence[MeasuredCell]) -> dict[str, int]:
    """The reasons why cells are not whole, numbered in order."""
    reasons = dict.fromkeys(cell.why for cell in cells if cell.status != "measured" and cell.why)
    return {text: number for number, text in enumerate(reasons, start=1)}


def _note(table: PaperTable, number: int) -> str:
    return f"{table.name}-note-{number}"


def _why(number: int, cells: Sequence[MeasuredCell], text: str) -> str:
    about = [cell for cell in cells if cell.why == text and cell.status != "measured"]
    names = [f"{cell.entry.row} / {cell.entry.column}" for cell in about[:_NAMED]]
    rest = f" and {len(about) - _NAMED} more" if len(about) > _NAMED else ""
    status = " or ".join(dict.fromkeys(cell.status for cell in about))
    return f"Note {number}, {status} ({'; '.join(names)}{rest}): {text}"


# Words.


def _scales(tables: Sequence[PaperTable]) -> str:
    return " and ".join(dict.fromkeys(table.scale for table in tables))


def _datasets(cells: Sequence[MeasuredCell]) -> str:
    names = dict.fromkeys(cell.entry.cell.dataset for cell in cells if cell.entry.cell is not None)
    return ", ".join(names) or "no dataset"
