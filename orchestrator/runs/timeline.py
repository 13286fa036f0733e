"""The timeline of a run, read from its journal: when each job ran in which slot, and how busy the slots were.

Pure: records in, values out. The report draws it; nothing is decided by it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

Record = Mapping[str, Any]


class Span(NamedTuple):
    """One attempt at a job: where it ran, from when to when (seconds of one clock), and how it ended."""

    key: str
    kind: str
    slot: str
    start: float
    end: float
    ended: str = "done"
    label: str = ""


@dataclass(frozen=True)
class Timeline:
    """When jobs ran, on a clock that stands still between the drivers of one run.

    Attributes:
        spans: the attempts that did something, by start.
        seconds: from the first record to the last.
        slots: the most that were there at once.
        busy: the share of the slots' time in which a job ran.
        parts: how many drivers worked on the run.
    """

    spans: tuple[Span, ...] = ()
    seconds: float = 0.0
    slots: int = 0
    busy: float = 0.0
    parts: int = 0

    @classmethod
    def of(cls, records: Iterable[Record], stages: Mapping[str, int]) -> Timeline:
        """The timeline of a journal; `stages` by key become the labels of spans (0: none)."""
        reading = _Reading(stages)
        for record in records:
            reading.take(record)
        reading.end_part()
        spans = sorted(reading.spans, key=lambda span: span.start)
        worked = sum(span.end - span.start for span in spans)
        busy = worked / reading.available if reading.available else 0.0
        return cls(tuple(spans), reading.offset, reading.most_slots, busy, reading.parts)


class _Reading:
    """What is open while a journal is read."""

    def __init__(self, stages: Mapping[str, int]) -> None:
        self.stages = stages
        self.spans: list[Span] = []
        self.offset = self.now = self.available = 0.0
        self.parts = self.most_slots = 0
        self.running: dict[str, tuple[Record, float]] = {}
        self.joined: dict[str, float] = {}

    def take(self, record: Record) -> None:
        if record["event"] == "run_began":
            self.end_part()
            self.parts += 1
        self.now = self.offset + record["seconds"]
        match record["event"]:
            case "slot_joined":
                self.joined[record["slot"]] = self.now
                self.most_slots = max(self.most_slots, len(self.joined))
            case "slot_left":
                self.close(record["slot"], "lost")
                self.leave(record["slot"])
            case "job_started":
                self.close(record["slot"], "returned")
                self.close(self.slot_of(record["key"]), "returned")
                self.running[record["slot"]] = record, self.now
            case "job_busy":
                self.running.pop(record["slot"], None)
            case "job_done" | "job_found" | "job_yielded" | "job_failed" as event:
                self.close(record.get("slot") or self.slot_of(record["key"]), event.removeprefix("job_"))

    def slot_of(self, key: str) -> str:
        return next((slot for slot, (record, _) in self.running.items() if record["key"] == key), "")

    def close(self, slot: str, ended: str) -> None:
        if slot not in self.running:
            return
        record, start = self.running.pop(slot)
        stage = self.stages.get(record["key"], 0)
        words = str(stage) if stage else ""
        self.spans.append(Span(record["key"], record["kind"], slot, start, self.now, ended, words))

    def leave(self, slot: str) -> None:
        self.available += self.now - self.joined.pop(slot, self.now)

    def end_part(self) -> None:
        """A driver is gone, and with it all its slots."""
        for slot in list(self.running):
            self.close(slot, "lost")
        for slot in list(self.joined):
            self.leave(slot)
        self.offset = self.now


def failures(records: Iterable[Record]) -> dict[str, str]:
    """The message of every job whose last attempt failed, by key."""
    failed: dict[str, str] = {}
    for record in records:
        if record["event"] == "job_failed":
            failed[record["key"]] = f"{record['reason']}: {record['message']}"
        elif record["event"] in ("job_started", "job_done", "job_found", "job_cached"):
            failed.pop(record["key"], None)
    return failed


def duration(seconds: float) -> str:
    """Seconds for people: `12 s`, `3 min 05 s`, `2 h 07 min`, `1,234 h`."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min" if whole < 360_000 else f"{seconds / 3600:,.0f} h"


def clock_time(seconds: float) -> str:
    """`42 s`, `3:07`, `1:03:07`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"
