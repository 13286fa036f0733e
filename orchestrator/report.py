"""The report of a run: one folder with a Markdown page, its pictures, and the results for other programs.

    report.md                    tables, pictures, stages, timing, versions, the exact command
    results.json  .parquet       every cell with all its values
    accuracy-*.png  sets-*.png  gantt.png

A table always says its scale, what its spread is and over how many networks; a cell without a number says
why. The page links only to files beside it, so the folder can be copied anywhere. `console_table` shows
the same table at the end of a run.

Left out: measuring (`orchestrator.results`) and drawing (`orchestrator.pictures`, imported when a report is
written, since matplotlib takes a while and most commands draw nothing).
"""

from __future__ import annotations

import io
import json
import os
import re
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from rich.table import Table
from rich.text import Text

from jobs.experiments import SELECTIONS, Plan
from jobs.specs import SPECS
from orchestrator.contrasts import Contrast, contrasts
from orchestrator.results import (
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
from orchestrator.timeline import Record, Timeline, failures
from workers.store import Manifest, Store

REPORT = "report.md"
PICTURES = "set.parquet"

STAGE_HEADER = (
    *("Arm", "Seed", "Stage", "Expert start", "Expert end", "Iterations", "Kept"),
    *("Matching loss", "Step size", "Held-out"),
)
CONTRAST_HEADER = ("Experiment", "Network", "Images per class", "Difference", "Mean", "95 % interval", "Seeds")
CONTRAST_CAPTION = (
    "Percentage points of test accuracy, paired over seeds (the mean over a seed's networks); Student's t interval."
)
STAGE_CAPTION = (
    "Accuracies in percent on the held-out split. Expert start: the stage's experts before they see real "
    "data (stage 1: random weights; later: after training on the earlier sets). Kept: the iteration whose "
    "images were chosen. Matching loss: first and last iteration."
)


def write(folder: Path, plan: Plan, store: Store, journal_records: Iterable[Record] | None, command: str) -> list[Path]:
    """Write the report of what the store has for a plan, over an earlier report in the same folder.

    Args:
        folder: made if absent (0700; its files 0600).
        plan: the cells to report.
        store: where artifacts are looked up; missing ones become notes.
        journal_records: the run's journal, for timing and reasons of failures; None if there is none.
        command: the exact command line, to be run again.

    Returns:
        The files written, `report.md` first.
    """
    records = list(journal_records or ())
    results = collect(plan, store, failures(records))
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    page = _Page(folder)
    page.add(f"# {', '.join(dict.fromkeys(result.experiment for result in results))}", "")
    for group in by_experiment(results):
        _experiment(page, group, plan, store)
    _contrasts(page, contrasts(plan, store))
    _stages(page, stage_results(plan, store))
    _timing(page, plan, store, records)
    _provenance(page, plan, store, command)
    page.file("results.json", _json(results))
    page.file("results.parquet", _parquet(results))
    return page.close()


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


class _Page:
    """The Markdown lines and the files beside them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lines: list[str] = []
        self.files: list[Path] = []

    def add(self, *lines: str) -> None:
        self.lines += lines

    def table(self, header: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> None:
        """A Markdown table, its first `words` columns to the left and the numbers to the right."""
        rule = ["---" if number < words else "---:" for number in range(len(header))]
        for row in (header, rule, *rows):
            self.add(f"| {' | '.join(_escaped(cell) for cell in row)} |")
        self.add("")

    def picture(self, name: str, png: bytes, text: str) -> None:
        self.file(name, png)
        self.add(f"![{_escaped(text)}]({name})", "")

    def file(self, name: str, content: bytes) -> None:
        path = self.folder / name
        with open(path, "wb", opener=lambda where, flags: os.open(where, flags, 0o600)) as file:
            file.write(content)
        self.files.append(path)

    def close(self) -> list[Path]:
        """Write the page itself; all files, the page first."""
        beside = self.files
        self.files = []
        self.file(REPORT, ("\n".join(self.lines).rstrip() + "\n").encode())
        return self.files + beside


def _experiment(page: _Page, group: Sequence[Result], plan: Plan, store: Store) -> None:
    from orchestrator import pictures

    name = group[0].experiment
    made = tabulate(group)
    page.add(f"## {_escaped(made.title)}", "")
    page.table(made.header, made.rows)
    page.add(_escaped(made.caption), "")
    page.add(*(f"* {_escaped(note)}" for note in made.notes), *([""] if made.notes else []))
    if any(result.mean is not None and result.stage for result in group):
        drawn = pictures.accuracy_by_stage(group)
        page.picture(f"accuracy-{_slug(name)}.png", pictures.png(drawn), "accuracy by stage")
        page.add(
            "Dots are single networks, markers their means, bars one standard deviation; dashed: full data.",
            "",
        )
    _grids(page, name, plan, store)


def _grids(page: _Page, experiment: str, plan: Plan, store: Store) -> None:
    """A grid of pictures for the first chain of each arm, as far as its stages go."""
    from orchestrator import pictures

    arms: dict[str, Chain] = {}
    for chain in chains(plan):
        if chain.cell.experiment == experiment:
            arms.setdefault(arm_label(chain.cell), chain)
    for arm, chain in arms.items():
        made = [manifest_of(store, key) is not None for key in chain.sets]
        sets = chain.sets[: made.index(False)] if False in made else chain.sets
        if sets:
            read = [pictures.read_pictures(store.path(key, PICTURES)) for key in sets]
            title = f"{arm} ({chain.cell.dataset})"
            grid = pictures.grid_by_stage(read, title, _headings(chain)[: len(read)])
            page.picture(f"sets-{_slug(experiment)}-{_slug(arm)}.png", pictures.png(grid), f"images of {arm}")


def _headings(chain: Chain) -> list[str]:
    if chain.cell.base_method in SELECTIONS:
        return ["real images"]
    return [f"stage {number}" for number in range(1, len(chain.sets) + 1)]


def _contrasts(page: _Page, found: Sequence[Contrast]) -> None:
    if not found:
        return
    page.add("## Paired differences", "")
    rows = [
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
    ]
    page.table(CONTRAST_HEADER, rows, words=4)
    page.add(CONTRAST_CAPTION, "")


def _stages(page: _Page, results: Sequence[StageResult]) -> None:
    if not results:
        return
    page.add("## Stages", "")
    page.table(STAGE_HEADER, [_stage_row(result) for result in results])
    page.add(STAGE_CAPTION, "")


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


def _provenance(page: _Page, plan: Plan, store: Store, command: str) -> None:
    manifests = _manifests(plan, store)
    page.add("## How to run it again", "", "```", command, "```", "")
    versions: dict[str, set[str]] = {}
    for manifest in manifests:
        for name, version in manifest.versions.items():
            versions.setdefault(name, set()).add(version)
    said = [f"{name} {' and '.join(sorted(found))}" for name, found in sorted(versions.items())]
    devices = sorted({manifest.device for manifest in manifests})
    if said:
        page.add(f"Made with {', '.join(said)} on {' and '.join(devices)}.", "")
    page.add("[results.json](results.json) and [results.parquet](results.parquet) hold every value above.", "")


def _timing(page: _Page, plan: Plan, store: Store, records: Sequence[Record]) -> None:
    page.add("## Timing", "")
    timeline = Timeline.of(records, {job.key: getattr(job.spec, "stage", 0) for job in plan.graph})
    if not timeline.spans:
        manifests = _manifests(plan, store)
        page.add("No job ran in this run; these are the seconds that its artifacts took when they were made.", "")
        return _seconds_table(page, [(manifest.kind, manifest.seconds) for manifest in manifests])
    again = "; it was taken up again, and the pauses are left out" if timeline.parts > 1 else ""
    slots = "1 worker slot" if timeline.slots == 1 else f"{timeline.slots} worker slots"
    page.add(f"The run took {timeline.seconds:.0f} s on {slots}, busy {timeline.busy:.0%} of the time{again}.", "")
    _seconds_table(page, [(span.kind, span.end - span.start) for span in timeline.spans])
    from orchestrator import pictures

    took = {span.key: span.end - span.start for span in timeline.spans}
    critical = plan.graph.critical_path(lambda job: took.get(job.key, 0.0))
    figure = pictures.gantt(timeline.spans, {key for key in critical if key in took})
    page.picture("gantt.png", pictures.png(figure), "which job ran when, by worker slot")
    page.add("Numbers in bars are stages; hatched bars ended without an artifact.", "")


def _seconds_table(page: _Page, measured: Sequence[tuple[str, float]]) -> None:
    by_kind: dict[str, list[float]] = {}
    for kind, seconds in measured:
        by_kind.setdefault(kind, []).append(seconds)
    rows = [
        (kind, str(len(taken)), f"{sum(taken):.1f}", f"{statistics.fmean(taken):.2f}", f"{max(taken):.2f}")
        for kind in SPECS
        if (taken := by_kind.get(kind))
    ]
    page.table(("Kind", "Jobs", "Seconds in all", "Mean", "Longest"), rows)


# The journal, as far as a report needs it.


def _manifests(plan: Plan, store: Store) -> list[Manifest]:
    return [manifest for job in plan.graph if (manifest := manifest_of(store, job.key)) is not None]


def _json(results: Sequence[Result]) -> bytes:
    document = {"schema": 1, "results": [result.to_json() for result in results]}
    return (json.dumps(document, indent=2, allow_nan=False) + "\n").encode()


def _parquet(results: Sequence[Result]) -> bytes:
    number, words = pa.float64(), pa.list_(pa.string())
    types = {"mean": number, "std": number, "published_mean": number, "published_std": number}
    types |= {"values": pa.list_(number), "jobs": words, "missing": words}
    types |= dict.fromkeys(("ipc_total", "ipc_per_stage", "stages", "stage", "n"), pa.int64())
    names = [*Result.__dataclass_fields__, "state"]
    schema = pa.schema([(name, types.get(name, pa.string())) for name in names])
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([result.to_json() for result in results], schema=schema), buffer)
    return buffer.getvalue()


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return re.sub(r"([|\\`*_\[\]<])", r"\\\1", " ".join(text.split()))
