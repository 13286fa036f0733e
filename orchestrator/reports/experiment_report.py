"""The report of an experiment: results, paired differences, stages; then what every report says of its run.

    results.json  .parquet       every cell with all its values
    accuracy-*.png  sets-*.png   accuracy by stage, and the images of each arm

A table always says its scale, what its spread is and over how many networks; a cell without a number says
why. `console_table` shows the same table at the end of a run.

Left out: measuring (`orchestrator.results.cells`), drawing (`orchestrator.reports.images`, imported when a report is
written, since matplotlib takes a while and most commands draw nothing), and the folder (`orchestrator.reports.folder`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import pyarrow as pa
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table as RichTable
from rich.text import Text

from jobs.experiment import SELECTIONS, Plan
from orchestrator.reports import folder as folders
from orchestrator.reports.page import (
    Block,
    Entry,
    Gallery,
    Line,
    Page,
    Paragraph,
    Picture,
    Section,
    Table,
    entry_of,
    notes,
    slug,
)
from orchestrator.reports.sections import RunFacts, image_grids, verdict_sections
from orchestrator.results.cells import Result, by_experiment, collect, manifest_of
from orchestrator.results.comparisons import Comparison, comparisons
from orchestrator.results.result_table import IMAGES, ResultTable, tabulate
from orchestrator.results.stages import Chain, StageResult, arm_label, chains, stage_results
from orchestrator.results.verdict import headlines, verdicts
from orchestrator.runs.timeline import failures
from workers.store.store import Store

ACCURACY_CAPTION = "Dots are single networks, markers their means, bars one standard deviation; dashed: full data."

STAGE_HEADER = (
    *("Arm", "Seed", "Stage", "Expert start", "Expert end", "Iterations", "Kept"),
    *("Matching loss", "Step size", "Held-out"),
)
COMPARISON_HEADER = ("Experiment", "Network", "Images per class", "Difference", "Mean", "95 % interval", "Seeds")
COMPARISON_CAPTION = (
    "Percentage points of test accuracy, paired over seeds (the mean over a seed's networks); Student's t interval."
)
STAGE_CAPTION = (
    "Accuracies in percent on the held-out split. Expert start: the stage's experts before they see real "
    "data (stage 1: random weights; later: after training on the earlier sets). Kept: the iteration whose "
    "images were chosen. Matching loss: first and last iteration."
)


def write(folder: Path, plan: Plan, store: Store, run: RunFacts) -> list[Path]:
    """Write the report of what the store has for a plan, over an earlier report in the same folder.

    Args:
        folder: made if absent.
        plan: the cells to report.
        store: where artifacts are looked up; missing ones become notes.
        run: the command, and the journal for timing and reasons of failures.

    Returns:
        The files written, `report.md` first.
    """
    results = collect(plan, store, failures(run.records))
    data = {"results.json": _json(results), "results.parquet": _parquet(results)}
    page = page_of(results, plan, store)
    return folders.write(folder, page, plan, store, run, data, "every value above, for other programs")


def page_of(results: Sequence[Result], plan: Plan, store: Store) -> Page:
    """The report before it is set, without its run: results by experiment, differences and stages."""
    names, judged = {result.experiment: result.experiment for result in results}, verdicts(plan, store)
    sections = [*verdict_sections(judged, names)]
    sections += [_experiment(group, plan, store) for group in by_experiment(results)]
    sections += [*_comparisons(comparisons(plan, store)), *_stages(stage_results(plan, store))]
    facts = tuple(("Note", note) for note in plan.notes)
    return Page(", ".join(names), "", facts, tuple(sections), tuple(headlines(judged, names)))


def console_table(results: Sequence[Result]) -> ConsoleTable:
    """The results for a terminal: the Markdown table with its scale, caption and notes."""
    return ConsoleTable(tabulate(results))


@dataclass(frozen=True)
class ConsoleTable:
    """A table of results for a terminal of any width: architectures that do not fit beside each other stand below."""

    content: ResultTable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        content, first = self.content, self.content.header.index(IMAGES) + 1
        groups = column_groups(content, first, options.max_width)
        for number, group in enumerate(groups):
            caption = "\n".join([content.caption, *content.notes]) if number == len(groups) - 1 else ""
            title = content.title if number == 0 else ""
            table = RichTable(title=Text(title), caption=Text(caption), caption_justify="left", title_justify="left")
            for column in (*range(first), *group):
                name, is_count = content.header[column], column == first - 1
                table.add_column(Text(name), justify="right" if column >= first - 1 else "left", no_wrap=not is_count)
            for row in content.rows:
                table.add_row(*(Text(row[column]) for column in (*range(first), *group)))
            yield table


def column_groups(content: ResultTable, first: int, width: int) -> list[list[int]]:
    """The columns of numbers by the table that they stand in, each table as wide as the terminal allows.

    Args:
        content: the table.
        first: the first column of numbers; those before it stand in every table.
        width: columns of the terminal.
    """

    def taken(column: int) -> int:
        words = [content.header[column]] if column != first - 1 else content.header[column].split()
        return max(map(len, [*words, *(row[column] for row in content.rows)])) + 3  # two spaces and a line

    words = 1 + sum(map(taken, range(first)))
    groups: list[list[int]] = [[]]
    for column in range(first, len(content.header)):
        if groups[-1] and words + sum(map(taken, [*groups[-1], column])) > width:
            groups.append([])
        groups[-1].append(column)
    return groups


# The sections of the page.


def _experiment(group: Sequence[Result], plan: Plan, store: Store) -> Section:
    name, content = group[0].experiment, tabulate(group)
    anchor = f"results-{slug(name)}-{slug(group[0].dataset)}-{group[0].scale}"
    table = Table(f"{anchor}-table", content.header, _rows(content), content.caption)
    blocks: list[Block] = [table, *notes(content.notes)]
    if any(result.mean is not None and result.stage for result in group):
        from orchestrator.reports import images, plots

        png = images.png(plots.accuracy_by_stage(group))
        blocks.append(Picture(f"accuracy-{slug(name)}.png", png, "accuracy by stage", ACCURACY_CAPTION))
    blocks += _grids(name, plan, store)
    return Section(anchor, content.title, tuple(blocks), "Results", short=f"{name} on {group[0].dataset}")


def _rows(content: ResultTable) -> tuple[tuple[str | Entry, ...], ...]:
    """The rows with the best number of each column marked."""
    marked = [list[str | Entry](row) for row in content.rows]
    for row, column in content.best:
        marked[row][column] = entry_of(Line(content.rows[row][column], "best"))
    return tuple(map(tuple, marked))


def _grids(experiment: str, plan: Plan, store: Store) -> Iterator[Gallery | Paragraph]:
    """The grids of pictures for the first chain of each arm, as far as its stages go."""
    arms: dict[str, Chain] = {}
    for chain in chains(plan):
        if chain.cell.experiment == experiment:
            arms.setdefault(arm_label(chain.cell), chain)
    for arm, chain in arms.items():
        sets = tuple(takewhile(lambda key: manifest_of(store, key) is not None, chain.sets))
        if sets:
            name, title = f"sets-{slug(experiment)}-{slug(arm)}", f"{arm} ({chain.cell.dataset})"
            yield image_grids(store, sets, title, _headings(chain)[: len(sets)], name)


def _headings(chain: Chain) -> list[str]:
    if chain.cell.base_method in SELECTIONS:
        return ["real images"]
    return [f"stage {number}" for number in range(1, len(chain.sets) + 1)]


def _comparisons(pairs: Sequence[Comparison]) -> Iterator[Section]:
    rows = tuple(
        (
            pair.experiment,
            pair.architecture,
            str(pair.ipc_total),
            f"{pair.better} − {pair.worse}",
            f"{pair.difference.mean:+.2f}",
            f"[{pair.difference.low:+.2f}, {pair.difference.high:+.2f}]",
            str(pair.difference.n),
        )
        for pair in pairs
    )
    if rows:
        table = Table("differences-table", COMPARISON_HEADER, rows, COMPARISON_CAPTION, words=4)
        yield Section("differences", "Paired differences", (table,), "Results")


def _stages(results: Sequence[StageResult]) -> Iterator[Section]:
    if results:
        table = Table("stages-table", STAGE_HEADER, tuple(map(_stage_row, results)), STAGE_CAPTION)
        soft = dict.fromkeys(f"{result.arm}: soft labels, {result.labels}" for result in results if result.labels)
        yield Section("stages", "Stages", (table, *notes(tuple(soft))), "Results")


def _stage_row(result: StageResult) -> tuple[str, ...]:
    loss = f"{result.first_loss:.3g} → {result.loss:.3g}" if result.loss is not None else ""
    return (
        f"{result.experiment}: {result.arm}",
        str(result.seed),
        f"{result.stage} of {result.stages}",
        _number(result.expert_start, ".1f"),
        _number(result.expert_end, ".1f"),
        str(result.iterations),
        _number(result.kept, "d") if result.distilled else "not made",
        loss,
        _number(result.step_size, ".3g"),
        _number(result.held_out, ".1f"),
    )


# The results for other programs, and numbers for people.


def _json(results: Sequence[Result]) -> bytes:
    document = {"schema": 1, "results": [result.to_json() for result in results]}
    return (json.dumps(document, indent=2, allow_nan=False) + "\n").encode()


def _parquet(results: Sequence[Result]) -> bytes:
    number, words = pa.float64(), pa.list_(pa.string())
    types = {"mean": number, "std": number, "published_mean": number, "published_std": number}
    types["balanced_mean"] = types["guessing"] = number
    types |= {"values": pa.list_(number), "jobs": words, "missing": words}
    types |= dict.fromkeys(("ipc_total", "ipc_per_stage", "stages", "stage", "phase", "n"), pa.int64())
    names = [*Result.__dataclass_fields__, "state"]
    schema = pa.schema([(name, types.get(name, pa.string())) for name in names])
    return folders.parquet((result.to_json() for result in results), schema)


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
