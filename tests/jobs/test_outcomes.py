"""What jobs leave: the classes and the JSON objects of manifests are the same numbers."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.errors import Damaged
from jobs.kinds import SPECS
from jobs.outcomes import OUTCOMES, DistilOutcome, ExpertsOutcome, NetworkOutcome, of

DISTIL = {"iteration": 40, "step_size": 0.02, "loss": 0.5, "first_loss": 0.9}

STORED: list[tuple[str, dict[str, Any]]] = [
    ("dataset", {"train": 90, "validation": 10, "test": 20}),
    ("experts", {"start_accuracy": 10.0, "end_accuracy": 80.5}),
    ("forgetting", {"streams": 2, "never_forgotten": 0.25}),
    ("select", {"images": 30}),
    ("distil", {**DISTIL, "step_size": None}),
    ("distil", {**DISTIL, "validation_accuracy": 61.25}),
    ("distil", {**DISTIL, "test_accuracy": 61.25, "data_used": 50.0}),
    ("evaluate", {"accuracy": 20.0, "curve": [30.0, 20.0]}),
    ("full", {"accuracy": 98.0, "curve": [98.0]}),
]


def test_every_kind_of_job_has_an_outcome() -> None:
    assert set(OUTCOMES) == set(SPECS)


@pytest.mark.parametrize(("kind", "extra"), STORED)
def test_an_outcome_stores_what_it_was_read_from(kind: str, extra: dict[str, Any]) -> None:
    assert of(kind, extra).to_extra() == extra


def test_the_held_out_accuracy_is_that_of_the_kept_iterate_or_of_the_last_snapshots() -> None:
    assert DistilOutcome.from_extra({**DISTIL, "validation_accuracy": 61.25}).held_out == 61.25
    assert DistilOutcome.from_extra({**DISTIL, "test_accuracy": 61.25}).held_out is None
    assert ExpertsOutcome(start_accuracy=10.0, end_accuracy=80.0).held_out == 80.0
    assert NetworkOutcome(accuracy=20.0, curve=(20.0,)).held_out is None


@pytest.mark.parametrize(
    ("extra", "name"),
    [({"curve": [1.0]}, "accuracy"), ({"accuracy": "much", "curve": []}, "accuracy"), ({"accuracy": 1.0}, "curve")],
)
def test_a_number_that_is_absent_or_is_none_is_damage(extra: dict[str, Any], name: str) -> None:
    with pytest.raises(Damaged, match=f"extra.{name}"):
        NetworkOutcome.from_extra(extra)


def test_numbers_of_later_versions_are_passed_over() -> None:
    assert of("select", {"images": 3, "weight": 2.0}).to_extra() == {"images": 3}
