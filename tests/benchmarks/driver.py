"""What the driver costs a job: scheduler, journal and bookkeeping, with a pool that answers at once."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

from jobs.graph import Graph
from jobs.specs import SelectSpec
from orchestrator.runs import driver
from orchestrator.runs.driver import RunInfo
from orchestrator.runs.journal import Journal
from orchestrator.runs.pool import JobReturned, PoolEvent, WorkerJoined
from orchestrator.scheduler.schedule import Schedule
from tests.benchmarks.measure import Row, Timer
from workers.store.store import Audit

SIZES = (1_000, 10_000, 100_000)
SLOTS = 16
GROUPS = 8
"""Groups in which every second job is, of each of which one runs at a time: fewer than slots, so all are full."""


class EmptyStore:
    """A store in which nothing lies."""

    def audit(self, keys: Collection[str]) -> Audit:
        return Audit(frozenset(), {})


class InstantPool:
    """Workers that have done a job as soon as they get it."""

    def __init__(self) -> None:
        self._events: list[PoolEvent] = [WorkerJoined(f"w{number}", "here") for number in range(SLOTS)]

    def start(self) -> None:
        """Nothing has to be started."""

    def submit(self, job: dict[str, Any], slot: str, attempt: int, memory_level: int) -> None:
        self._events.append(JobReturned(slot, "done", "", 1.0))

    def events(self, timeout: float) -> list[PoolEvent]:
        happened, self._events = self._events, []
        return happened

    def close(self, grace_seconds: float) -> None:
        """Nothing was started."""


def graph_of(count: int) -> Graph:
    """A tree in which each job hangs on one before it and three on each."""
    graph, keys = Graph(), list[str]()
    for number in range(count):
        parents = {"before": [keys[number // 3]]} if number else {}
        keys.append(graph.add(SelectSpec(rule="random", ipc_total=1, seed=number), parents))
    return graph


def run(count: int, groups: int = 0) -> Timer:
    """Drive a run of so many jobs, every second one in one of these groups, to its end."""
    graph = graph_of(count)
    exclusive = {key: (f"g{number % groups}",) for number, key in enumerate(list(graph.jobs)[::2] if groups else ())}
    limits = {f"g{number}": 1 for number in range(groups)}
    schedule = Schedule.of(graph, graph.jobs, lambda job: 1.0, exclusive=exclusive, limits=limits)
    with tempfile.TemporaryDirectory() as folder, Journal.open(Path(folder) / "run") as journal, Timer() as timer:
        end = driver.run(schedule, graph, InstantPool(), journal, EmptyStore(), about=RunInfo("run"))
    assert end.exit == 0, end
    return timer


_ALONE = """
import resource, sys
from tests.benchmarks.driver import run
run(int(sys.argv[1]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def peak_mib(count: int) -> float:
    """The largest resident size of a process that drives such a run."""
    command = [sys.executable, "-c", _ALONE, str(count)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def rows() -> list[Row]:
    """CPU time a job by the size of the run, its growth, and the memory of the largest one."""
    run(SIZES[0])
    times = {count: run(count) for count in SIZES}
    each = {count: timer.cpu / count for count, timer in times.items()}
    names = {f"{count} jobs": (count, timer) for count, timer in times.items()}
    names |= {f"{count} jobs in groups": (count, run(count, GROUPS)) for count in SIZES[1:]}
    figures = [
        Row(
            part="driver",
            name=name,
            cpu_seconds=timer.cpu / count,
            wall_seconds=timer.wall / count,
            per="job",
            goal=0.5e-3,
        )
        for name, (count, timer) in names.items()
    ]
    large, medium = SIZES[-1], SIZES[-2]
    growth = Row(
        part="driver",
        name="growth",
        cpu_seconds=None,
        ratio=each[large] / each[medium],
        goal=1.3,
        note=f"a job of {large} against one of {medium}",
    )
    memory = Row(
        part="driver",
        name="peak memory",
        cpu_seconds=None,
        ratio=peak_mib(large) / 1000,
        goal=1.0,
        note=f"GB, {large} jobs, the process whole",
    )
    return [*figures, growth, memory]
