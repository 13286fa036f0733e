"""Damage in the store: nothing wrong is made from it, and a run makes again exactly what was damaged."""

from __future__ import annotations

import random
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import pytest

from orchestrator.clusters.config import choose_target
from orchestrator.planning.requests import Request
from orchestrator.workloads import launcher
from orchestrator.workloads.base import LaunchOptions, RunResult
from orchestrator.workloads.experiments import ExperimentWorkload
from workers.store.manifest import MANIFEST
from workers.store.store import Audit, Store

WAYS = ("a bit", "4 KiB zeroed", "3,000 bytes changed")


def run(store: Store) -> RunResult:
    """The experiment `tiny` in this process, on what the store has."""
    workload = ExperimentWorkload.of(Request(experiments=("tiny",)))
    result = launcher.launch(workload, choose_target(None, None, str(store.root), 0), store, QUIET)
    assert isinstance(result, RunResult)
    return result


QUIET = LaunchOptions(command="pdd run tiny", quiet=True)


def digests(result: RunResult) -> dict[str, str]:
    return {artifact["key"]: artifact["digest"] for artifact in result.to_json()["artifacts"]}


def numbers(result: RunResult) -> list[float | None]:
    return [cell.mean for cell in result.results]


@dataclass(frozen=True)
class Finished:
    """A store in which the experiment is done."""

    root: Path
    result: RunResult

    def copy(self, folder: Path) -> Path:
        root = folder / "store"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(self.root, root)
        return root


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    root = tmp_path_factory.mktemp("damage") / "store"
    result = run(Store.open(root))
    assert result.exit == 0
    return Finished(root, result)


def data_files(root: Path, keys: Collection[str] | None = None) -> list[Path]:
    files = sorted(path for path in root.glob("objects/*/*/*") if path.name != MANIFEST)
    return [path for path in files if keys is None or path.parent.name in keys]


def harm(path: Path, way: str, source: random.Random) -> None:
    """Change bytes of a file and not its size."""
    content = bytearray(path.read_bytes())
    before = bytes(content)
    while bytes(content) == before:  # zeros may be zeroed
        at = source.randrange(len(content))
        if way == "a bit":
            content[at] ^= 1 << source.randrange(8)
        elif way == "4 KiB zeroed":
            content[at : at + 4096] = bytes(len(content[at : at + 4096]))
        else:
            for place in range(at, min(at + 3000, len(content))):
                content[place] ^= source.randrange(256)
    path.write_bytes(content)


class Harmed(Store):
    """A store in which a file is damaged right after the look at the beginning of a run."""

    harm: tuple[Path, str, random.Random] | None = None

    def audit(self, keys: Collection[str], largest: int = 2**28) -> Audit:
        audit = super().audit(keys, largest)
        if self.harm is not None:
            harm(*self.harm)
            self.harm = None
        return audit


def damaged_while_it_runs(finished: Finished, folder: Path, number: int) -> None:
    """Damage a parent of jobs that have to run, when the driver has looked already; nothing wrong may come of it."""
    source = random.Random(number)
    store = Harmed.open(finished.copy(folder))
    graph = finished.result.plan.graph
    child = source.choice([job for job in graph if job.parent_keys()])
    gone = [job.key for job in graph if child.key in graph.ancestors([job.key])]
    for key in gone:
        store.remove(key)
    path = source.choice(data_files(store.root, set(child.parent_keys())))
    store.harm = (path, WAYS[number % 3], source)
    there = {key: digest for key, digest in digests(finished.result).items() if key != path.parent.name}
    first = run(store)
    assert first.exit == 0 and numbers(first) == numbers(finished.result)
    assert there.items() <= digests(first).items()
    second = run(store)
    assert second.exit == 0 and digests(second) == digests(finished.result)
    assert [complaint for key in store.keys() for complaint in store.verify(key)] == []
    assert path.parent.name in {kept.name.rpartition("-")[0] for kept in (store.root / "quarantine").iterdir()}


@pytest.mark.slow
def test_damaged_parents_make_no_wrong_child_and_are_made_again(finished: Finished, tmp_path: Path) -> None:
    for number in range(3):
        damaged_while_it_runs(finished, tmp_path, number)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_two_hundred_damaged_parents_make_no_wrong_child(finished: Finished, tmp_path: Path) -> None:
    for number in range(100, 300):
        damaged_while_it_runs(finished, tmp_path, number)


@pytest.mark.slow
def test_a_run_with_nothing_to_do_makes_exactly_the_damaged_again(finished: Finished, tmp_path: Path) -> None:
    store, source = Store.open(finished.copy(tmp_path)), random.Random(0)
    paths = source.sample(data_files(store.root), 20)
    for path in paths:
        harm(path, "a bit", source)
    result = run(store)
    assert result.exit == 0 and result.to_json()["jobs"]["done"] == len({path.parent for path in paths})
    assert digests(result) == digests(finished.result) and numbers(result) == numbers(finished.result)
    assert {kept.name.rpartition("-")[0] for kept in (store.root / "quarantine").iterdir()} == {
        path.parent.name for path in paths
    }
    assert result.report is not None and "cannot be shown" not in result.report.read_text()
    again = run(store)
    assert again.exit == 0 and again.to_json()["jobs"]["done"] == 0


@pytest.mark.slow
def test_a_picture_damaged_after_the_look_is_said_in_the_report(finished: Finished, tmp_path: Path) -> None:
    store = Harmed.open(finished.copy(tmp_path))
    path = next(path for path in data_files(store.root) if path.name == "set.parquet" and "distil" in str(path))
    store.harm = (path, "a bit", random.Random(1))
    result = run(store)
    assert result.exit == 0 and result.report is not None
    assert "cannot be shown" in result.report.read_text() and path.parent.name in result.report.read_text()
    assert run(store).to_json()["jobs"]["done"] == 1


@pytest.mark.slow
def test_a_full_disk_at_the_report_ends_in_3_with_the_results(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("orchestrator.workloads.experiments.write_report", full)
    result = run(Store.open(finished.copy(tmp_path)))
    document = result.to_json()
    assert any("could not be written (No space left" in str(line) for line in result.lines())
    assert document["exit"] == 3 and "report could not be written (No space left" in document["why"]
    assert document["jobs"]["failed"] == 0 and document["report"] is None and document["results"]
