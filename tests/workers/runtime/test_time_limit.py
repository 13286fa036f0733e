"""A worker's time_limit: when it ends, and what still fits into it."""

from __future__ import annotations

import os
import time
from math import inf
from pathlib import Path

import pytest

from workers.runtime import time_limit
from workers.runtime.time_limit import TimeLimit


def test_without_its_variables_a_shift_never_ends() -> None:
    found = TimeLimit.current({})
    assert found == TimeLimit(-inf, inf, None)
    assert not found.over() and found.has_room_for(1e9)
    with found.working():
        pass


def test_a_shift_is_read_back_from_its_environment(tmp_path: Path) -> None:
    made = TimeLimit(100.25, 200.5, tmp_path)
    assert TimeLimit.current(made.environment()) == made


def test_a_shift_is_over_when_its_time_is_or_when_it_is_ended(tmp_path: Path) -> None:
    now = time.time()
    assert TimeLimit(now - 10, now - 1, tmp_path).over()
    going = TimeLimit(now, now + 1000, tmp_path)
    assert not going.over()
    going.stop()
    assert going.over()


@pytest.mark.parametrize(
    ("began", "ends", "seconds", "room"),
    [
        (-50, 50, 49, True),
        (-50, 50, 51, False),
        (-5, 95, 1000, True),  # fits into no time limit, so into a fresh one
        (-50, 50, 1000, False),
    ],
)
def test_work_begins_only_if_it_fits_or_the_shift_is_fresh(
    began: float, ends: float, seconds: float, room: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time_limit.time, "time", lambda: 1000.0)
    assert TimeLimit(1000.0 + began, 1000.0 + ends).has_room_for(seconds) is room


def test_a_process_is_busy_while_it_works_and_a_dead_one_is_not(tmp_path: Path) -> None:
    going = TimeLimit(0, inf, tmp_path)
    with going.working():
        assert going.busy() == [f"busy-{os.getpid()}"]
    assert going.busy() == []
    (tmp_path / f"busy-{2**22 + 1}").touch()  # above the largest pid of Linux
    assert going.busy() == []
