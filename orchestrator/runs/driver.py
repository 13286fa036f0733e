"""The driver: feeds events of the pool to the scheduler, carries out its actions, and writes the journal.

The driver holds no truth. What is done is what lies in the store; a new driver asks the store and goes on
from there, so this process may be killed at any moment. It decides nothing either: that is
`orchestrator.scheduler.scheduler`. All that one look at the pool brought is written to the journal in one go, before
anything is acted on; the disk is waited for afterwards, while the workers work. How a run is stopped is in
`orchestrator.runs.stop_file`; a second signal does not wait for running jobs.
"""

from __future__ import annotations

import logging
import os
import socket
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

from jobs.graph import Graph
from jobs.keys import kind_of
from orchestrator.runs.journal import Journal, JournalLost
from orchestrator.runs.pool import JobReturned, Message, Pool, PoolBroken, PoolEvent, WorkerJoined, WorkerLeft
from orchestrator.runs.stop_file import STOP, StopFile, signals_held, signals_to
from orchestrator.scheduler import events
from orchestrator.scheduler.events import Action, AskYield, Event, Finish, Note, Start
from orchestrator.scheduler.job_status import UNFINISHED, Change, Status
from orchestrator.scheduler.schedule import Schedule
from orchestrator.scheduler.scheduler import Scheduler
from orchestrator.scheduler.state import State
from workers.store.store import Audit

PATIENCE = 1.0
"""Seconds the pool may wait before it lets the driver look at the stop file and the clock."""
SOURCE_PATIENCE = 0.1
"""The same while a schedule may grow: a trial that asks for its next stage should not wait for it."""
HEAD_MOVES = "the head job moves; the run goes on by itself"
"""Why a driver stops that will be followed by another one of the same run."""

Entry = tuple[str, Mapping[str, Any]]
"""An event's name and its fields, as the journal takes them."""

log = logging.getLogger(__name__)


class KnowsArtifacts(Protocol):
    """The one question the driver asks the store."""

    def audit(self, keys: Collection[str]) -> Audit:
        """Which of these artifacts are there and sound, and why others that were there are so no longer."""


class ScheduleSource(Protocol):
    """Where an open schedule grows from while the run goes on."""

    def replanned(self, state: State) -> Schedule | None:
        """The schedule to go on with if it is another one now; its jobs are in the run's graph already."""


@dataclass(frozen=True)
class RunInfo:
    """The run's origin, for the journal."""

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
    schedule: Schedule,
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
    """Do all that the schedule wants; the pool is started and closed here, and not at all when nothing is to do.

    What was in the store and turns out to be damaged, or made from other bytes than its parents have now, is made
    again, even if nothing else needs it.

    Args:
        schedule: the jobs, targets and limits.
        graph: the jobs themselves.
        pool: where they run.
        journal: where all that happens is written.
        store: says which artifacts are there.
        on_change: called after every event with the state, which goes on changing afterwards.
        about: the run's origin, for the journal.
        grace_seconds: what running jobs get to save a checkpoint when the run breaks off.
        schedule_source: what an open schedule is replaced by.

    Returns:
        How it ended.

    Raises:
        JournalLost: the journal could not be written.
        PoolBroken: no worker could be started.
        KeyboardInterrupt: SIGINT or SIGTERM came while the pool was closed.
    """
    stop = StopFile(journal.folder / STOP)
    stop.clear()
    audit = store.audit(schedule.keys)
    schedule = replace(schedule, wanted=schedule.wanted | audit.lost.keys())
    loop = Loop(schedule, graph, pool, journal, on_change, stop, store, schedule_source)
    finish, grace = Finish(1, "the driver failed"), grace_seconds
    try:
        journal.write("run_began", **_origin(about, graph))
        for key, why in audit.lost.items():
            journal.write("note", text=f"{key} is made again: {why}")
        loop.begin(audit.sound)
        if loop.scheduler.finished is None:  # else all of it was there, and no worker is needed
            pool.start()
        with signals_to(stop.on_signal):
            finish = loop.until_finished()
    except KeyboardInterrupt:
        finish, grace = Finish(130, "interrupted, running jobs were not waited for"), 0.0
    except PoolBroken as error:  # also by the signal that asked the run to stop, if all of its processes got it
        why = stop.asked()
        finish = Finish(130, why) if why else Finish(1, f"PoolBroken: {error}")
        if not why:
            raise
    except BaseException as error:
        finish = Finish(1, f"{type(error).__name__}: {error}")
        raise
    finally:
        with signals_held():
            _end(finish, grace, loop, pool)
    return Outcome(finish.exit, finish.why, loop.scheduler.state(), journal.elapsed())


def _origin(about: RunInfo, graph: Graph) -> dict[str, Any]:
    kinds = Counter(job.kind for job in graph)
    return {**asdict(about), "jobs": dict(kinds), "pid": os.getpid(), "host": socket.gethostname()}


def _end(finish: Finish, grace: float, loop: Loop, pool: Pool) -> None:
    """Write the last record and end the pool, the second even if the first fails."""
    try:
        counts = loop.scheduler.view().counts()
        if counts[Status.RUNNING]:
            with suppress(OSError):  # then they go on to their ends
                loop.stop.write(finish.why)
        by_name = {status.value: count for status, count in counts.items()}
        loop.journal.write("run_ended", exit=finish.exit, why=finish.why, counts=by_name)
    except JournalLost as error:
        if finish.exit != 1:  # else an error is on its way that says more
            raise
        log.debug("the end of the run is not in the journal: %s", error)
    finally:
        pool.close(grace)


class Loop:
    """Feeds one run's events to the scheduler and carries out its actions, turn by turn."""

    def __init__(
        self,
        schedule: Schedule,
        graph: Graph,
        pool: Pool,
        journal: Journal,
        on_change: Callable[[State], None],
        stop: StopFile,
        store: KnowsArtifacts,
        schedule_source: ScheduleSource | None,
    ) -> None:
        self.scheduler = Scheduler(State.initial(schedule))
        self.graph, self.pool, self.journal, self.on_change = graph, pool, journal, on_change
        self.stop, self.store, self.schedule_source = stop, store, schedule_source
        self.hosts: dict[str, str] = {}
        self.entries: list[Entry] = []
        """What this turn has for the journal."""
        self.actions: list[Action] = []
        """What this turn is to carry out once that is written."""

    def begin(self, cached: frozenset[str]) -> None:
        """Tell the scheduler what is whole in the store."""
        self.turn([events.Began(self.now(), cached)])
        self.journal.sync()

    def until_finished(self) -> Finish:
        """Run until the scheduler says how the run ends."""
        while self.scheduler.finished is None:
            self.replan()
            patience = PATIENCE if self.schedule_source is None else SOURCE_PATIENCE
            happened = self.pool.events(min(patience, self.journal.sync_if_due()))
            asked = self.stop.asked() if self.scheduler.stopping is None else ""
            stops = [events.StopAsked(self.now(), asked)] if asked else []
            ticks = [] if happened else [events.Tick(self.now())]
            self.turn([*stops, *happened, *ticks])
        return self.scheduler.finished

    def replan(self) -> None:
        """Go on with another schedule if there is one."""
        if self.schedule_source is None or self.scheduler.stopping is not None:
            return
        schedule = self.schedule_source.replanned(self.scheduler.view())
        if schedule is not None:
            cached = self.store.audit([key for key in schedule.keys if key not in self.scheduler.jobs]).sound
            self.turn([events.Replanned(self.now(), schedule, cached)])

    def note_work_left(self) -> None:
        """Note the seconds that are expected of all open jobs, by kind, from which `status` reckons the end."""
        left: dict[str, float] = {}
        for key, job in self.scheduler.jobs.items():
            if job.status in UNFINISHED:
                left[kind_of(key)] = left.get(kind_of(key), 0.0) + self.scheduler.schedule.seconds.get(key, 0.0)
        if left:
            self.note("work_left", by_kind={kind: round(seconds, 3) for kind, seconds in left.items()})

    def now(self) -> float:
        """Seconds since the run began."""
        return self.journal.elapsed()

    def turn(self, happened: Iterable[Event | PoolEvent]) -> None:
        """Let the scheduler decide on all that happened, write it down, then act on it."""
        try:
            for event in happened:
                if isinstance(event, Event):
                    self.feed(event)
                else:
                    self.take(event)
        finally:
            entries, self.entries = self.entries, []
            self.journal.append(entries)
        actions, self.actions = self.actions, []
        for action in actions:
            self.carry_out(action)

    def take(self, event: PoolEvent) -> None:
        """Note what the pool reports, then let the scheduler decide; after the end it is only noted."""
        match event:
            case WorkerJoined(slot, host, card, cpu_only):
                self.hosts[slot] = host
                where = {"cpu_only": True} if cpu_only else {"card": card} if card else {}
                self.note("slot_joined", slot=slot, host=host, **where)
                self.feed(events.SlotJoined(self.now(), slot, card, cpu_only))
            case WorkerLeft(slot, reason, message):
                self.note("slot_left", slot=slot, reason=reason, message=message)
                self.feed(events.SlotLeft(self.now(), slot, reason, message))
            case JobReturned():
                self.job_returned(event)
            case Message(text):
                self.note("note", text=text)

    def job_returned(self, result: JobReturned) -> None:
        """Note how one job ended, and let the scheduler decide what follows."""
        key, slot, at = self.scheduler.slots.get(result.slot) or result.key, result.slot, self.now()
        kind = kind_of(key)
        if result.key not in ("", key):
            text = f"the worker computed {result.key}: its code differs from the driver's; install one version"
            self.feed(events.JobFailed(at, key, slot, "bug", text, result.log))
            return
        match result.status:
            case "done":
                self.note("job_done", key=key, kind=kind, slot=slot, job_seconds=result.seconds)
                self.feed(events.JobDone(at, key, slot, result.seconds))
            case "found":
                self.note("job_found", key=key, kind=kind, slot=slot)
                self.feed(events.JobFound(at, key, slot))
            case "busy":
                self.note("job_busy", key=key, slot=slot, retry_after=result.retry_after)
                self.feed(events.JobBusy(at, key, slot, result.retry_after))
            case "yielded":
                self.note("job_yielded", key=key, slot=slot)
                self.feed(events.JobYielded(at, key, slot, result.leaving))
            case "failed":
                reason = result.reason or "bug"
                self.feed(events.JobFailed(at, key, slot, reason, result.message, result.log, result.parent))

    def note(self, event: str, **fields: Any) -> None:
        """Keep an entry for the journal, which is written before this turn's actions."""
        self.entries.append((event, fields))

    def feed(self, event: Event) -> None:
        """Let the scheduler decide on one event; keep what followed for the journal, and the actions for later."""
        if self.scheduler.finished:
            return
        actions = self.scheduler.feed(event)
        self.entries += _consequences(self.scheduler.changes, self.scheduler.schedule)
        if isinstance(event, (events.Began, events.Replanned)):
            self.note_work_left()
        for action in actions:
            match action:
                case Start():
                    self.note("job_started", **self._started(action))
                case Note(text):
                    self.note("note", text=text)
        self.actions += actions
        self.on_change(self.scheduler.view())

    def _started(self, start: Start) -> dict[str, Any]:
        path, share = self.scheduler.schedule.remaining_path[start.key], self.scheduler.share
        where = {"slot": start.slot, "host": self.hosts.get(start.slot, "")}
        job = {"key": start.key, "kind": kind_of(start.key), **where, "attempt": start.attempt}
        expected = self.scheduler.schedule.seconds.get(start.key, 0.0)
        return {**job, "remaining_path": path, "expected_seconds": expected, "share": round(share, 3)}

    def carry_out(self, action: Action) -> None:
        """Do what the scheduler asks; a start is void if its slot left later in the same turn."""
        match action:
            case Start(key, slot, attempt, memory_level) if self.scheduler.slots.get(slot) == key:
                self.pool.submit(self.graph[key].to_json(), slot, attempt, memory_level)
            case AskYield(why):
                self.stop.write(why)


def _consequences(changes: Iterable[Change], schedule: Schedule) -> Iterator[Entry]:
    """The entries for the jobs whose status followed from an event; what the event itself said is noted already."""
    for key, old, job in changes:
        match job.status:
            case Status.READY:
                yield "job_ready", {"key": key, "remaining_path": schedule.remaining_path[key]}
            case Status.RUNNING if old is Status.BLOCKED:  # it was ready for no time at all
                yield "job_ready", {"key": key, "remaining_path": schedule.remaining_path[key]}
            case Status.CACHED if old is Status.BLOCKED:
                yield "job_cached", {"key": key}
            case Status.UNNEEDED:
                yield "job_unneeded", {"key": key}
            case Status.FAILED:
                yield "job_failed", {"key": key, "reason": job.reason, "message": job.because, "log": job.log}
            case Status.SKIPPED:
                yield "job_skipped", {"key": key, "because": job.because}
