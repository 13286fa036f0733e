from __future__ import annotations

import io
import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from rich.console import Console

from jobs.experiment import Arm, Plan
from orchestrator.reports.experiment_report import ConsoleTable, column_groups, console_table, write
from orchestrator.reports.sections import RunFacts
from orchestrator.results.cells import collect
from orchestrator.results.result_table import ResultTable
from orchestrator.runs.timeline import Timeline, failures
from tests.orchestrator.results.test_cells import cell_of, demo_plan, measure, put
from workers.data import synthetic_set
from workers.data.preprocess import Affine
from workers.data.synthetic_set import SyntheticSet
from workers.store.store import Store

ROOT = Path(__file__).resolve().parents[3]
COMMAND = "python -m orchestrator.launch run demo --seed 3"
RUN = RunFacts(command=COMMAND)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


def put_set(store: Store, plan: Plan, key: str, extra: Mapping[str, object]) -> None:
    """A synthetic set of one image per class."""
    made = SyntheticSet(torch.zeros(3, 1, 8, 8), torch.arange(3), 0.02)
    job = plan.graph[key]
    spec = job.canonical()["spec"]
    with store.put(key, job.kind, spec, job.parents, device="cpu", seconds=2.5, extra=extra) as folder:
        synthetic_set.write(folder, made, Affine(torch.zeros(1), torch.ones(1)), ["zero", "one", "two"])


def half_done(store: Store) -> tuple[Plan, str]:
    """The demonstration with stage 1 made and measured, and the key of the stage 2 that is not made."""
    plan = demo_plan()
    first, second = (job.key for job in plan.graph if job.kind == "distil")
    extra = {
        "iteration": 6,
        "first_loss": 0.9,
        "loss": 0.45,
        "step_size": 0.021,
        "validation_accuracy": 61.25,
    }
    put_set(store, plan, first, extra)
    for key in plan.graph[first].parents["experts"]:
        put(store, plan, key, {"start_accuracy": 10.0, "end_accuracy": 80.0})
    for cell, accuracies in zip(plan.cells, ((80, 90), (70, 74), (60, 61), (50.0,)), strict=False):
        measure(store, plan, cell, accuracies)
    measure(store, plan, cell_of(plan, "Full data", "convnet", 0), (99, 98))
    return plan, second


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, list[Path]]:
    """The half-done demonstration, reported once without a journal."""
    folder = tmp_path_factory.mktemp("reported")
    store = Store.open(folder / "store")
    plan, _ = half_done(store)
    return plan, write(folder / "report", plan, store, RUN)


def journal(*records: tuple[str, float, dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"event": event, "seconds": seconds, **fields} for event, seconds, fields in records]


def test_the_table_of_a_half_done_run_says_what_is_known_and_why_the_rest_is_not(store: Store, tmp_path: Path) -> None:
    plan, second = half_done(store)
    records = journal(("job_failed", 9.0, {"key": second, "reason": "diverged", "message": "loss | NaN", "log": ""}))
    page = write(tmp_path / "report", plan, store, RunFacts(command=COMMAND, records=records))[0].read_text()
    start, end = page.index("## demo"), page.index("![accuracy")
    assert page[start:end] == (
        "## demo on digits (scale: tiny: seconds of work to see that everything runs, "
        "not a reproduction of the paper)\n"
        "\n"
        "| Method | Images per class | convnet | resnet10 |\n"
        "| --- | ---: | ---: | ---: |\n"
        "| Random | 2 | **85.0 ± 5.0** | **72.0 ± 2.0** |\n"
        "| PDD+MTT, stage 1 of 2 | 1 | 60.5 ± 0.5 | 50.0 (1 of 2) |\n"
        "| PDD+MTT, stage 2 of 2 | 2 | failed | failed |\n"
        "| Full data | all | 98.5 ± 0.5 | not run |\n"
        "\n"
        "Test accuracy in percent, mean ± population standard deviation over n = 2 networks per cell. "
        "Guessing: 33.3 %.\n"
        "\n"
        "* PDD+MTT, stage 1 of 2 (resnet10, 1 of 2 networks): not run\n"
        f"* PDD+MTT, stage 2 of 2 (convnet, resnet10): failed: {second}: diverged: loss \\| NaN\n"
        "* Full data (resnet10): not run\n"
        "\n"
    )


def test_the_stages_table_shows_loss_step_size_and_experts(written: tuple[Plan, list[Path]]) -> None:
    plan, paths = written
    page = paths[0].read_text()
    arm = "demo: PDD+MTT, 2 stages of 1 image per class"
    iterations = next(job.spec.iterations for job in plan.graph if job.kind == "distil")
    assert f"| {arm} | 0 | 1 of 2 | 10.0 | 80.0 | {iterations} | 6 | 0.9 → 0.45 | 0.021 | 61.2 |\n" in page
    assert f"| {arm} | 0 | 2 of 2 |  |  | {iterations} | not made |  |  |  |\n" in page


def test_every_link_of_the_page_is_a_file_beside_it_and_every_picture_opens(
    written: tuple[Plan, list[Path]],
) -> None:
    paths = written[1]
    links = re.findall(r"\]\(([^)]+)\)", paths[0].read_text())
    assert {path.name for path in paths[1:]} == set(links)
    assert sum(path.suffix == ".png" for path in paths) == 2
    for path in paths[1:]:
        if path.suffix == ".png":
            Image.open(path).verify()


def test_the_page_gives_the_command_the_versions_and_the_device(written: tuple[Plan, list[Path]]) -> None:
    paths = written[1]
    page = paths[0].read_text()
    assert f"```\n{COMMAND}\n```" in page
    assert re.search(r"\| python \| 3\.\d+\.\d+ \|", page)
    assert "| devices | cpu |" in page


def test_every_job_is_in_a_file_of_its_own_with_what_it_was_made_from(written: tuple[Plan, list[Path]]) -> None:
    plan, paths = written
    rows = pq.read_table(paths[0].parent / "jobs.parquet").to_pylist()
    assert [row["key"] for row in rows] == [job.key for job in plan.graph]
    assert {parent for row in rows for parent in row["parents"]} <= {row["key"] for row in rows}
    by_key = {row["key"]: row for row in rows}
    first, second = (job.key for job in plan.graph if job.kind == "distil")
    assert len(by_key[first]["digest"]) == 64 and by_key[first]["seconds"] == 2.5
    assert by_key[second]["digest"] is None and by_key[second]["seconds"] is None


def test_the_report_follows_the_umask_and_can_be_written_again(store: Store, tmp_path: Path) -> None:
    plan, _ = half_done(store)
    folder = tmp_path / "deep" / "report"
    before = os.umask(0o027)
    try:
        assert write(folder, plan, store, RUN) == write(folder, plan, store, RUN)
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o750
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o640}


def test_a_report_of_nothing_yet_is_a_page_all_the_same(store: Store, tmp_path: Path) -> None:
    page = write(tmp_path / "report", demo_plan(), store, RUN)[0].read_text()
    assert page.count("| not run | not run |") == 4
    assert "![" not in page


def test_an_experiment_without_distillation_has_no_stages(store: Store, tmp_path: Path) -> None:
    plan = demo_plan(arms=(Arm(method="full"),))
    measure(store, plan, plan.cells[0], [90.0, 92.0])
    assert "## Stages" not in write(tmp_path / "report", plan, store, RUN)[0].read_text()


def test_soft_labels_are_said_in_words_under_the_stages(store: Store, tmp_path: Path) -> None:
    soft = {"distil.labels": {"source": "experts", "learning": {"lr": 2.0}}}
    plan = demo_plan(arms=(Arm(method="mtt", stages=2, ipc_per_stage=1, set=soft),))
    page = write(tmp_path / "report", plan, store, RUN)[0].read_text()
    said = "soft labels, learned with the images, from the logits of the stage's experts on"
    assert f"PDD+MTT, 2 stages of 1 image per class: {said}" in page
    hard = write(tmp_path / "hard", demo_plan(), store, RUN)[0].read_text()
    assert "soft labels" not in hard


def test_json_and_parquet_hold_the_same_cells(written: tuple[Plan, list[Path]]) -> None:
    folder = written[1][0].parent
    document = json.loads((folder / "results.json").read_text())
    assert document["schema"] == 1
    assert document["results"] == pq.read_table(folder / "results.parquet").to_pylist()
    assert document["results"][0]["values"] == [80.0, 90.0]


def test_parquet_types_do_not_depend_on_what_was_measured(store: Store, tmp_path: Path) -> None:
    plan, _ = half_done(store)
    full = pq.read_schema(write(tmp_path / "a", plan, store, RUN)[0].parent / "results.parquet")
    empty_store = Store.open(tmp_path / "empty")
    none = pq.read_schema(write(tmp_path / "b", plan, empty_store, RUN)[0].parent / "results.parquet")
    assert full == none and str(full.field("published_mean").type) == "double"


@pytest.mark.parametrize(("width", "columns"), [(36, [1] * 5), (60, [3, 2]), (80, [4, 1]), (90, [5])])
def test_a_narrow_terminal_gets_the_architectures_in_several_tables_and_every_number_whole(
    width: int, columns: list[int]
) -> None:
    names = ("convnet", "resnet18", "vgg11", "lenet", "vit")
    rows = tuple((method, "10", *(f"{number}.0 ± 1.0" for number in range(10, 15))) for method in ("Random", "MTT"))
    content = ResultTable("title", ("Method", "Images per class", *names), rows, "caption", ())
    groups = column_groups(content, 2, width)
    assert [len(group) for group in groups] == columns
    out = io.StringIO()
    Console(file=out, width=width).print(ConsoleTable(content))
    assert "…" not in out.getvalue() and out.getvalue().count("Method") == len(columns)
    assert all(out.getvalue().count(f"{number}.0 ± 1.0") == 2 for number in range(10, 15))


def test_the_console_table_shows_scale_n_and_every_cell(store: Store) -> None:
    plan, _ = half_done(store)
    out = io.StringIO()
    Console(file=out, width=100).print(console_table(collect(plan, store)))
    text = " ".join(out.getvalue().split())
    for words in (
        "scale: tiny",
        "85.0 ± 5.0",
        "50.0 (1 of 2)",
        "PDD+MTT, stage 2 of 2",
        "n = 2 networks",
        "population",
    ):
        assert words in text


def test_the_timeline_of_two_drivers_leaves_the_pause_out() -> None:
    start = {"key": "distil-a", "kind": "distil", "slot": "w0"}
    timeline = Timeline.of(
        journal(
            ("run_began", 0.0, {}),
            ("slot_joined", 0.0, {"slot": "w0"}),
            ("slot_joined", 0.0, {"slot": "w1"}),
            ("job_started", 1.0, start),
            ("job_started", 1.0, {"key": "full-b", "kind": "full", "slot": "w1"}),
            ("job_done", 3.0, {"key": "full-b", "kind": "full", "slot": "w1"}),
            ("note", 4.0, {"text": "the driver is killed after this"}),
            ("run_began", 0.0, {}),
            ("slot_joined", 0.0, {"slot": "w0"}),
            ("job_started", 1.0, start),
            ("job_done", 6.0, {"key": "distil-a", "kind": "distil", "slot": "w0"}),
            ("run_ended", 6.0, {}),
        ),
        {"distil-a": 2},
    )
    told = [(span.key, span.start, span.end, span.ended, span.label) for span in timeline.spans]
    assert told == [
        ("full-b", 1.0, 3.0, "done", ""),
        ("distil-a", 1.0, 4.0, "lost", "2"),
        ("distil-a", 5.0, 10.0, "done", "2"),
    ]
    assert (timeline.seconds, timeline.slots, timeline.parts) == (10.0, 2, 2)
    assert timeline.busy == pytest.approx((3 + 2 + 5) / (4 + 4 + 6))


@pytest.mark.parametrize(
    ("event", "fields", "ended"),
    [
        ("job_yielded", {"key": "full-a", "slot": "w"}, "yielded"),
        ("job_failed", {"key": "full-a", "reason": "bug", "message": "", "log": ""}, "failed"),
        ("slot_left", {"slot": "w", "reason": "crashed", "message": ""}, "lost"),
        ("job_started", {"key": "full-b", "kind": "full", "slot": "w"}, "returned"),
        ("job_started", {"key": "full-a", "kind": "full", "slot": "other"}, "returned"),
    ],
)
def test_an_attempt_ends_in_every_way_the_journal_knows(event: str, fields: dict[str, Any], ended: str) -> None:
    began = ("job_started", 1.0, {"key": "full-a", "kind": "full", "slot": "w"})
    span = Timeline.of(journal(began, (event, 2.5, fields)), {}).spans[0]
    assert (span.key, span.start, span.end, span.ended) == ("full-a", 1.0, 2.5, ended)


def test_waiting_for_another_driver_is_no_work() -> None:
    began = ("job_started", 1.0, {"key": "full-a", "kind": "full", "slot": "w"})
    assert Timeline.of(journal(began, ("job_busy", 2.0, {"key": "full-a", "slot": "w"})), {}).spans == ()


def test_timing_and_gantt_come_from_the_journal(store: Store, tmp_path: Path) -> None:
    plan, _ = half_done(store)
    first = next(job for job in plan.graph if job.kind == "distil")
    job = {"key": first.key, "kind": "distil", "slot": "w0"}
    records = journal(
        ("run_began", 0.0, {}),
        ("slot_joined", 0.0, {"slot": "w0"}),
        ("job_started", 1.0, job),
        ("job_done", 9.0, job),
        ("run_ended", 10.0, {}),
    )
    run = RunFacts(command=COMMAND, records=records, slurm=("worker: 2 submitted, 1 requeued",))
    written = write(tmp_path / "report", plan, store, run)
    page = written[0].read_text()
    assert "SLURM, worker: 2 submitted, 1 requeued." in page
    assert "The run took 10 s on 1 worker slot, busy 80% of the time." in page
    assert "| distil | 1 | 8.0 | 8.00 | 8.00 |" in page
    assert "gantt.png" in {path.name for path in written}


def test_without_a_journal_timing_is_that_of_the_artifacts(written: tuple[Plan, list[Path]]) -> None:
    paths = written[1]
    page = paths[0].read_text()
    assert "| distil | 1 | 2.5 | 2.50 | 2.50 |" in page


def test_a_failure_is_forgotten_when_the_job_is_tried_again() -> None:
    failed = ("job_failed", 1.0, {"key": "full-a", "reason": "memory", "message": "too big", "log": ""})
    assert failures(journal(failed)) == {"full-a": "memory: too big"}
    assert failures(journal(failed, ("job_started", 2.0, {"key": "full-a", "kind": "full", "slot": "w"}))) == {}


def test_importing_the_report_leaves_matplotlib_and_torch_alone() -> None:
    heavy = "{'matplotlib', 'torch', 'scipy'}"
    code = f"import sys, orchestrator.reports.experiment_report; print(sorted({heavy} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout == "[]\n"
