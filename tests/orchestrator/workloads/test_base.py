from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.results.verdict import verdicts
from orchestrator.workloads.base import RunEnd, RunResult, split_command
from tests.orchestrator.reports.test_verdict_sections import measured_plan
from tests.orchestrator.results.test_cells import demo_plan
from workers.store.store import Store


def end_of(store: Store, code: int = 0) -> RunEnd:
    return RunEnd(
        run="demo-1",
        command="pdd run demo",
        store=store,
        workers=1,
        exit=code,
        why="stopped by you" if code else "",
        seconds=3.0,
        counts={"done": 2},
        failures=(),
    )


def test_the_last_lines_and_the_document_say_the_verdict(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    plan = measured_plan(store)
    result = RunResult(end_of(store), plan, tmp_path / "report.md")
    expected = verdicts(plan, store)
    assert len(expected) == 2
    assert result.to_json()["verdict"] == [verdict.to_json() for verdict in expected]
    *_, report, first, second, following = map(str, result.lines())
    assert report == f"report: {tmp_path / 'report.html'}"
    assert [first, second] == [verdict.sentence for verdict in expected]
    assert following.startswith("take the best set along: pdd export --run ")
    assert following.endswith(f" --store {tmp_path / 'store'}")


def test_paths_below_the_current_folder_are_said_as_they_are_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store.open(tmp_path / "my store")
    *_, report, _, _, following = map(
        str, RunResult(end_of(store), measured_plan(store), tmp_path / "report.md").lines()
    )
    assert report == "report: report.html" and following.endswith(" --store 'my store'")


@pytest.mark.parametrize(
    ("command", "program", "words"),
    [
        (".venv/bin/pdd run tiny --seed 3", ".venv/bin/pdd", ["run", "tiny", "--seed", "3"]),
        ("'/my tools/pdd' run pdd.yaml", "'/my tools/pdd'", ["run", "pdd.yaml"]),
        (".venv/bin/python -m orchestrator.launch", ".venv/bin/python -m orchestrator.launch", []),
        ("python my_script.py", "", []),
        ("it's mine", "", []),
    ],
)
def test_a_command_is_the_program_and_its_words(command: str, program: str, words: list[str]) -> None:
    assert split_command(command) == (program, words)


def test_without_a_base_method_nothing_is_said(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    result = RunResult(end_of(store), demo_plan(), tmp_path / "report.md")
    assert result.to_json()["verdict"] == []
    assert str(list(result.lines())[-1]) == f"report: {tmp_path / 'report.html'}"


def test_how_to_go_on_comes_last_of_all(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    result = RunResult(end_of(store, 130), measured_plan(store), None)
    assert str(list(result.lines())[-1]) == "stopped by you; nothing is lost, go on with: pdd run demo"
