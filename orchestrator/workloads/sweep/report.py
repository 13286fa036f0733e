"""What a sweep leaves: a page, its trials and their stages as Parquet, a picture, and the best experiment as YAML.

sweep.md                     the table of trials, the picture, what it cost, the command
trials.parquet               one row a trial
stages.parquet               one row a reported stage: the curves
heat_map.png                 a space of two lists (stages x images per class, as in the paper's Table 5)
parallel.png                 any other space: parallel coordinates
best.yaml                    ready for `run`
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from jobs.sweep import METRICS, Scalar, Sweep
from orchestrator.runs.timeline import duration
from orchestrator.workloads.sweep.mailbox import spoken
from orchestrator.workloads.sweep.rows import Row
from orchestrator.workloads.sweep.trials import TrialState

PAGE = "sweep.md"


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


def write(folder: Path, sweep: Sweep, rows: Sequence[Row], winners: Sequence[TrialState], command: str) -> list[Path]:
    """Write the report over an earlier one in the same folder, as the umask allows; the page first."""
    folder.mkdir(parents=True, exist_ok=True)
    picture, png, caption = _picture(sweep, rows)
    files = {
        "trials.parquet": _parquet([_trial_record(row, sweep) for row in rows]),
        "stages.parquet": _parquet([record for row in rows for record in _stage_records(row)]),
        picture: png,
    }
    if winners:
        files["best.yaml"] = best_yaml(winners[0], sweep, command).encode()
    page = _page(sweep, rows, picture, caption, command, bool(winners))
    return [_write(folder / name, content) for name, content in {PAGE: page.encode(), **files}.items()]


def best_yaml(winner: TrialState, sweep: Sweep, command: str) -> str:
    """The best trial's experiment as a file for `run`; its jobs are in the store already."""
    document = winner.trial.experiment.model_dump(mode="json", exclude_unset=True)
    document["name"] = f"{sweep.name}-best"
    heading = (
        f"# The best of sweep {sweep.name}: {winner.trial.label()}\n"
        f"# by {sweep.metric} ({winner.score(sweep.metric):.4g}). Found by: {command}\n"
    )
    return heading + str(yaml.safe_dump(document, sort_keys=False))


def _page(sweep: Sweep, rows: Sequence[Row], picture: str, caption: str, command: str, won: bool) -> str:
    header, lines = table(rows, sweep)
    alone, once = sum(row.seconds for row in rows), sum(row.marginal_seconds for row in rows)
    marks = ["| " + " | ".join(line) + " |" for line in (header, ["---"] * len(header), *lines)]
    said = [
        f"# Sweep {sweep.name}",
        sweep.about,
        "\n".join(marks),
        f"`{sweep.metric}`: {METRICS[sweep.metric]}; after the last stage reported. "
        "A star marks what was evaluated on test images; test accuracy chose nothing.",
        f"Cost is worker time: {duration(alone)} if no trial shared with another, {duration(once)} of it in jobs that "
        "only one trial needs (the marginal cost: what leaving that trial out would have saved).",
        f"![{caption}]({picture})",
        caption,
        "[best.yaml](best.yaml) is the best experiment, ready for `run`; its test accuracy is in "
        "[winners/report.md](winners/report.md)."
        if won
        else "No trial was finished, so there is no best one.",
        f"```\n{command}\n```",
    ]
    return "\n\n".join(part for part in said if part) + "\n"


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
    buffer = io.BytesIO()
    pq.write_table(pa.table({name: [record.get(name) for record in records] for name in names}), buffer)
    return buffer.getvalue()


def _write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


# The picture.


def _picture(sweep: Sweep, rows: Sequence[Row]) -> tuple[str, bytes, str]:
    """The name, the PNG and the caption of the picture that suits the space."""
    from orchestrator.workloads.sweep import plots

    lists = [name for name, one in sweep.space.items() if one.options]
    if len(lists) == 2 == len(sweep.space):
        figure = plots.heat_map(rows, sweep, lists[0], lists[1])
        caption = f"{sweep.metric} by {lists[0]} and {lists[1]}; in brackets: a trial that was ended early."
        return "heat_map.png", plots.png(figure), caption
    figure = plots.parallel_coordinates(rows, sweep)
    return (
        "parallel.png",
        plots.png(figure),
        f"every trial by its values and {sweep.metric}; dashed: ended early.",
    )
