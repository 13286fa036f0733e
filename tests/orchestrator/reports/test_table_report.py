from __future__ import annotations

import csv
import io
import re
import stat
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.orchestrator.hypertext_reader import Reader
from tests.orchestrator.tables_sample import COMMAND, DIVERGED, EVIL, LOST, write
from tests.orchestrator.umask import mask

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The sample's report at scale tiny, by file name."""
    return {path.name: path for path in write(tmp_path_factory.mktemp("tiny"))}


@pytest.fixture(scope="module")
def read(files: dict[str, Path]) -> Reader:
    return Reader(files["report.html"].read_text())


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same as if it had been measured at the paper's scale on its datasets."""
    return {path.name: path for path in write(tmp_path_factory.mktemp("paper"), scale="paper")}


def entries(read: Reader, table: str) -> list[list[str]]:
    """The body of a table as text, without the names of its rows."""
    rows: list[list[str]] = []
    inside = False
    for element in read.elements:
        if element.tag == "table":
            inside = element.attributes["id"] == table
        if inside and element.tag == "tr" and "tbody" in element.around:
            rows.append([])
        if inside and element.tag == "td" and "tbody" in element.around:
            rows[-1].append(element.text)
    return rows


def test_every_table_and_figure_has_its_section_and_its_place_in_the_contents(read: Reader) -> None:
    contents = [one.attributes["href"] for one in read.all("a") if "nav" in one.around]
    for name in ("overview", "table1", "figure3", "figure4", "timing", "again", "environment"):
        assert read.by_id(name).tag == "section" and f"#{name}" in contents


def test_a_cell_shows_mean_spread_networks_published_difference_and_significance(paper: dict[str, Path]) -> None:
    first, second = entries(Reader(paper["report.html"].read_text()), "table1-table")
    assert first == [
        "26.3 ± 0.5 (5) paper 26.0 ± 1.2 ≈ +0.3 n.s.",
        "30.0 ± 0.1 (5) paper –",
        "○ not run, note 1 paper 5.0 ± 0.2",
    ]
    assert second == [
        "69.0 ± 0.4 (5) paper 66.9 ± 0.4 ▲ +2.1 significant",
        "70.1 ± 0.4 (5) paper 74.2 ± 0.5 ▼ −4.1 significant",
        "27.0 (1) ◐ partial, note 2 paper 27.3 −0.3",
    ]


def test_away_from_the_papers_setting_no_difference_to_the_paper_is_given(read: Reader, tmp_path: Path) -> None:
    assert "69.0 ± 0.4 (5) paper 66.9 ± 0.4" in entries(read, "table1-table")[1]
    notice = next(one.text for one in read.all("p") if one.attributes.get("class") == "notice")
    assert notice.startswith("Not a reproduction: the scale is tiny.")
    other = write(tmp_path, scale="paper", dataset_note="measured on digits, which stands in for cifar10")
    text = Reader(other[1].read_text()).all("main")[0].text
    assert "another dataset stands in for the paper's" in text and "significant" not in text


def test_the_caption_of_a_table_at_medium_says_what_is_cut(tmp_path: Path) -> None:
    read = Reader(write(tmp_path, scale="medium")[1].read_text())
    captions = [one.text for one in read.all("p") if one.attributes.get("class") == "caption"]
    assert sum("cut are width (64 of 128), images (1000 of a class)" in caption for caption in captions) == 3


def test_at_the_papers_setting_nothing_warns(paper: dict[str, Path]) -> None:
    read = Reader(paper["report.html"].read_text())
    assert not [one for one in read.elements if one.attributes.get("class") == "notice"]
    assert "Table 1" in (row := next(one.text for one in read.all("tr") if "Table 1" in one.text))
    assert row.endswith("4 of 6 1 1 1")


def test_no_measured_number_stands_without_its_scale_and_dataset(read: Reader) -> None:
    heads = [one.text for one in read.all("th") if one.text.startswith(("CIFAR-10, ", "Tiny-ImageNet, "))]
    assert {"CIFAR-10, 10 measured, scale tiny, dataset digits"} <= set(heads)
    captions = [one.text for one in read.all("p") if one.attributes.get("class") == "caption"]
    assert sum("Scale tiny, measured on digits" in caption for caption in captions) == 3


def test_a_cell_without_all_its_networks_leads_to_the_note_that_says_why(read: Reader) -> None:
    assert read.by_id("table1-note-1").text == f"Note 1, not run (Random / Tiny-ImageNet, 10): {LOST}"
    assert read.by_id("table1-note-2").text.endswith("1 of 2 networks")
    assert DIVERGED in read.by_id("figure3-note-1").text
    leading = [one.text for one in read.all("a") if one.attributes["href"] == "#table1-note-1"]
    assert leading == ["○ not run, note 1"]


def test_ids_are_unique_and_every_link_resolves_inside_the_file(read: Reader) -> None:
    ids = read.ids()
    assert len(set(ids)) == len(ids)
    targets = {one.attributes["href"] for one in read.all("a")}
    assert all(target.startswith("#") and target[1:] in ids for target in targets)


def test_nothing_refers_to_the_network(files: dict[str, Path]) -> None:
    """Words may say where a dataset is to be had; nothing loads or leads there."""
    text = files["report.html"].read_text()
    attributes = [value for one in Reader(text).elements for value in one.attributes.values()]
    assert LOST in text and not any(re.search(r"https?:|^//", value) for value in attributes)
    assert "url(" not in text and "@import" not in text


def test_pictures_decode_and_are_the_files_beside_the_page(files: dict[str, Path], read: Reader) -> None:
    names = [name for name in files if name.endswith(".png")]
    assert names == ["figure3-1.png", "figure4-1-stage-1.png", "gantt.png"]
    sizes = [picture.size for picture in read.pictures()]
    assert sizes == [Image.open(io.BytesIO(files[name].read_bytes())).size for name in names]
    assert set(re.findall(r"!\[[^\]]*\]\(([^)]+)\)", files["report.md"].read_text())) == set(names)


def test_the_figure_of_classes_shows_only_these(files: dict[str, Path]) -> None:
    """Two of the three classes, 40 pixels and a gap of 3 each."""
    with Image.open(files["figure4-1-stage-1.png"]) as picture:
        assert picture.height == 2 * 43


def test_every_cell_has_its_command_and_its_jobs_and_they_theirs_in_files_beside_the_page(
    files: dict[str, Path],
) -> None:
    cells = pq.read_table(files["cells.parquet"]).to_pylist()
    assert len(cells) == 14 and all(row["command"] == COMMAND for row in cells)
    jobs = {row["key"]: row["parents"] for row in pq.read_table(files["jobs.parquet"]).to_pylist()}
    assert {key for row in cells for key in row["jobs"]} <= jobs.keys()
    assert {parent for parents in jobs.values() for parent in parents} <= jobs.keys()
    assert any(key.startswith("dataset") for key in jobs)


def test_the_run_tells_predicted_and_measured_time_and_its_critical_path(read: Reader) -> None:
    text = read.by_id("timing").text
    assert "The run took 10 s on 1 worker slot, busy 80% of the time." in text
    assert "Predicted before the run: 8.0 s (20% less than measured); measured: 10 s." in text
    assert "Critical path: 1 jobs, 8.0 s" in text


def test_the_environment_names_versions_of_workers_and_driver(read: Reader) -> None:
    rows = {one.text for one in read.all("tr")}
    assert "ray 2.54" in rows
    assert any(re.fullmatch(r"python 3\.\d+\.\d+", row) for row in rows)


def test_a_hostile_name_is_shown_and_not_obeyed(files: dict[str, Path], read: Reader) -> None:
    assert not read.all("script")
    assert any(EVIL in one.text for one in read.all("th"))


def test_csv_and_parquet_hold_the_same_cells(files: dict[str, Path]) -> None:
    table = pq.read_table(files["cells.parquet"]).to_pylist()
    lines = list(csv.DictReader(io.StringIO(files["cells.csv"].read_bytes().decode(), newline="")))
    assert [line["table"] for line in lines] == ["table1"] * 6 + ["figure3"] * 4 + ["figure4"] * 4
    assert list(lines[0]) == list(table[0])
    for line, row in zip(lines, table, strict=True):
        assert line["jobs"].split() == row["jobs"]
        assert line["mean"] == ("" if row["mean"] is None else str(row["mean"]))
    assert (table[3]["low"], table[3]["high"], table[3]["values"]) == (68.5, 69.5, [68.6, 69.4])
    assert lines[3]["values"] == "68.6 69.4"
    assert (table[2]["status"], table[2]["method"], table[2]["published_mean"]) == ("not run", None, 5.0)


def test_the_page_comes_first_and_all_follows_the_umask(files: dict[str, Path]) -> None:
    assert next(iter(files)) == "report.md"
    assert {stat.S_IMODE(path.stat().st_mode) for path in files.values()} == {0o666 & ~mask()}


def test_importing_the_report_leaves_matplotlib_and_torch_alone() -> None:
    heavy = "{'matplotlib', 'torch'}"
    code = f"import sys, orchestrator.reports.table_report; print(sorted({heavy} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout == "[]\n"
