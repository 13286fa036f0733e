"""The one launch: here and in this process; what a run's end is read from; the orders of all workloads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs import machines
from jobs.errors import BadInput, Damaged
from orchestrator import slurm_driver
from orchestrator.clusters.config import LocalClusterSpec, RayClusterSpec, SlurmClusterSpec, Target, choose_target
from orchestrator.clusters.ray_cluster import ExternalCluster, LocalCluster
from orchestrator.clusters.slurm.jobs import AllocationCluster
from orchestrator.planning import durations
from orchestrator.planning.requests import Request
from orchestrator.planning.table_requests import TableRequest, resolve_tables
from orchestrator.runs import journal
from orchestrator.runs.journal import Journal
from orchestrator.runs.pool import InProcessPool
from orchestrator.scheduler.state import State
from orchestrator.workloads import launcher
from orchestrator.workloads.base import LaunchOptions, Run, Workload, new_run_name
from orchestrator.workloads.experiments import ExperimentWorkload
from orchestrator.workloads.sweep.sweep import SweepWorkload
from orchestrator.workloads.tables import TableWorkload
from workers.store.store import Store

TINY = Request(experiments=("tiny",), settings=("networks=1", "arms.0.stages=1"))
OPTIONS = LaunchOptions(command="again", quiet=True)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


def here(store: Store) -> Target:
    """This process."""
    return choose_target(None, "local", str(store.root), 0)


def tables(store: Store) -> Workload:
    request = TableRequest(tables=("table5",), scale="tiny", dataset="digits")
    return TableWorkload.of(resolve_tables(request), store, 1)


def swept(store: Store) -> Workload:
    return SweepWorkload.of("stages_x_ipc", Request())


@pytest.mark.parametrize("make", [lambda store: ExperimentWorkload.of(TINY), tables, swept])
def test_every_workload_is_taken_up_from_its_order(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Store], Workload]
) -> None:
    monkeypatch.setattr(durations, "machine_of", lambda scale, workers: machines.CORE)
    workload = make(store)
    (tmp_path / "home").mkdir()
    order = {"kind": workload.kind, **workload.to_order(tmp_path / "home")}
    taken_up = slurm_driver.workload_from_order(json.loads(json.dumps(order)), store, 1)
    assert type(taken_up) is type(workload)
    assert taken_up.graph.jobs.keys() == workload.graph.jobs.keys() and taken_up.names == workload.names


def test_a_run_in_this_process_starts_nothing_and_ends_with_its_results(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher, "RayPool", lambda *_, **__: pytest.fail("Ray"))
    result = launcher.launch(ExperimentWorkload.of(TINY), here(store), store, OPTIONS)
    assert not isinstance(result, str)
    document = result.to_json()
    assert (document["exit"], document["jobs"]["failed"], document["workers"]) == (0, 0, 1)
    assert document["jobs"]["done"] == len(document["artifacts"]) > 0
    assert result.report is not None and result.report.is_file()
    records = journal.read(store.run_folder(document["run"]) / journal.NAME)
    assert {record["slot"] for record in records if record["event"] == "slot_joined"} == {InProcessPool.SLOT}
    again = launcher.launch(ExperimentWorkload.of(TINY), here(store), store, OPTIONS)
    assert not isinstance(again, str)
    counts = {"done": 0, "cached": document["jobs"]["done"], "unneeded": 0, "failed": 0, "skipped": 0}
    assert again.to_json()["jobs"] == counts
    assert again.to_json()["artifacts"] == document["artifacts"]


@pytest.mark.parametrize("kind", ["local", "slurm"])
def test_a_job_that_fits_no_card_of_the_cluster_is_refused_before_anything_starts(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    file = tmp_path / "cluster.yaml"
    partition = ", partition: p" if kind == "slurm" else ""
    file.write_text(f"clusters: {{small: {{kind: {kind}, gpu_memory: 0.0001{partition}}}}}\n")
    target = choose_target(file, "small", str(store.root), None)
    with pytest.raises(BadInput, match="memory of a card"):
        launcher.launch(ExperimentWorkload.of(TINY), target, store, OPTIONS)
    assert not list((store.root / "runs").glob("*"))


def test_whoever_drives_for_a_queue_hears_of_every_change(store: Store) -> None:
    seen: list[State] = []
    launcher.launch(ExperimentWorkload.of(TINY), here(store), store, OPTIONS)
    run = Run(name="r", store=store, target=here(store), options=OPTIONS, cluster=None, queued=True)
    assert launcher.drive(ExperimentWorkload.of(TINY), run, seen.append).exit == 0
    assert seen and seen[-1].finished is not None


def test_the_end_of_a_run_is_read_from_its_last_driver(store: Store) -> None:
    origin: dict[str, Any] = {"run": "r", "command": "", "experiments": [], "store": "", "workers": 1, "versions": {}}
    with Journal.open(store.run_folder("r")) as book:
        book.write("run_began", **origin, jobs={"distil": 1}, pid=1, host="h")
        book.write("job_failed", key="distil-1", reason="bug", message="m", log="l")
        book.write("run_ended", exit=3, why="", counts={})
        book.write("run_began", **origin, jobs={"distil": 1}, pid=1, host="h")
        book.write("job_done", key="distil-1", kind="distil", slot="s", job_seconds=1.0)
        book.write("run_ended", exit=0, why="all done", counts={})
        book.write("note", text="the search is over")
    end = launcher.end_of(store, "r", 2, "again")
    assert (end.exit, end.why, end.workers, list(end.failures)) == (0, "all done", 2, [])
    assert end.counts == {"done": 1, "cached": 0, "unneeded": 0, "failed": 0, "skipped": 0}


def test_names_of_runs_are_their_own() -> None:
    assert len({new_run_name("tiny") for _ in range(5)}) == 5 and new_run_name("tiny").startswith("tiny-")


def test_each_kind_of_cluster_has_its_way(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def target(spec: LocalClusterSpec | RayClusterSpec | SlurmClusterSpec) -> Target:
        return Target("mine", spec, str(store.root))

    assert isinstance(launcher.cluster_of(target(LocalClusterSpec(workers=3)), tmp_path), LocalCluster)
    assert isinstance(launcher.cluster_of(target(RayClusterSpec(kind="ray", address="h:1")), tmp_path), ExternalCluster)
    assert launcher.cluster_of(here(store), tmp_path) is None
    lost = RayClusterSpec(kind="ray", address="h:1", token_file=str(tmp_path / "nowhere"))
    with pytest.raises(BadInput, match="clusters.mine.token_file"):
        launcher.cluster_of(target(lost), tmp_path)
    with pytest.raises(AssertionError):
        launcher.cluster_of(target(SlurmClusterSpec(kind="slurm")), tmp_path)
    allocation = target(SlurmClusterSpec(kind="slurm", mode="allocation"))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(BadInput, match="type it inside salloc"):
        launcher.cluster_of(allocation, tmp_path)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("PATH", "/nowhere")
    cluster = launcher.cluster_of(allocation, tmp_path)
    assert isinstance(cluster, AllocationCluster) and (cluster.job, cluster.nodes) == ("7", 1)


@pytest.mark.parametrize("kind", ["slurm", "ray"])
def test_no_other_cluster_runs_in_this_process(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "clusters.yaml"
    address = ", address: 'h:1'" if kind == "ray" else ""
    file.write_text(f"clusters: {{mine: {{kind: {kind}{address}}}}}\ndefault: mine\n")
    with pytest.raises(BadInput, match="--workers is 0: must be at least 1$"):
        choose_target(file, None, None, 0)


def test_a_journal_that_lost_its_end_is_told_in_a_sentence(store: Store) -> None:
    for remove in (lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes().splitlines(True)[0])):
        with Journal.open(store.run_folder("some")) as book:
            book.write("note", text="first")
            book.write("run_ended", exit=0, why="done", counts={})
        remove(store.run_folder("some") / journal.NAME)
        with pytest.raises(Damaged, match="lost the end of the run; what is finished stays"):
            launcher.end_of(store, "some", 1, "again")
