"""Which job goes next: the ready jobs, most urgent first, however many there are.

The most urgent job is the one with the longest chain of work behind it, in order of the plan where two are equal. A
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
"""What it is sorted by, its place in the plan, its key, and the number under which it was entered."""


class ReadyQueue:
    """The ready jobs of a run, by urgency.

    Args:
        remaining_path: seconds of the longest chain that begins with each key.
        places: each key's place in the plan.
        ready: the jobs that are ready from the start, as `add` is told them.
    """

    def __init__(
        self,
        remaining_path: Mapping[str, float],
        places: Mapping[str, int],
        ready: Iterable[tuple[str, float, float]] = (),
    ) -> None:
        self.path, self.places = remaining_path, places
        self.entered: dict[str, int] = {}
        self.since: dict[str, float] = {}
        self.asleep: set[str] = set()
        self.old: set[str] = set()
        self.entries = 0
        self.resting: list[_Entry] = []
        self.birthdays: list[_Entry] = []
        self.young: list[_Entry] = []
        self.ageing: list[_Entry] = []
        for key, since, not_before in ready:
            self._enter(key, since)
            self.resting.append((not_before, places[key], key, self.entries))
            self.birthdays.append((since, places[key], key, self.entries))
        heapify(self.resting)
        heapify(self.birthdays)

    def add(self, key: str, since: float, not_before: float = 0.0) -> None:
        """A job has been ready since then; it may start at `not_before`, and ages in any case."""
        self._enter(key, since)
        heappush(self.resting, (not_before, self.places[key], key, self.entries))
        heappush(self.birthdays, (since, self.places[key], key, self.entries))

    def discard(self, key: str) -> None:
        """A job is not ready any more."""
        self.entered.pop(key, None)
        self.asleep.discard(key)
        self.old.discard(key)

    def pick(self, at: float, count: int, admits: Callable[[str], bool]) -> list[str]:
        """Take out up to `count` jobs that may start now, asking of each if it is admitted, the most urgent first."""
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
        """Wake what may start by now, and let age what has waited long enough."""
        while self.birthdays and self.birthdays[0][0] < at - AGEING_AFTER:
            since, place, key, number = heappop(self.birthdays)
            if self.entered.get(key) == number:
                self.old.add(key)
                if key not in self.asleep:
                    heappush(self.ageing, (since - self.path[key], place, key, number))
        while self.resting and self.resting[0][0] <= at:
            _, place, key, number = heappop(self.resting)
            if self.entered.get(key) == number:
                self._wake(place, key, number)

    def _wake(self, place: int, key: str, number: int) -> None:
        self.asleep.discard(key)
        if key in self.old:
            heappush(self.ageing, (self.since[key] - self.path[key], place, key, number))
        else:
            heappush(self.young, (-self.path[key], place, key, number))

    def _foremost(self, at: float) -> list[_Entry] | None:
        """The heap whose first entry is the most urgent one; None if nothing may start."""
        while self.young and (self.young[0][2] in self.old or self._left(self.young[0])):
            heappop(self.young)
        while self.ageing and self._left(self.ageing[0]):
            heappop(self.ageing)
        if not self.young or not self.ageing:
            return self.young or self.ageing or None
        value, place, *_ = self.ageing[0]
        aged = (value - (at - AGEING_AFTER), place)
        return self.young if self.young[0][:2] < aged else self.ageing

    def _left(self, entry: _Entry) -> bool:
        return self.entered.get(entry[2]) != entry[3]
