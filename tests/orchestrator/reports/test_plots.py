from __future__ import annotations

import io
from dataclasses import replace

from PIL import Image

from orchestrator.reports import images, plots
from orchestrator.reports.plots import Bound, Curve, Panel, Point
from orchestrator.results.cells import Result
from tests.orchestrator.results.test_cells import demo_plan
from tests.orchestrator.tables_sample import measured_cells, plan_of


def result(architecture: str, stage: int, values: tuple[float, ...], method: str = "PDD+MTT") -> Result:
    mean = sum(values) / len(values) if values else None
    return Result(
        experiment="demo",
        method=method,
        base_method="full" if stage == 0 else "mtt",
        dataset="digits",
        scale="tiny",
        architecture=architecture,
        mode="progressive" if stage else "full",
        ipc_total=stage * 2,
        ipc_per_stage=2,
        stages=2 if stage else 1,
        stage=stage,
        mean=mean,
        std=0.5 if values else None,
        n=len(values),
        key="result-x",
        jobs=("a", "b"),
        values=values,
    )


def test_the_accuracy_plot_has_a_panel_an_architecture_and_all_means() -> None:
    results = [
        *(result("convnet", stage, values) for stage, values in ((1, (80.0, 90.0)), (2, (91.0, 93.0)))),
        *(result("resnet10", stage, (70.0 + stage,)) for stage in (1, 2)),
        *(result(name, 0, (99.0,), "Full data") for name in ("convnet", "resnet10")),
    ]
    figure = plots.accuracy_by_stage(results)
    assert [axes.get_title() for axes in figure.axes] == ["convnet", "resnet10"]
    drawn = figure.axes[0].lines
    assert [list(line.get_ydata()) for line in drawn if len(line.get_xdata()) == 2][0] == [85.0, 92.0]
    assert any(set(line.get_ydata()) == {99.0} for line in drawn)
    opened = Image.open(io.BytesIO(images.png(figure)))
    assert opened.size == (round(7.1 * 150), round(3.7 * 150))


def test_the_accuracy_plot_stands_cells_without_a_network() -> None:
    measured = result("convnet", 1, (80.0,))
    absent = replace(result("convnet", 2, ()), missing=("a", "b"))
    figure = plots.accuracy_by_stage([measured, absent, result("resnet10", 1, ())])
    assert len(figure.axes) == 2
    assert images.png(figure)


def test_a_figure_of_the_paper_has_a_panel_a_dataset_and_full_data_as_bounds() -> None:
    tables = plan_of(demo_plan())
    curve = tables.tables[1]
    (panel,) = plots.panels_of(curve, measured_cells(tables)["figure3"])
    assert panel == Panel(
        "CIFAR-10",
        (
            Curve("1 per stage", (Point(1, 60.0, 0.5),), 0),
            Curve("1 per stage, published", (Point(2, 70.0),), 0, published=True),
        ),
        (Bound("full data", 98.5), Bound("full data, published", 88.1, published=True)),
    )


def test_a_figure_of_which_nothing_is_known_has_no_panel() -> None:
    tables = plan_of(demo_plan())
    curve = replace(tables.tables[1], rows=("CIFAR-10, 1 per stage",))
    lost = [one for one in measured_cells(tables)["figure3"] if one.entry.column == "stage 2"][:1]
    unknown = [replace(lost[0], entry=replace(lost[0].entry, published=None))]
    assert plots.panels_of(curve, unknown) == []


def test_measured_and_published_lines_differ_in_more_than_colour() -> None:
    points = (Point(1, 50.0), Point(2, 60.0))
    curves = (Curve("a", points), Curve("a, published", points, published=True), Curve("b", points, 1))
    bounds = (Bound("full data", 90.0), Bound("full data, published", 88.0, published=True))
    (axes,) = plots.plot([Panel("", curves, bounds)]).axes
    whole = [line for line in axes.lines if len(line.get_xdata()) == 2 and line.get_marker() in "os"]
    assert [(line.get_marker(), line.get_linestyle()) for line in whole] == [("o", "-"), ("o", ":"), ("s", "-")]
    assert [line.get_linestyle() for line in axes.lines if set(line.get_ydata()) <= {90.0, 88.0}] == ["--", ":"]


def test_numbers_on_the_axis_do_not_run_into_each_other() -> None:
    points = tuple(Point(ipc, 50.0) for ipc in (2, 4, 6, 8, 10, 20, 50))
    (axes,) = plots.plot([Panel("", (Curve("a", points),))]).axes
    assert list(axes.get_xticks()) == [2, 6, 10, 20, 50]
