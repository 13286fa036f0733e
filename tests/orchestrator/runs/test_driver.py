from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.graph import Graph
from orchestrator.runs import stop_file
from orchestrator.runs.driver import Outcome, RunInfo, run
from orchestrator.runs.journal import Journal, JournalLost, read
from orchestrator.runs.pool import InProcessPool, JobReturned, Message, PoolBroken, PoolEvent, WorkerJoined, WorkerLeft
from orchestrator.runs.records import Record
from orchestrator.scheduler.job_status import AVAILABLE
from orchestrator.scheduler.schedule import RetryLimits, Schedule
from orchestrator.scheduler.state import State
from tests.orchestrator import fakes
from tests.orchestrator.fakes import FakeStore, graph_of, plan_of
from workers.store.store import Audit

RUN = "r1"


class ScriptedPool:
    """A pool whose events come from a list; each entry is called and returns what happened."""

    def __init__(self, *script: Callable[[ScriptedPool], list[PoolEvent]]) -> None:
        self.script = list(script)
        self.submitted: list[tuple[dict[str, Any], str, int, int]] = []
        self.closed: list[float] = []

    def start(self) -> None:
        pass

    def submit(self, job: dict[str, Any], slot: str, attempt: int, memory_level: int) -> None:
        self.submitted.append((job, slot, attempt, memory_level))

    def events(self, timeout: float) -> list[PoolEvent]:
        return self.script.pop(0)(self)

    def close(self, grace_seconds: float) -> None:
        self.closed.append(grace_seconds)


def folder_of(root: Path) -> Path:
    return root / "runs" / RUN


def drive(root: Path, graph: Graph, pool: Any = None, **fields: Any) -> Outcome:
    """One driver's run over a graph, in this process unless a pool is given."""
    pool = pool or InProcessPool(str(root), RUN, "tests.orchestrator.fakes.execute")
    on_change = fields.pop("on_change", lambda state: None)
    with Journal.open(folder_of(root)) as journal:
        return run(plan_of(graph, **fields), graph, pool, journal, FakeStore(root), on_change, about=RunInfo(RUN))


def story(root: Path) -> list[str]:
    """The journal in short: each event with the key's number or its other tell-tale field."""
    return [record["event"] for record in read(folder_of(root) / "journal.jsonl")]


def records(root: Path, event: str) -> list[Record]:
    return [record for record in read(folder_of(root) / "journal.jsonl") if record["event"] == event]


def test_a_chain_is_run_and_written_down(tmp_path: Path) -> None:
    graph, keys = graph_of([fakes.WORKS] * 2, chained=True)
    outcome = drive(tmp_path, graph)
    assert (outcome.exit, outcome.why) == (0, "2 done, 0 cached")
    assert FakeStore(tmp_path).made() == set(keys)
    assert story(tmp_path) == [
        "run_began",
        "job_ready",
        "work_left",
        "slot_joined",
        "job_started",
        "job_done",
        "job_ready",
        "job_started",
        "job_done",
        "run_ended",
    ]
    assert [record["key"] for record in records(tmp_path, "job_done")] == keys
    assert records(tmp_path, "run_began")[0]["jobs"] == {"select": 2}
    started = records(tmp_path, "job_started")[1]
    assert started.items() >= {"kind": "select", "attempt": 1, "remaining_path": 1.0}.items()
    ended = records(tmp_path, "run_ended")[0]
    assert (ended["exit"], ended["counts"]["done"], ended["counts"]["failed"]) == (0, 2, 0)


def test_a_new_driver_goes_on_from_the_store(tmp_path: Path) -> None:
    graph, keys = graph_of([fakes.WORKS, fakes.WORKS, fakes.WORKS], chained=True)
    (tmp_path / f"{keys[0]}.made").touch()
    outcome = drive(tmp_path, graph)
    assert outcome.exit == 0
    assert [record["key"] for record in records(tmp_path, "job_cached")] == keys[:1]
    assert FakeStore(tmp_path).starts(keys[0]) == []
    assert drive(tmp_path, graph).why == "0 done, 3 cached"
    assert [record["event"] for record in read(folder_of(tmp_path) / "journal.jsonl")].count("run_ended") == 2


def test_a_failure_is_told_with_its_log_and_the_siblings_go_on(tmp_path: Path) -> None:
    graph, keys = graph_of([fakes.FAILS, fakes.WORKS], chained=True)
    other, _ = graph_of([fakes.RAISES, fakes.WORKS])
    for job in other:
        graph.add(job.spec, job.parents)
    outcome = drive(tmp_path, graph)
    assert outcome.exit == 3
    diverged, bug = records(tmp_path, "job_failed")
    assert diverged.items() >= {"key": keys[0], "reason": "diverged", "log": "x.log"}.items()
    assert diverged["message"] == "NaN at iteration 3"
    assert bug["reason"] == "bug" and "execute broke its promise" in bug["message"]
    assert [record["because"] for record in records(tmp_path, "job_skipped")] == keys[:1]
    assert len(FakeStore(tmp_path).made()) == 1


def test_a_busy_job_is_tried_again(tmp_path: Path) -> None:
    graph, keys = graph_of([fakes.BUSY_ONCE])
    assert drive(tmp_path, graph).exit == 0
    assert len(FakeStore(tmp_path).starts(keys[0])) == 2
    assert [record["retry_after"] for record in records(tmp_path, "job_busy")] == [0.1]


def test_fail_fast_writes_the_stop_file_and_ends_with_3(tmp_path: Path) -> None:
    graph, _ = graph_of([fakes.FAILS, fakes.WORKS])
    outcome = drive(tmp_path, graph, retry_limits=RetryLimits(keep_going=False))
    assert outcome.exit == 3
    assert (folder_of(tmp_path) / "stop").exists()
    assert FakeStore(tmp_path).made() == set()


def test_a_stop_file_ends_the_run_and_an_old_one_does_not(tmp_path: Path) -> None:
    graph, keys = graph_of([fakes.WORKS] * 3, chained=True)

    def cancel(state: State) -> None:
        if FakeStore(tmp_path).made():
            (folder_of(tmp_path) / "stop").write_text("")

    outcome = drive(tmp_path, graph, on_change=cancel)
    assert (outcome.exit, outcome.why) == (130, "cancelled")
    made = FakeStore(tmp_path).made()
    assert made < set(keys)
    assert drive(tmp_path, graph).exit == 0
    assert FakeStore(tmp_path).made() == set(keys)


def test_one_signal_lets_the_running_job_yield(tmp_path: Path) -> None:
    graph, _ = graph_of([fakes.WAITS_FOR_STOP, fakes.WORKS], chained=True)
    before = signal.getsignal(signal.SIGINT)

    def signal_the_job() -> None:
        while not list(tmp_path.glob("*.started")):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=signal_the_job, daemon=True)
    thread.start()
    outcome = drive(tmp_path, graph)
    thread.join()
    assert (outcome.exit, outcome.why) == (130, "stopped by SIGTERM")
    assert story(tmp_path)[-2:] == ["job_ready", "run_ended"]
    assert "job_yielded" in story(tmp_path)
    assert (folder_of(tmp_path) / "stop").read_text() == "stopped by SIGTERM\n"
    assert signal.getsignal(signal.SIGINT) is before


def test_a_signal_sent_twice_at_once_is_one_request(tmp_path: Path) -> None:
    def two_signals(pool: ScriptedPool) -> list[PoolEvent]:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        return [JobReturned("w", "yielded", keys[0])]

    graph, keys = graph_of([fakes.WORKS])
    outcome = drive(tmp_path, graph, ScriptedPool(lambda pool: [WorkerJoined("w", "h")], two_signals))
    assert (outcome.exit, outcome.why) == (130, "stopped by SIGTERM")


def test_the_alarm_of_rays_own_handler_is_called_off(tmp_path: Path) -> None:
    with stop_file.signals_to(lambda number: None):
        before = signal.signal(signal.SIGALRM, signal.SIG_IGN)
        signal.alarm(3)
        os.kill(os.getpid(), signal.SIGTERM)
        assert signal.alarm(0) == 0
        signal.signal(signal.SIGALRM, before)


def test_a_signal_that_all_processes_get_stops_the_run_even_if_it_breaks_the_pool(tmp_path: Path) -> None:
    def everybody_is_hit(pool: ScriptedPool) -> list[PoolEvent]:
        os.kill(os.getpid(), signal.SIGTERM)
        raise PoolBroken("the GCS is gone")

    graph, _ = graph_of([fakes.WORKS])
    outcome = drive(tmp_path, graph, ScriptedPool(lambda pool: [WorkerJoined("w", "h")], everybody_is_hit))
    assert (outcome.exit, outcome.why) == (130, "stopped by SIGTERM")


def test_a_signal_while_the_pool_starts_ends_the_run_at_once(tmp_path: Path) -> None:
    class SlowPool(ScriptedPool):
        def start(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            raise AssertionError("the signal should have broken off")

    graph, _ = graph_of([fakes.WORKS])
    pool = SlowPool()
    with stop_file.signals_to(stop_file.interrupt):
        assert drive(tmp_path, graph, pool).exit == 130
    assert pool.closed == [0.0] and story(tmp_path)[-1] == "run_ended"


def test_a_second_signal_does_not_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def two_signals(pool: ScriptedPool) -> list[PoolEvent]:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # at once: `timeout` sends its own twice
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the second one should have broken off")

    monkeypatch.setattr(stop_file, "ONE_REQUEST_SECONDS", 0.05)
    graph, _ = graph_of([fakes.WORKS])
    pool = ScriptedPool(lambda pool: [WorkerJoined("w", "h")], two_signals)
    outcome = drive(tmp_path, graph, pool)
    assert outcome.exit == 130
    assert pool.closed == [0.0]
    assert story(tmp_path)[-1] == "run_ended"


def test_signals_wait_until_the_pool_is_closed(tmp_path: Path) -> None:
    class InterruptedPool(ScriptedPool):
        def close(self, grace_seconds: float) -> None:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
            super().close(grace_seconds)

    graph, keys = graph_of([fakes.WORKS])
    pool = InterruptedPool(lambda pool: [WorkerJoined("w", "h")], lambda pool: [JobReturned("w", "done", keys[0])])
    with pytest.raises(KeyboardInterrupt):
        drive(tmp_path, graph, pool)
    assert pool.closed == [30.0] and records(tmp_path, "run_ended")[-1]["exit"] == 0


def test_workers_come_and_go_in_the_journal(tmp_path: Path) -> None:
    graph, keys = graph_of([fakes.WORKS])
    pool = ScriptedPool(
        lambda pool: [Message("one node is slow"), WorkerJoined("w", "h")],
        lambda pool: [WorkerLeft("w", "lost", "its node is gone"), WorkerJoined("v", "g")],
        lambda pool: [JobReturned("v", "done", keys[0], 2.0)],
    )
    assert drive(tmp_path, graph, pool).exit == 0
    assert [entry[1:] for entry in pool.submitted] == [("w", 1, 0), ("v", 2, 0)]
    assert [record["host"] for record in records(tmp_path, "job_started")] == ["h", "g"]
    assert records(tmp_path, "slot_left")[0]["message"] == "its node is gone"
    assert records(tmp_path, "note")[0]["text"] == "one node is slow"
    assert pool.closed == [30.0]


def test_what_one_look_at_the_pool_brought_is_written_in_one_go_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, keys = graph_of([fakes.WORKS] * 3)
    writes: list[tuple[int, int]] = []
    append = Journal.append

    def counted(journal: Journal, entries: Any) -> None:
        writes.append((len(entries), len(pool.submitted)))
        append(journal, entries)

    pool = ScriptedPool(
        lambda pool: [WorkerJoined("w", "h"), WorkerJoined("v", "h")],
        lambda pool: [JobReturned("w", "done", keys[0]), JobReturned("v", "done", keys[1])],
        lambda pool: [JobReturned("w", "done", keys[2])],
    )
    monkeypatch.setattr(Journal, "append", counted)
    assert drive(tmp_path, graph, pool).exit == 0
    assert writes == [(1, 0), (4, 0), (4, 0), (3, 2), (1, 3), (1, 3)]


class TimedPool(ScriptedPool):
    """A scripted pool in which time goes by: so many seconds before each look, or all that it may wait."""

    def __init__(self, *script: tuple[float, PoolEvent] | None) -> None:
        super().__init__()
        self.happens, self.now, self.waited = list(script), 0.0, list[float]()

    def events(self, timeout: float) -> list[PoolEvent]:
        self.waited.append(timeout)
        if (next_one := self.happens.pop(0)) is None:
            self.now += timeout
            return []
        self.now += next_one[0]
        return [next_one[1]]


def test_the_disk_is_waited_for_once_for_all_that_a_twentieth_of_a_second_brings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, keys = graph_of([fakes.WORKS] * 3)
    returned = [JobReturned("w", "done", key) for key in keys]
    pool = TimedPool((0.5, WorkerJoined("w", "h")), (0.02, returned[0]), (0.02, returned[1]), None, (3.0, returned[2]))
    synced, fsync = list[tuple[float, int]](), os.fsync

    def sync(descriptor: int) -> None:
        synced.append((round(pool.now, 3), len(pool.submitted)))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", sync)
    with Journal.open(folder_of(tmp_path), clock=lambda: pool.now) as journal:
        assert run(plan_of(graph), graph, pool, journal, FakeStore(tmp_path), about=RunInfo(RUN)).exit == 0
    assert synced[-2:] == [(0.55, 3), (3.55, 3)]
    assert all(seconds == 0 for seconds, _ in synced[:-2])
    assert pool.waited == pytest.approx([1.0, 0.05, 0.03, 0.01, 1.0])


def test_a_job_whose_slot_left_in_the_same_turn_is_not_sent_there(tmp_path: Path) -> None:
    graph, keys = graph_of([fakes.WORKS] * 2)
    pool = ScriptedPool(
        lambda pool: [WorkerJoined("w", "h")],
        lambda pool: [JobReturned("w", "done", keys[0]), WorkerLeft("w", "lost", "gone")],
        lambda pool: [WorkerJoined("v", "h")],
        lambda pool: [JobReturned("v", "done", keys[1])],
    )
    assert drive(tmp_path, graph, pool).exit == 0
    assert [(slot, attempt) for _, slot, attempt, _ in pool.submitted] == [("w", 1), ("v", 2)]
    assert [record["slot"] for record in records(tmp_path, "job_started")] == ["w", "w", "v"]


def test_a_worker_with_other_code_is_noticed_by_the_key_it_computes(tmp_path: Path) -> None:
    graph, keys = graph_of([fakes.WORKS])
    pool = ScriptedPool(
        lambda pool: [WorkerJoined("w", "h")], lambda pool: [JobReturned("w", "done", "select-other-0123")]
    )
    assert drive(tmp_path, graph, pool).exit == 3
    assert "its code differs" in records(tmp_path, "job_failed")[0]["message"]


def test_a_crash_of_the_driver_itself_is_in_the_journal_and_closes_the_pool(tmp_path: Path) -> None:
    graph, keys = graph_of([fakes.WORKS])
    pool = ScriptedPool(lambda pool: [WorkerJoined("w", "h")], lambda pool: [WorkerLeft("never joined", "lost")])
    with pytest.raises(Exception, match="left without having joined"):
        drive(tmp_path, graph, pool)
    ended = records(tmp_path, "run_ended")[0]
    assert ended["exit"] == 1 and "never joined" in ended["why"]
    assert pool.closed == [30.0]
    assert (folder_of(tmp_path) / "stop").exists()  # a job was running: it should yield


def test_a_journal_that_cannot_be_written_fails_the_run_loudly(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    graph, _ = graph_of([fakes.WORKS])
    pool = ScriptedPool(lambda pool: [WorkerJoined("w", "h")])
    with Journal.open(folder_of(tmp_path)) as journal:

        def break_it(state: State) -> None:
            full = os.open("/dev/full", os.O_WRONLY)
            os.dup2(full, journal._descriptor)
            os.close(full)

        with pytest.raises(JournalLost):
            run(
                plan_of(graph),
                graph,
                pool,
                journal,
                FakeStore(tmp_path),
                break_it,
                about=RunInfo(RUN),
            )
    assert pool.closed == [30.0]
    assert pool.submitted == []
    assert not [record for record in caplog.records if record.levelname == "ERROR"], "the exception says it all"


def test_a_driver_outside_the_main_thread_leaves_signals_alone(tmp_path: Path) -> None:
    graph, _ = graph_of([fakes.WORKS])
    outcomes: list[Outcome] = []
    thread = threading.Thread(target=lambda: outcomes.append(drive(tmp_path, graph)))
    thread.start()
    thread.join()
    assert outcomes[0].exit == 0


def test_a_pool_names_a_function_that_is_not_there_at_the_start(tmp_path: Path) -> None:
    graph, _ = graph_of([fakes.WORKS])
    pool = InProcessPool(str(tmp_path), RUN, "tests.orchestrator.fakes.nothing")
    with pytest.raises(ImportError, match="has no nothing"):
        drive(tmp_path, graph, pool)


class Growing:
    """Wants one more job whenever the last one is whole, and closes the plan after the last."""

    def __init__(self, plan: Schedule, keys: list[str]) -> None:
        self.plan, self.keys = plan, keys

    def replanned(self, state: State) -> Schedule | None:
        if any(state.jobs[key].status not in AVAILABLE for key in self.plan.wanted):
            return None
        wanted = self.plan.wanted | set(self.keys[:1])
        self.plan = replace(self.plan, wanted=wanted, open=bool(self.keys[1:]))
        self.keys = self.keys[1:]
        return self.plan


def test_a_plan_grows_while_the_run_goes_on(tmp_path: Path) -> None:
    graph, keys = graph_of([fakes.WORKS] * 4, chained=True)
    plan = replace(plan_of(graph), wanted=frozenset(), open=True)
    pool = InProcessPool(str(tmp_path), RUN, "tests.orchestrator.fakes.execute")
    with Journal.open(folder_of(tmp_path)) as journal:
        outcome = run(
            plan,
            graph,
            pool,
            journal,
            FakeStore(tmp_path),
            about=RunInfo(RUN),
            schedule_source=Growing(plan, [keys[0], keys[2]]),
        )
    assert (outcome.exit, outcome.why) == (0, "3 done, 0 cached")
    assert FakeStore(tmp_path).made() == set(keys[:3])
    assert [record["key"] for record in records(tmp_path, "job_unneeded")] == keys


def test_jobs_that_join_the_plan_may_be_whole_already(tmp_path: Path) -> None:
    graph, keys = graph_of([fakes.WORKS] * 2, chained=True)
    (tmp_path / f"{keys[0]}.made").touch()
    empty = replace(plan_of(Graph()), open=True)
    schedule_source = Growing(replace(plan_of(graph), wanted=frozenset(), open=True), [keys[1]])
    pool = InProcessPool(str(tmp_path), RUN, "tests.orchestrator.fakes.execute")
    with Journal.open(folder_of(tmp_path)) as journal:
        outcome = run(
            empty, graph, pool, journal, FakeStore(tmp_path), about=RunInfo(RUN), schedule_source=schedule_source
        )
    assert (outcome.exit, outcome.why) == (0, "1 done, 1 cached")
    assert [record["key"] for record in records(tmp_path, "job_cached")] == keys[:1]


def test_what_was_there_and_is_lost_is_made_again_even_if_nothing_needs_it(tmp_path: Path) -> None:
    class Audited(FakeStore):
        def audit(self, keys: Collection[str]) -> Audit:
            return Audit(super().audit(keys).sound, {lost: "a bit flipped"})

    graph, (lost, kept) = graph_of([fakes.WORKS] * 2, chained=True)
    (tmp_path / f"{kept}.made").touch()
    pool = InProcessPool(str(tmp_path), RUN, "tests.orchestrator.fakes.execute")
    with Journal.open(folder_of(tmp_path)) as journal:
        schedule = replace(plan_of(graph), wanted=frozenset([kept]))
        outcome = run(schedule, graph, pool, journal, Audited(tmp_path), about=RunInfo(RUN))
    assert (outcome.exit, outcome.why) == (0, "1 done, 1 cached")
    assert FakeStore(tmp_path).starts(kept) == [] and len(FakeStore(tmp_path).starts(lost)) == 1
    assert records(tmp_path, "note")[0]["text"] == f"{lost} is made again: a bit flipped"
