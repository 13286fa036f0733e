"""Whole sweeps by the command line: Ray Tune, workers and all. Each is a process of its own, as Ray wants it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.errors import BadInput
from jobs.fields import Frozen
from orchestrator.planning.requests import Request
from orchestrator.runs.journal import read
from orchestrator.runs.records import Record
from orchestrator.workloads.sweep.sweep import SweepWorkload
from tests.documents import check

ROOT = Path(__file__).resolve().parents[4]
LIMIT = 900
BASE = {
    "dataset": "digits",
    "scale": "tiny",
    "networks": 1,
    "architectures": ["convnet"],
    "arms": [{"method": "mtt", "stages": 3, "ipc_per_stage": 1, "prefixes": "last"}],
}
STEP_SIZE = {"path": "distil.settings.step_size_init"}


def file_of(folder: Path, **fields: Any) -> Path:
    path = folder / "s.yaml"
    path.write_text(yaml.safe_dump({"name": "s", "base": BASE, **fields}))
    return path


def start(*words: str, store: Path, workers: int = 2) -> subprocess.Popen[str]:
    where = ["--store", str(store), "--workers", str(workers)]
    command = [sys.executable, "-m", "orchestrator.launch", *words, *where, "--json"]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def launch(*words: str, store: Path, workers: int = 2) -> dict[str, Any]:
    """The document of a command that must end well."""
    with start(*words, store=store, workers=workers) as process:
        out, told = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, told
    document: dict[str, Any] = json.loads(out)
    check(words[0], document)
    return document


def records(document: dict[str, Any], event: str) -> list[Record]:
    path = Path(document["store"]) / "runs" / document["run"] / "journal.jsonl"
    return [record for record in read(path) if record["event"] == event]


def states(document: dict[str, Any]) -> list[tuple[str, int]]:
    return [(trial["state"], trial["stage"]) for trial in document["trials"]]


@dataclass(frozen=True)
class Undisturbed:
    """A sweep that nobody disturbed: its file, its store, its document."""

    file: Path
    store: Path
    document: dict[str, Any]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """Three step sizes, one after another."""
    folder = tmp_path_factory.mktemp("undisturbed")
    path = file_of(folder, space={"step_size": STEP_SIZE | {"grid": [0.05, 0.02, 0.01]}}, at_once=1)
    return Undisturbed(path, folder / "store", launch("sweep", str(path), store=folder / "store"))


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(2 * LIMIT)
def test_asha_ends_the_poor_trial_and_its_prefix_is_found_by_run(tmp_path: Path) -> None:
    """With a step size of nearly nothing no network learns, so the second trial is the worse of two at the rung."""
    path = file_of(
        tmp_path,
        space={"step_size": STEP_SIZE | {"grid": [0.05, 1e-9]}},
        scheduler={"name": "asha", "reduction": 2},
        at_once=1,
    )
    store = tmp_path / "store"
    document = launch("sweep", str(path), store=store)
    assert states(document) == [("done", 3), ("stopped", 1)]
    assert document["trials"][0]["rank"] == 1
    assert [one["state"] for one in document["results"]] == ["done"]
    report = Path(document["files"][0]).parent
    assert {"report.md", "report.html", "trials.parquet", "stages.parquet", "best.yaml"} <= {
        path.name for path in report.iterdir()
    }
    folder = report.parent
    assert len(list(folder.glob("tune/*/events.out.tfevents.*"))) == 2
    private = [path for path in folder.rglob("*") if path.is_file() and not path.is_relative_to(report)]
    assert not [path for path in private if path.stat().st_mode & 0o077], "reports follow the umask, nothing else does"
    again = launch("run", str(report / "best.yaml"), store=store)
    assert again["jobs"]["done"] == 0
    made = {job["key"] for job in records(document, "job_done")}
    poor = ["--set", "distil.settings.step_size_init=0.000000001"]
    (tmp_path / "poor.yaml").write_text(yaml.safe_dump({"name": "poor", **BASE}))
    rest = launch("run", str(tmp_path / "poor.yaml"), *poor, store=store, workers=0)
    redone = {job["key"] for job in records(rest, "job_done")} & made
    assert redone == set()
    assert rest["jobs"]["done"] == 2 * 3 + 1  # two experts and a set for stages 2 and 3, and the evaluation


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(3 * LIMIT)
def test_a_killed_sweep_goes_on_to_the_same_result(undisturbed: Undisturbed, tmp_path: Path) -> None:
    path, whole, cut = undisturbed.file, undisturbed.document, tmp_path / "cut"
    process = start("sweep", str(path), store=cut)
    journal = cut / "runs" / whole["run"] / "journal.jsonl"
    while len([one for one in read(journal) if one["event"] == "trial_reported"]) < 4:
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    before = Counter(one["key"] for one in read(journal) if one["event"] == "job_done")
    document = launch("sweep", str(path), store=cut)
    after = Counter(one["key"] for one in records(document, "job_done"))
    assert all(after[key] == 1 for key in before)  # nothing that was done is done again
    for name in ("artifacts", "results"):
        assert document[name] == whole[name]
    assert [one["metrics"] for one in document["trials"]] == [one["metrics"] for one in whole["trials"]]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(4 * LIMIT)
def test_tunes_own_state_may_be_lost_or_damaged(undisturbed: Undisturbed) -> None:
    whole = undisturbed.document
    damages: list[Callable[[Path], object]] = [lambda state: state.write_text("{"), Path.unlink]
    for damage in damages:
        states_of_tune = list((undisturbed.store / "runs" / whole["run"] / "tune").glob("experiment_state-*.json"))
        assert states_of_tune
        for state in states_of_tune:
            damage(state)
        again = launch("sweep", str(undisturbed.file), store=undisturbed.store)
        assert again["jobs"]["done"] == 0
        assert states(again) == states(whole) == [("done", 3)] * 3


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(2 * LIMIT)
def test_64_trials_on_two_workers_come_to_an_end_in_a_driver_below_a_gigabyte(tmp_path: Path) -> None:
    space = {
        "num_stages": {"path": "arms.0.stages", "choice": [1, 2]},
        "image_lr": {"path": "distil.image.lr", "log_uniform": [0.003, 0.3]},
    }
    path = file_of(tmp_path, space=space, searcher="random", samples=64)
    process, peak = start("sweep", str(path), store=tmp_path / "store"), 0
    while process.poll() is None:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        peak = max([peak, *(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))])
        time.sleep(0.5)
    document = json.loads(process.communicate()[0])
    assert process.returncode == 0
    assert Counter(state for state, _ in states(document)) == {"done": 64}
    assert 0 < peak < 1_000_000  # in KiB


@pytest.fixture
def without_optuna(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    yield


@pytest.mark.usefixtures("without_optuna")
def test_optuna_is_refused_with_the_mend_where_it_is_not_installed(tmp_path: Path) -> None:
    path = file_of(tmp_path, space={"step_size": STEP_SIZE | {"uniform": [0.01, 0.1]}}, searcher="optuna")
    with pytest.raises(BadInput, match="pip install optuna"):
        SweepWorkload.of(str(path), Request())


def test_a_sweep_has_the_same_run_whatever_its_limits_and_another_one_for_another_search(tmp_path: Path) -> None:
    def name(seed: int | None = None, **fields: Any) -> str:
        space = {"step_size": STEP_SIZE | {"grid": [0.05, 0.02]}}
        return SweepWorkload.of(str(file_of(tmp_path, space=space, **fields)), Request(seed=seed)).run_name()

    assert name() == name(budget={"gpu_hours": 1.0}) == name(at_once=3, winners=2, about="words")
    assert len({name(), name(mode="min"), name(seed=1), name(budget={"trials": 1})}) == 4


def test_the_rung_that_nobody_passes_is_in_the_schedulers_unit(tmp_path: Path) -> None:
    space = {"ipc": {"path": "arms.0.ipc_per_stage", "grid": [1, 2]}}
    by_stage = SweepWorkload.of(str(file_of(tmp_path, space=space)), Request())
    by_images = SweepWorkload.of(str(file_of(tmp_path, space=space, scheduler={"rung": "ipc_total"})), Request())
    assert (by_stage.longest(), by_images.longest()) == (3, 6)


def test_the_command_line_changes_the_base_of_every_trial(tmp_path: Path) -> None:
    path = file_of(tmp_path, space={"step_size": STEP_SIZE | {"grid": [0.05, 0.02]}})
    asked = SweepWorkload.of(str(path), Request(seed=7, settings=("arms.0.stages=2", "distil.iterations=4")))
    assert {trial.experiment.seeds for trial in asked.trials} == {(7,)}
    assert {len(trial.stages) for trial in asked.trials} == {2}
    specs: list[Frozen] = [trial.plan.graph[trial.stages[0][0]].spec for trial in asked.trials]
    assert {spec.iterations for spec in specs} == {4}  # type: ignore[attr-defined]


def test_the_base_finds_its_dataset_where_the_cluster_file_says(tmp_path: Path) -> None:
    path = file_of(tmp_path, space={"step_size": STEP_SIZE | {"grid": [0.05]}})
    with pytest.raises(BadInput, match="nowhere"):
        SweepWorkload.of(str(path), Request(dataset="cifar10", data={"cifar10": str(tmp_path / "nowhere")}))


@pytest.mark.parametrize("name", ["stages_x_ipc", "random"])
def test_the_shipped_sweeps_can_run(name: str) -> None:
    asked = SweepWorkload.of(name, Request())
    assert len(asked.trials) == {"stages_x_ipc": 4, "random": 12}[name]
    assert asked.longest() == 10
