"""The table of results that every reader sees, as text: its rows, title, caption and notes.

How it is set (Markdown, a terminal) is left to `orchestrator.reports.experiment_report`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from orchestrator.results.cells import Result, label

IMAGES = "Images per class"
"""The head of the last column of words."""
SCALES = {
    "paper": "scale: paper: the published settings; `explain` prints each number with its source",
    "medium": "scale: medium: the published settings, not a reproduction, since cut are width (64 of 128), images "
    "(1000 of a class), experts (8 of 100), iterations (to a twentieth and less), links between stages (to a fifth)",
    "small": "scale: small: a reduced setting, not a reproduction of the paper",
    "tiny": "scale: tiny: seconds of work to see that everything runs, not a reproduction of the paper",
}


@dataclass(frozen=True)
class ResultTable:
    """A table of results as text, for Markdown and the console alike."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str
    notes: tuple[str, ...]
    """Why a cell has no number, or not all of them."""
    best: frozenset[tuple[int, int]] = frozenset()
    """Row and column of the best number of each column, full data aside."""


def tabulate(results: Sequence[Result]) -> ResultTable:
    """Rows are arms and stages, full data last; columns are architectures, and experiments if several."""
    architectures = tuple(dict.fromkeys(result.architecture for result in results))
    several = len({result.experiment for result in results}) > 1
    rows, notes = [], []
    by_row = _rows(results)
    for row in by_row:
        first = next(iter(row.values()))
        ipc = str(first.ipc_total) if first.stage else "all"
        cells = [_cell_text(row[name]) if name in row else "" for name in architectures]
        rows.append((*([first.experiment] if several else []), label(first), ipc, *cells))
        notes += _notes(row.values())
    header = (*(["Experiment"] if several else []), "Method", IMAGES, *architectures)
    first_number = len(header) - len(architectures)
    best = frozenset(
        (row, first_number + column)
        for column, name in enumerate(architectures)
        for row in best_of([_distilled_mean(results_of_row.get(name)) for results_of_row in by_row])
    )
    return ResultTable(_title(results), header, tuple(rows), _caption(results), tuple(notes), best)


def best_of(means: Sequence[float | None]) -> list[int]:
    """The positions of the largest number, as it is printed; none where there are not two numbers to choose from."""
    printed = [None if mean is None else round(mean, 1) for mean in means]
    known = [mean for mean in printed if mean is not None]
    return [number for number, mean in enumerate(printed) if len(known) > 1 and mean == max(known)]


def _rows(results: Sequence[Result]) -> list[dict[str, Result]]:
    """Results by architecture, a new row whenever anything else changes or an architecture comes again."""
    rows: list[dict[str, Result]] = []
    before: tuple[object, ...] = ()
    for result in results:
        group = (result.experiment, result.dataset, label(result), result.ipc_per_stage, result.stage)
        if group != before or result.architecture in rows[-1]:
            rows.append({})
        rows[-1][result.architecture] = result
        before = group
    order = list(dict.fromkeys(next(iter(row.values())).experiment for row in rows))
    return sorted(rows, key=lambda row: _sort_key(next(iter(row.values())), order))


def _distilled_mean(result: Result | None) -> float | None:
    """The mean of a result; None for full data, which is a bound and no competitor."""
    return result.mean if result is not None and result.stage else None


def _sort_key(result: Result, experiments: Sequence[str]) -> tuple[int, bool]:
    return experiments.index(result.experiment), result.stage == 0


def _cell_text(result: Result) -> str:
    if result.mean is None:
        return result.state
    text = f"{result.mean:.1f}" if result.n == 1 else f"{result.mean:.1f} ± {result.std:.1f}"
    if result.balanced_mean is not None:
        text += f" (balanced {result.balanced_mean:.1f})"
    if result.published_mean is not None:
        text += f" [{result.published_mean:.1f}]"
    return f"{text} ({result.n} of {len(result.jobs)})" if result.missing else text


def _title(results: Sequence[Result]) -> str:
    names = dict.fromkeys(f"{result.experiment} on {result.dataset}" for result in results)
    scales = dict.fromkeys(SCALES[result.scale] for result in results)
    return f"{', '.join(names)} ({'; '.join(scales)})"


def _caption(results: Sequence[Result]) -> str:
    sizes = sorted({len(result.jobs) for result in results})
    n = " or ".join(map(str, sizes))
    networks = "network" if sizes == [1] else "networks"
    spread = "mean" if sizes == [1] else "mean ± population standard deviation"
    compared = any(result.published_mean is not None for result in results)
    published = "; in brackets: published" if compared else ""
    guessing = " or ".join(f"{guess:.1f}" for guess in sorted({result.guessing for result in results}))
    return f"Test accuracy in percent, {spread} over n = {n} {networks} per cell{published}. Guessing: {guessing} %."


def _notes(row: Iterable[Result]) -> list[str]:
    """One note per reason: the row, its architectures, the reason."""
    reasons: dict[str, list[Result]] = {}
    for result in row:
        if result.missing:
            reason = f"failed: {result.reason}" if result.reason else "not run"
            reasons.setdefault(reason, []).append(result)
        elif result.mean is not None and result.mean <= result.guessing < 100:
            reasons.setdefault(f"no better than guessing ({result.guessing:.1f} %)", []).append(result)
    return [
        f"{label(incomplete[0])} ({', '.join(map(_shortfall, incomplete))}): {reason}"
        for reason, incomplete in reasons.items()
    ]


def _shortfall(result: Result) -> str:
    missing = f", {len(result.missing)} of {len(result.jobs)} networks" if result.values and result.missing else ""
    return result.architecture + missing
