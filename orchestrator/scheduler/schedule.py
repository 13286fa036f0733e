"""The schedule of a run: its jobs, targets and limits. Fixed before the run begins, except for a sweep's (`open`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import inf
from typing import Any

from jobs.graph import Graph, Job
from jobs.memory import needs_card

DUE = 0.4
"""A job is due when its chain takes this share of the work that each slot has before it. At 1 answers come a little
sooner and the makespan grows; at 0 the longest chain always goes first (docs/performance.md)."""
FIRST_COME = inf
"""With this in its place, jobs go in the order in which they become ready, whatever their chains and rows."""


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

    `remaining_path` is in seconds, the job itself included and those of its group that come after it (`chain_paths`),
    `seconds` of the job alone; `rank` says which rows come first (`rank_rows`), and `due` from which share on a long
    chain goes before them. Of the keys that `exclusive` puts into a group, at most `limits[group]` run at once. An
    `open` schedule will be replaced by another one (`events.Replanned`), so the
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
    due: float = DUE
    cpu_jobs: frozenset[str] = frozenset()
    """The jobs that need no card: where a slot without one stands beside cards, it takes them."""

    def __post_init__(self) -> None:
        """Check what the decisions rely on: parents first, known targets, a limit for every group."""
        seen: set[str] = set()
        for key in self.keys:
            assert seen.issuperset(self.parents[key]), f"{key} stands before one of its parents"
            seen.add(key)
        assert self.wanted <= seen, f"targets outside the graph: {sorted(self.wanted - seen)}"
        assert not self.cpu_jobs & self.exclusive.keys(), "a job that needs no card is in no group"
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
        parents, children = {job.key: job.parent_keys() for job in graph}, graph.children()
        times = {job.key: seconds(job) for job in graph}
        one_by_one = {group for group, limit in more.get("limits", {}).items() if limit == 1}
        groups = {key: one_by_one.intersection(names) for key, names in more.get("exclusive", {}).items()}
        path = chain_paths(graph.remaining_path(seconds), children, times, groups)
        cardless = frozenset(job.key for job in graph if not needs_card(job)) - more.get("exclusive", {}).keys()
        more = {"seconds": times, "cpu_jobs": cardless, **more}
        return cls(tuple(graph.jobs), parents, children, path, frozenset(wanted), **more)


def chain_paths(
    path: Mapping[str, float],
    children: Mapping[str, Sequence[str]],
    seconds: Mapping[str, float],
    exclusive: Mapping[str, Iterable[str]],
) -> dict[str, float]:
    """The remaining paths when the jobs of a group come one after the other, the longest path first.

    Args:
        path: seconds of the longest chain that begins with each key.
        children: the keys that wait for each key, in the order of the graph.
        seconds: of each job.
        exclusive: the groups of each key of which one job runs at a time.
    """
    order = {key: (-path[key], place) for place, key in enumerate(children)}
    groups: dict[str, list[str]] = {}
    for key in sorted(exclusive, key=order.__getitem__):
        for group in exclusive[key]:
            groups.setdefault(group, []).append(key)
    after = {key: list(keys) for key, keys in children.items()}
    for keys in groups.values():
        for key, following in pairwise(keys):
            after[key].append(following)
    chained: dict[str, float] = {}
    for key in sorted(path, key=order.__getitem__, reverse=True):
        chained[key] = seconds[key] + max((chained[other] for other in after[key]), default=0.0)
    return chained


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
