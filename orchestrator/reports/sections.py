"""The sections that every report has: the verdict before its own, and after them the run behind it.

They are about a plan and what a store has of it, whatever the report is of: what the comparisons say and what they do
not show, how the time was spent, how to get the same again, and with what. A report's own sections stand between
(`orchestrator.reports.experiment_report`, `orchestrator.reports.table_report`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from jobs.errors import Damaged
from jobs.experiment import Plan
from jobs.keys import kind_of
from jobs.kinds import SPECS
from orchestrator.reports.page import (
    Block,
    Command,
    Details,
    Gallery,
    Line,
    Paragraph,
    Picture,
    Section,
    Table,
    entry_of,
    notes,
    slug,
)
from orchestrator.results.cells import manifests
from orchestrator.results.statistics import Difference
from orchestrator.results.verdict import HEADLINES, Verdict, limits, lines_of, signed
from orchestrator.runs.timeline import Record, Span, Timeline, duration
from workers.store.store import Manifest, Store

PICTURES = "set.parquet"
RUN_GROUP, VERDICT_GROUP = "Run", "Verdict"
VERDICT_HEADER = ("Comparison", "Network", "Verdict", "Images per class", "Difference", "95 % interval", "Tested")
VERDICT_CAPTION = (
    "Progressive distillation minus its base method, in percentage points of test accuracy; in brackets stages x "
    "images per class. Paired over seeds where there are three in common, else Welch's test over networks."
)
FOREST_CAPTION = "Differences in percentage points with 95 % intervals; hollow: not significant, or not tested."


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What a report says of the run behind it.

    Attributes:
        command: the exact command line, to be typed again.
        records: the run's journal; empty if there is none.
        predicted: the makespan in seconds that was expected before the run.
        predicted_from_measured: the one that is expected with the times that the run's jobs took.
        slurm: what the run took of SLURM, in sentences.
    """

    command: str
    records: Sequence[Record] = ()
    predicted: float | None = None
    predicted_from_measured: float | None = None
    slurm: Sequence[str] = ()


def verdict_sections(several: Sequence[Verdict], titles: Mapping[str, str]) -> tuple[Section, ...]:
    """The verdicts with their intervals, and what they do not show; nothing without a verdict.

    Args:
        several: the verdicts.
        titles: by name of an experiment or table, what it is called.
    """
    if not several:
        return ()
    from orchestrator.reports import images, plots

    table = _verdict_table(several, titles)
    blocks: list[Block] = [table]
    if len(several) > 1:
        text = "; ".join(f"{verdict.pdd} minus {verdict.base}: {verdict.words}" for verdict in several)
        blocks.insert(0, Picture("forest.png", images.png(plots.forest(several, titles)), text, FOREST_CAPTION))
    if len(several) > HEADLINES:
        blocks = [*notes(lines_of(several, titles)), blocks[0], Details(f"All {len(several)} comparisons", (table,))]
    verdict = Section("verdict", "Verdict", tuple(blocks), VERDICT_GROUP)
    return verdict, Section("limits", "What this does not show", notes(limits(several)), VERDICT_GROUP)


def run_sections(plan: Plan, store: Store, run: RunFacts, beside: Sequence[Block]) -> tuple[Section, ...]:
    """Timing, how to run it again with the files that lie beside the page, and the environment."""
    artifacts = manifests(plan, store)
    again = Section("again", "How to run it again", (Command(run.command), *beside), RUN_GROUP)
    return timing(plan, artifacts, run), again, environment(artifacts, run.records)


def timing(plan: Plan, artifacts: Sequence[Manifest], run: RunFacts) -> Section:
    """Who worked when, by the run's journal; without one, what the artifacts took when they were made.

    Args:
        plan: its graph knows the stages and the longest chain of the jobs that ran.
        artifacts: the manifests of what is there.
        run: the journal, the predictions, and what SLURM gave.
    """
    timeline = Timeline.of(run.records, {job.key: getattr(job.spec, "stage", 0) for job in plan.graph})
    if not timeline.spans:
        return Section("timing", "Timing", _made_earlier(artifacts), RUN_GROUP)
    took = {span.key: span.end - span.start for span in timeline.spans}
    critical = [key for key in plan.graph.critical_path(lambda job: took.get(job.key, 0.0)) if key in took]
    blocks: list[Block] = [Paragraph(_summary(timeline))]
    if run.predicted is not None:
        blocks.append(Paragraph(_compared(run.predicted, timeline.seconds, run.predicted_from_measured)))
    blocks += [Paragraph(f"SLURM, {line}.") for line in run.slurm]
    blocks.append(_seconds_table([(span.kind, span.end - span.start) for span in timeline.spans]))
    blocks.append(_gantt(timeline.spans, set(critical)))
    if critical:
        blocks.append(_path(critical, took))
    return Section("timing", "Timing", tuple(blocks), RUN_GROUP)


def environment(artifacts: Sequence[Manifest], records: Sequence[Record]) -> Section:
    """Versions, devices and memory of what made the artifacts, and the versions of the driver by the journal."""
    names = sorted({name for manifest in artifacts for name in manifest.versions})
    versions = {name: {manifest.versions.get(name, "") for manifest in artifacts} - {""} for name in names}
    began = [record for record in records if record["event"] == "run_began"]
    driver = dict(began[-1].get("versions", {})) if began else {}
    rows = [(name, ", ".join(sorted(several)), driver.get(name, "")) for name, several in versions.items()]
    rows += [(name, "", version) for name, version in driver.items() if name not in versions]
    if artifacts:
        rows.append(("devices", ", ".join(sorted({manifest.device for manifest in artifacts})), ""))
        rows.append(("hosts", str(len({manifest.host for manifest in artifacts})), ""))
        rows.append(("largest process", f"{max(manifest.peak_memory_mib for manifest in artifacts):.0f} MiB", ""))
    header = ("", "Artifacts", "This run's driver")
    table = Table("environment-table", header, tuple(rows), words=3, title="Environment")
    return Section("environment", "Environment", (table,), RUN_GROUP)


def image_grids(
    store: Store,
    sets: Sequence[str],
    title: str,
    headings: Sequence[str],
    name: str,
    classes: Collection[str] = (),
) -> Gallery | Paragraph:
    """The pictures of stored sets side by side, or the sentence that one of them is damaged.

    Args:
        store: where the sets are.
        sets: their keys, one for each grid.
        title: what they are of.
        headings: one for each set.
        name: how the pictures' files begin.
        classes: the names of the classes to show; all of them if empty.
    """
    from orchestrator.reports import images

    try:
        read = [images.read_pictures(store.path(key, PICTURES)) for key in sets]
    except Damaged as damage:
        return Paragraph(f"The images of {title} cannot be shown: {damage}.")
    read = [pictures.only(classes) for pictures in read] if classes else read
    grids = []
    for pictures, heading in zip(read, headings, strict=True):
        grid, block = images.grid_of_classes(pictures, max(1, images.MOST_COLUMNS // len(sets)))
        rows = pictures.class_names[: len(block.rows)]
        text = f"images of {title}, {heading}, one row per class: {', '.join(rows)}"
        caption = f"{heading} {block.heading}".strip()
        grids.append(Picture(f"{name}-{slug(heading)}.png", images.png(grid), text, caption, drawn=False, rows=rows))
    return Gallery(tuple(grids), f"Images of {title}")


# The parts of the verdict.


def _verdict_table(several: Sequence[Verdict], titles: Mapping[str, str]) -> Table:
    several_titles = len({verdict.experiment for verdict in several}) > 1
    rows = tuple(
        (
            f"{verdict.pdd} − {verdict.base}",
            *([titles[verdict.experiment]] if several_titles else []),
            verdict.architecture,
            verdict.words,
            str(verdict.ipc_total),
            signed(verdict.difference.mean),
            "" if verdict.significant is None else _interval(verdict.difference),
            verdict.over,
        )
        for verdict in several
    )
    first, *others = VERDICT_HEADER
    header = (first, *(["Of"] if several_titles else []), *others)
    return Table("verdict-table", header, rows, VERDICT_CAPTION, words=len(header) - 4, title="Verdict")


def _interval(difference: Difference) -> str:
    return f"{signed(difference.low)} to {signed(difference.high)}"


# The parts of the timing.


def _summary(timeline: Timeline) -> str:
    again = "; it was taken up again, and the pauses are left out" if timeline.parts > 1 else ""
    slots = "1 worker slot" if timeline.slots == 1 else f"{timeline.slots} worker slots"
    return f"The run took {timeline.seconds:.0f} s on {slots}, busy {timeline.busy:.0%} of the time{again}."


def _compared(predicted: float, measured: float, predicted_from_measured: float | None) -> str:
    text = (
        f"Predicted before the run: {duration(predicted)}{_off(predicted, measured)}; measured: {duration(measured)}."
    )
    if predicted_from_measured:
        now = f"{duration(predicted_from_measured)}{_off(predicted_from_measured, measured)}"
        text += f" With the times that its jobs took, the same simulation predicts {now}."
    return text


def _off(predicted: float, measured: float) -> str:
    if not predicted or not measured:
        return ""
    return f" ({abs(predicted / measured - 1):.0%} {'more' if predicted > measured else 'less'} than measured)"


def _made_earlier(artifacts: Sequence[Manifest]) -> tuple[Block, ...]:
    text = "No job ran in this run; these are the seconds that its artifacts took when they were made."
    return Paragraph(text), _seconds_table([(manifest.kind, manifest.seconds) for manifest in artifacts])


def _seconds_table(measured: Sequence[tuple[str, float]]) -> Table:
    by_kind: dict[str, list[float]] = {}
    for kind, seconds in measured:
        by_kind.setdefault(kind, []).append(seconds)
    rows = tuple(
        (kind, str(len(taken)), f"{sum(taken):.1f}", f"{fmean(taken):.2f}", f"{max(taken):.2f}")
        for kind in SPECS
        if (taken := by_kind.get(kind))
    )
    header = ("Kind", "Jobs", "Seconds in all", "Mean", "Longest")
    return Table("seconds", header, rows, title="Seconds by kind of job")


def _gantt(spans: Sequence[Span], critical: Collection[str]) -> Picture:
    from orchestrator.reports import images

    figure = images.gantt(spans, critical)
    caption = "Numbers in bars are stages; hatched bars ended without an artifact."
    return Picture("gantt.png", images.png(figure), "which job ran when, by worker slot", caption)


def _path(critical: Sequence[str], took: Mapping[str, float]) -> Block:
    rows = tuple((entry_of(Line(key, "code")), kind_of(key), f"{took[key]:.1f}") for key in critical)
    title = f"Critical path: {len(critical)} jobs, {duration(sum(took[key] for key in critical))}"
    return Details(title, (Table("critical-path", ("Job", "Kind", "Seconds"), rows, words=2, title=title),))
