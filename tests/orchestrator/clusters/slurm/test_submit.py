"""A run and a sweep are handed over to a SLURM that only pretends; a sweep's second launch meets the first."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.errors import BadInput
from orchestrator import slurm_driver
from orchestrator.clusters.config import SlurmClusterSpec, Target, choose_target
from orchestrator.clusters.slurm import submit
from orchestrator.clusters.slurm.follow import POINTER, SlurmRun, status_of
from orchestrator.clusters.slurm.submit import NotSubmitted
from orchestrator.planning.requests import Request
from orchestrator.runs import journal
from orchestrator.runs.driver import RunInfo
from orchestrator.runs.journal import Journal
from orchestrator.runs.records import Record
from orchestrator.workloads import launcher
from orchestrator.workloads.base import LaunchOptions, Run, Workload
from orchestrator.workloads.experiments import ExperimentWorkload
from orchestrator.workloads.sweep import sweep
from orchestrator.workloads.sweep.rows import Row
from orchestrator.workloads.sweep.sweep import SweepWorkload, seconds_driven
from tests.orchestrator.clusters.slurm.test_jobs import Programs
from workers.store.store import Store

BASE = {
    "dataset": "digits",
    "scale": "tiny",
    "networks": 1,
    "architectures": ["convnet"],
    "arms": [{"method": "mtt", "ipc_per_stage": 1, "prefixes": "last"}],
}
SPEC = SlurmClusterSpec(kind="slurm")


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    """A SLURM that takes everything and holds nothing."""
    made = Programs(tmp_path / "bin", monkeypatch)
    made.say("sbatch", "Submitted batch job 41")
    made.write("squeue", "")
    return made


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


@pytest.fixture
def asked(tmp_path: Path) -> SweepWorkload:
    space = {"stages": {"path": "arms.0.stages", "grid": [1, 2]}}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump({"name": "base", **BASE}))
    file = tmp_path / "s.yaml"
    file.write_text(yaml.safe_dump({"name": "s", "base": str(tmp_path / "base.yaml"), "space": space}))
    return SweepWorkload.of(str(file), Request(seed=3, settings=("distil.iterations=4",)))


@pytest.fixture
def launch(programs: Programs, asked: SweepWorkload, store: Store) -> Callable[..., Any]:
    def launch(follow: bool = False) -> Any:
        return on_slurm(asked, store, follow)

    return launch


def on_slurm(workload: Workload, store: Store, follow: bool = False) -> Any:
    options = LaunchOptions(command="again", quiet=True, follow=follow)
    return launcher.launch(workload, Target("slurm", SPEC, str(store.root)), store, options)


def held(programs: Programs, run: str, role: str = "head", state: str = "RUNNING") -> None:
    programs.write("squeue", f'case "$*" in *"pdd-{run}-{role} "*) echo "41|pdd-{run}-{role}|{state}|None|n|";; esac')


def events(store: Store, run: str) -> list[str]:
    return [record["event"] for record in journal.read(store.run_folder(run) / journal.NAME)]


def begin(book: Journal, run: str) -> None:
    about = vars(RunInfo(run=run, store="")) | {"experiments": []}
    book.write("run_began", **about, jobs={"distil": 2}, pid=1, host="n")


def test_the_head_is_told_of_a_sweep_that_stands_alone(
    launch: Callable[..., Any], asked: SweepWorkload, store: Store, tmp_path: Path
) -> None:
    run = launch()
    assert run == asked.run_name()
    slurm_run = SlurmRun.of(store, run)
    assert slurm_run is not None
    order = json.loads((slurm_run.folder / "order.json").read_text())
    (tmp_path / "base.yaml").unlink()
    (tmp_path / "s.yaml").unlink()
    told = slurm_driver.workload_from_order(order["workload"], store, 1)
    assert isinstance(told, SweepWorkload)
    assert [one.stages for one in told.trials] == [one.stages for one in asked.trials]
    assert told.trials[0].experiment.seeds == (3,)
    (record,) = journal.read(store.run_folder(run) / journal.NAME)
    assert record["jobs"]["distil"] == 2 and record["experiments"] == ["s"]  # what the trials share is counted once


@pytest.mark.parametrize("swept", [True, False])
def test_the_driver_does_what_the_order_says(
    launch: Callable[..., Any], store: Store, monkeypatch: pytest.MonkeyPatch, swept: bool
) -> None:
    called: list[str] = []

    def drive(workload: Workload, run: Run, watch: Any) -> Any:
        assert run.cluster is not None and run.queued
        called.append(f"{workload.kind} {run.name} {getattr(run.cluster, 'name', '')}")
        return type("Result", (), {"exit": 3})

    monkeypatch.setattr(launcher, "drive", drive)
    monkeypatch.setenv("PDD_NODE_TOKEN", "token")
    tiny = Request(experiments=("tiny",))
    name = launch() if swept else on_slurm(ExperimentWorkload.of(tiny), store)
    slurm_run = SlurmRun.of(store, name)
    assert slurm_run is not None
    assert slurm_driver.drive(slurm_run.folder, "a:1", "a") == 3
    assert called == [f"{'sweep' if swept else 'experiments'} {name} pdd-{name}-worker"]


def test_the_file_of_an_experiment_may_change_while_its_run_waits(
    programs: Programs, store: Store, tmp_path: Path
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"name": "mine", **BASE}))
    submitted = ExperimentWorkload.of(Request(experiments=(str(file),), seed=3))
    slurm_run = SlurmRun.of(store, on_slurm(submitted, store))
    assert slurm_run is not None
    file.write_text("spoilt")
    order = json.loads((slurm_run.folder / "order.json").read_text())["workload"]
    taken_up = slurm_driver.workload_from_order(order, store, 1)
    assert taken_up.graph.jobs.keys() == submitted.graph.jobs.keys() and taken_up.names == ("mine",)


def test_a_second_launch_of_a_sweep_that_goes_on_submits_nothing(
    launch: Callable[..., Any], programs: Programs, store: Store
) -> None:
    run = launch()
    token = (store.run_folder(run) / "slurm" / "token").read_text()
    held(programs, run, state="PENDING")
    assert launch() == run
    assert len(programs.calls("sbatch")) == 1 and events(store, run) == ["submitted"]
    assert (store.run_folder(run) / "slurm" / "token").read_text() == token


def test_a_queue_that_does_not_answer_submits_no_second_head(
    launch: Callable[..., Any], programs: Programs, store: Store
) -> None:
    run = launch()
    programs.say("squeue", "slurm_load_jobs error", code=1)
    with pytest.raises(NotSubmitted, match="unknown"):
        launch()
    assert len(programs.calls("sbatch")) == 1 and events(store, run) == ["submitted"]


def test_a_sweep_whose_head_is_gone_is_submitted_again_with_another_token(
    launch: Callable[..., Any], programs: Programs, store: Store
) -> None:
    run = launch()
    token = (store.run_folder(run) / "slurm" / "token").read_text()
    (store.run_folder(run) / "trials").mkdir()
    assert launch() == run
    assert len(programs.calls("sbatch")) == 2 and events(store, run) == ["submitted"] * 2
    assert (store.run_folder(run) / "slurm" / "token").read_text() != token
    assert (store.run_folder(run) / "trials").is_dir()
    assert f"--name pdd-{run}-worker" in programs.calls("scancel")[0]


def test_a_refusal_of_slurm_leaves_an_earlier_sweep_and_says_why(
    launch: Callable[..., Any], programs: Programs, store: Store
) -> None:
    run = launch()
    with Journal.open(store.run_folder(run)) as book:
        begin(book, run)
        book.write("job_done", key="k", kind="distil", slot="s", job_seconds=7.0)
        book.write("run_ended", exit=130, why="cancelled", counts={})
    programs.write("sbatch", "echo 'sbatch: error: invalid partition specified: x' >&2; exit 1")
    with pytest.raises(NotSubmitted, match="invalid partition"):
        launch()
    assert events(store, run) == ["submitted", "run_began", "job_done", "run_ended", "submitted", "run_ended"]
    found = status_of(store, run)
    assert (found.state, found.exit) == ("ended", 1) and "invalid partition" in found.why
    assert not (store.run_folder(run) / "slurm").exists()
    programs.say("sbatch", "Submitted batch job 42")
    assert launch() == run


@pytest.mark.parametrize(
    ("partitions", "field", "fix"),
    [
        ("PartitionName=main Default=YES MaxTime=00:30:00 State=UP", "partition of workers", "set minutes to 30"),
        ("PartitionName=main Default=YES MaxTime=UNLIMITED State=DOWN", "", ""),
        ("PartitionName=other Default=NO MaxTime=00:30:00 State=UP", "", ""),
    ],
)
def test_a_walltime_above_the_limit_of_the_partition_is_refused_before_anything_is_submitted(
    launch: Callable[..., Any], programs: Programs, store: Store, partitions: str, field: str, fix: str
) -> None:
    programs.say("scontrol", partitions)
    if not field:
        launch()
        return
    with pytest.raises(BadInput, match="main allows 30 minutes and 240 are asked for") as refused:
        launch()
    assert refused.value.field == field and fix in refused.value.fix
    assert programs.calls("sbatch") == [] and list((store.root / "runs").iterdir()) == []


def test_a_dry_run_shows_the_script_of_every_role_and_submits_nothing(programs: Programs, store: Store) -> None:
    fields = {"setup": ["module load x"], "gpus": "a100:2", "head": {"partition": "cpu"}}
    spec = SlurmClusterSpec.model_validate({"kind": "slurm", **fields})
    texts = submit.scripts(Target("slurm", spec, str(store.root)), "r")
    assert list(texts) == ["head", "worker"] and all("module load x" in text for text in texts.values())
    assert "#SBATCH --partition=cpu" in texts["head"] and "gpus" not in texts["head"]
    assert "#SBATCH --gpus-per-node=a100:2" in texts["worker"] and "#SBATCH --array=0-3%4" in texts["worker"]
    gang = submit.scripts(Target("slurm", SlurmClusterSpec(kind="slurm", mode="gang"), str(store.root)), "r")
    assert list(gang) == ["gang"] and "#SBATCH --nodes=4" in gang["gang"]
    allocation = SlurmClusterSpec(kind="slurm", mode="allocation")
    with pytest.raises(BadInput, match="nothing is submitted"):
        submit.scripts(Target("slurm", allocation, str(store.root)), "r")
    assert programs.calls("sbatch") == [] and not store.run_folder("r").exists()


def test_a_refusal_of_a_first_submission_leaves_nothing(
    launch: Callable[..., Any], programs: Programs, store: Store
) -> None:
    programs.write("sbatch", "echo 'sbatch: error: no' >&2; exit 1")
    with pytest.raises(NotSubmitted):
        launch()
    assert list((store.root / "runs").iterdir()) == []


def test_while_one_launch_submits_another_of_the_same_run_waits(store: Store) -> None:
    home = store.run_folder("r")
    with submit._one_at_a_time(home):
        with (home / ".submitting").open("rb+") as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with (home / ".submitting").open("rb+") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


ROW = Row(
    number=2,
    values={"stages": 2},
    state="done",
    why="",
    stages=2,
    ipc_per_stage=1,
    metrics=({"held_out": 30.0}, {"held_out": 40.0}),
    seconds=9.0,
    marginal_seconds=4.0,
    rank=1,
)


def test_whoever_follows_a_sweep_to_its_end_has_its_table_and_winners(
    launch: Callable[..., Any], asked: SweepWorkload, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = launch()
    monkeypatch.setattr(submit, "submit", lambda *_, **__: None)  # it is there already
    with Journal.open(store.run_folder(run)) as book:
        begin(book, run)
        book.write("job_done", key="distil-1", kind="distil", slot="s", job_seconds=7.0)
        book.write("run_ended", exit=0, why="all done", counts={})
    report = store.run_folder(run) / "report"
    report.mkdir()
    document = {"trials": [ROW.to_json()], "files": [str(report / "sweep.md")]}
    (report / sweep.DOCUMENT).write_text(json.dumps(document))
    done = launch(follow=True)
    assert done.exit == 0 and list(done.rows) == [ROW] and done.files == [report / "sweep.md"]
    assert done.end.counts["done"] == 1
    said = done.to_json()
    assert said["trials"] == [ROW.to_json()] and [one["ipc_total"] for one in said["results"]] == [2]
    assert any("report.html" in str(line) for line in done.lines())


def test_a_sweep_that_ended_without_a_report_is_told_by_its_last_word(
    launch: Callable[..., Any], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = launch()
    monkeypatch.setattr(submit, "submit", lambda *_, **__: None)  # it is there already
    with Journal.open(store.run_folder(run)) as book:
        begin(book, run)
        book.write("run_ended", exit=130, why="cancelled", counts={})
    done = launch(follow=True)
    assert (done.exit, done.rows, done.files, done.report) == (130, [], [], None)
    assert "cancelled; nothing is lost, go on with: again" in str(list(done.lines())[-1])


def test_a_sweep_that_slurm_has_is_not_driven_here_and_one_it_had_is(
    launch: Callable[..., Any],
    programs: Programs,
    asked: SweepWorkload,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, here = launch(), choose_target(None, "local", str(store.root), 1)
    options = LaunchOptions(command="")
    held(programs, run)
    with pytest.raises(BadInput, match="SLURM has it .*pdd cancel"):
        launcher.launch(asked, here, store, options)
    assert events(store, run) == ["submitted"]
    programs.write("squeue", "")
    driven: list[Run] = []
    monkeypatch.setattr(launcher, "drive", lambda workload, run: driven.append(run))
    launcher.launch(asked, here, store, options)
    assert [each.name for each in driven] == [run] and not driven[0].queued
    assert not (store.run_folder(run) / POINTER).exists()


def test_the_wall_time_of_a_launch_is_that_of_all_its_drivers() -> None:
    def records(*pairs: tuple[str, float]) -> list[Record]:
        return [{"event": event, "seconds": seconds} for event, seconds in pairs]

    before = (("run_began", 0.0), ("run_ended", 50.0))
    sessions = (("run_began", 0.0), ("job_done", 9.0), ("run_ended", 10.0), ("run_began", 0.0), ("job_done", 4.0))
    assert seconds_driven(records(*before, ("submitted", 0.0), *sessions)) == 14.0
    assert seconds_driven(records(*before, ("submitted", 0.0))) == 0.0
    assert seconds_driven(records(*before)) == 0.0
