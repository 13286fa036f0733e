"""Runs as they were recorded: the journal of each, with the jobs and the seconds that were expected of them, in short.

A file of `tests/data/runs` is a JSON object: `jobs` has kind, expected seconds and parents (by number) of each job,
`events` has seconds, what happened (the name of a worker: it was given the job) and the number of the job, or of
workers. `condense` makes one of a run in a store.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.graph import Graph
from orchestrator.runs import journal
from orchestrator.runs.time_left import Pace, Running, time_left

FOLDER = Path(__file__).parents[2] / "data" / "runs"
EVENTS = {
    "job_cached": "whole",
    "job_unneeded": "whole",
    "job_found": "whole",
    "job_failed": "whole",
    "job_skipped": "whole",
    "job_done": "done",
    "job_busy": "back",
    "job_yielded": "back",
}


@dataclass(frozen=True)
class Node:
    """A job as far as the time left needs it."""

    key: str
    parents: tuple[str, ...]

    def parent_keys(self) -> tuple[str, ...]:
        """The keys of its parents."""
        return self.parents


@dataclass(frozen=True)
class RecordedRun:
    """A recorded run: its jobs, the seconds expected of each, and what happened when."""

    about: str
    graph: Graph
    expected: Mapping[str, float]
    events: tuple[tuple[float, str, str], ...]

    @property
    def seconds(self) -> float:
        """From its begin to its end."""
        return self.events[-1][0]

    @classmethod
    def read(cls, path: Path) -> RecordedRun:
        """The run in a file."""
        document = json.loads(path.read_text())
        keys = [f"{kind}-{number:04}-0000000000000000" for number, (kind, _, _) in enumerate(document["jobs"])]
        nodes: dict[str, Any] = {
            key: Node(key, tuple(keys[parent] for parent in parents))
            for key, (_, _, parents) in zip(keys, document["jobs"], strict=True)
        }
        expected = {key: seconds for key, (_, seconds, _) in zip(keys, document["jobs"], strict=True)}
        events = tuple(
            (seconds, event, str(number) if event in ("slots", "end") else keys[number])
            for seconds, event, number in document["events"]
        )
        return cls(document["about"], Graph(nodes, len(nodes)), expected, events)

    def told(self, seconds: float) -> float | None:
        """The time left that people are told at a moment of the run, if jobs say nothing of themselves."""
        return Replay(self).told(seconds)

    def moments(self, step: float) -> Iterator[tuple[float, float | None]]:
        """Every `step` seconds: when, and the time left that people are told."""
        replay = Replay(self)
        for number in range(int(self.seconds / step) + 1):
            yield number * step, replay.told(number * step)


class Replay:
    """A recorded run that goes on from moment to moment."""

    def __init__(self, run: RecordedRun) -> None:
        self._run, self._pace, self._slots, self._next = run, Pace(), 0, 0
        self._open, self._started = dict(run.expected), dict[str, float]()

    def told(self, seconds: float) -> float | None:
        """The time left that people are told at this moment, which is not before the last one."""
        while self._next < len(self._run.events) and self._run.events[self._next][0] <= seconds:
            self._take(*self._run.events[self._next])
            self._next += 1
        running = [Running(key, seconds=seconds - at) for key, at in self._started.items()]
        return time_left(self._run.graph, self._open, running, self._pace, self._slots, seconds)

    def _take(self, at: float, event: str, what: str) -> None:
        match event:
            case "slots":
                self._slots = int(what)
            case "end":
                pass
            case "done" | "whole" | "back":
                self._started.pop(what, None)
                self._pace.end(what, at, self._run.expected[what] if event == "done" else None)
                if event != "back":
                    self._open.pop(what, None)
            case slot:
                self._started[what] = at
                self._pace.start(what, slot, at)


def condense(folder: Path, graph: Graph, expected: Mapping[str, float], about: str) -> dict[str, Any]:
    """The last driver's part of a journal in short.

    Args:
        folder: of the run.
        graph: its jobs.
        expected: the seconds that were expected of each, by key.
        about: what was special about it.
    """
    records = journal.read(folder / journal.NAME)
    begun = max(number for number, record in enumerate(records) if record["event"] == "run_began")
    numbers = {key: number for number, key in enumerate(graph.jobs)}
    events: list[tuple[float, str, int]] = []
    slots = 0
    for record in records[begun:]:
        if record["event"] in ("slot_joined", "slot_left"):
            slots += 1 if record["event"] == "slot_joined" else -1
            events.append((record["seconds"], "slots", slots))
        elif record["event"] == "job_started":
            events.append((record["seconds"], record["slot"], numbers[record["key"]]))
        elif record["event"] in EVENTS:
            events.append((record["seconds"], EVENTS[record["event"]], numbers[record["key"]]))
    events.append((records[-1]["seconds"], "end", 0))
    jobs = [(job.kind, round(expected[job.key], 3), [numbers[key] for key in job.parent_keys()]) for job in graph]
    return {"about": about, "jobs": jobs, "events": [(round(at, 2), event, number) for at, event, number in events]}
