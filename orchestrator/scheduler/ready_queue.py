"""The queue of ready jobs, the most urgent first.

A job is due when the chain of work behind it is long beside what each slot still has before it (`due`): then the end of
the run may wait for it. Due jobs go first, the longest chain first. Of the others those go first that complete a row of
a table soonest, so that whoever stops the run has answers. With many slots nearly every job is due, with few nearly
none is until the tail of the run. Under `FIRST_COME` all that is left out: jobs go in the order in which they came.

Every ready job is in two heaps, by its chain and by the row that it serves; another one keeps the jobs that may not
start before a certain time. Entries of jobs that left are passed over when they come up. The jobs of the same groups
have two heaps of their own, of which only the first entries stand in the heaps of the queue, and none while one of the
groups is full: so a release costs no more than the logarithm of the number of jobs, however many wait for it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any

from orchestrator.scheduler.groups import Groups
from orchestrator.scheduler.schedule import FIRST_COME, Schedule

UNRANKED = 1 << 30
"""The rank of a job that no row needs."""

_Entry = tuple[Any, ...]
"""What it is sorted by, the key's position in the schedule, the key, and the number under which it was entered."""
_ORDERS = _BY_CHAIN, _BY_ROW = 0, 1


@dataclass
class _Lane:
    """The ready jobs that are in the same groups."""

    heaps: tuple[list[_Entry], list[_Entry]] = field(default_factory=lambda: ([], []))
    shown: list[_Entry | None] = field(default_factory=lambda: [None, None])
    """Of each heap the entry that stands for it in the heap of the queue."""


class ReadyQueue:
    """The ready jobs of a run, by urgency.

    Args:
        schedule: the chain that begins with each key, the first row that needs it, and from when on a chain is due.
        positions: each key's position in the schedule.
        groups: the groups of the jobs, and how many of each run.
        ready: the jobs that are ready from the start, as the arguments of `add`.
    """

    def __init__(
        self,
        schedule: Schedule,
        positions: Mapping[str, int],
        groups: Groups,
        ready: Iterable[tuple[str, float]] = (),
    ) -> None:
        self.path, self.rank, self.due = schedule.remaining_path, schedule.rank, schedule.due
        self.positions, self.groups = positions, groups
        self.entered: dict[str, int] = {}
        self.entries = 0
        self.resting: list[_Entry] = []
        self.heaps: tuple[list[_Entry], list[_Entry]] = ([], [])
        self.lanes: dict[tuple[str, ...], _Lane] = {}
        self.held: dict[str, dict[tuple[str, ...], None]] = {}
        """By full group, the lanes that wait for its next release."""
        for key, not_before in ready:
            self.add(key, not_before)

    def add(self, key: str, not_before: float = 0.0) -> None:
        """Add a ready job; it may start at `not_before`."""
        self.entries += 1
        self.entered[key] = self.entries
        if not_before > 0:
            heappush(self.resting, (not_before, self.positions[key], key, self.entries))
        else:
            self._wake(key, self.entries)

    def discard(self, key: str) -> None:
        """Remove a job that is not ready any more."""
        self.entered.pop(key, None)

    def release(self, key: str) -> None:
        """Take a job that runs no more out of its groups; those that wait for one of them may be picked again."""
        self.groups.release(key)
        for group in self.groups.of.get(key, ()):
            for lane in self.held.pop(group, ()):
                self._show(lane)

    def pick(self, at: float, count: int, share: float) -> list[str]:
        """Take out the most urgent jobs that may start, and count them into their groups.

        Args:
            at: seconds since the run began.
            count: the most that are wanted.
            share: seconds of work, not begun yet, that each slot has before it.
        """
        while self.resting and self.resting[0][0] <= at:
            *_, key, number = heappop(self.resting)
            if self.entered.get(key) == number:
                self._wake(key, number)
        picked: list[str] = []
        while len(picked) < count and (order := self._foremost(share)) is not None:
            key, groups = self._take(order)
            full = self.groups.admit(key)
            if full is not None:
                self.held.setdefault(full, {})[groups] = None
                continue
            self.discard(key)
            picked.append(key)
            self._show(groups)
        return picked

    def _wake(self, key: str, number: int) -> None:
        entry = (-self.path[key], self.positions[key], key, number)
        groups = self.groups.of.get(key, ())
        by_chain, by_row = self.lanes.setdefault(groups, _Lane()).heaps if groups else self.heaps
        heappush(by_chain, entry)
        heappush(by_row, (number if self.due == FIRST_COME else self.rank.get(key, UNRANKED), *entry))
        self._show(groups)

    def _show(self, groups: tuple[str, ...]) -> None:
        """Let the first jobs of these groups stand in the heaps of the queue."""
        if not groups:
            return
        lane = self.lanes[groups]
        for order in _ORDERS:
            heap = lane.heaps[order]
            while heap and self._gone(heap[0]):
                heappop(heap)
            if heap and heap[0] is not lane.shown[order]:
                lane.shown[order] = heap[0]
                heappush(self.heaps[order], heap[0])

    def _take(self, order: int) -> tuple[str, tuple[str, ...]]:
        """Take the first entry out of a heap of the queue; returns its key and the groups of that."""
        entry = heappop(self.heaps[order])
        key = entry[-2]
        groups = self.groups.of.get(key, ())
        if groups and (lane := self.lanes[groups]).shown[order] is entry:
            lane.shown[order] = None
        return key, groups

    def _gone(self, entry: _Entry) -> bool:
        """Whether the job of an entry left, or left and came back under another number."""
        return bool(self.entered.get(entry[-2]) != entry[-1])

    def _foremost(self, share: float) -> int | None:
        """The heap whose first entry is the most urgent one; None if nothing may start."""
        for order in _ORDERS:
            while self.heaps[order] and self._gone(self.heaps[order][0]):
                _, groups = self._take(order)
                self._show(groups)
        by_chain, by_row = self.heaps
        if self.due < FIRST_COME and by_chain and -by_chain[0][0] >= self.due * share:
            return _BY_CHAIN
        return _BY_ROW if by_row else None


class ReadyJobs:
    """The ready jobs of a run, those that need no card `apart` from the others where slots without a card take them.

    Args:
        schedule, positions, groups, ready: as of `ReadyQueue`; the jobs that need no card are in no group.
        apart: whether there is such a slot.
    """

    def __init__(
        self,
        schedule: Schedule,
        positions: Mapping[str, int],
        groups: Groups,
        ready: Iterable[tuple[str, float]] = (),
        apart: bool = False,
    ) -> None:
        self.cpu_jobs = schedule.cpu_jobs if apart else frozenset()
        self.main, self.cpu = (ReadyQueue(schedule, positions, groups) for _ in range(2))
        for key, not_before in ready:
            self.add(key, not_before)

    def __bool__(self) -> bool:
        return bool(self.main.entered or self.cpu.entered)

    def add(self, key: str, not_before: float = 0.0) -> None:
        """Add a ready job; it may start at `not_before`."""
        (self.cpu if key in self.cpu_jobs else self.main).add(key, not_before)

    def discard(self, key: str) -> None:
        """Remove a job that is not ready any more."""
        (self.cpu if key in self.cpu_jobs else self.main).discard(key)

    def release(self, key: str) -> None:
        """Take a job that runs no more out of its groups."""
        self.main.release(key)

    def assign(
        self, idle: Sequence[str], cpu_slots: Collection[str], at: float, share: float
    ) -> Iterator[tuple[str, str]]:
        """Take out the most urgent jobs for idle slots; a card takes what needs none only if nothing else waits for it.

        Args:
            idle: the slots, the first to be used first.
            cpu_slots: those without a card beside others with one.
            at: seconds since the run began.
            share: as of `ReadyQueue.pick`.

        Returns:
            Pairs of slot and key.
        """
        spare = [slot for slot in idle if slot in cpu_slots]
        yield from zip(spare, self.cpu.pick(at, len(spare), share), strict=False)
        cards = [slot for slot in idle if slot not in cpu_slots]
        keys = self.main.pick(at, len(cards), share)
        if len(keys) < len(cards):
            keys += self.cpu.pick(at, len(cards) - len(keys), share)
        yield from zip(cards, keys, strict=False)
