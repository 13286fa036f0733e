"""One job of a run: shown, and done in this process; and what --verbose says of a run."""

from __future__ import annotations

import json
import logging
import pstats
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.graph import Graph
from jobs.keys import kind_of
from orchestrator import launch
from orchestrator.clusters.config import choose_target
from orchestrator.planning.requests import Request
from orchestrator.planning.table_requests import TableRequest, resolve_tables
from orchestrator.runs.journal import Journal
from orchestrator.workloads import launcher
from orchestrator.workloads.base import LaunchOptions
from orchestrator.workloads.experiments import ExperimentWorkload
from orchestrator.workloads.sweep.sweep import SweepWorkload
from workers.store.store import Store

WORDS = "--set networks=1 run tiny --seed 3"
REQUEST = Request(experiments=("tiny",), seed=3, settings=("networks=1",))

Type = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a small run, made in this process."""
    root = tmp_path_factory.mktemp("ran") / "store"
    options = LaunchOptions(command=f"python -m orchestrator.launch {WORDS}", quiet=True)
    target = choose_target(None, "local", str(root), 0)
    result = launcher.launch(ExperimentWorkload.of(REQUEST), target, Store.open(root), options)
    assert not isinstance(result, str) and result.exit == 0
    return root


@pytest.fixture
def store(ran: Path, tmp_path: Path) -> Store:
    """A copy, to be spoilt."""
    shutil.copytree(ran, tmp_path / "store")
    return Store(tmp_path / "store")


@pytest.fixture
def graph() -> Graph:
    return ExperimentWorkload.of(REQUEST).graph


@pytest.fixture
def type_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Type]:
    """Types a command beside the store: its exit code and what it said."""

    def type_in(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["pdd", *words, "--store", "store"])
        with pytest.raises(SystemExit) as ended:
            launch.main()
        said = capsys.readouterr()
        assert isinstance(ended.value.code, int | None)
        return ended.value.code or 0, said.out, said.err

    monkeypatch.chdir(tmp_path)
    yield type_in


def key_of(graph: Graph, kind: str) -> str:
    """The last key of a kind."""
    return [job.key for job in graph if job.kind == kind][-1]


def lose(store: Store, key: str) -> dict[str, Any]:
    """Remove an artifact; returns the digests that it had."""
    files = {name: entry.sha256 for name, entry in store.manifest(key).files.items()}
    shutil.rmtree(store.root / "objects" / kind_of(key) / key)
    return files


def test_a_job_of_the_latest_run_is_shown(type_in: Type, store: Store, graph: Graph) -> None:
    key = key_of(graph, "distil")
    code, out, _ = type_in("job", key, "--json")
    document = json.loads(out)
    assert code == 0 and (document["key"], document["stored"], document["missing_parents"]) == (key, True, [])
    assert document["spec"] == graph[key].to_json()["spec"]


@pytest.mark.parametrize("kind", ["distil", "evaluate"])
def test_a_job_is_done_here_to_the_same_bytes(type_in: Type, store: Store, graph: Graph, kind: str) -> None:
    key = key_of(graph, kind)
    before = lose(store, key)
    code, out, _ = type_in("job", key, "--here", "--json")
    document = json.loads(out)
    assert (code, document["exit"], document["status"], document["kind"]) == (0, 0, "done", kind)
    assert Path(document["log"]).is_file()
    assert {name: entry.sha256 for name, entry in store.manifest(key).files.items()} == before
    assert json.loads(type_in("job", key, "--here", "--json")[1])["status"] == "found"


def test_a_profile_is_written_and_printed(type_in: Type, store: Store, graph: Graph, tmp_path: Path) -> None:
    key = key_of(graph, "evaluate")
    lose(store, key)
    code, out, err = type_in("job", key, "--here", "--profile", "job.prof")
    assert code == 0 and f"{key}: done" in out and "profile: job.prof" in out
    assert "cumulative" in err
    functions = {function for _, _, function in pstats.Stats(str(tmp_path / "job.prof")).stats}  # type: ignore[attr-defined]
    assert {"execute", "evaluate"} <= functions


def test_a_job_without_its_parents_is_refused_with_the_one_to_do_first(
    type_in: Type, store: Store, graph: Graph
) -> None:
    key, parent = key_of(graph, "evaluate"), key_of(graph, "dataset")
    lose(store, key)
    lose(store, parent)
    code, out, err = type_in("job", key, "--here")
    assert (code, out) == (2, "") and f"{parent} is not in the store" in err and f"pdd job {parent} --here" in err
    assert not store.has(key)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["job", "evaluate"], "say more of one of evaluate-"),
        (["job", "nothing"], "name its experiment after the key"),
        (["job", "nothing", "tiny"], "`pdd explain` lists them"),
        (["job", "dataset", "--profile", "p"], "say --here"),
    ],
)
def test_a_key_that_names_no_job_is_refused(type_in: Type, store: Store, words: list[str], told: str) -> None:
    code, out, err = type_in(*words)
    assert (code, out) == (2, "") and told in err


def test_the_experiment_may_be_named_where_no_run_has_the_job(type_in: Type, graph: Graph, tmp_path: Path) -> None:
    key = key_of(graph, "dataset")
    code, out, _ = type_in("job", key, "tiny", "--seed", "3", "--set", "networks=1", "--here", "--json")
    assert code == 0 and json.loads(out)["status"] == "done" and Store(tmp_path / "store").has(key)


def test_verbose_prints_log_lines_and_only_it_does(
    type_in: Type, store: Store, graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, ours = logging.getLogger(), logging.getLogger("orchestrator")
    level = root.level
    monkeypatch.setattr(root, "handlers", [])
    try:
        words = [*WORDS.split(), "--workers", "0", "--json"]
        assert "job_cached" not in type_in(*words)[2]
        code, out, err = type_in(*words, "--verbose")
    finally:
        root.setLevel(level)
        ours.setLevel(logging.NOTSET)
    assert code == 0 and json.loads(out)["jobs"]["cached"] == len(graph)
    assert err.count("job_cached") == len(graph) and "DEBUG orchestrator.runs.journal" in err


@pytest.mark.parametrize(
    "command",
    ["reproduce table5 --scale tiny --dataset digits", "sweep stages_x_ipc", "--store s", "run tiny --seed 3"],
)
def test_the_graph_comes_from_the_command_of_the_run(type_in: Type, tmp_path: Path, command: str) -> None:
    words, tables = command.split(), TableRequest(tables=("table5",), scale="tiny", dataset="digits")
    resolved: dict[str, Callable[[], Graph]] = {
        "reproduce": lambda: resolve_tables(tables).tables.plan.graph,
        "sweep": lambda: SweepWorkload.of("stages_x_ipc", Request()).graph,
        "--store": lambda: ExperimentWorkload.of(Request()).graph,
        "run": lambda: ExperimentWorkload.of(Request(experiments=("tiny",), seed=3)).graph,
    }
    key = key_of(resolved[words[0]](), "distil")
    about = {"run": "r", "experiments": [], "store": "", "jobs": {}, "workers": 1, "versions": {}, "pid": 1}
    with Journal.open(Store.open(tmp_path / "store").run_folder("r")) as book:
        book.write("run_began", command=f"python -m orchestrator.launch {command}", host="h", **about)
        book.write("job_ready", key=key, remaining_path=1.0)
    code, out, _ = type_in("job", key[:-4], "--json")
    document = json.loads(out)
    assert code == 0 and (document["key"], document["stored"]) == (key, False)
    assert document["missing_parents"]
