"""One small run and what it leaves; then runs over the same store that meet something unusual."""

from __future__ import annotations

import json
import re
import shutil
import stat
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from jobs.keys import kind_of
from orchestrator.planning.requests import Request, resolve
from orchestrator.runs.status import status
from tests.orchestrator.schedule import before_their_parents, first_rank, overtaken, too_many_at_once
from tests.orchestrator.shell import Ended, Shell, shell_in
from workers.store.store import Store

pytestmark = pytest.mark.timeout(900)

WORDS = ("run", "tiny", "--workers", "2", "--json")
JOBS = 20


@dataclass(frozen=True)
class Ran:
    """A run that ended, with the shell in which it was typed."""

    shell: Shell
    ended: Ended

    @property
    def document(self) -> dict[str, Any]:
        return self.ended.document


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    """The tiny experiment on two workers, run once for all tests that only look."""
    with shell_in(tmp_path_factory.mktemp("ran")) as shell:
        ended = shell.run(*WORDS)
        assert ended.exit == 0, ended.err
        yield Ran(shell, ended)


@pytest.fixture
def copied(ran: Ran, tmp_path: Path) -> Iterator[Shell]:
    """A shell whose store has all that the run left."""
    with shell_in(tmp_path) as shell:
        shutil.copytree(ran.shell.store, shell.store)
        shutil.rmtree(shell.store / "runs")
        yield shell


def events(records: list[dict[str, Any]], event: str) -> list[str]:
    """The keys, or slots, of all records of an event."""
    return [record.get("key") or record.get("slot", "") for record in records if record["event"] == event]


def artifact(shell: Shell, kind: str) -> Path:
    """The folder of the first artifact of a kind."""
    return next(iter(sorted((shell.store / "objects" / kind).iterdir())))


def data_files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.name != "manifest.json"]


def cut(path: Path) -> None:
    """Leave half of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


# The document.


def test_standard_output_holds_one_document_and_nothing_else(ran: Ran) -> None:
    assert ran.ended.out.count("\n") == 1 and ran.ended.out.endswith("}\n")
    assert "Traceback" not in ran.ended.err and "jobs" in ran.ended.err


def test_the_document_has_its_interface(ran: Ran) -> None:
    document = ran.document
    assert {"schema", "run", "exit", "store", "seconds", "workers", "jobs", "results", "artifacts", "failures"} <= set(
        document
    )
    assert (document["schema"], document["exit"], document["workers"]) == (1, 0, 2)
    assert document["store"] == str(ran.shell.store) and 0 < document["seconds"] < ran.ended.seconds
    assert document["jobs"] == {"done": JOBS, "cached": 0, "unneeded": 0, "failed": 0, "skipped": 0}
    assert document["failures"] == []
    assert Path(document["report"]).is_file()
    assert (ran.shell.store / "runs" / document["run"] / "journal.jsonl").is_file()


def test_every_cell_of_the_table_is_a_result_with_its_interface(ran: Ran) -> None:
    results = ran.document["results"]
    fields = (
        "experiment method base_method dataset scale architecture mode ipc_total ipc_per_stage stages stage mean std n "
        "published_mean published_std key"
    ).split()
    assert all(set(fields) <= one.keys() for one in results)
    rows = [(one["method"], one["base_method"], one["mode"], one["ipc_total"], one["stage"]) for one in results]
    assert rows == [
        ("Random", "random", "union", 2, 1),
        ("MTT", "mtt", "progressive", 2, 1),
        ("PDD+MTT", "mtt", "progressive", 1, 1),
        ("PDD+MTT", "mtt", "progressive", 2, 2),
        ("Full data", "full", "full", 0, 0),
    ]
    assert {(one["experiment"], one["dataset"], one["scale"], one["architecture"]) for one in results} == {
        ("tiny", "digits", "tiny", "convnet")
    }
    assert len({one["key"] for one in results}) == len(results)


def test_accuracies_are_percent_and_their_mean_and_spread_are_those_of_the_networks(ran: Ran) -> None:
    manifests = ran.shell.manifests()
    for one in ran.document["results"]:
        measured = [manifests[key].extra["accuracy"] for key in one["jobs"]]
        assert one["n"] == len(measured) == 2 and all(0 <= value <= 100 for value in measured)
        assert one["mean"] == pytest.approx(statistics.fmean(measured))
        assert one["std"] == pytest.approx(statistics.pstdev(measured))
    full = next(one for one in ran.document["results"] if one["method"] == "Full data")
    assert full["mean"] > 15, "chance is 10 percent"


def test_the_artifacts_are_listed_with_the_digests_of_their_manifests(ran: Ran) -> None:
    listed = {one["key"]: one["digest"] for one in ran.document["artifacts"]}
    assert listed == ran.shell.digests() and len(listed) == JOBS
    assert all(one["kind"] == kind_of(one["key"]) for one in ran.document["artifacts"])


def test_every_artifact_is_sound_to_the_last_byte(ran: Ran) -> None:
    store = Store(ran.shell.store)
    assert [complaint for key in store.keys() for complaint in store.verify(key)] == []


def test_nobody_else_can_read_what_the_run_left(ran: Ran) -> None:
    for path in [ran.shell.store, *ran.shell.store.rglob("*")]:
        if "report" not in path.parts:  # a report has the mode that the umask gives it, in a folder that is private
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_no_process_and_no_temporary_file_is_left(ran: Ran) -> None:
    assert ran.shell.left() == []
    assert list((ran.shell.store / "tmp").iterdir()) == []
    assert list((ran.shell.store / "claims").iterdir()) == []
    assert [path for path in (ran.shell.store / "checkpoints").rglob("*") if path.is_file()] == []


def test_the_journal_keeps_the_rules_of_the_order_and_tells_every_job_once(ran: Ran) -> None:
    records = ran.shell.runs()[0]
    plan = resolve(Request(experiments=("tiny",))).plan
    assert sorted(events(records, "job_done")) == sorted(plan.graph.jobs)
    assert before_their_parents(records, {job.key: job.parent_keys() for job in plan.graph}) == []
    assert too_many_at_once(records, plan.exclusive, plan.limits) == []
    assert overtaken(records, plan.exclusive, plan.limits, first_rank(plan, ran.shell.store.parent)) == []
    assert len(events(records, "slot_joined")) == 2
    assert (records[-1]["event"], records[-1]["exit"]) == ("run_ended", 0)


def test_the_status_of_the_run_is_its_end(ran: Ran) -> None:
    found = status(Store(ran.shell.store), ran.document["run"], None)
    assert (found.state, found.exit, found.jobs["done"], found.jobs["blocked"]) == ("ended", 0, JOBS, 0)
    assert found.running == [] and found.failures == []


def test_every_job_left_a_log(ran: Ran) -> None:
    logs = ran.shell.store / "runs" / ran.document["run"] / "logs"
    assert {path.stem for path in logs.iterdir()} == set(ran.shell.digests())


# Again.


def test_a_second_run_does_nothing_starts_no_worker_and_says_the_same(copied: Shell, ran: Ran) -> None:
    before = {path: path.stat().st_mtime_ns for path in (copied.store / "objects").rglob("*")}
    again = copied.run(*WORDS)
    assert again.exit == 0
    assert again.document["jobs"] == {"done": 0, "cached": JOBS, "unneeded": 0, "failed": 0, "skipped": 0}
    assert again.document["results"] == ran.document["results"]
    assert again.document["artifacts"] == ran.document["artifacts"]
    (records,) = copied.runs()
    assert events(records, "slot_joined") == events(records, "job_started") == []
    assert sorted(events(records, "job_cached")) == sorted(copied.digests())
    assert again.document["seconds"] < min(5, ran.document["seconds"])
    assert {path: path.stat().st_mtime_ns for path in (copied.store / "objects").rglob("*")} == before


@pytest.mark.slow
def test_what_was_damaged_is_made_again_the_same_and_the_run_says_so(copied: Shell, ran: Ran) -> None:
    """The dataset is damaged too: it is needed again only because an evaluation is."""
    dataset, full = artifact(copied, "dataset"), artifact(copied, "full")
    for folder in (dataset, full):
        cut(data_files(folder)[0])
    again = copied.run(*WORDS, "--workers", "0")
    assert again.exit == 0, again.err
    assert again.document["jobs"] == {"done": 2, "cached": JOBS - 2, "unneeded": 0, "failed": 0, "skipped": 0}
    assert again.document["artifacts"] == ran.document["artifacts"]
    for folder in (dataset, full):
        assert any(folder.name in line and "damaged" in line for line in again.err.splitlines()), again.err
        (kept,) = (copied.store / "quarantine").glob(f"{folder.name}-*")
        assert "bytes, must be" in (kept / "why.txt").read_text()


# Failures.

DIVERGES = (
    *("run", "tiny", "--workers", "2"),
    *("--set", "distil.settings.step_size_form=linear", "--set", "distil.settings.lr_step_size=1.0e+9"),
)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_failing_job_takes_its_dependants_and_nothing_else_and_only_it_is_tried_again(copied: Shell) -> None:
    """Both first stages diverge; the draws with their evaluations and the full networks are made all the same."""
    objects = copied.store / "objects"
    for folder in (objects / "full", objects / "select", *objects.glob("evaluate/evaluate-convnet-union-*")):
        shutil.rmtree(folder)
    first = copied.run(*DIVERGES, "--json")
    assert first.exit == first.document["exit"] == 3
    jobs = first.document["jobs"]
    # 2 first stages fail; skipped are 2 experts and 1 set of stage 2, and 2 evaluations each of 3 prefixes
    assert (jobs["failed"], jobs["skipped"], jobs["done"]) == (2, 9, 6)
    records = copied.runs()[0]
    assert {kind_of(key) for key in events(records, "job_done")} == {"full", "select", "evaluate"}
    happened = [record["event"] for record in records]
    assert "job_started" in happened[happened.index("job_failed") :]
    for failure in first.document["failures"]:
        assert failure["kind"] == "distil" and failure["reason"] == "diverged"
        assert re.search(r"iteration \d+: .*lower .*lr_step_size", failure["message"]), failure
        assert "Diverged" in Path(failure["log"]).read_text()
        assert failure["key"] in first.err and failure["log"] in first.err
    states = [one["state"] for one in first.document["results"]]
    assert states == ["done", "failed", "failed", "failed", "done"]
    assert not any(key in copied.digests() for key in (one["key"] for one in first.document["failures"]))

    second = copied.run(*DIVERGES, "--workers", "0")
    assert second.exit == 3
    failed = [one["key"] for one in first.document["failures"]]
    assert sorted(events(copied.runs()[1], "job_started")) == sorted(failed)
    assert "FAILED" in second.out and "-m orchestrator.launch run tiny" in second.out
    assert all(key in second.out for key in failed)
    assert "bit for bit: change first what its message names" in " ".join(second.out.split())

    third = copied.run(*DIVERGES, "--workers", "0", "--fail-fast", "--json")
    assert third.exit == 3 and "first failure" in third.document["why"]
    assert len(events(copied.runs()[2], "job_started")) == 1


def test_the_interface_is_valid_json_without_nan(ran: Ran) -> None:
    def refuse(word: str) -> None:
        raise AssertionError(word)

    json.loads(ran.ended.out, parse_constant=refuse)
