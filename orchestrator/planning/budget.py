"""Which cells a budget of worker time completes: the selection with most cells.

What a cell costs depends on what was selected before, since cells share jobs, so the best selection cannot be had by
sorting. Two greedy ways are tried and the better one is taken. The first selects the cell that costs least now. The
second divides the seconds of each job among the cells that need it, so an expensive chain that many cells need counts
as cheap. Neither is proven to be the best.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from jobs.errors import BadInput

Cell = TypeVar("Cell")
Needs = Sequence[Collection[str]]
"""By cell, the keys of the jobs that have to run for it."""

_BUDGET = re.compile(r"^\s*(?P<hours>\d+(\.\d+)?)\s*(gpu-?h|h|gpu-hours?|hours?)\s*$", re.IGNORECASE)
_ROUNDING = 1e-6
"""Seconds by which a cost may seem too high after many subtractions."""


@dataclass(frozen=True)
class BudgetSelection(Generic[Cell]):
    """What a budget completes; times in seconds of one worker."""

    budget: float
    seconds: float
    """What the selected cells take together."""
    cells: tuple[Cell, ...]
    """In the order of selection."""
    left_out: tuple[tuple[Cell, float], ...]
    """The other cells, each with what it would take in addition."""


def parse_budget(text: str) -> float:
    """The seconds of a budget such as `40gpu-h`.

    Raises:
        BadInput: it is not written as a number of hours.
    """
    match = _BUDGET.match(text)
    if match is None:
        raise BadInput("command line", "--budget", text, "write hours of one worker, as 40gpu-h")
    return float(match["hours"]) * 3600.0


def select_within_budget(
    cells: Sequence[Cell], needs: Needs, seconds: Mapping[str, float], budget: float
) -> BudgetSelection[Cell]:
    """Select the cells to complete within a budget; those that need nothing come first.

    Args:
        cells: what there is to complete.
        needs: the jobs of each.
        seconds: how long each job takes.
        budget: seconds of worker time.
    """
    numbers = max(
        (_greedy(needs, seconds, budget, shared) for shared in (False, True)),
        key=lambda numbers: (len(numbers), -_cost(numbers, needs, seconds)),
    )
    paid = {key for number in numbers for key in needs[number]}
    rest = [number for number in range(len(cells)) if number not in set(numbers)]
    return BudgetSelection(
        budget=budget,
        seconds=_cost(numbers, needs, seconds),
        cells=tuple(cells[number] for number in numbers),
        left_out=tuple((cells[number], sum(seconds[key] for key in set(needs[number]) - paid)) for number in rest),
    )


def _cost(numbers: Sequence[int], needs: Needs, seconds: Mapping[str, float]) -> float:
    return sum(seconds[key] for key in {key for number in numbers for key in needs[number]})


def _greedy(needs: Needs, seconds: Mapping[str, float], budget: float, shared: bool) -> list[int]:
    """Select the cheapest cell until none fits, by its cost now or by its share in the costs of its jobs."""
    users: dict[str, list[int]] = {}
    for number, keys in enumerate(needs):
        for key in keys:
            users.setdefault(key, []).append(number)
    cost = [sum(seconds[key] for key in keys) for keys in needs]
    share = [sum(seconds[key] / len(users[key]) for key in keys) for keys in needs]
    left, selected, spent, paid = set(range(len(needs))), list[int](), 0.0, set[str]()
    while fitting := [number for number in left if cost[number] <= budget - spent + _ROUNDING]:
        cheapest = min(fitting, key=lambda number: (share[number] if shared else cost[number], number))
        left.remove(cheapest)
        selected.append(cheapest)
        for key in set(needs[cheapest]) - paid:
            paid.add(key)
            spent += seconds[key]
            for user in users[key]:
                cost[user] -= seconds[key]
                share[user] -= seconds[key] / len(users[key])
    return selected
