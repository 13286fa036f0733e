"""What a sweep leaves: a page like every report's, its trials and their stages, a picture, and the best experiment.

report.md  report.html       who won and with what, the table of trials, the picture, what it cost, the command
trials.parquet               one row a trial
stages.parquet               one row a reported stage: the curves
heat_map.png                 a space of two lists (stages x images per class, as in the paper's Table 5)
parallel.png                 any other space: parallel coordinates
best.yaml                    ready for `run`
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from jobs.experiment import Plan
from jobs.sweep import METRICS, Scalar, Sweep, Values
from orchestrator.reports import folder as folders
from orchestrator.reports.page import Gallery, Page, Paragraph, Picture, Section, Table, notes
from orchestrator.reports.sections import RunFacts
from orchestrator.results.cells import collect
from orchestrator.results.statistics import interval
from orchestrator.runs.timeline import duration
from orchestrator.workloads.sweep.mailbox import spoken
from orchestrator.workloads.sweep.rows import Row
from orchestrator.workloads.sweep.trials import TrialState
from workers.store.store import Store

UNEQUAL = (
    "Not equal compute: each stage has iterations of its own, so a trial of more stages took more of them, and part of "
    "its lead may be that. With base.set.distil.iterations_total a fixed number is divided among the stages of a trial."
)


def table(rows: Sequence[Row], sweep: Sweep) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The trials as text, the best first: a header and lines."""
    sign = -1.0 if sweep.mode == "max" else 1.0
    order = sorted(rows, key=lambda row: (row.state != "done", sign * (row.score(sweep.metric) or 0.0), row.number))
    header = ("trial", "values", "state", "stages", sweep.metric, "cost", "marginal cost")
    lines: list[tuple[str, ...]] = []
    for row in order:
        score = row.score(sweep.metric)
        lines.append(
            (
                f"{row.number}{' *' if row.rank else ''}",
                spoken(row.values),
                row.state,
                f"{row.stage} of {row.stages}",
                "" if score is None else f"{score:.4g}",
                duration(row.seconds),
                duration(row.marginal_seconds),
            )
        )
    return header, lines


def write(
    folder: Path,
    sweep: Sweep,
    rows: Sequence[Row],
    winners: Sequence[TrialState],
    best: Plan,
    store: Store,
    run: RunFacts,
) -> list[Path]:
    """Write the report over an earlier one in the same folder.

    Args:
        folder: made if absent.
        sweep: what was swept.
        rows: its trials.
        winners: the best trials, the best first.
        best: the jobs and cells of the winners.
        store: where their accuracies are.
        run: the command line, and the journal of the run.

    Returns:
        The files written, `report.md` first.
    """
    data = {
        "trials.parquet": _parquet([_trial_record(row, sweep) for row in rows]),
        "stages.parquet": _parquet([record for row in rows for record in _stage_records(row)]),
    }
    if winners:
        data["best.yaml"] = best_yaml(winners[0], sweep, run.command).encode()
    page = page_of(sweep, rows, verdict_of(sweep, rows, best, store), bool(winners))
    about = "every trial and every reported stage, and the best experiment, ready for `run`"
    return folders.write(folder, page, best, store, run, data, about)


def verdict_of(sweep: Sweep, rows: Sequence[Row], best: Plan, store: Store) -> list[str]:
    """Who won, with what, and how well that does on test images, in sentences.

    Args:
        sweep: what was swept.
        rows: its trials.
        best: the jobs and cells of the winners.
        store: where their accuracies are.
    """
    winner = next((row for row in rows if row.rank == 1), None)
    if winner is None:
        return ["No trial was finished, so there is no best one."]
    score = winner.score(sweep.metric)
    told = [
        f"Best of {len(rows)} trials: {in_words(winner.values)} (trial {winner.number}, "
        f"{sweep.metric.replace('_', '-')} {score:.4g})."
    ]
    for result in collect(best, store):
        if result.experiment == f"{sweep.name}-{winner.number}" and result.stage == result.stages and result.values:
            bounds = interval(result.values)
            networks = "1 network" if result.n == 1 else f"{result.n} networks"
            spread = f"95 % interval {bounds[0]:.1f} to {bounds[1]:.1f}, {networks}" if bounds else networks
            told.append(f"On test images it reaches {result.mean:.1f} % with {result.architecture} ({spread}).")
    return told


def in_words(values: Values) -> str:
    """`2 stages, ipc 10`: the setting of a trial for people."""
    return ", ".join(
        f"{value} {name}" if name in ("stages", "seeds", "networks") else f"{name.replace('_', ' ')} {value}"
        for name, value in values.items()
    )


def best_yaml(winner: TrialState, sweep: Sweep, command: str) -> str:
    """The best trial's experiment as a file for `run`; its jobs are in the store already."""
    document = winner.trial.experiment.model_dump(mode="json", exclude_unset=True)
    document["name"] = f"{sweep.name}-best"
    heading = (
        f"# The best of sweep {sweep.name}: {winner.trial.label()}\n"
        f"# by {sweep.metric} ({winner.score(sweep.metric):.4g}). Found by: {command}\n"
    )
    return heading + str(yaml.safe_dump(document, sort_keys=False))


def page_of(sweep: Sweep, rows: Sequence[Row], verdict: Sequence[str], won: bool) -> Page:
    """The report before it is set, without its run.

    Args:
        sweep: what was swept.
        rows: its trials.
        verdict: who won, in sentences.
        won: whether anybody did.
    """
    header, lines = table(rows, sweep)
    alone, once = sum(row.seconds for row in rows), sum(row.marginal_seconds for row in rows)
    caption = (
        f"{sweep.metric}: {METRICS[sweep.metric]}; after the last stage reported. "
        "A star marks what was evaluated on test images; test accuracy chose nothing."
    )
    cost = (
        f"Cost is worker time: {duration(alone)} if no trial shared with another, {duration(once)} of it in jobs that "
        "only one trial needs (the marginal cost: what leaving that trial out would have saved)."
    )
    trials = Table("trials-table", header, tuple(lines), caption, words=3, title="Trials")
    sections = [
        Section("trials", "Trials", (trials, Gallery((_picture(sweep, rows),)), Paragraph(cost)), "Results"),
        Section("limits", "What this does not show", notes(_limits(rows, won)), "Results"),
    ]
    return Page(f"Sweep {sweep.name}", sweep.about, (), tuple(sections), tuple(verdict))


def _limits(rows: Sequence[Row], won: bool) -> Iterator[str]:
    if len({row.stages for row in rows}) > 1:
        yield UNEQUAL
    yield "That the best is better than the second: trials were compared by one number each, and no interval."
    if won:
        yield "The winners have a report of their own, with their test accuracy: winners/report.html."


# The tables.


def _trial_record(row: Row, sweep: Sweep) -> dict[str, Any]:
    plain = row.to_json()
    del plain["values"], plain["metrics"]
    last = row.metrics[-1] if row.metrics else {}
    return plain | {f"value_{name}": _column(sweep, name, row.values[name]) for name in sweep.space} | last


def _column(sweep: Sweep, name: str, value: Scalar) -> Scalar:
    """A dimension of mixed types becomes text, because a column has one type."""
    kinds = {type(option) for option in sweep.space[name].options} - {type(None)}
    return value if len(kinds) <= 1 or kinds <= {int, float} else str(value)


def _stage_records(row: Row) -> list[dict[str, Any]]:
    return [{"trial": row.number, "stage": stage, **metrics} for stage, metrics in enumerate(row.metrics, start=1)]


def _parquet(records: Sequence[dict[str, Any]]) -> bytes:
    names = list(dict.fromkeys(name for record in records for name in record))
    columns = pa.table({name: [record.get(name) for record in records] for name in names})
    return folders.parquet(columns.to_pylist(), columns.schema)


# The picture.


def _picture(sweep: Sweep, rows: Sequence[Row]) -> Picture:
    """The picture that suits the space."""
    from orchestrator.workloads.sweep import plots

    lists = [name for name, dimension in sweep.space.items() if dimension.options]
    if len(lists) == 2 == len(sweep.space):
        figure = plots.heat_map(rows, sweep, lists[0], lists[1])
        caption = f"{sweep.metric} by {lists[0]} and {lists[1]}; in brackets: a trial that was ended early."
        return Picture("heat_map.png", plots.png(figure), caption, caption)
    figure = plots.parallel_coordinates(rows, sweep)
    caption = f"Every trial by its values and {sweep.metric}; dashed: ended early."
    return Picture("parallel.png", plots.png(figure), caption, caption)
