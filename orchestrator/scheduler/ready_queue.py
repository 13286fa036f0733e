"""The queue of ready jobs, the most urgent first.

The most urgent job is the one with the longest chain of work behind it; of equal ones the first in the schedule. A
job that has waited for `AGEING_AFTER` seconds gains a second of chain per further second, so short chains are not put
off for ever. Those that age all gain alike, and the order among them never changes; so two heaps and the moment at
which a job goes from one into the other are enough, and a choice costs the logarithm of the number of jobs.

A third heap keeps the jobs that may not start before a certain time. Entries of jobs that left are passed over when
they come up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from heapq import heapify, heappop, heappush

AGEING_AFTER = 600.0
"""Seconds a ready job waits before it starts to climb in the order."""

_Entry = tuple[float, int, str, int]
"""What it is sorted by, its position in the schedule, its key, and the number under which it was entered."""


class ReadyQueue:
    """The ready jobs of a run, by urgency.

    Args:
        remaining_path: seconds of the longest chain that begins with each key.
        positions: each key's position in the schedule.
        ready: the jobs that are ready from the start, as the arguments of `add`.
    """

    def __init__(
        self,
        remaining_path: Mapping[str, float],
        positions: Mapping[str, int],
        ready: Iterable[tuple[str, float, float]] = (),
    ) -> None:
        self.path, self.positions = remaining_path, positions
        self.entered: dict[str, int] = {}
        self.since: dict[str, float] = {}
        self.asleep: set[str] = set()
        self.old: set[str] = set()
        self.entries = 0
        self.resting: list[_Entry] = []
        self.ages_from: list[_Entry] = []
        self.young: list[_Entry] = []
        self.ageing: list[_Entry] = []
        for key, since, not_before in ready:
            self._enter(key, since)
            self.resting.append((not_before, positions[key], key, self.entries))
            self.ages_from.append((since, positions[key], key, self.entries))
        heapify(self.resting)
        heapify(self.ages_from)

    def add(self, key: str, since: float, not_before: float = 0.0) -> None:
        """Add a job that has been ready since then; it may start at `not_before`, and ages in any case."""
        self._enter(key, since)
        heappush(self.resting, (not_before, self.positions[key], key, self.entries))
        heappush(self.ages_from, (since, self.positions[key], key, self.entries))

    def discard(self, key: str) -> None:
        """Remove a job that is not ready any more."""
        self.entered.pop(key, None)
        self.asleep.discard(key)
        self.old.discard(key)

    def pick(self, at: float, count: int, admits: Callable[[str], bool]) -> list[str]:
        """Take out the most urgent jobs that may start.

        Args:
            at: seconds since the run began.
            count: the most that are wanted.
            admits: called with each in turn; those that it refuses stay.
        """
        self._advance(at)
        picked: list[str] = []
        refused: list[tuple[list[_Entry], _Entry]] = []
        while len(picked) < count and (heap := self._foremost(at)) is not None:
            entry = heappop(heap)
            if admits(entry[2]):
                self.discard(entry[2])
                picked.append(entry[2])
            else:
                refused.append((heap, entry))
        for heap, entry in refused:
            heappush(heap, entry)
        return picked

    def _enter(self, key: str, since: float) -> None:
        self.entries += 1
        self.entered[key], self.since[key] = self.entries, since
        self.asleep.add(key)

    def _advance(self, at: float) -> None:
        """Move the jobs that may start by now, and those that have waited long enough, into their heaps."""
        while self.ages_from and self.ages_from[0][0] < at - AGEING_AFTER:
            since, position, key, number = heappop(self.ages_from)
            if self.entered.get(key) == number:
                self.old.add(key)
                if key not in self.asleep:
                    heappush(self.ageing, (since - self.path[key], position, key, number))
        while self.resting and self.resting[0][0] <= at:
            _, position, key, number = heappop(self.resting)
            if self.entered.get(key) == number:
                self._wake(position, key, number)

    def _wake(self, position: int, key: str, number: int) -> None:
        self.asleep.discard(key)
        if key in self.old:
            heappush(self.ageing, (self.since[key] - self.path[key], position, key, number))
        else:
            heappush(self.young, (-self.path[key], position, key, number))

    def _foremost(self, at: float) -> list[_Entry] | None:
        """The heap whose first entry is the most urgent one; None if nothing may start."""
        while self.young and (self.young[0][2] in self.old or self._left(self.young[0])):
            heappop(self.young)
        while self.ageing and self._left(self.ageing[0]):
            heappop(self.ageing)
        if not self.young or not self.ageing:
            return self.young or self.ageing or None
        value, position, *_ = self.ageing[0]
        aged = (value - (at - AGEING_AFTER), position)
        return self.young if self.young[0][:2] < aged else self.ageing

    def _left(self, entry: _Entry) -> bool:
        return self.entered.get(entry[2]) != entry[3]
