"""The sections that every report ends with: how the time was spent, and how to get the same again.

Both are about a plan and what a store has of it, whatever the report is of. Reports add sections of their own before
them (`orchestrator.reports.experiment_report`, `orchestrator.reports.table_report`).
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from jobs.experiment import Plan
from jobs.keys import kind_of
from jobs.specs import SPECS
from orchestrator.reports.page import Block, Command, Entry, Fold, Grid, Line, Picture, Prose, Section
from orchestrator.results.cells import manifest_of
from orchestrator.runs.timeline import Record, Span, Timeline, duration
from workers.store.store import Manifest, Store

PICTURES = "set.parquet"
RUN_GROUP = "Run"


def timing(
    plan: Plan,
    store: Store,
    records: Sequence[Record],
    predicted: float | None = None,
    linked: bool = False,
    predicted_from_measured: float | None = None,
    slurm: Sequence[str] = (),
) -> Section:
    """Who worked when, by the run's journal; without one, what the artifacts took when they were made.

    Args:
        plan: its graph knows the stages and the longest chain of the jobs that ran.
        store: where the seconds of artifacts are looked up.
        records: the journal.
        predicted: the makespan in seconds that was expected before the run.
        linked: whether the page has an anchor for every job (`job_anchor`).
        predicted_from_measured: the makespan that is expected now that the times of the jobs are measured.
        slurm: what the run took of SLURM, in sentences.
    """
    timeline = Timeline.of(records, {job.key: getattr(job.spec, "stage", 0) for job in plan.graph})
    if not timeline.spans:
        return Section("timing", "Timing", tuple(_made_earlier(manifests(plan, store))), RUN_GROUP)
    took = {span.key: span.end - span.start for span in timeline.spans}
    critical = [key for key in plan.graph.critical_path(lambda job: took.get(job.key, 0.0)) if key in took]
    blocks: list[Block] = [Prose(_said(timeline))]
    if predicted is not None:
        blocks.append(Prose(_compared(predicted, timeline.seconds, predicted_from_measured)))
    blocks += [Prose(f"SLURM, {line}.") for line in slurm]
    blocks.append(_seconds_table([(span.kind, span.end - span.start) for span in timeline.spans]))
    blocks.append(_gantt(timeline.spans, set(critical)))
    if critical:
        blocks.append(_path(critical, took, linked))
    return Section("timing", "Timing", tuple(blocks), RUN_GROUP)


def provenance(command: str, blocks: Sequence[Block]) -> Section:
    """The command to type again, and what a report adds to it."""
    return Section("again", "How to run it again", (Command(command), *blocks), RUN_GROUP)


def made_with(plan: Plan, store: Store) -> Iterator[Prose]:
    """Versions and devices in one sentence, if anything is made."""
    versions: dict[str, set[str]] = {}
    found = manifests(plan, store)
    for manifest in found:
        for name, version in manifest.versions.items():
            versions.setdefault(name, set()).add(version)
    said = ", ".join(f"{name} {' and '.join(sorted(several))}" for name, several in sorted(versions.items()))
    if said:
        yield Prose(f"Made with {said} on {' and '.join(sorted({manifest.device for manifest in found}))}.")


def environment(plan: Plan, store: Store, records: Sequence[Record]) -> Section:
    """Versions, devices and memory of what made the artifacts, and the versions of the driver by the journal."""
    found = manifests(plan, store)
    named = {name: sorted({one.versions[name] for one in found if name in one.versions}) for name in _versioned(found)}
    began = [record for record in records if record["event"] == "run_began"]
    driver = dict(began[-1].get("versions", {})) if began else {}
    rows = [(name, ", ".join(several), driver.get(name, "")) for name, several in named.items()]
    rows += [(name, "", version) for name, version in driver.items() if name not in named]
    if found:
        rows.append(("devices", ", ".join(sorted({one.device for one in found})), ""))
        rows.append(("hosts", str(len({one.host for one in found})), ""))
        rows.append(("largest process", f"{max(one.peak_memory_mib for one in found):.0f} MiB", ""))
    header = ("", "Artifacts", "This run's driver")
    grid = Grid("environment-table", header, tuple(rows), words=3, title="Environment")
    return Section("environment", "Environment", (grid,), RUN_GROUP)


def image_grid(
    store: Store,
    sets: Sequence[str],
    title: str,
    headings: Sequence[str],
    name: str,
    classes: Collection[str] = (),
) -> Picture:
    """The pictures of stored sets side by side, of some classes or of all."""
    from orchestrator.reports import images

    read = [images.read_pictures(store.path(key, PICTURES)) for key in sets]
    read = [one.only(classes) for one in read] if classes else read
    grid = images.grid_by_stage(read, title, headings)
    said = f"images of {title}, one row per class: {', '.join(headings)}"
    return Picture(name, images.png(grid), said, drawn=False)


def manifests(plan: Plan, store: Store) -> list[Manifest]:
    """Of every artifact of the plan that is there, parents before children."""
    return [manifest for job in plan.graph if (manifest := manifest_of(store, job.key)) is not None]


def job_anchor(key: str) -> str:
    """Where a page that lists its jobs has this one."""
    return f"job-{key}"


def put(folder: Path, files: Mapping[str, bytes]) -> list[Path]:
    """Write a report's files (0600) into its folder (0700), over earlier ones."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, content in files.items():
        with open(folder / name, "wb", opener=lambda where, flags: os.open(where, flags, 0o600)) as file:
            file.write(content)
    return [folder / name for name in files]


# The parts of the timing.


def _said(timeline: Timeline) -> str:
    again = "; it was taken up again, and the pauses are left out" if timeline.parts > 1 else ""
    slots = "1 worker slot" if timeline.slots == 1 else f"{timeline.slots} worker slots"
    return f"The run took {timeline.seconds:.0f} s on {slots}, busy {timeline.busy:.0%} of the time{again}."


def _compared(predicted: float, measured: float, predicted_from_measured: float | None) -> str:
    said = (
        f"Predicted before the run: {duration(predicted)}{_off(predicted, measured)}; measured: {duration(measured)}."
    )
    if predicted_from_measured:
        now = f"{duration(predicted_from_measured)}{_off(predicted_from_measured, measured)}"
        said += f" With the times that its jobs took, the same simulation predicts {now}."
    return said


def _off(predicted: float, measured: float) -> str:
    if not predicted or not measured:
        return ""
    return f" ({abs(predicted / measured - 1):.0%} {'more' if predicted > measured else 'less'} than measured)"


def _made_earlier(found: Sequence[Manifest]) -> list[Block]:
    text = "No job ran in this run; these are the seconds that its artifacts took when they were made."
    return [Prose(text), _seconds_table([(manifest.kind, manifest.seconds) for manifest in found])]


def _seconds_table(measured: Sequence[tuple[str, float]]) -> Grid:
    by_kind: dict[str, list[float]] = {}
    for kind, seconds in measured:
        by_kind.setdefault(kind, []).append(seconds)
    rows = tuple(
        (kind, str(len(taken)), f"{sum(taken):.1f}", f"{statistics.fmean(taken):.2f}", f"{max(taken):.2f}")
        for kind in SPECS
        if (taken := by_kind.get(kind))
    )
    header = ("Kind", "Jobs", "Seconds in all", "Mean", "Longest")
    return Grid("seconds", header, rows, title="Seconds by kind of job")


def _gantt(spans: Sequence[Span], critical: Collection[str]) -> Picture:
    from orchestrator.reports import images

    figure = images.gantt(spans, critical)
    caption = "Numbers in bars are stages; hatched bars ended without an artifact."
    return Picture("gantt.png", images.png(figure), "which job ran when, by worker slot", caption)


def _path(critical: Sequence[str], took: Mapping[str, float], linked: bool) -> Block:
    rows = tuple(
        (
            Entry((Line(key, "code", job_anchor(key) if linked else ""),)),
            kind_of(key),
            f"{took[key]:.1f}",
        )
        for key in critical
    )
    whole = sum(took[key] for key in critical)
    title = f"Critical path: {len(critical)} jobs, {duration(whole)}"
    grid = Grid("critical-path", ("Job", "Kind", "Seconds"), rows, words=2, title=title)
    return Fold(title, (grid,))


def _versioned(found: Sequence[Manifest]) -> list[str]:
    return sorted({name for manifest in found for name in manifest.versions})
