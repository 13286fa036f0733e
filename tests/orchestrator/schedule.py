"""What a journal must show of the order of jobs: pure functions over its records, each returning complaints.

The journal tells when a job was ready, started and ended and how long its remaining path is. It does not tell which
jobs are parents of which and which share a group, so both are given; `Graph` and `Plan` know them.

Left out: a ready job whose parent turns out damaged is blocked again, and no record says so. A journal with such a
repair may therefore be accused wrongly by `overtaken`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path

from jobs.experiment import Plan
from jobs.keys import kind_of
from orchestrator.planning.durations import estimate_durations, schedule_of
from orchestrator.runs.records import Record
from orchestrator.scheduler.ready_queue import UNRANKED
from orchestrator.scheduler.schedule import DUE
from workers.store.store import Store

Keys = Sequence[str]
ENDINGS = frozenset({"job_done", "job_found", "job_busy", "job_yielded", "job_failed"})
AVAILABLE = frozenset({"job_cached", "job_done", "job_found"})
CLOCK = 0.05
"""Seconds by which a record may be later than what it tells of."""


@dataclass(frozen=True)
class Stay:
    """One stay of a job on a slot, by the journal's order of records and by its clock."""

    key: str
    began: float
    ended: float

    def overlaps(self, other: Stay) -> bool:
        """Whether both went on at a time."""
        return self.began < other.ended and other.began < self.ended


@dataclass
class Replay:
    """The run as far as its journal was read."""

    ready: dict[str, float] = field(default_factory=dict)
    """By key of a ready job: the remaining path."""
    running: dict[str, tuple[str, float]] = field(default_factory=dict)
    """By slot: the job and since when it runs."""
    not_before: dict[str, float] = field(default_factory=dict)
    whole: set[str] = field(default_factory=set)
    stays: list[Stay] = field(default_factory=list)

    def take(self, record: Record) -> None:
        """Follow one record."""
        event, key, now = record["event"], record.get("key", ""), record["seconds"]
        if event == "job_ready":
            self.ready[key] = record["remaining_path"]
        elif event == "job_started":
            self.ready.pop(key, None)
            self.running[record["slot"]] = key, now
        elif event == "slot_left":
            self._end(record["slot"], now)
        elif event in ENDINGS:
            self._end(next((slot for slot, (job, _) in self.running.items() if job == key), ""), now)
        if event == "job_busy":
            self.not_before[key] = now + record["retry_after"]
        if event in AVAILABLE:
            self.whole.add(key)

    def _end(self, slot: str, now: float) -> None:
        if slot in self.running:
            key, began = self.running.pop(slot)
            self.stays.append(Stay(key, began, now))

    def on_slots(self) -> list[str]:
        """The jobs that run now."""
        return [key for key, _ in self.running.values()]

    def order(self, key: str, share: float, rank: Mapping[str, int]) -> tuple[float, ...]:
        """What the core orders by: a chain that is long beside each slot's share of the work, else the row."""
        path = self.ready[key]
        return (-1.0, -path) if path >= DUE * share else (rank.get(key, UNRANKED), -path)


def stays(records: Sequence[Record]) -> list[Stay]:
    """Every stay of a job on a slot; one that the journal does not end goes on for ever."""
    replay = Replay()
    for record in records:
        replay.take(record)
    return [*replay.stays, *(Stay(key, began, inf) for key, began in replay.running.values())]


def before_their_parents(records: Sequence[Record], parents: Mapping[str, Keys]) -> list[str]:
    """Jobs that started although a parent was not whole."""
    return [
        f"{record['key']} started before {parent} was there"
        for replay, record in _starts(records)
        for parent in parents[record["key"]]
        if parent not in replay.whole
    ]


def too_many_at_once(records: Sequence[Record], exclusive: Mapping[str, Keys], limits: Mapping[str, int]) -> list[str]:
    """Starts by which more jobs of a group ran than its limit."""
    return [
        f"{record['key']} started while {group} was full"
        for replay, record in _starts(records)
        for group in exclusive.get(record["key"], ())
        if _in_use(replay, exclusive)[group] >= limits[group]
    ]


def overtaken(
    records: Sequence[Record],
    exclusive: Mapping[str, Keys],
    limits: Mapping[str, int],
    rank: Mapping[str, int] | None = None,
) -> list[str]:
    """Starts of a job while a more urgent one was ready and allowed to start, or of one that was not ready."""
    complaints = []
    for replay, record in _starts(records):
        key, now, in_use = record["key"], record["seconds"], _in_use(replay, exclusive)
        if key not in replay.ready:
            complaints.append(f"{key} started without being ready")
            continue
        for other in replay.ready:
            waits = replay.not_before.get(other, -inf) + CLOCK > now
            full = any(in_use[group] >= limits[group] for group in exclusive.get(other, ()))
            share, rows = record.get("share", 0.0), rank or {}
            if not waits and not full and replay.order(other, share, rows) < replay.order(key, share, rows):
                complaints.append(f"{key} overtook {other}")
    return complaints


def first_rank(plan: Plan, folder: Path) -> Mapping[str, int]:
    """The rank of every job in a run that finds nothing in its store; the folder becomes an empty one."""
    return schedule_of(plan, estimate_durations(plan.graph, Store(folder / "empty"))).rank


def backfills(records: Sequence[Record], parents: Mapping[str, Keys]) -> list[tuple[str, str]]:
    """Each evaluation of a prefix with the work of a later stage of the same chain that went on meanwhile."""
    all_stays = stays(records)
    sets = {key: {parent for parent in keys if kind_of(parent) == "distil"} for key, keys in parents.items()}
    evaluations = [stay for stay in all_stays if kind_of(stay.key) == "evaluate" and sets[stay.key]]
    later = [stay for stay in all_stays if kind_of(stay.key) in ("experts", "distil")]
    return [
        (one.key, other.key)
        for one in evaluations
        for other in later
        if sets[one.key] <= sets[other.key] and one.overlaps(other)
    ]


def _starts(records: Sequence[Record]) -> Iterator[tuple[Replay, Record]]:
    """Each start, with the run as it was just before; a job that is back goes on from a record of its own."""
    replay = Replay()
    for record in records:
        if record["event"] == "job_started":
            yield replay, record
        replay.take(record)


def _in_use(replay: Replay, exclusive: Mapping[str, Keys]) -> Counter[str]:
    return Counter(group for key in replay.on_slots() for group in exclusive.get(key, ()))
