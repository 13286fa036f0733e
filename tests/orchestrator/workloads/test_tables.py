"""The tables as one run: what is asked, what is bought, and one small reproduction from the shell."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs import machines
from jobs.errors import BadInput
from jobs.table import walk
from orchestrator import launch, slurm_driver
from orchestrator.clusters.config import SlurmClusterSpec, Target
from orchestrator.clusters.slurm.follow import SlurmRun
from orchestrator.planning import durations
from orchestrator.planning.table_requests import ResolvedTables, TableRequest, resolve_tables
from orchestrator.runs import journal
from orchestrator.workloads import launcher
from orchestrator.workloads.base import LaunchOptions, Run
from orchestrator.workloads.tables import STARTING, TableWorkload, bought, commands
from tests.documents import check
from tests.orchestrator.clusters.slurm.test_jobs import Programs
from tests.orchestrator.planning.test_table_requests import write_datasets
from tests.orchestrator.shell import Ended, Shell, shell_in
from workers.store.store import Store


def rehearsal(*names: str, **changes: Any) -> ResolvedTables:
    return resolve_tables(TableRequest(tables=names, scale="tiny", dataset="digits", **changes))


def workload(resolved: ResolvedTables) -> TableWorkload:
    return TableWorkload(resolved, resolved.tables.plan)


# What is asked.


def test_no_table_means_all_of_them() -> None:
    asked = rehearsal()
    assert len(asked.tables.tables) == 14 and asked.missing_datasets == ()
    assert len(list(walk(asked.tables.tables))) == 252


def test_datasets_that_are_not_here_are_no_error_and_say_where_to_get_them() -> None:
    asked = resolve_tables(TableRequest(tables=("table5",), scale="tiny"))
    (reason,) = asked.missing_datasets
    assert reason.startswith("cifar10: unpack") and "cluster.yaml, data.cifar10" in reason
    assert [(one.cell, one.absent) for _, one in walk(asked.tables.tables)] == [(None, reason)] * 4
    assert len(asked.tables.plan.graph) == 0


def test_a_plan_counts_with_datasets_that_are_not_here() -> None:
    asked = resolve_tables(TableRequest(tables=("table5",), scale="paper"), allow_missing_data=True)
    assert all(one.cell is not None for _, one in walk(asked.tables.tables)) and len(asked.missing_datasets) == 1


def test_the_data_map_says_where_a_dataset_lies(tmp_path: Path) -> None:
    with pytest.raises(BadInput) as refused:
        resolve_tables(TableRequest(tables=("table5",), dataset="cifar10", data={"cifar10": str(tmp_path / "nowhere")}))
    assert refused.value.value == str(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"scale": "huge"}, "--scale"),
        ({"dataset": "digitz"}, "dataset.name"),
        ({"tables": ("table99",)}, "table"),
        ({"tables": ("nowhere.yaml",)}, "table"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_starts(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(BadInput) as refused:
        resolve_tables(TableRequest(**{"tables": ("table5",), "scale": "tiny", **changes}))
    assert refused.value.field == field


@pytest.mark.parametrize(("text", "seconds"), [("40gpu-h", 144000), ("0.5 h", 1800), ("2 GPU-hours", 7200)])
def test_a_budget_is_hours_of_one_worker(text: str, seconds: float) -> None:
    assert TableRequest(budget=text).seconds() == seconds


@pytest.mark.parametrize("text", ["40", "gpu-h", "-1 h", "40 days"])
def test_a_budget_of_anything_else_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="40gpu-h"):
        TableRequest(budget=text).seconds()


def test_each_table_has_a_command_that_fills_it_alone() -> None:
    asked = rehearsal("table5", "figure1", seed=3)
    line = "pdd reproduce {} --scale tiny --dataset digits --seed 3 --with-dashes"
    assert commands(asked) == {name: line.format(name) for name in ("table5", "figure1")}


def test_a_run_of_several_tables_is_a_reproduction_and_one_of_one_has_its_name() -> None:
    assert workload(rehearsal("table5", "figure1")).run_name().startswith("reproduce-")
    assert workload(rehearsal("table5")).run_name().startswith("table5-")


# What is bought.


def test_a_budget_leaves_whole_cells_out_and_with_them_their_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durations, "machine_of", lambda scale, workers: machines.CORE)
    store = Store.open(tmp_path)
    whole, none = bought(rehearsal("table5"), store)
    assert none == {} and len(whole.cells) == 4
    plan, left_out = bought(rehearsal("table5", budget="0.001 h"), store)
    assert 0 < len(plan.cells) < 4
    assert set(left_out.values()) == {"left out by the budget of 0.001 h"}
    assert plan.graph.ancestors(plan.wanted()) == set(plan.graph.jobs) < set(whole.graph.jobs)
    assert not left_out.keys() & plan.graph.jobs.keys()


# One reproduction.


@dataclass(frozen=True)
class Ran:
    """A small reproduction that ended, with the shell in which it was typed."""

    shell: Shell
    ended: Ended

    @property
    def document(self) -> dict[str, Any]:
        return self.ended.document


WORDS = ("reproduce", "figure4", "figure1", "--scale", "tiny", "--dataset", "digits", "--workers", "2", "--json")


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    with shell_in(tmp_path_factory.mktemp("reproduced")) as shell:
        ended = shell.run(*WORDS)
        assert ended.exit == 0, ended.err
        yield Ran(shell, ended)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_cell_is_measured_and_both_makespans_are_told(ran: Ran) -> None:
    check("reproduce", ran.document)
    tables = ran.document["tables"]
    assert {name: len(cells) for name, cells in tables.items()} == {"figure4": 6, "figure1": 10}
    assert {cell["status"] for cells in tables.values() for cell in cells} == {"measured"}
    assert {cell["n"] for cells in tables.values() for cell in cells} == {2}
    makespan = ran.document["makespan"]
    assert makespan["predicted"] > 0 and makespan["measured"] > 0
    assert makespan["predicted_from_measured"] - STARTING < makespan["measured"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_job_runs_once_and_as_many_run_as_were_planned(ran: Ran) -> None:
    records = journal.read(ran.shell.store / "runs" / ran.document["run"] / journal.NAME)
    done = Counter(record["key"] for record in records if record["event"] == "job_done")
    assert set(done.values()) == {1}
    assert set(done) == set(rehearsal("figure4", "figure1").tables.plan.graph.jobs)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_same_again_computes_nothing_and_the_plan_knows_it(ran: Ran) -> None:
    again = ran.shell.run(*WORDS)
    assert again.exit == 0, again.err
    assert again.document["jobs"]["done"] == 0
    assert again.document["tables"] == ran.document["tables"]
    planned = ran.shell.run("plan", "figure1", "figure4", "--scale", "tiny", "--dataset", "digits", "--json").document
    assert planned["jobs"]["to_run"] == 0 and planned["gpu_hours"]["shared"] == 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_report_says_scale_and_dataset_beside_every_number(ran: Ran) -> None:
    text = Path(ran.document["report"]).read_text()
    assert "measured, scale tiny, dataset digits" in text
    assert "Predicted before the run" in text and "With the times that its jobs took" in text
    assert "stands in for cifar10" in text


# On SLURM.


def test_the_head_is_told_of_the_tables_and_fills_the_same_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Programs(tmp_path / "bin", monkeypatch)
    made.say("sbatch", "Submitted batch job 41")
    made.write("squeue", "")
    store, spec = Store.open(tmp_path / "store"), SlurmClusterSpec(kind="slurm")
    asked = rehearsal("table5", "figure1")
    target = Target("slurm", spec, str(store.root))
    options = LaunchOptions(command="again", quiet=True, follow=False)
    name = launcher.launch(TableWorkload.of(asked, store, target.cluster.count()), target, store, options)
    assert isinstance(name, str) and name.startswith("reproduce-")
    driven: list[tuple[TableWorkload, Run]] = []

    def drive(workload: TableWorkload, run: Run, *_: Any) -> Any:
        driven.append((workload, run))
        return type("Result", (), {"exit": 3})

    monkeypatch.setattr(launcher, "drive", drive)
    monkeypatch.setenv("PDD_NODE_TOKEN", "token")
    slurm_run = SlurmRun.of(store, name)
    assert slurm_run is not None and slurm_driver.drive(slurm_run.folder, "a:1", "a") == 3
    ((taken_up, run),) = driven
    assert taken_up.resolved.tables.by_table == asked.tables.by_table and run.name == name and run.queued


# On the command line.


def test_the_whole_plan_at_the_papers_scale_covers_every_cell_without_any_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    document = said(monkeypatch, capsys, tmp_path, "plan", "--all", "--scale", "paper")
    assert (document["cells"], document["dashes_left_out"], document["out_of_scope"]) == (252 - 16, 16, [])
    assert len(document["missing_datasets"]) == 3
    assert document["gpu_hours"]["sharing_factor"] > 1
    assert document["jobs"]["to_run"] == document["jobs"]["total"] > 15_000
    assert document["duration_source"]["measured"] == 0


def test_dashes_are_planned_only_if_they_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = said(monkeypatch, capsys, tmp_path, "plan", "table1", "--scale", "paper")
    whole = said(monkeypatch, capsys, tmp_path, "plan", "table1", "--scale", "paper", "--with-dashes")
    assert [(plan["cells"], plan["dashes_left_out"]) for plan in (printed, whole)] == [(68, 16), (84, 0)]
    assert whole["gpu_hours"]["without_dashes"]["shared"] == pytest.approx(printed["gpu_hours"]["shared"])
    assert whole["gpu_hours"]["shared"] > 4 * printed["gpu_hours"]["shared"]


def test_with_none_of_the_datasets_a_reproduction_ends_with_where_to_get_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    document = said(monkeypatch, capsys, tmp_path, "reproduce", "--all", "--scale", "paper", "--workers", "0")
    cells = [cell for table in document["tables"].values() for cell in table]
    assert len(cells) == 252 and {cell["status"] for cell in cells} == {"not run"}
    assert all("cluster.yaml, data." in cell["why"] for cell in cells)
    assert not any(document["jobs"].values()) and Path(document["report"]).is_file()


@pytest.fixture(scope="module")
def with_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small fakes of the paper's datasets and a cluster.yaml that says where they lie."""
    folder = tmp_path_factory.mktemp("with_data")
    (folder / "cluster.yaml").write_text(yaml.safe_dump({"data": write_datasets(folder)}))
    return folder


@pytest.mark.slow
def test_all_tables_are_planned_and_launched_at_the_papers_scale_with_its_datasets(
    with_data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run itself would take a cluster months; what is launched is exactly what was planned."""
    launched: list[TableWorkload] = []

    def launch_nothing(workload: TableWorkload, *_: Any) -> str:
        launched.append(workload)
        return "left with a queue"

    monkeypatch.setattr(launcher, "launch", launch_nothing)
    planned = said(monkeypatch, capsys, with_data, "plan", "--all", "--scale", "paper")
    assert planned["missing_datasets"] == planned["out_of_scope"] == []
    assert said(monkeypatch, capsys, with_data, "reproduce", "--all", "--scale", "paper")["run"] == "left with a queue"
    (workload,) = launched
    assert len(workload.graph) == planned["jobs"]["to_run"] and len(workload.plan.cells) == planned["cells"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("reproduce",), "or say --all"),
        (("reproduce", "table99"), "table99"),
        (("plan", "table1", "quickstart"), "not both"),
        (("plan", "table1", "--set", "network.width=8"), "tables have their numbers from their files"),
        (("plan", "table1", "--budget", "much"), "40gpu-h"),
    ],
)
def test_words_that_cannot_work_are_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    told: str,
) -> None:
    document = said(monkeypatch, capsys, tmp_path, *words, exit=2)
    assert told in document["error"]["message"]


def said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path, *words: str, exit: int = 0
) -> dict[str, Any]:
    """The document of a command that is typed in this process."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["pdd", *words, "--json"])
    with pytest.raises(SystemExit) as ended:
        launch.main()
    assert (ended.value.code or 0) == exit
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document
