"""A sweep's pictures: a heat map of two lists of values, and parallel coordinates for any other space."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jobs.sweep import Dimension, Scalar, Sweep
from orchestrator.reports.images import png
from orchestrator.workloads.sweep.rows import Row

__all__ = ["heat_map", "parallel_coordinates", "png"]

COLOURS = "viridis"


def heat_map(rows: Sequence[Row], sweep: Sweep, across: str, down: str) -> Figure:
    """The metric of each pair of values; the best where several trials have the pair, blank where none has."""
    columns, lines = sweep.space[across].options, sweep.space[down].options
    grid = np.full((len(lines), len(columns)), math.nan)
    figure = Figure(figsize=(1.6 + 1.1 * len(columns), 1.6 + 0.8 * len(lines)), layout="constrained")
    axes = figure.subplots()
    for (right, below), row in _best_by_cell(rows, sweep, across, down).items():
        score = row.score(sweep.metric)
        assert score is not None
        grid[lines.index(below), columns.index(right)] = score
        text = f"{score:.3g}" if row.state == "done" else f"({score:.3g})"
        box = {"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 1.5}
        axes.text(columns.index(right), lines.index(below), text, ha="center", va="center", bbox=box)
    image = axes.imshow(np.ma.masked_invalid(grid), cmap=COLOURS, aspect="auto")
    axes.set_xticks(range(len(columns)), [str(value) for value in columns])
    axes.set_yticks(range(len(lines)), [str(value) for value in lines])
    axes.set_xlabel(across)
    axes.set_ylabel(down)
    figure.colorbar(image, label=sweep.metric)
    return figure


def _best_by_cell(rows: Sequence[Row], sweep: Sweep, across: str, down: str) -> dict[tuple[Scalar, Scalar], Row]:
    sign = -1.0 if sweep.mode == "max" else 1.0
    scored = [row for row in rows if row.score(sweep.metric) is not None]
    worst_first = sorted(
        scored, key=lambda row: (row.state == "done", -sign * (row.score(sweep.metric) or 0.0), -row.number)
    )
    return {(row.values[across], row.values[down]): row for row in worst_first}


def parallel_coordinates(rows: Sequence[Row], sweep: Sweep) -> Figure:
    """One axis per dimension and one for the metric; one line per trial, coloured by the metric."""
    names = [*sweep.space, sweep.metric]
    scored = [row for row in rows if row.score(sweep.metric) is not None]
    scores = [row.score(sweep.metric) or 0.0 for row in scored]
    low, high = (min(scores), max(scores)) if scores else (0.0, 1.0)
    spread = (high - low) or 1.0
    figure = Figure(figsize=(1.5 + 1.6 * len(names), 4.0), layout="constrained")
    axes = figure.subplots()
    for row, score in zip(scored, scores, strict=True):
        heights = [_height(one, row.values[name]) for name, one in sweep.space.items()] + [(score - low) / spread]
        style = "-" if row.state == "done" else "--"
        axes.plot(range(len(names)), heights, style, color=colormaps[COLOURS]((score - low) / spread), alpha=0.85)
    for position, one in enumerate(sweep.space.values()):
        _ruler(axes, position, _marks(one))
    _ruler(axes, len(names) - 1, [(0.0, f"{low:.3g}"), (1.0, f"{high:.3g}")])
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks([])
    axes.set_ylim(-0.08, 1.08)
    axes.set_xlim(-0.3, len(names) - 0.4)
    axes.set_frame_on(False)
    return figure


def _ruler(axes: Axes, position: int, marks: Sequence[tuple[float, str]]) -> None:
    axes.axvline(position, color="#7F7F7F", linewidth=0.8)
    for height, text in marks:
        axes.annotate(text, (position, height), xytext=(3, 0), textcoords="offset points", fontsize=8)


def _marks(one: Dimension) -> list[tuple[float, str]]:
    values: Sequence[Scalar] = one.range or one.options
    return [(_height(one, value), f"{value:g}" if isinstance(value, float) else str(value)) for value in values]


def _height(one: Dimension, value: Scalar) -> float:
    """Where a value stands on its axis, from 0 to 1; a list is spaced evenly in its own order."""
    if one.range is None:
        return one.options.index(value) / max(1, len(one.options) - 1)
    low, high = one.range
    assert isinstance(value, int | float)
    if one.log_uniform is not None:
        return math.log(value / low) / math.log(high / low)
    return (value - low) / (high - low)
