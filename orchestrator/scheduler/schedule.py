"""The schedule of a run: its jobs, targets and limits. Fixed before the run begins, except for a sweep's (`open`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jobs.graph import Graph, Job


@dataclass(frozen=True)
class Row:
    """A row of a table: the jobs that fill it, and whether it is the bound, which training on all data reaches."""

    keys: Sequence[str]
    bound: bool = False


@dataclass(frozen=True)
class RetryLimits:
    """How often a job may come back for each cause before it fails. Yields and lost workers are free."""

    crashes: int = 3
    """The crash in a row at which a job fails."""
    memory: int = 2
    """Retries after running out of memory; each raises the memory level by one."""
    repairs: int = 3
    """How often a job may report a broken parent before it fails itself."""
    keep_going: bool = True
    """False: the first failure stops the run."""


@dataclass(frozen=True)
class Schedule:
    """The jobs of a graph with their parents and children, the targets, and the limits.

    `remaining_path` is in seconds, the job itself included, `seconds` of the job alone; `rank` says which rows come
    first (`rank_rows`). Of the keys that `exclusive` puts into a group,
    at most `limits[group]` run at once. An `open` schedule will be replaced by another one (`events.Replanned`), so the
    run does not end when all its targets are there.
    """

    keys: tuple[str, ...]
    parents: Mapping[str, tuple[str, ...]]
    children: Mapping[str, tuple[str, ...]]
    remaining_path: Mapping[str, float]
    wanted: frozenset[str]
    exclusive: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    limits: Mapping[str, int] = field(default_factory=dict)
    retry_limits: RetryLimits = RetryLimits()
    open: bool = False
    seconds: Mapping[str, float] = field(default_factory=dict)
    rank: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check what the decisions rely on: parents first, known targets, a limit for every group."""
        seen: set[str] = set()
        for key in self.keys:
            assert seen.issuperset(self.parents[key]), f"{key} stands before one of its parents"
            seen.add(key)
        assert self.wanted <= seen, f"targets outside the graph: {sorted(self.wanted - seen)}"
        assert all(self.limits.get(group, 0) >= 1 for groups in self.exclusive.values() for group in groups)

    @classmethod
    def of(cls, graph: Graph, wanted: Iterable[str], seconds: Callable[[Job], float], **more: Any) -> Schedule:
        """The schedule of a graph.

        Args:
            graph: the jobs.
            wanted: the keys of the targets.
            seconds: how long a job takes on one worker.
            more: the optional fields of the class.
        """
        parents = {job.key: job.parent_keys() for job in graph}
        path, times = graph.remaining_path(seconds), {job.key: seconds(job) for job in graph}
        return cls(tuple(graph.jobs), parents, graph.children(), path, frozenset(wanted), seconds=times, **more)


def rank_rows(
    rows: Sequence[Row], parents: Mapping[str, Sequence[str]], seconds: Mapping[str, float]
) -> dict[str, int]:
    """By key, the place of the first row that needs it: the row that takes the least work comes first, bounds last.

    Args:
        rows: the rows.
        parents: the parents of each job.
        seconds: of each job; 0 for one that is done.
    """
    needed = [behind(row.keys, parents) for row in rows]
    work = [sum(seconds[key] for key in keys) for keys in needed]
    rank: dict[str, int] = {}
    for place, number in enumerate(sorted(range(len(rows)), key=lambda number: (rows[number].bound, work[number]))):
        for key in needed[number]:
            rank.setdefault(key, place)
    return rank


def behind(
    keys: Iterable[str], parents: Mapping[str, Sequence[str]], available: Callable[[str], bool] = lambda key: False
) -> set[str]:
    """The keys and everything they hang on, down to what is available and without it."""
    needed: set[str] = set()
    waiting = list(keys)
    while waiting:
        key = waiting.pop()
        if key not in needed and not available(key):
            needed.add(key)
            waiting += parents[key]
    return needed
