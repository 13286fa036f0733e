from __future__ import annotations

import random
from itertools import combinations

from orchestrator.planning.budget import Bought, choose


def bought(needs: list[str], budget: float, **seconds: float) -> Bought:
    """Cells that need jobs named by single letters."""
    return choose(needs, seconds, budget)


def test_what_needs_nothing_is_complete_and_what_is_affordable_follows_by_price() -> None:
    assert bought(["ab", "", "a", "c"], 4, a=1, b=2, c=5) == Bought((1, 2, 0), 3)


def test_a_job_that_was_bought_costs_nothing_again() -> None:
    assert bought(["ab", "ac", "d"], 7, a=4, b=1, c=1, d=3) == Bought((0, 1), 6)


def test_a_chain_on_which_many_cells_hang_is_worth_more_than_a_loner_that_costs_less() -> None:
    """The cheapest cell alone takes 10 of 20; the four cells of the chain take 15 and leave nothing for it."""
    chain = bought(["x", "ab", "ac", "ad", "ae"], 20, x=10, a=13, b=0.5, c=0.5, d=0.5, e=0.5)
    assert sorted(chain.cells) == [1, 2, 3, 4] and chain.seconds == 15


def test_no_budget_buys_only_what_is_there_and_enough_buys_all() -> None:
    assert bought(["a", ""], 0, a=1).cells == (1,)
    assert bought(["a", "b", "ab"], 2, a=1, b=1) == Bought((0, 1, 2), 2)


def test_the_choice_is_never_dearer_than_the_budget_and_near_the_best_one() -> None:
    chance = random.Random(0)
    lost = 0
    for _ in range(100):
        seconds = {key: float(chance.randint(1, 9)) for key in "abcdefgh"}
        needs = ["".join(chance.sample("abcdefgh", chance.randint(1, 4))) for _ in range(8)]
        found = choose(needs, seconds, 18.0)
        paid = {key for cell in found.cells for key in needs[cell]}
        assert found.seconds == sum(seconds[key] for key in paid) <= 18.0
        best = max(
            count
            for count in range(9)
            for cells in combinations(needs, count)
            if sum(seconds[key] for key in set("".join(cells))) <= 18.0
        )
        lost += best - len(found.cells)
    assert lost <= 40  # of more than three hundred that can be had
