"""The rim around the decision core: events in from the pool, actions out to it, everything into the journal.

The driver holds no truth. What is done is what lies in the store; a new driver asks the store and goes on
from there, so this process may be killed at any moment. It decides nothing either: that is
`orchestrator.scheduler.scheduler`.

A run is stopped by a file, `stop` in the run's folder: `cancel` writes it, and so does the driver on
SIGINT, SIGTERM or a first failure under fail-fast. Workers look at it, save a checkpoint and yield; the
driver starts nothing more and ends when all are back. A second signal does not wait for them.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from jobs.graph import Graph
from jobs.keys import kind_of
from orchestrator.runs.journal import Journal, JournalLost
from orchestrator.runs.pool import JobReturned, Message, Pool, PoolEvent, WorkerJoined, WorkerLeft
from orchestrator.scheduler import events
from orchestrator.scheduler.events import Action, AskYield, Event, Finish, Note, Start
from orchestrator.scheduler.schedule import Schedule
from orchestrator.scheduler.scheduler import State, Status, decide

PATIENCE = 1.0
"""Seconds the pool may wait before it lets the driver look at the stop file and the clock."""
SOURCE_PATIENCE = 0.1
"""The same while a plan may grow: a trial that asks for its next stage should not wait for it."""
STOP = "stop"
HEAD_MOVES = "the head job moves; the run goes on by itself"
"""Why a driver stops that will be followed by another one of the same run."""

log = logging.getLogger(__name__)


class KnowsArtifacts(Protocol):
    """The one question the driver asks the store."""

    def has(self, key: str) -> bool:
        """Whether the artifact is there, whole."""


class ScheduleSource(Protocol):
    """Where an open plan grows from while the run goes on."""

    def replanned(self, state: State) -> Schedule | None:
        """The plan to go on with if it is another one now; its jobs are in the run's graph already."""


@dataclass(frozen=True)
class RunInfo:
    """What the journal says about the run's origin."""

    run: str
    command: str = ""
    experiments: tuple[str, ...] = ()
    store: str = ""
    workers: int = 1
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """How a run ended: exit code, reason, last state, seconds."""

    exit: int
    why: str
    state: State
    seconds: float


def run(
    plan: Schedule,
    graph: Graph,
    pool: Pool,
    journal: Journal,
    store: KnowsArtifacts,
    on_change: Callable[[State], None] = lambda state: None,
    *,
    about: RunInfo,
    grace_seconds: float = 30.0,
    schedule_source: ScheduleSource | None = None,
) -> Outcome:
    """Do all that the plan wants; the pool is started and closed here, and not at all when nothing is left to do.

    An open plan is replaced by what `schedule_source` says. `grace_seconds` is what running jobs get to save a
    checkpoint when the run breaks off. SIGINT and SIGTERM are taken over for the time of the run if this is
    the main thread.

    Raises:
        JournalLost: the journal could not be written.
        PoolBroken: no worker could be started.
    """
    stop = StopFile(journal.folder / STOP)
    stop.clear()
    loop = Loop(State.initial(plan), graph, pool, journal, on_change, stop, store, schedule_source)
    finish, grace = Finish(1, "the driver failed"), grace_seconds
    with _signals(stop) as take_over:
        try:
            journal.write("run_began", **_origin(about, graph))
            loop.begin(frozenset(key for key in plan.keys if store.has(key)))
            if loop.state.finished is None:  # else all of it was there, and no worker is needed
                pool.start()
                take_over()  # not before: Ray's start takes SIGTERM for itself
            finish = loop.until_finished()
        except KeyboardInterrupt:
            finish, grace = Finish(130, "interrupted, running jobs were not waited for"), 0.0
        except BaseException as error:
            finish = Finish(1, f"{type(error).__name__}: {error}")
            raise
        finally:
            stop.closing = True
            _end(finish, grace, loop, pool)
    return Outcome(finish.exit, finish.why, loop.state, journal.elapsed())


def _origin(about: RunInfo, graph: Graph) -> dict[str, Any]:
    kinds = Counter(job.kind for job in graph)
    return {**asdict(about), "jobs": dict(kinds), "pid": os.getpid(), "host": socket.gethostname()}


def _end(finish: Finish, grace: float, loop: Loop, pool: Pool) -> None:
    """Write the last record and end the pool, the second even if the first fails."""
    try:
        if Status.RUNNING in {job.status for job in loop.state.jobs.values()}:
            loop.stop.write(finish.why)
        counts = {status.value: count for status, count in loop.state.counts().items()}
        loop.journal.write("run_ended", exit=finish.exit, why=finish.why, counts=counts)
    except (JournalLost, OSError):
        if finish.exit != 1:
            raise
        log.exception("the end of the run is not in the journal")
    finally:
        pool.close(grace)


class Loop:
    """Feeds one run's events to the core and carries out what it says."""

    def __init__(
        self,
        state: State,
        graph: Graph,
        pool: Pool,
        journal: Journal,
        on_change: Callable[[State], None],
        stop: StopFile,
        store: KnowsArtifacts,
        schedule_source: ScheduleSource | None,
    ) -> None:
        self.state, self.graph, self.pool, self.journal = state, graph, pool, journal
        self.on_change, self.stop, self.store, self.schedule_source = on_change, stop, store, schedule_source
        self.hosts: dict[str, str] = {}

    def begin(self, cached: frozenset[str]) -> None:
        """Tell the core what is whole in the store."""
        self.feed(events.Began(self.now(), cached))

    def until_finished(self) -> Finish:
        """Run until the core says how the run ends."""
        while self.state.finished is None:
            self.replan()
            happened = self.pool.events(PATIENCE if self.schedule_source is None else SOURCE_PATIENCE)
            if self.state.stopping is None and (why := self.stop.asked()):
                self.feed(events.StopAsked(self.now(), why))
            for event in happened:
                self.take(event)
            if not happened and self.state.finished is None:
                self.feed(events.Tick(self.now()))
        return self.state.finished

    def replan(self) -> None:
        """Go on with another plan if there is one."""
        if self.schedule_source is None or self.state.stopping is not None:
            return
        plan = self.schedule_source.replanned(self.state)
        if plan is not None:
            new = set(plan.keys) - self.state.jobs.keys()
            self.feed(events.Replanned(self.now(), plan, frozenset(key for key in new if self.store.has(key))))

    def now(self) -> float:
        """Seconds since the run began."""
        return self.journal.elapsed()

    def take(self, event: PoolEvent) -> None:
        """Write down what the pool says, then let the core decide; after the end it is only written down."""
        match event:
            case WorkerJoined(slot, host):
                self.hosts[slot] = host
                self.journal.write("slot_joined", slot=slot, host=host)
                self.feed(events.SlotJoined(self.now(), slot))
            case WorkerLeft(slot, reason, message):
                self.journal.write("slot_left", slot=slot, reason=reason, message=message)
                self.feed(events.SlotLeft(self.now(), slot, reason, message))
            case JobReturned():
                self.answer(event)
            case Message(text):
                self.journal.write("note", text=text)

    def answer(self, answer: JobReturned) -> None:
        """One job is back."""
        key, slot, at = self.state.slots.get(answer.slot) or answer.key, answer.slot, self.now()
        kind = kind_of(key)
        if answer.key not in ("", key):
            text = f"the worker computed {answer.key}: its code differs from the driver's; install one version"
            self.feed(events.JobFailed(at, key, slot, "bug", text, answer.log))
            return
        match answer.status:
            case "done":
                self.journal.write("job_done", key=key, kind=kind, slot=slot, job_seconds=answer.seconds)
                self.feed(events.JobDone(at, key, slot, answer.seconds))
            case "found":
                self.journal.write("job_found", key=key, kind=kind, slot=slot)
                self.feed(events.JobFound(at, key, slot))
            case "busy":
                self.journal.write("job_busy", key=key, slot=slot, retry_after=answer.retry_after)
                self.feed(events.JobBusy(at, key, slot, answer.retry_after))
            case "yielded":
                self.journal.write("job_yielded", key=key, slot=slot)
                self.feed(events.JobYielded(at, key, slot, answer.leaving))
            case "failed":
                reason = answer.reason or "bug"
                message, parent = answer.message, answer.parent
                self.feed(events.JobFailed(at, key, slot, reason, message, answer.log, parent))

    def feed(self, event: Event) -> None:
        """Let the core decide on one event; write down what followed and do it."""
        if self.state.finished:
            return
        before = self.state
        self.state, actions = decide(before, event)
        self.journal.write_all(list(_consequences(before, self.state)))
        for action in actions:
            self.carry_out(action)
        self.on_change(self.state)

    def carry_out(self, action: Action) -> None:
        """Do what the core asks."""
        match action:
            case Start(key, slot, attempt, memory_level):
                self.journal.write(
                    "job_started",
                    key=key,
                    kind=kind_of(key),
                    slot=slot,
                    host=self.hosts.get(slot, ""),
                    attempt=attempt,
                    remaining_path=self.state.plan.remaining_path[key],
                )
                self.pool.submit(self.graph[key].to_json(), slot, attempt, memory_level)
            case AskYield(why):
                self.stop.write(why)
            case Note(text):
                self.journal.write("note", text=text)
            case Finish():
                pass  # the loop sees it in the state


def _consequences(before: State, after: State) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The records of the jobs whose status followed from an event; what the event said is written already."""
    for key, job in after.jobs.items():
        old = before.jobs[key].status if key in before.jobs else Status.BLOCKED
        if job.status is old:
            continue
        match job.status:
            case Status.READY:
                yield "job_ready", {"key": key, "remaining_path": after.plan.remaining_path[key]}
            case Status.RUNNING if old is Status.BLOCKED:  # it was ready for no time at all
                yield "job_ready", {"key": key, "remaining_path": after.plan.remaining_path[key]}
            case Status.CACHED if old is Status.BLOCKED:
                yield "job_cached", {"key": key}
            case Status.UNNEEDED:
                yield "job_unneeded", {"key": key}
            case Status.FAILED:
                failure = {"reason": job.reason, "message": job.because, "log": job.log}
                yield "job_failed", {"key": key, **failure}
            case Status.SKIPPED:
                yield "job_skipped", {"key": key, "because": job.because}


class StopFile:
    """The wish that a run ends, as a file that workers and other shells can see."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.closing = False
        self._signal = ""

    def write(self, why: str) -> None:
        """Ask for the end; the first one to ask is remembered."""
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(why + "\n")

    def clear(self) -> None:
        """Forget the wish that ended an earlier driver of this run."""
        self.path.unlink(missing_ok=True)

    def asked(self) -> str:
        """Why the run shall end; empty when nobody asked."""
        if self._signal:
            return self._signal
        try:
            return self.path.read_text(encoding="utf-8").strip() or "cancelled"
        except OSError:  # not there, or the file system is away for a moment: asked again in a second
            return ""

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """The first signal asks running jobs to yield, the next one breaks off; none disturbs the closing."""
        if self.closing:
            return
        if self._signal:
            raise KeyboardInterrupt
        self._signal = f"stopped by {signal.Signals(number).name}"
        with suppress(OSError):  # then running jobs go on to their end, but nothing new starts
            self.write(self._signal)


@contextmanager
def _signals(stop: StopFile) -> Iterator[Callable[[], None]]:
    """Yields the function that takes SIGINT and SIGTERM over; afterwards both are as they were."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def take_over() -> None:
        for number in before:
            signal.signal(number, stop.on_signal)

    try:
        yield take_over
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
