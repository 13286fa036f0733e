"""One line of a journal: what it must have to be a record."""

from __future__ import annotations

import json
from typing import Any

import pytest

from orchestrator.runs.records import RECORDS, is_covered, line_of, record_of

BEGAN: dict[str, Any] = {
    "seq": 0, "t": "2026-01-01T00:00:00.000Z", "seconds": 0.5, "event": "run_began", "run": "r", "command": "c",
    "experiments": ["tiny"], "store": "s", "jobs": {"distil": 2}, "workers": 1, "versions": {"torch": "2"}, "pid": 7,
    "host": "box",
}  # fmt: skip
STARTED: dict[str, Any] = {
    "seq": 3, "t": "", "seconds": 1, "event": "job_started", "key": "distil-x", "kind": "distil", "slot": "w1",
    "host": "box", "attempt": 1, "remaining_path": 2.5,
}  # fmt: skip


@pytest.mark.parametrize("record", [BEGAN, STARTED])
def test_a_record_comes_back_from_its_line(record: dict[str, Any]) -> None:
    line = line_of(record).encode()
    assert line.endswith(b"\n") and is_covered(line[:-1]) and record_of(line[:-1]) == record
    bare = json.dumps(record).encode()
    assert not is_covered(bare) and record_of(bare) == record, "as earlier versions wrote it"


ODD = [
    (BEGAN, {"pid": "x"}), (BEGAN, {"pid": 10**22}), (BEGAN, {"pid": 0}), (BEGAN, {"pid": True}),
    (BEGAN, {"jobs": [1]}), (BEGAN, {"jobs": {"distil": "2"}}), (BEGAN, {"experiments": 7}),
    (BEGAN, {"experiments": [1]}), (BEGAN, {"workers": 1.5}), (BEGAN, {"versions": "2"}),
    (BEGAN, {"versions": {"torch": [2]}}), (BEGAN, {"command": None}),
    (BEGAN, {"host": 1}), (BEGAN, {"seq": "0"}), (BEGAN, {"t": 5}), (BEGAN, {"event": "run_bogan", "key": 3}),
    (STARTED, {"seconds": "abc"}), (STARTED, {"seconds": float("nan")}), (STARTED, {"seconds": 10**400}),
    (STARTED, {"slot": [1]}), (STARTED, {"key": "../x"}), (STARTED, {"key": ""}), (STARTED, {"attempt": None}),
    (STARTED, {"remaining_path": float("inf")}), (STARTED, {"kind": {}}),
]  # fmt: skip


@pytest.mark.parametrize(("record", "changes"), ODD)
def test_a_field_of_an_odd_type_makes_it_no_record(record: dict[str, Any], changes: dict[str, Any]) -> None:
    assert record_of(json.dumps(record | changes).encode()) is None


@pytest.mark.parametrize("name", [*RECORDS["job_started"], "seq", "t", "seconds", "event"])
def test_a_field_that_is_not_there_makes_it_no_record(name: str) -> None:
    assert record_of(json.dumps({field: value for field, value in STARTED.items() if field != name}).encode()) is None


def test_events_and_fields_of_later_versions_are_passed_on() -> None:
    later = {"seq": 1, "t": "", "seconds": 0.0, "event": "node_warmed", "degrees": [1]}
    assert record_of(json.dumps(later).encode()) == later
    assert record_of(line_of(STARTED | {"more": [1]}).encode()[:-1]) == STARTED | {"more": [1]}
