from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from jobs.documents import validate
from jobs.errors import BadInput
from jobs.sweep import FOLDER, Constraint, Sweep, Values, listed, load

STAGES_X_IPC = {
    "num_stages": {"path": "arms.0.stages", "grid": [1, 2, 5, 10]},
    "ipc_per_stage": {"path": "arms.0.ipc_per_stage", "grid": [1, 2, 5, 10]},
}


def sweep_of(**fields: Any) -> Sweep:
    return validate(Sweep, {"name": "s", "base": "tiny", "space": STAGES_X_IPC, **fields}, "sweep.yaml")


def refusal(**fields: Any) -> BadInput:
    with pytest.raises(BadInput) as caught:
        listed(sweep_of(**fields), "sweep.yaml")
    return caught.value


def test_a_grid_at_a_fixed_total_is_table_5s_row() -> None:
    sweep = sweep_of(constraints=["num_stages * ipc_per_stage == 10"])
    pairs = [(one["num_stages"], one["ipc_per_stage"]) for one in listed(sweep, "")]
    assert pairs == [(1, 10), (2, 5), (5, 2), (10, 1)]


def test_a_grid_without_constraints_has_every_point_once() -> None:
    trials = listed(sweep_of(), "")
    assert len(trials) == 16
    assert Counter(one["num_stages"] for one in trials) == {1: 4, 2: 4, 5: 4, 10: 4}


def test_each_point_of_a_grid_gets_its_own_draws_of_the_rest() -> None:
    space = {"a": {"grid": [1, 2]}, "b": {"uniform": [0, 1]}}
    trials = listed(sweep_of(space=space, samples=3), "")
    assert [one["a"] for one in trials] == [1, 1, 1, 2, 2, 2]
    assert len({one["b"] for one in trials}) == 6


def test_draws_follow_from_the_seed_alone() -> None:
    space = {"lr": {"log_uniform": [1e-4, 1.0]}}
    first, again, other = (
        listed(sweep_of(space=space, searcher="random", samples=5, seed=seed), "") for seed in (0, 0, 1)
    )
    assert first == again != other


def test_a_logarithmic_range_is_even_in_the_logarithm_and_a_plain_one_in_the_value() -> None:
    space = {"log": {"log_uniform": [1e-4, 1.0]}, "plain": {"uniform": [0.0, 1.0]}}
    trials = listed(sweep_of(space=space, searcher="random", samples=400), "")
    assert all(1e-4 <= float(one["log"] or 0) <= 1 and 0 <= float(one["plain"] or 0) <= 1 for one in trials)
    below = sum(math.log10(float(one["log"] or 0)) < -2 for one in trials)
    assert 150 < below < 250  # half of 400, five standard deviations either way
    assert 150 < sum(float(one["plain"] or 0) < 0.5 for one in trials) < 250


def test_whole_numbers_of_a_range_are_integers_within_it() -> None:
    space = {"n": {"uniform": [1, 4], "whole": True}}
    values = [one["n"] for one in listed(sweep_of(space=space, searcher="random", samples=4), "")]
    assert sorted(values, key=str) == [1, 2, 3, 4]
    assert all(type(value) is int for value in values)


def test_a_random_search_draws_from_grids_keeps_to_constraints_and_repeats_nothing() -> None:
    sweep = sweep_of(searcher="random", samples=50, constraints=["num_stages * ipc_per_stage == 10"])
    assert len(listed(sweep, "")) == 4  # there are no more


def test_a_grid_of_too_many_points_is_refused_before_any_is_listed() -> None:
    dimensions = {name: {"grid": list(range(10))} for name in "abcdefghijkl"}
    with pytest.raises(BadInput, match="space is 1000000000000: the grid has more than 10000 points"):
        listed(sweep_of(space=dimensions, budget={"trials": 2}), "mine.yaml")


def test_the_budget_of_trials_cuts_the_list() -> None:
    assert listed(sweep_of(budget={"trials": 3}), "") == listed(sweep_of(), "")[:3]


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("a * b == 10", True),
        ("a + b <= 6", False),
        ("1 < a < b", True),
        ("1 < b < a", False),
        ("a == 2 and b == 5 or a == 9", True),
        ("not a == 2", False),
        ("b // a == 2 and b % a == 1 and b / a == 2.5", True),
        ("-a + 7 == b", True),
        ("word == 'adam'", True),
        ("flag", True),
        ("b / (a - 2) > 0", False),  # a division by zero is not satisfied
        ("word < a", False),  # nor is a comparison without meaning
        ("word * 99999999999 == word", False),  # nor arithmetic on a word
        ("word % a == word", False),
    ],
)
def test_constraints_are_what_python_says(text: str, holds: bool) -> None:
    values: Values = {"a": 2, "b": 5, "word": "adam", "flag": True}
    assert Constraint(text, values).holds(values) is holds


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "a.real == 1",
        "a[0] == 1",
        "[x for x in a]",
        "(lambda: 1)()",
        "a ** b == 1",
        "a if b else a",
        "f'{a}'",
        "a == b'x'",
        "a := 1",
        "a =",
        "",
        "a == " + "1 + " * 200 + "1",
        "'a' * 99999999999 == a",
        "'%999999999d' % 1 == a",
        "a * 'a' == a",
    ],
)
def test_nothing_but_conditions_is_taken(text: str) -> None:
    with pytest.raises(ValueError, match="write|use names|use arithmetic"):
        Constraint(text, {"a": 1, "b": 1})


@pytest.mark.parametrize(
    ("fields", "field", "fix"),
    [
        ({"space": {}}, "space", "at least 1"),
        ({"space": {"a": {}}}, "space.a", "exactly one of grid, choice"),
        ({"space": {"a": {"grid": [1], "choice": [2]}}}, "space.a", "exactly one of grid, choice"),
        ({"space": {"a": {"grid": []}}}, "space.a.grid", "at least 1"),
        ({"space": {"a": {"uniform": [2, 1]}}}, "space.a", "low < high"),
        ({"space": {"a": {"log_uniform": [0, 1]}}}, "space.a", "above 0"),
        ({"space": {"a": {"grid": [1], "whole": True}}}, "space.a", "integers in the list"),
        ({"space": {"arms.0.stages": {"grid": [1]}}}, "space", "put the field into `path`"),
        ({"space": {"a": {"grip": [1]}}}, "space.a.grip", "unknown field; known here: choice, grid"),
        ({"constraints": ["num_stagez == 1"]}, "constraints", "known here: num_stages, ipc_per_stage"),
        ({"constraints": ["num_stages * ipc_per_stage == 11"]}, "constraints.0", "no trial of the space satisfies it"),
        ({"constraints": ["num_stages == 1", "num_stages == 2"]}, "constraints", "satisfies all of them"),
        ({"metric": "test_accuracy"}, "metric", "one of held_out, loss (test accuracy never steers a sweep)"),
        ({"mode": "best"}, "mode", "one of 'max' or 'min'"),
        ({"samples": 3}, "samples", "a grid has nothing to draw"),
        ({"scheduler": {"name": "asha", "reduction": 1}}, "scheduler.reduction", "at least 2"),
        ({"budget": {"gpu_hours": 0}}, "budget.gpu_hours", "greater than 0"),
        ({"samples": 10**9, "searcher": "random"}, "samples", "at most 10000"),
        ({"searcher": "bayes"}, "searcher", "'grid', 'random' or 'optuna'"),
    ],
)
def test_a_bad_sweep_is_refused_with_the_mend(fields: dict[str, Any], field: str, fix: str) -> None:
    error = refusal(**fields)
    assert (error.place, error.field) == ("sweep.yaml", field)
    assert fix in error.fix


def test_an_empty_space_in_a_file_is_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text("name: s\nbase: tiny\nspace: {}\n")
    with pytest.raises(BadInput, match="name at least one field and its values"):
        load(str(path))


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(BadInput, match="random, stages_x_ipc"):
        load("stages_by_ipc")


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_sweep_has_trials_and_is_called_as_its_file(path: Path) -> None:
    sweep, place = load(path.stem)
    assert (sweep.name, place) == (path.stem, path.name)
    assert listed(sweep, place)


def test_the_shipped_random_search_has_twelve_trials_within_ten_images() -> None:
    trials = listed(load("random")[0], "")
    assert len(trials) == 12
    assert all(int(one["num_stages"] or 0) * int(one["ipc_per_stage"] or 0) <= 10 for one in trials)
