"""The report of a run: one folder with its page in two forms, its pictures, and the results for other programs.

    report.md                    tables, pictures, stages, timing, versions, the exact command
    report.html                  the same in one file, for a browser
    results.json  .parquet       every cell with all its values
    accuracy-*.png  sets-*.png  gantt.png

A table always says its scale, what its spread is and over how many networks; a cell without a number says
why. The page shows only files beside it, so the folder can be copied anywhere. `console_table` shows
the same table at the end of a run.

Left out: measuring (`orchestrator.results.cells`) and drawing (`orchestrator.reports.images`, imported when a report is
written, since matplotlib takes a while and most commands draw nothing).
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from rich.table import Table
from rich.text import Text

from jobs.experiment import SELECTIONS, Plan
from orchestrator.reports.markdown import markdown
from orchestrator.reports.page import Beside, Block, Grid, Page, Picture, Section, notes, slug
from orchestrator.reports.sections import image_grid, made_with, provenance, put, timing
from orchestrator.results.cells import (
    Chain,
    Result,
    StageResult,
    arm_label,
    by_experiment,
    chains,
    collect,
    manifest_of,
    stage_results,
    tabulate,
)
from orchestrator.results.comparisons import Comparison, comparisons
from orchestrator.runs.timeline import Record, failures
from workers.store.store import Store

REPORT, HTML = "report.md", "report.html"
FILES = (
    Beside(("results.json", "results.parquet"), "every value above, for other programs"),
    Beside((HTML,), "this report in one file, for a browser"),
)
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


def write(
    folder: Path,
    plan: Plan,
    store: Store,
    journal_records: Iterable[Record] | None,
    command: str,
    slurm: Sequence[str] = (),
) -> list[Path]:
    """Write the report of what the store has for a plan, over an earlier report in the same folder.

    Args:
        folder: made if absent (0700; its files 0600).
        plan: the cells to report.
        store: where artifacts are looked up; missing ones become notes.
        journal_records: the run's journal, for timing and reasons of failures; None if there is none.
        command: the exact command line, to be run again.
        slurm: what the run took of SLURM, in sentences.

    Returns:
        The files written, `report.md` first.
    """
    from orchestrator.reports.html import html

    records = list(journal_records or ())
    results = collect(plan, store, failures(records))
    page = page_of(results, plan, store, records, command, slurm)
    files = {REPORT: markdown(page).encode(), HTML: html(page).encode()}
    files |= {picture.name: picture.png for picture in page.pictures()}
    return put(folder, files | {"results.json": _json(results), "results.parquet": _parquet(results)})


def page_of(
    results: Sequence[Result],
    plan: Plan,
    store: Store,
    records: Sequence[Record],
    command: str,
    slurm: Sequence[str] = (),
) -> Page:
    """The report before it is set: results by experiment, differences, stages, time, and how to run it again."""
    sections = [_experiment(group, plan, store) for group in by_experiment(results)]
    sections += [*_comparisons(comparisons(plan, store)), *_stages(stage_results(plan, store))]
    sections += [timing(plan, store, records, slurm=slurm), provenance(command, (*made_with(plan, store), *FILES))]
    title = ", ".join(dict.fromkeys(result.experiment for result in results))
    return Page(title, "", (), tuple(sections))


def console_table(results: Sequence[Result]) -> Table:
    """The results for a terminal: the Markdown table with its scale, caption and notes."""
    made = tabulate(results)
    caption = "\n".join([made.caption, *made.notes])
    table = Table(title=Text(made.title), caption=Text(caption), caption_justify="left", title_justify="left")
    words = made.header.index("Images per class")
    for number, name in enumerate(made.header):
        table.add_column(Text(name), justify="left" if number < words else "right", no_wrap=number != words)
    for row in made.rows:
        table.add_row(*map(Text, row))
    return table


# The sections of the page.


def _experiment(group: Sequence[Result], plan: Plan, store: Store) -> Section:
    name, made = group[0].experiment, tabulate(group)
    anchor = f"results-{slug(name)}-{slug(group[0].dataset)}-{group[0].scale}"
    blocks: list[Block] = [Grid(f"{anchor}-table", made.header, made.rows, made.caption), *notes(made.notes)]
    if any(result.mean is not None and result.stage for result in group):
        from orchestrator.reports import images, plots

        drawn = images.png(plots.accuracy_by_stage(group))
        blocks.append(Picture(f"accuracy-{slug(name)}.png", drawn, "accuracy by stage", ACCURACY_CAPTION))
    blocks += _grids(name, plan, store)
    return Section(anchor, made.title, tuple(blocks), "Results", short=f"{name} on {group[0].dataset}")


def _grids(experiment: str, plan: Plan, store: Store) -> Iterator[Picture]:
    """A grid of pictures for the first chain of each arm, as far as its stages go."""
    arms: dict[str, Chain] = {}
    for chain in chains(plan):
        if chain.cell.experiment == experiment:
            arms.setdefault(arm_label(chain.cell), chain)
    for arm, chain in arms.items():
        made = [manifest_of(store, key) is not None for key in chain.sets]
        sets = chain.sets[: made.index(False)] if False in made else chain.sets
        if sets:
            name, title = f"sets-{slug(experiment)}-{slug(arm)}.png", f"{arm} ({chain.cell.dataset})"
            yield image_grid(store, sets, title, _headings(chain)[: len(sets)], name)


def _headings(chain: Chain) -> list[str]:
    if chain.cell.base_method in SELECTIONS:
        return ["real images"]
    return [f"stage {number}" for number in range(1, len(chain.sets) + 1)]


def _comparisons(found: Sequence[Comparison]) -> Iterator[Section]:
    rows = tuple(
        (
            one.experiment,
            one.architecture,
            str(one.ipc_total),
            f"{one.better} − {one.worse}",
            f"{one.paired.mean:+.2f}",
            f"[{one.paired.low:+.2f}, {one.paired.high:+.2f}]",
            str(one.paired.n),
        )
        for one in found
    )
    if rows:
        grid = Grid("differences-table", COMPARISON_HEADER, rows, COMPARISON_CAPTION, words=4)
        yield Section("differences", "Paired differences", (grid,), "Results")


def _stages(results: Sequence[StageResult]) -> Iterator[Section]:
    if results:
        grid = Grid("stages-table", STAGE_HEADER, tuple(map(_stage_row, results)), STAGE_CAPTION)
        yield Section("stages", "Stages", (grid,), "Results")


def _stage_row(result: StageResult) -> tuple[str, ...]:
    loss = f"{result.first_loss:.3g} → {result.loss:.3g}" if result.loss is not None else ""
    return (
        f"{result.experiment}: {result.arm}",
        str(result.seed),
        f"{result.stage} of {result.stages}",
        _number(result.expert_start, ".1f"),
        _number(result.expert_end, ".1f"),
        str(result.iterations),
        _number(result.kept, "d") if result.made else "not made",
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
    types |= {"values": pa.list_(number), "jobs": words, "missing": words}
    types |= dict.fromkeys(("ipc_total", "ipc_per_stage", "stages", "stage", "phase", "n"), pa.int64())
    names = [*Result.__dataclass_fields__, "state"]
    schema = pa.schema([(name, types.get(name, pa.string())) for name in names])
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([result.to_json() for result in results], schema=schema), buffer)
    return buffer.getvalue()


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
