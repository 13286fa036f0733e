from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.errors import BadInput
from orchestrator.runs import status as standing
from orchestrator.runs.journal import NAME, Journal
from orchestrator.runs.records import RECORDS, Record
from orchestrator.runs.status import RunStatus, chosen_run, from_records, log_of, runs
from workers.store.claims import Claim, Claims
from workers.store.store import Store

ORIGIN: dict[str, Any] = {
    "run": "r", "command": "pdd run tiny", "experiments": ["tiny"], "store": "s", "workers": 2, "versions": {},
    "pid": 1, "host": "box",
}  # fmt: skip
FIELDS: dict[str, Any] = {
    "slot": "s1", "host": "box", "attempt": 1, "remaining_path": 1.0, "retry_after": 2.0, "job_seconds": 1.0,
    "reason": "bug", "message": "it broke", "log": "a.log", "because": "full-1", "text": "",
}  # fmt: skip


def began(**jobs: int) -> Record:
    return {"event": "run_began", "seconds": 0.0, "jobs": jobs, **ORIGIN}


def told(event: str, key: str, **fields: Any) -> Record:
    record = {"event": event, "seconds": 1.0, "key": key, "kind": key.split("-")[0]} | FIELDS | fields
    assert set(RECORDS[event]) <= record.keys()
    return record


def ended(code: int, why: str) -> Record:
    return {"event": "run_ended", "seconds": 9.0, "exit": code, "why": why, "counts": {}}


def claim(key: str, **fields: Any) -> Claim:
    plain: dict[str, Any] = {
        "run": "r", "owner": "o", "host": "node1", "pid": 7, "process_start": "", "claimed_at": 100.0, "beat_at": 101.0,
        "done": 0.256789, "note": "epoch 3",
    }  # fmt: skip
    return Claim(key=key, **plain | fields)


def seen(*records: Record, claims: tuple[Claim, ...] = (), now: float = 0.0, lives: bool = True) -> RunStatus:
    return from_records("r", records, claims, now, lives)


def counts(found: RunStatus) -> dict[str, int]:
    return {name: count for name, count in found.jobs.items() if count}


def test_each_job_is_counted_where_its_last_record_puts_it() -> None:
    found = seen(
        began(full=9),
        told("job_cached", "full-1"), told("job_unneeded", "full-2"), told("job_ready", "full-3"),
        told("job_started", "full-4"),
        told("job_started", "full-5"), told("job_done", "full-5"),
        told("job_started", "full-6"), told("job_found", "full-6"),
        told("job_started", "full-7"), told("job_failed", "full-7"),
        told("job_skipped", "full-8", because="full-7"),
    )  # fmt: skip
    assert counts(found) == {
        "cached": 2,
        "unneeded": 1,
        "ready": 1,
        "running": 1,
        "done": 1,
        "failed": 1,
        "skipped": 1,
        "blocked": 1,
    }
    assert sum(found.jobs.values()) == 9


@pytest.mark.parametrize("event", ["job_busy", "job_yielded", "job_ready"])
def test_a_job_that_came_back_is_ready(event: str) -> None:
    assert counts(seen(began(full=1), told("job_started", "full-1"), told(event, "full-1"))) == {"ready": 1}


def test_a_running_job_is_described_by_its_claim() -> None:
    found = seen(began(full=2), told("job_started", "full-1"), claims=(claim("full-1"), claim("full-9")), now=112.34)
    assert found.running == [
        {"key": "full-1", "kind": "full", "host": "node1", "seconds": 12.3, "progress": 0.257, "note": "epoch 3",
         "silent_seconds": 11.3}
    ]  # fmt: skip


def test_a_job_that_gives_no_sign_of_life_is_said_to_be_silent() -> None:
    for now, words in ((130.0, "epoch 3 (30 s)"), (176.0, "epoch 3 (76 s, silent for 75 s)")):
        found = seen(began(full=1), told("job_started", "full-1"), claims=(claim("full-1"),), now=now)
        assert any(str(line).endswith(words) for line in found.lines()), list(found.lines())


def test_a_running_job_without_a_claim_is_there_all_the_same() -> None:
    (job,) = seen(began(full=1), told("job_started", "full-1"), now=50.0).running
    assert (job["key"], job["host"], job["seconds"], job["progress"]) == ("full-1", "", 0.0, 0.0)


def test_the_end_is_told_with_its_reason_and_nothing_runs_or_waits_any_more() -> None:
    found = seen(began(full=1), told("job_started", "full-1"), ended(130, "cancelled"), claims=(claim("full-1"),))
    assert (found.state, found.exit, found.why) == ("ended", 130, "cancelled")
    assert found.running == [] and found.eta_seconds is None


def test_a_driver_that_is_gone_without_a_word_is_told_with_the_mend() -> None:
    found = seen(began(full=1), lives=False)
    assert (found.state, found.exit) == ("dead", None) and "same command again" in found.why
    assert found.command == "pdd run tiny"


def test_only_the_last_driver_of_a_run_counts() -> None:
    first = (began(full=2), told("job_started", "full-1"), told("job_failed", "full-1"), ended(3, "1 failed"))
    found = seen(*first, began(full=2), told("job_cached", "full-2"))
    assert (found.state, found.exit, found.failures) == ("running", None, [])
    assert counts(found) == {"cached": 1, "blocked": 1}


def test_failures_come_with_reason_message_and_log() -> None:
    found = seen(began(full=1), told("job_failed", "full-1", reason="diverged", message="NaN", log="x.log"))
    assert found.failures == [{"key": "full-1", "kind": "full", "reason": "diverged", "message": "NaN", "log": "x.log"}]


def test_what_is_left_of_a_journal_of_an_earlier_version_is_the_longest_path_of_the_open_jobs() -> None:
    records = [
        began(full=4), told("slot_joined", "full-1"),
        told("job_ready", "full-1", remaining_path=90.0), told("job_ready", "full-2", remaining_path=40.04),
        told("job_started", "full-1"), told("job_done", "full-1"), told("job_started", "full-2"),
    ]  # fmt: skip
    assert seen(*records).eta_seconds == 40.0
    assert seen(*records, told("job_done", "full-2")).eta_seconds == 0.0


def test_what_is_left_learns_from_the_jobs_that_are_done_and_counts_those_that_wait() -> None:
    """Four jobs of 10 s on one worker, of which two took 30 s: a minute is left, and less when one is half done."""
    records = [
        began(full=4), told("slot_joined", "full-1", seconds=0.0), told("work_left", "full-1", by_kind={"full": 40.0}),
        *(told("job_ready", f"full-{number}", remaining_path=10.0) for number in range(4)),
    ]  # fmt: skip
    assert seen(*records).eta_seconds == 40.0
    beside = (told("slot_joined", "full-9", cpu_only=True, slot="core"), told("slot_left", "full-9", slot="core"))
    assert seen(*records, *beside[:1]).eta_seconds == seen(*records, *beside).eta_seconds == 40.0
    for number in range(3):
        at = {"seconds": 30.0 * number, "expected_seconds": 10.0}
        records += [told("job_started", f"full-{number}", **at)]
        records += [told("job_done", f"full-{number}", seconds=30.0 * number + 30.0)] if number < 2 else []
    left = seen(*records).eta_seconds
    assert left == 60.0
    half = seen(*records, claims=(claim("full-2", done=0.5),), now=115.0).eta_seconds
    assert half is not None and half < left
    assert any("left" in str(line) for line in seen(*records).lines())


def test_of_a_run_without_workers_or_whose_driver_is_gone_no_time_is_told() -> None:
    records = (began(full=1), told("job_ready", "full-1"))
    assert seen(*records).eta_seconds is None
    assert seen(*records, told("slot_joined", "full-1"), lives=False).eta_seconds is None


def test_an_empty_journal_is_a_run_of_which_nothing_is_known() -> None:
    found = seen(lives=False)
    assert (found.state, found.jobs["blocked"], found.eta_seconds) == ("dead", 0, None)


def test_the_document_has_its_interface() -> None:
    document = seen(began(full=1), told("job_started", "full-1"), claims=(claim("full-1"),)).to_json()
    assert json.loads(json.dumps(document)) == document and document["schema"] == 1
    assert {"run", "state", "jobs", "running", "eta_seconds"} <= document.keys()
    assert list(document["jobs"]) == ["blocked", "ready", "running", "done", "cached", "unneeded", "failed", "skipped"]
    assert {"key", "kind", "host", "seconds", "progress"} <= document["running"][0].keys()


# Against a store.


def begin(store: Store, run: str, **origin: Any) -> None:
    with Journal.open(store.run_folder(run)) as journal:
        journal.write("run_began", **ORIGIN | {"run": run, "jobs": {"full": 1}} | origin)


def test_the_latest_run_is_chosen_unless_one_is_named(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    for number, run in enumerate(("b", "a", "c")):
        begin(store, run)
        os.utime(store.run_folder(run) / NAME, (number, number))
    store.run_folder("no-journal").mkdir()
    assert runs(store) == ["b", "a", "c"]
    assert (chosen_run(store, None), chosen_run(store, "a")) == ("c", "a")


def test_an_unknown_run_and_a_store_without_runs_are_refused(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    with pytest.raises(BadInput, match="no runs yet"):
        chosen_run(store, None)
    begin(store, "a")
    with pytest.raises(BadInput, match="must be one of a") as caught:
        chosen_run(store, "x")
    assert caught.value.value == "x"


@pytest.mark.parametrize(
    ("origin", "state"),
    [
        ({"pid": os.getpid(), "host": socket.gethostname()}, "running"),
        ({"pid": 1, "host": socket.gethostname()}, "running"),
        ({"pid": 1, "host": "another-host"}, "running"),
    ],
)
def test_a_driver_lives_if_its_process_does_or_cannot_be_seen(
    tmp_path: Path, origin: dict[str, Any], state: str
) -> None:
    store = Store.open(tmp_path)
    begin(store, "a", **origin)
    assert standing.status(store, "a", None).state == state


def test_a_driver_whose_process_is_gone_is_dead(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    begin(store, "a", pid=gone.pid, host=socket.gethostname())
    assert standing.status(store, "a", None).state == "dead"


def test_the_claims_of_the_store_are_asked(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    begin(store, "a", pid=os.getpid(), host=socket.gethostname())
    with Journal.open(store.run_folder("a")) as journal:
        journal.write("job_started", **{"key": "full-1", "kind": "full", **FIELDS})
    held = Claims(store.root).take("full-1", "a")
    assert held is not None
    with held:
        held.beat(0.5, "half", force=True)
        (job,) = standing.status(store, "a", None).running
    assert (job["progress"], job["note"], job["host"]) == (0.5, "half", socket.gethostname())
    assert 0 <= job["seconds"] < time.monotonic()


def test_a_log_is_found_by_a_part_of_its_key_and_the_latest_without(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    folder = store.run_folder("a") / "logs"
    folder.mkdir(parents=True)
    for number, key in enumerate(("full-2", "full-1", "distil-1")):
        (folder / f"{key}.log").write_text(key)
        os.utime(folder / f"{key}.log", (number, number))
    assert log_of(store, "a", None).stem == "distil-1"
    assert log_of(store, "a", "full").stem == "full-1"
    assert log_of(store, "a", "full-2").stem == "full-2"
    with pytest.raises(BadInput, match="the latest logs: full-2, full-1, distil-1"):
        log_of(store, "a", "select")
    with Journal.open(store.run_folder("b")) as journal:
        journal.write("job_cached", key="full-1")
    with pytest.raises(BadInput, match="that is a run: --run b; no log of such a job"):
        log_of(store, "a", "b")
    with Journal.open(store.run_folder("a")) as journal:
        journal.write("job_started", **{"key": "full-1", "kind": "full", **FIELDS})
    nothing = "job is 'any': none of its jobs has run, so none has a log; a run that has one: --run a"
    with pytest.raises(BadInput, match=nothing):
        log_of(store, "b", None)
    with pytest.raises(BadInput, match="job is 'full': none of its jobs has run.*--run a"):
        log_of(store, "b", "full")


def test_a_pipe_or_a_link_to_nothing_is_no_log(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    folder = store.run_folder("a") / "logs"
    folder.mkdir(parents=True)
    os.mkfifo(folder / "full-1.log")
    (folder / "full-2.log").symlink_to("nowhere")
    with pytest.raises(BadInput, match="none has a log$"):
        log_of(store, "a", "full")


def test_a_run_without_logs_says_so(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="none"):
        log_of(Store.open(tmp_path), "a", None)


@dataclass
class Queue:
    """A queue in which the head job has a state, is gone (""), or of which nothing is known (None)."""

    head_state: str | None

    def head(self) -> list[SimpleNamespace] | None:
        if self.head_state is None:
            return None
        return [SimpleNamespace(state=self.head_state)] if self.head_state else []

    def sentences(self) -> list[str]:
        return ["head 41 pending"]

    def last_word(self) -> str:
        return "out of memory"


@pytest.mark.parametrize(
    ("head", "state"), [("PENDING", "queued"), ("RUNNING", "running"), ("", "dead"), (None, "running")]
)
def test_a_run_in_a_queue_stands_as_its_head_job_does(tmp_path: Path, head: str | None, state: str) -> None:
    store = Store.open(tmp_path)
    with Journal.open(store.run_folder("a")) as book:
        book.write("submitted", run="a", command="pdd", experiments=[], jobs={}, cluster="slurm")
    found = standing.status(store, "a", Queue(head))
    assert (found.state, found.slurm) == (state, ["head 41 pending"])
    assert ("the head ended: out of memory" in found.why) == (state == "dead")
