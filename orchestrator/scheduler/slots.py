"""The order in which idle slots get jobs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping


def emptiest_first(idle: Collection[str], slots: Mapping[str, str | None], cards: Mapping[str, str]) -> list[str]:
    """The idle slots, so that no card gets a second job while another has none.

    Args:
        idle: the slots that may get a job.
        slots: the key that each slot runs, None when idle, in the order in which they joined.
        cards: by slot, the card that it shares with others; a slot that is not there shares none.
    """
    jobs = Counter(cards[slot] for slot, key in slots.items() if key is not None and slot in cards)
    before: dict[str, int] = {}
    for slot in slots:
        if slot in idle:
            before[slot] = 0
            if (card := cards.get(slot)) is not None:
                before[slot] = jobs[card]
                jobs[card] += 1
    return sorted(before, key=before.__getitem__)
