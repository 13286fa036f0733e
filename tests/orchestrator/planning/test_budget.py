from __future__ import annotations

import random
from itertools import combinations

import pytest

from jobs.errors import BadInput
from orchestrator.planning.budget import BudgetSelection, parse_budget, select_within_budget


def selection(needs: list[str], budget: float, **seconds: float) -> BudgetSelection[int]:
    """Of cells, named by their numbers, that need jobs named by single letters."""
    return select_within_budget(range(len(needs)), needs, seconds, budget)


def test_what_needs_nothing_is_complete_and_what_is_affordable_follows_by_price() -> None:
    assert selection(["ab", "", "a", "c"], 4, a=1, b=2, c=5) == BudgetSelection(4, 3, (1, 2, 0), ((3, 5),))


def test_a_job_that_was_bought_costs_nothing_again() -> None:
    assert selection(["ab", "ac", "d"], 7, a=4, b=1, c=1, d=3) == BudgetSelection(7, 6, (0, 1), ((2, 3),))


def test_a_chain_on_which_many_cells_hang_is_worth_more_than_a_loner_that_costs_less() -> None:
    """The cheapest cell alone takes 10 of 20; the four cells of the chain take 15 and leave nothing for it."""
    chain = selection(["x", "ab", "ac", "ad", "ae"], 20, x=10, a=13, b=0.5, c=0.5, d=0.5, e=0.5)
    assert sorted(chain.cells) == [1, 2, 3, 4] and chain.seconds == 15


def test_no_budget_buys_only_what_is_there_and_enough_buys_all() -> None:
    assert selection(["a", ""], 0, a=1).cells == (1,)
    assert selection(["a", "b", "ab"], 2, a=1, b=1) == BudgetSelection(2, 2, (0, 1, 2), ())


def test_what_is_left_out_says_what_it_would_take_in_addition() -> None:
    assert selection(["a", "ab"], 2, a=2, b=5).left_out == ((1, 5),)


@pytest.mark.parametrize(("text", "hours"), [("40gpu-h", 40), ("1.5 h", 1.5), ("2 GPU-hours", 2)])
def test_a_budget_is_written_in_hours_of_one_worker(text: str, hours: float) -> None:
    assert parse_budget(text) == hours * 3600


def test_a_budget_in_another_unit_is_refused() -> None:
    with pytest.raises(BadInput, match="write hours of one worker"):
        parse_budget("3 days")


def test_the_choice_is_never_dearer_than_the_budget_and_near_the_best_one() -> None:
    chance = random.Random(0)
    lost = 0
    for _ in range(100):
        seconds = {key: float(chance.randint(1, 9)) for key in "abcdefgh"}
        needs = ["".join(chance.sample("abcdefgh", chance.randint(1, 4))) for _ in range(8)]
        found = select_within_budget(range(8), needs, seconds, 18.0)
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
