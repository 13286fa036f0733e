"""The optional loggers: asked for in cluster.yaml, refused without their library, told of a run offline."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import BadInput
from orchestrator.clusters.config import LocalClusterSpec, LoggerName, Target, choose_target
from orchestrator.planning.requests import Request
from orchestrator.workloads import launcher, loggers
from orchestrator.workloads.base import LaunchOptions, RunResult
from orchestrator.workloads.experiments import ExperimentWorkload
from workers.store.store import Store

TINY = Request(experiments=("tiny",), settings=("networks=1",))
STAND_IN = '''
"""What a test sees instead of the library: each call is a line of a file."""
import json, os, types
def said(*words):
    if os.environ.get("FAILS") in words:
        raise OSError("no network")
    with open(os.environ["SAID"], "a") as file:
        file.write(json.dumps(words) + "\\n")
'''
WANDB = (
    STAND_IN
    + """
class Run:
    summary = types.SimpleNamespace(update=lambda values: said("summary", values))
    def log(self, metrics, step): said("log", metrics, step)
    def finish(self): said("finish")
def init(**words):
    said("init", words)
    return Run()
"""
)
MLFLOW = (
    STAND_IN
    + """
def set_experiment(name): said("experiment", name)
def start_run(run_name):
    said("init", run_name)
    return types.SimpleNamespace(info=types.SimpleNamespace(run_id="id-1"))
def log_params(values): said("params", values)
def log_metrics(values, step, run_id):
    assert not [name for name in values if "+" in name or "," in name], "MLflow refuses such names"
    said("log", values, step)
def end_run(): said("finish")
"""
)


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that stand-ins write to; they are the first on the path."""
    (tmp_path / "wandb.py").write_text(WANDB)
    (tmp_path / "mlflow.py").write_text(MLFLOW)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("SAID", str(tmp_path / "said.jsonl"))
    for name in ("wandb", "mlflow"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path / "said.jsonl"


def run(folder: Path, logger: LoggerName | None) -> RunResult:
    store = Store.open(folder / "store")
    target = Target("local", LocalClusterSpec().limited(0), str(store.root), logger=logger)
    result = launcher.launch(ExperimentWorkload.of(TINY), target, store, LaunchOptions(command="again", quiet=True))
    assert isinstance(result, RunResult) and result.exit == 0
    return result


def calls(said: Path, name: str) -> list[list[Any]]:
    return [call for line in said.read_text().splitlines() if (call := json.loads(line))[0] == name]


def test_a_logger_is_named_in_the_cluster_file_and_nowhere_by_default(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text("logger: wandb\n")
    assert choose_target(file, None, None, None).logger == "wandb"
    assert choose_target(file, None, "elsewhere", None).logger == "wandb"
    assert choose_target(None, None, str(tmp_path), None).logger is None
    file.write_text("logger: wand\n")
    with pytest.raises(BadInput, match="logger"):
        choose_target(file, None, None, None)


@pytest.mark.parametrize("name", ["wandb", "mlflow", "tensorboard"])
def test_without_its_library_it_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: LoggerName
) -> None:
    monkeypatch.setattr(loggers, "find_spec", lambda library: None)
    store = Store(tmp_path / "store")
    target = Target("local", LocalClusterSpec().limited(0), str(store.root), logger=name)
    with pytest.raises(BadInput, match=f"logger is '{name}'.*pip install"):
        launcher.launch(ExperimentWorkload.of(TINY), target, store, LaunchOptions(command="again", quiet=True))
    assert not store.root.exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_run_is_told_job_by_job_and_at_its_end_cell_by_cell(tmp_path: Path, said: Path, name: LoggerName) -> None:
    result = run(tmp_path, name)
    ((_, begun),) = calls(said, "init")
    assert (begun if name == "mlflow" else begun["name"]) == result.end.run
    jobs = [call for call in calls(said, "log") if any(key.startswith("done/") for key in call[1])]
    assert [step for _, _, step in jobs] == list(range(1, result.end.counts["done"] + 1))
    assert any("test accuracy/evaluate" in metrics for _, metrics, _ in jobs)
    last = calls(said, "summary")[0][1] if name == "wandb" else calls(said, "log")[-1][1]
    assert sorted(last.values()) == sorted(cell.mean for cell in result.results if cell.mean is not None)
    assert len(calls(said, "finish")) == 1


@pytest.mark.slow
def test_a_logger_that_fails_is_said_once_and_the_run_goes_on(
    tmp_path: Path, said: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(launcher, "speaker", lambda quiet: told.append)
    monkeypatch.setenv("FAILS", "log")
    run(tmp_path, "wandb")
    assert [text for text in told if "no network" in text] == [
        "the logger failed and is not told any more; the run goes on (no network)"
    ]
    monkeypatch.setenv("FAILS", "init")
    with pytest.raises(BadInput, match=r"cannot begin \(no network\)"):
        run(tmp_path, "wandb")


@pytest.mark.slow
def test_tensorboard_gets_event_files_in_the_runs_folder(tmp_path: Path) -> None:
    if importlib.util.find_spec("tensorboardX") is None:
        pytest.skip("comes with ray[tune]")
    result = run(tmp_path, "tensorboard")
    (file,) = (result.end.store.run_folder(result.end.run) / "tensorboard").iterdir()
    content = file.read_bytes()
    assert file.name.startswith("events.out.tfevents") and b"done/evaluate" in content and b"cells/tiny/" in content


@pytest.mark.slow
def test_a_logger_changes_no_key_and_no_digest(tmp_path: Path, said: Path) -> None:
    with_one, without = run(tmp_path / "a", "wandb"), run(tmp_path / "b", None)
    assert with_one.to_json()["artifacts"] == without.to_json()["artifacts"]
