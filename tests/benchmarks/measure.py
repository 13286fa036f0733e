"""What every part of the benchmark shares: the row that it returns, how time is taken, and the name of the machine."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure.

    Attributes:
        part: the part of the benchmark, which `ONLY` chooses.
        name: what was measured.
        cpu_seconds: CPU time of the processes that did it, for one of `per`; None where only the wall clock counts.
        wall_seconds: the same by the wall clock, which neighbours slow.
        ratio: the figure beside its yardstick of the same run; None if it has none.
        per: what one figure is for.
        goal: the figure, or the ratio where there is one, that is to be kept.
        share: of the limit of this host (`tests.benchmarks.limits`), where one is known.
        peak_mib: memory at its peak over what the process held before, in MiB.
        kernels: that a card starts, for one of `per`.
        error: relative distance of the result to that in float64.
        note: the yardstick, and what else belongs to the figure.
    """

    part: str
    name: str
    cpu_seconds: float | None
    wall_seconds: float | None = None
    ratio: float | None = None
    per: str = "run"
    goal: float | None = None
    share: float | None = None
    peak_mib: float | None = None
    kernels: float | None = None
    error: float | None = None
    note: str = ""

    @property
    def figure(self) -> float | None:
        """What is held against the goal."""
        return next((value for value in (self.ratio, self.cpu_seconds, self.wall_seconds) if value is not None), None)

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None without one."""
        return None if self.goal is None or self.figure is None else self.figure <= self.goal


def record(row: Row) -> Row:
    """The row, which is added as a line to the file that the variable `PDD_FIGURES` names, if it names one."""
    if file := os.environ.get("PDD_FIGURES"):
        with Path(file).open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({**asdict(row), "met": row.met}) + "\n")
    return row


@dataclass
class Timer:
    """CPU and wall time of a block."""

    cpu: float = 0.0
    wall: float = 0.0

    def __enter__(self) -> Timer:
        self.cpu, self.wall = time.process_time(), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.cpu, self.wall = time.process_time() - self.cpu, time.perf_counter() - self.wall


def medians(*work: Callable[[], object], repeats: int = 3) -> list[Timer]:
    """The median times of pieces of work that are compared, taken in turns so that neighbours slow all alike."""
    taken: list[list[Timer]] = [[] for _ in work]
    for _ in range(repeats):
        for timers, piece in zip(taken, work, strict=True):
            with Timer() as timer:
                piece()
            timers.append(timer)
    return [
        Timer(statistics.median(each.cpu for each in timers), statistics.median(each.wall for each in timers))
        for timers in taken
    ]


def machine() -> dict[str, Any]:
    """The machine by name, and how busy it is."""
    names = {
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    }
    return {
        "processor": ", ".join(sorted(names)) or platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
    }
