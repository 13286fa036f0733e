"""The verdict where people meet it: above all else, in a section of its own, and with what it does not show."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.experiment import Plan
from orchestrator.reports.experiment_report import write
from orchestrator.reports.page import Details, Notes, Picture, Table
from orchestrator.reports.sections import RunFacts, verdict_sections
from orchestrator.results.statistics import Difference
from orchestrator.results.verdict import NO_VERDICT, Verdict, verdicts
from tests.orchestrator.hypertext_reader import Reader
from tests.orchestrator.results.test_cells import demo_plan, measure
from tests.orchestrator.results.test_verdict import ARMS
from workers.store.store import Store

RUN = RunFacts(command="pdd run demo")


def measured_plan(store: Store) -> Plan:
    """MTT and PDD+MTT on two architectures, three networks each: PDD wins on one and loses on the other."""
    plan = demo_plan(arms=ARMS, networks=3)
    for cell in plan.cells:
        level = 70.0 if cell.stages == 1 else 80.0 if cell.architecture == "convnet" else 60.0
        measure(store, plan, cell, (level, level + 0.2, level + 0.4))
    return plan


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("verdict")
    store = Store.open(folder / "store")
    return {path.name: path for path in write(folder / "report", measured_plan(store), store, RUN)}


@pytest.fixture(scope="module")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    store = Store.open(tmp_path_factory.mktemp("again") / "store")
    return [verdict.sentence for verdict in verdicts(measured_plan(store), store)]


def verdict_of(experiment: str, points: float) -> Verdict:
    return Verdict(
        experiment=experiment,
        dataset="digits",
        scale="tiny",
        architecture="convnet",
        base_method="mtt",
        pdd="PDD+MTT (5 x 2)",
        base="MTT (1 x 10)",
        ipc_total=10,
        difference=Difference(points, points - 1, points + 1, 3),
        test="welch",
        n=3,
        n_base=3,
    )


def test_the_html_says_the_verdict_before_anything_else(files: dict[str, Path], sentences: list[str]) -> None:
    read = Reader(files["report.html"].read_text())
    (box,) = [element for element in read.all("div") if element.attributes.get("class") == "verdict"]
    assert "header" in box.around
    assert box.text == " ".join(sentences) and "significantly better" in box.text and "significantly worse" in box.text
    assert [element.attributes["id"] for element in read.all("section")][:2] == ["verdict", "limits"]


def test_ids_are_unique_and_links_lead_somewhere(files: dict[str, Path]) -> None:
    read = Reader(files["report.html"].read_text())
    ids = read.ids()
    assert len(set(ids)) == len(ids)
    assert {one.attributes["href"][1:] for one in read.all("a")} <= set(ids)


def test_the_markdown_says_the_verdict_under_its_title(files: dict[str, Path], sentences: list[str]) -> None:
    lines = files["report.md"].read_text().splitlines()
    assert [line for line in lines[1:6] if line] == sentences
    assert "## What this does not show" in lines


def test_the_table_gives_difference_interval_and_test(files: dict[str, Path]) -> None:
    rows = [line for line in files["report.md"].read_text().splitlines() if line.startswith("| PDD+MTT (2 x 1) − MTT")]
    assert [row.split(" | ")[1:5] for row in rows] == [
        ["convnet", "significantly better", "2", "+10.0"],
        ["resnet10", "significantly worse", "2", "−10.0"],
    ]
    assert all(row.endswith("Welch's test, 3 against 3 networks |") for row in rows)


def test_without_a_base_method_a_report_says_that_there_is_no_verdict(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    text = write(tmp_path / "report", demo_plan(), store, RUN)[0].read_text()
    assert NO_VERDICT in text and "## Verdict" not in text


def test_several_tables_have_a_line_each_a_forest_plot_and_every_comparison_folded_away() -> None:
    several = [verdict_of("table1", points) for points in (3.0, -3.0)] + [verdict_of("table2", 0.1)] * 2
    section, _ = verdict_sections(several, {"table1": "Table 1", "table2": "Table 2"})
    lines, picture, folded = section.blocks
    assert isinstance(lines, Notes) and isinstance(picture, Picture) and isinstance(folded, Details)
    assert [note.text for note in lines.items] == [
        "Table 1: PDD is significantly better than its base method in 1 of 2 comparisons, significantly worse in 1 "
        "(−3.0 to +3.0 points).",
        "Table 2: PDD is significantly better than its base method in 0 of 2 comparisons, without a significant "
        "difference in 2 (+0.1 to +0.1 points).",
    ]
    (table,) = folded.blocks
    assert isinstance(table, Table) and [row[1] for row in table.rows] == ["Table 1"] * 2 + ["Table 2"] * 2


def test_a_single_verdict_needs_no_plot() -> None:
    section, _ = verdict_sections([verdict_of("demo", 3.0)], {"demo": "demo"})
    assert [type(block) for block in section.blocks] == [Table]
