"""Plots of accuracy over images per class: the results of a run, and the paper's Figures 1 and 3 beside its numbers.

Results and tables become the same plain panels, curves and bounds; one function draws them. A curve's markers are means
over networks, its bars one standard deviation; a bound is what training on all data reaches. Colours come with
markers, so no curve is known by its colour alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jobs.table import Table as PaperTable
from orchestrator.reports.images import COLOURS, empty_figure
from orchestrator.results.cells import Result, label
from orchestrator.results.tables import MeasuredCell
from orchestrator.results.verdict import Verdict

_MARKERS = "os^Dv"
_GREY = "#5F6770"


class Point(NamedTuple):
    """Networks trained on `ipc` images per class: mean and spread in percent, and single values where known."""

    ipc: float
    mean: float
    std: float = 0.0
    values: tuple[float, ...] = ()


@dataclass(frozen=True)
class Curve:
    """Points of one arm by images per class; a published one is drawn hollow and dotted, beside the measured one."""

    label: str
    points: tuple[Point, ...]
    colour: int = 0
    published: bool = False


@dataclass(frozen=True)
class Bound:
    """What training on all data reaches, in percent."""

    label: str
    mean: float
    published: bool = False


@dataclass(frozen=True)
class Panel:
    """What is drawn into one pair of axes."""

    title: str
    curves: tuple[Curve, ...]
    bounds: tuple[Bound, ...] = ()


def plot(panels: Sequence[Panel]) -> Figure:
    """The panels side by side, with one legend above them."""
    figure = empty_figure(max(3.1 * len(panels) + 0.9, 4.4), 3.7)
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for pair, panel in zip(axes, panels, strict=True):
        _draw_panel(pair, panel)
    axes[0].set_ylabel("test accuracy (%)")
    figure.supxlabel("images per class, all stages so far", fontsize="medium")
    named = {name: artist for pair in axes for artist, name in zip(*pair.get_legend_handles_labels(), strict=True)}
    if named:
        columns = min(len(named), 1 + len(panels))
        figure.legend(named.values(), named.keys(), loc="outside upper center", ncols=columns, frameon=False)
    return figure


def accuracy_by_stage(results: Sequence[Result]) -> Figure:
    """Accuracy over the images per class of the union so far, one panel per architecture.

    A dot is one network, a marker their mean, a bar one population standard deviation, a dashed line the mean
    of training on all data. Arms with several stages are lines with a point per stage.
    """
    arms = _arms(results)
    coloured = [name for name, several in arms.items() if several[0].stage]
    panels = []
    for architecture in dict.fromkeys(result.architecture for result in results):
        of_architecture = {
            name: [result for result in several if result.architecture == architecture]
            for name, several in arms.items()
        }
        curves = tuple(Curve(name, _points(of_architecture[name]), number) for number, name in enumerate(coloured))
        bounds = [
            Bound(name, result.mean or 0.0) for name in arms if name not in coloured for result in of_architecture[name]
        ]
        guesses = dict.fromkeys(result.guessing for several in of_architecture.values() for result in several)
        bounds += [Bound(f"guessing ({guess:.1f} %)", guess) for guess in guesses]
        panels.append(Panel(architecture, curves, tuple(bounds)))
    return plot(panels)


def panels_of(table: PaperTable, measured: Sequence[MeasuredCell]) -> list[Panel]:
    """A figure of the paper as panels: rows are curves; `CIFAR-10, 10 per stage` belongs to panel `CIFAR-10`.

    A cell of full data (stage 0, or so called where no job can fill it) becomes a bound of its panel. Panels of
    which nothing is known are left out.
    """
    rows: dict[str, dict[str, list[MeasuredCell]]] = {}
    for name in table.rows:
        panel, _, words = name.partition(", ")
        of_row = [cell for cell in measured if cell.entry.row == name]
        rows.setdefault(panel if words else "", {})[words or name] = of_row
    panels = [_panel(title, curves) for title, curves in rows.items()]
    return [panel for panel in panels if panel.bounds or any(curve.points for curve in panel.curves)]


def forest(verdicts: Sequence[Verdict], titles: Mapping[str, str]) -> Figure:
    """The differences of the verdicts, one below the other, with their 95 % intervals.

    Args:
        verdicts: from top to bottom.
        titles: by name of an experiment or table, what it is called.
    """
    figure = empty_figure(7.4, 0.9 + 0.3 * len(verdicts))
    axes = figure.subplots()
    for row, verdict in enumerate(verdicts):
        difference = verdict.difference
        colour = (COLOURS[0] if difference.mean > 0 else COLOURS[1]) if verdict.significant else _GREY
        half = 0.0 if verdict.significant is None else difference.high - difference.mean
        face = colour if verdict.significant else "white"
        axes.errorbar(difference.mean, row, xerr=half, fmt="o", color=colour, markerfacecolor=face, capsize=3)
    axes.axvline(0, color="black", linewidth=1)
    axes.set_yticks(range(len(verdicts)), [_forest_label(verdict, titles) for verdict in verdicts], fontsize=8)
    axes.set_ylim(len(verdicts) - 0.5, -0.5)
    axes.set_xlabel("PDD minus its base method (percentage points)", fontsize=9)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return figure


# Panels of results.


def _arms(results: Sequence[Result]) -> dict[str, list[Result]]:
    """The measured results by legend entry, in the order of the experiment."""
    arms: dict[str, list[Result]] = {}
    for result in results:
        if result.mean is not None:
            arms.setdefault(_legend(result), []).append(result)
    return arms


def _legend(result: Result) -> str:
    name = label(result, stage=False)
    return f"{name} ({result.stages} stages of {result.ipc_per_stage})" if result.stages > 1 else name


def _points(results: Iterable[Result]) -> tuple[Point, ...]:
    return tuple(Point(result.ipc_total, result.mean or 0.0, result.std or 0.0, result.values) for result in results)


# Panels of tables.


def _panel(title: str, rows: Mapping[str, Sequence[MeasuredCell]]) -> Panel:
    curves: list[Curve] = []
    bounds: list[Bound] = []
    for number, (name, cells) in enumerate(rows.items()):
        bounds += [bound for cell in cells if _is_full(cell) for bound in _bounds(cell)]
        shown = [cell for cell in cells if not _is_full(cell)]
        curves.append(Curve(name, _measured_points(shown), number))
        if published := _published_points(shown):
            curves.append(Curve(f"{name}, published", published, number, published=True))
    kept = tuple(curve for curve in curves if curve.points)
    return Panel(title, kept, tuple(dict.fromkeys(bounds)))


def _is_full(cell: MeasuredCell) -> bool:
    if cell.entry.cell is not None:
        return cell.entry.cell.stage == 0
    return "full" in f"{cell.entry.row} {cell.entry.column}".lower()


def _bounds(cell: MeasuredCell) -> list[Bound]:
    published = cell.entry.published.mean if cell.entry.published else None
    measured = [Bound("full data", cell.mean)] if cell.mean is not None else []
    return measured + ([Bound("full data, published", published, True)] if published is not None else [])


def _measured_points(cells: Sequence[MeasuredCell]) -> tuple[Point, ...]:
    points = [
        Point(cell.entry.cell.ipc_total, cell.mean, cell.std or 0.0)
        for cell in cells
        if cell.entry.cell is not None and cell.mean is not None
    ]
    return tuple(sorted(points))


def _published_points(cells: Sequence[MeasuredCell]) -> tuple[Point, ...]:
    points = [
        Point(cell.entry.cell.ipc_total, cell.entry.published.mean, cell.entry.published.std or 0.0)
        for cell in cells
        if cell.entry.cell is not None and cell.entry.published is not None and cell.entry.published.mean is not None
    ]
    return tuple(sorted(points))


def _forest_label(verdict: Verdict, titles: Mapping[str, str]) -> str:
    several = f"{titles[verdict.experiment]}: " if len(titles) > 1 else ""
    return f"{several}{verdict.pdd}, {verdict.dataset}, {verdict.architecture}"


# Drawing.


def _draw_panel(axes: Axes, panel: Panel) -> None:
    ticks = sorted({point.ipc for curve in panel.curves for point in curve.points})
    step = float(min(np.diff(ticks), default=ticks[0] if ticks else 1))
    several = max((curve.colour for curve in panel.curves), default=0)
    for curve in panel.curves:
        aside = (curve.colour - several / 2) * 0.06 * step
        _draw_curve(axes, curve, aside)
    for bound in panel.bounds:
        look: dict[str, Any] = {"color": _GREY, "linestyle": ":"} if bound.published else {"color": "black"}
        axes.axhline(bound.mean, label=bound.label, **{"linestyle": "--", "linewidth": 1, **look})
    axes.set_title(panel.title, fontsize="medium")
    axes.set_xticks(_apart(ticks))
    axes.margins(x=0.12)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _apart(ticks: Sequence[float]) -> list[float]:
    """The ticks whose numbers do not run into each other."""
    kept: list[float] = []
    for tick in ticks:
        if not kept or tick - kept[-1] > 0.07 * (ticks[-1] - ticks[0]):
            kept.append(tick)
    return kept


def _draw_curve(axes: Axes, curve: Curve, aside: float) -> None:
    """`aside` shifts the curve so that arms with the same number of images do not hide each other."""
    colour, marker = COLOURS[curve.colour % len(COLOURS)], _MARKERS[curve.colour % len(_MARKERS)]
    positions = [point.ipc + aside for point in curve.points]
    look: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 6, "capsize": 3, "linewidth": 1.5}
    if curve.published:
        look |= {"markerfacecolor": "white", "linestyle": ":", "linewidth": 1.2}
    spreads = [point.std for point in curve.points]
    axes.errorbar(positions, [point.mean for point in curve.points], spreads, label=curve.label, **look)
    for position, point in zip(positions, curve.points, strict=True):
        axes.scatter([position] * len(point.values), point.values, color=colour, s=9, alpha=0.35, linewidths=0)
