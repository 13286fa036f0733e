"""The queue of ready jobs, the most urgent first.

A job is due when the chain of work behind it is long beside what each slot still has before it (`DUE`): then the end of
the run may wait for it. Due jobs go first, the longest chain first. Of the others those go first that complete a row of
a table soonest, so that whoever stops the run has answers. With many slots nearly every job is due, with few nearly
none is until the tail of the run.

Every ready job is in two heaps, by its chain and by the row that it serves; a third one keeps the jobs that may not
start before a certain time. Entries of jobs that left are passed over when they come up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from heapq import heappop, heappush
from typing import Any

DUE = 0.4
"""A job is due when its chain takes this share of the work that each slot has before it. At 1 answers come a little
sooner and the makespan grows; at 0 the longest chain always goes first (docs/performance.md)."""
UNRANKED = 1 << 30
"""The rank of a job that no row needs."""

_Entry = tuple[Any, ...]
"""What it is sorted by, the key's position in the schedule, the key, and the number under which it was entered."""


class ReadyQueue:
    """The ready jobs of a run, by urgency.

    Args:
        remaining_path: seconds of the longest chain that begins with each key.
        positions: each key's position in the schedule.
        rank: by key, the number of the first row that needs it, the row that is complete soonest first.
        ready: the jobs that are ready from the start, as the arguments of `add`.
    """

    def __init__(
        self,
        remaining_path: Mapping[str, float],
        positions: Mapping[str, int],
        rank: Mapping[str, int] | None = None,
        ready: Iterable[tuple[str, float]] = (),
    ) -> None:
        self.path, self.positions, self.rank = remaining_path, positions, rank or {}
        self.entered: dict[str, int] = {}
        self.entries = 0
        self.resting: list[_Entry] = []
        self.by_chain: list[_Entry] = []
        self.by_row: list[_Entry] = []
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

    def pick(self, at: float, count: int, share: float, admits: Callable[[str], bool]) -> list[str]:
        """Take out the most urgent jobs that may start.

        Args:
            at: seconds since the run began.
            count: the most that are wanted.
            share: seconds of work, not begun yet, that each slot has before it.
            admits: called with each in turn; those that it refuses stay.
        """
        while self.resting and self.resting[0][0] <= at:
            *_, key, number = heappop(self.resting)
            if self.entered.get(key) == number:
                self._wake(key, number)
        picked: list[str] = []
        refused: list[tuple[list[_Entry], _Entry]] = []
        while len(picked) < count and (heap := self._foremost(share)) is not None:
            entry = heappop(heap)
            if admits(entry[-2]):
                self.discard(entry[-2])
                picked.append(entry[-2])
            else:
                refused.append((heap, entry))
        for heap, entry in refused:
            heappush(heap, entry)
        return picked

    def _wake(self, key: str, number: int) -> None:
        entry = (-self.path[key], self.positions[key], key, number)
        heappush(self.by_chain, entry)
        heappush(self.by_row, (self.rank.get(key, UNRANKED), *entry))

    def _foremost(self, share: float) -> list[_Entry] | None:
        """The heap whose first entry is the most urgent one; None if nothing may start."""
        for heap in (self.by_chain, self.by_row):
            while heap and self.entered.get(heap[0][-2]) != heap[0][-1]:
                heappop(heap)
        due = self.by_chain and -self.by_chain[0][0] >= DUE * share
        return (self.by_chain if due else self.by_row) or None
