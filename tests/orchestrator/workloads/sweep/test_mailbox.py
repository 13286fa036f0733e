from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.sweep import Values
from orchestrator.workloads.sweep.mailbox import (
    StageMetrics,
    StageRequest,
    TrialFailed,
    TrialMailbox,
    folder_of,
    trial_id,
)

VALUES: Values = {"num_stages": 2, "image_lr": 0.03, "init": "real", "drop": None}


class Waited(Exception):
    pass


def give_up() -> None:
    raise Waited


def then(*acts: Callable[[], object]) -> Callable[[], object]:
    """What the trial does instead of sleeping: one act after the other, then it gives up."""
    left = [*acts, give_up]
    return lambda: left.pop(0)()


def test_a_trial_gets_what_the_driver_answers(tmp_path: Path) -> None:
    trial, driver = TrialMailbox(tmp_path / "mailbox"), TrialMailbox(tmp_path / "mailbox")
    request = StageRequest(VALUES, 1)
    answer = StageMetrics({"held_out": 61.5}, last=True)

    def serve() -> None:
        assert driver.new_requests() == [request]
        driver.answer(request, answer)

    assert trial.ask(request, then(serve)) == answer


def test_a_wish_is_heard_once(tmp_path: Path) -> None:
    mailbox = TrialMailbox(tmp_path)
    with pytest.raises(Waited):
        mailbox.ask(StageRequest(VALUES, 1), give_up)
    assert mailbox.new_requests() == [StageRequest(VALUES, 1)]
    assert mailbox.new_requests() == []


def test_an_answer_that_is_there_is_not_asked_for_again(tmp_path: Path) -> None:
    mailbox = TrialMailbox(tmp_path)
    mailbox.answer(StageRequest(VALUES, 1), StageMetrics({"held_out": 50.0}))
    assert mailbox.ask(StageRequest(VALUES, 1), give_up).metrics == {"held_out": 50.0}
    assert mailbox.new_requests() == []


def test_a_failure_reaches_the_trial_with_its_reason(tmp_path: Path) -> None:
    mailbox = TrialMailbox(tmp_path)
    mailbox.answer(StageRequest(VALUES, 1), StageMetrics({}, failed="NaN at iteration 3"))
    with pytest.raises(TrialFailed, match="NaN at iteration 3"):
        mailbox.ask(StageRequest(VALUES, 1), give_up)


def test_a_new_driver_forgets_failures_and_open_wishes_and_keeps_what_was_reported(tmp_path: Path) -> None:
    mailbox = TrialMailbox(tmp_path)
    other: Values = {"num_stages": 5}
    for request in (StageRequest(VALUES, 1), StageRequest(VALUES, 2), StageRequest(other, 1)):
        with pytest.raises(Waited):
            mailbox.ask(request, give_up)
    mailbox.answer(StageRequest(VALUES, 1), StageMetrics({"held_out": 50.0}))
    mailbox.answer(StageRequest(other, 1), StageMetrics({}, failed="NaN"))
    new = TrialMailbox(tmp_path)
    assert new.begin_again() == [VALUES]
    assert new.answer_to(trial_id(VALUES), 1) == StageMetrics({"held_out": 50.0})
    assert new.answer_to(trial_id(other), 1) is None
    assert new.new_requests() == []


def test_a_desk_that_nobody_has_used_is_empty(tmp_path: Path) -> None:
    mailbox = TrialMailbox(tmp_path / "none")
    assert mailbox.begin_again() == []
    assert mailbox.new_requests() == []
    assert not (tmp_path / "none").exists()


def test_what_lies_on_the_desk_is_private_and_whole(tmp_path: Path) -> None:
    mailbox = TrialMailbox(tmp_path / "mailbox")
    mailbox.answer(StageRequest(VALUES, 1), StageMetrics({"held_out": 1.0}))
    (file,) = (tmp_path / "mailbox").iterdir()
    assert file.name == f"{trial_id(VALUES)}.1.answer.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_a_trial_is_known_by_its_values_in_any_order() -> None:
    assert trial_id({"a": 1, "b": 0.1}) == trial_id({"b": 0.1, "a": 1})
    assert trial_id({"a": 1}) != trial_id({"a": 1.0}) != trial_id({"a": "1"})


def test_the_folder_of_a_trial_is_named_by_its_values_and_told_apart_by_a_digest() -> None:
    name = folder_of({"stages": 2, "norm": "a/b c", "lr": None})
    assert name.startswith("stages=2,norm=a_b_c,lr=None-") and "/" not in name
    assert folder_of({"stages": 2, "norm": "a/b_c", "lr": None}) != name
    assert len(folder_of({"x": "y" * 500})) < 120
