"""Which cells a budget buys: the choice that completes most of them.

What a cell costs depends on what was bought before, since cells share jobs, so the best choice cannot be had by
sorting. Two greedy ways are tried and the better one is taken. The first buys the cell that costs least now. The second
divides the price of each job among the cells that need it, so an expensive chain on which many cells hang counts as
cheap. Neither is proven to be the best; the second never gets less from a budget that the first spends on loners.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

Needs = Sequence[Collection[str]]
"""By cell, the keys of the jobs that have to run for it."""


@dataclass(frozen=True)
class Bought:
    """The cells by number, in the order of buying, and the seconds they take."""

    cells: tuple[int, ...]
    seconds: float


def choose(needs: Needs, seconds: Mapping[str, float], budget: float) -> Bought:
    """The cells to complete within `budget` seconds of worker time; those that need nothing come first."""
    ways = (_greedy(needs, seconds, budget, shared=False), _greedy(needs, seconds, budget, shared=True))
    return max(ways, key=lambda bought: (len(bought.cells), -bought.seconds))


def _greedy(needs: Needs, seconds: Mapping[str, float], budget: float, shared: bool) -> Bought:
    """Buy the cheapest cell until none is affordable, by its price now or by its share in the prices of its jobs."""
    users: dict[str, list[int]] = {}
    for cell, keys in enumerate(needs):
        for key in keys:
            users.setdefault(key, []).append(cell)
    price = [sum(seconds[key] for key in keys) for keys in needs]
    share = [sum(seconds[key] / len(users[key]) for key in keys) for keys in needs]
    left, bought, spent, paid = set(range(len(needs))), list[int](), 0.0, set[str]()
    while affordable := [cell for cell in left if price[cell] <= budget - spent + _ROUNDING]:
        cell = min(affordable, key=lambda cell: (share[cell] if shared else price[cell], cell))
        left.remove(cell)
        bought.append(cell)
        for key in set(needs[cell]) - paid:
            paid.add(key)
            spent += seconds[key]
            for user in users[key]:
                price[user] -= seconds[key]
                share[user] -= seconds[key] / len(users[key])
    return Bought(tuple(bought), spent)


_ROUNDING = 1e-6
"""Seconds by which a price may seem too high after many subtractions."""
