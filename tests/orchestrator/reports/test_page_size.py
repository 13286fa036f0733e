"""The report of all tables of the paper stays light: measured everywhere, at the paper's scale, on its datasets."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import cast

import pytest

from jobs.datasets import DATASETS
from jobs.errors import Damaged
from jobs.experiment import DatasetChoice
from jobs.keys import kind_of
from jobs.table import datasets, load, names
from jobs.table_filling import Circumstances, Data, fill
from orchestrator.reports.html import html
from orchestrator.reports.markdown import markdown
from orchestrator.reports.page import Page
from orchestrator.reports.table_report import page_of
from orchestrator.results.tables import measure
from workers.store.store import Manifest, Store

pytestmark = pytest.mark.slow


class Measured:
    """A store in which every network has been tested, and nothing else is left."""

    def manifest(self, key: str) -> Manifest:
        if kind_of(key) not in ("evaluate", "full"):
            raise Damaged(f"{key} was collected")
        accuracy = 60 + int(hashlib.sha256(key.encode()).hexdigest()[:4], 16) / 5000
        manifest = {"key": key, "kind": kind_of(key), "spec": {}, "parents": {}, "files": {}, "digest": "0" * 64}
        made = {"versions": {}, "host": "a", "device": "cpu", "seconds": 1.0, "peak_memory_mib": 1.0, "written": ""}
        return Manifest(**manifest, **made, extra={"accuracy": accuracy, "curve": [accuracy]})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def page() -> Page:
    files = [load(name) for name in names()]
    data = {name: Data(DatasetChoice(name=name), DATASETS[name]) for name in datasets(files)}
    tables = fill(files, Circumstances(scale="paper", data=data))
    store = cast(Store, Measured())
    command = {table.name: f"python -m orchestrator.launch reproduce {table.name}" for table in tables.tables}
    return page_of(tables, measure(tables, store, {}, command), store, [])


def test_the_html_of_all_tables_is_below_600_kilobytes(page: Page) -> None:
    """Image grids are left out here, some 200 kB in a report of digits."""
    assert sum(len(section.blocks) for section in page.sections) > 30
    assert len(html(page).encode()) < 400_000


def test_the_markdown_of_all_tables_is_below_60_kilobytes(page: Page) -> None:
    assert len(markdown(page).encode()) < 60_000


def test_the_sample_of_the_docs_is_a_report_as_light_as_it_is_said_to_be() -> None:
    folder = Path(__file__).resolve().parents[3] / "docs" / "sample"
    assert 100_000 < (folder / "report.html").stat().st_size < 600_000
    assert 5_000 < (folder / "report.md").stat().st_size < 60_000


def test_every_table_that_compares_has_its_line_and_the_whole_has_one_above(page: Page) -> None:
    lines = page.sections[0].blocks[0].items  # type: ignore[union-attr]
    assert [note.text.split(":")[0] for note in lines] == [
        "Table 1",
        "Table 2",
        "Table 5",
        "Table 7",
        "Table A8",
        "Table A9",
    ]
    (sentence,) = page.verdict
    assert sentence.startswith("In all: PDD is significantly better than its base method in ")
