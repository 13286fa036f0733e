from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.keys import kind_of
from jobs.specs import DistilSpec, ExpertsSpec
from orchestrator.planning.requests import Request, resolve
from orchestrator.runs.records import RECORDS, Record
from orchestrator.scheduler.schedule import Row, rank_rows
from tests.orchestrator.schedule import (
    Stay,
    backfills,
    before_their_parents,
    first_rank,
    overtaken,
    stays,
    too_many_at_once,
)
from tests.orchestrator.shell import shell_in

DEFAULTS: dict[str, Any] = {"host": "box", "attempt": 1, "job_seconds": 1.0, "reason": "bug", "message": "", "log": ""}


def told(*story: tuple[Any, ...]) -> list[Record]:
    """A journal from (seconds, event, key or slot, further fields) tuples."""
    records = []
    for at, event, name, *more in story:
        fields: dict[str, Any] = more[0] if more else {}
        named = {"slot": name} if event.startswith("slot") else {"key": name, "kind": name.split("-")[0]}
        record = {"event": event, "seconds": float(at), "slot": "s1", "remaining_path": 1.0, **named, **fields}
        records.append(DEFAULTS | record)
        assert set(RECORDS[event]) <= records[-1].keys(), event
    return records


def ready(at: float, key: str, path: float) -> tuple[Any, ...]:
    return at, "job_ready", key, {"remaining_path": path}


def started(at: float, key: str, slot: str = "s1") -> tuple[Any, ...]:
    return at, "job_started", key, {"slot": slot}


def done(at: float, key: str) -> tuple[Any, ...]:
    return at, "job_done", key


def test_a_stay_ends_with_its_job_with_its_slot_or_never() -> None:
    records = told(
        ready(0, "a", 1), started(1, "a", "s1"), started(2, "b", "s2"), done(3, "a"),
        started(4, "c", "s1"), (5, "slot_left", "s2"), (6, "job_failed", "c"), started(7, "b", "s3"),
    )  # fmt: skip
    assert stays(records) == [Stay("a", 1, 3), Stay("b", 2, 5), Stay("c", 4, 6), Stay("b", 7, float("inf"))]


def test_stays_that_only_touch_do_not_overlap() -> None:
    assert Stay("a", 0, 2).overlaps(Stay("b", 1, 3)) and Stay("a", 0, 9).overlaps(Stay("b", 1, 3))
    assert not Stay("a", 0, 1).overlaps(Stay("b", 1, 3))


def test_a_job_that_starts_before_its_parent_is_whole_is_told() -> None:
    parents = {"a": (), "b": ("a",), "c": ("a", "b")}
    good = told((0, "job_cached", "a"), started(1, "b"), done(2, "b"), started(3, "c"))
    assert before_their_parents(good, parents) == []
    early = told(started(1, "a"), started(1, "b", "s2"), done(2, "a"), (3, "job_failed", "b"), started(4, "c"))
    assert before_their_parents(early, parents) == ["b started before a was there", "c started before b was there"]


def test_more_jobs_of_a_group_than_its_limit_are_told() -> None:
    exclusive, limits = {"a": ("g",), "b": ("g", "h"), "c": ("h",)}, {"g": 1, "h": 2}
    good = told(started(1, "a"), (2, "job_yielded", "a"), started(2, "b"), started(2, "c", "s2"))
    assert too_many_at_once(good, exclusive, limits) == []
    bad = told(started(1, "a"), started(2, "c", "s2"), started(2, "b", "s3"))
    assert too_many_at_once(bad, exclusive, limits) == ["b started while g was full"]
    assert too_many_at_once(bad, exclusive, limits | {"g": 2}) == []


def test_a_more_urgent_ready_job_that_is_left_out_is_told() -> None:
    both = (ready(0, "short", 1), ready(0, "long", 2))
    assert overtaken(told(*both, started(1, "long"), started(1, "short", "s2")), {}, {}) == []
    assert overtaken(told(*both, started(1, "short"), started(1, "long", "s2")), {}, {}) == ["short overtook long"]
    assert overtaken(told(ready(0, "a", 2), ready(0, "b", 2), started(1, "b")), {}, {}) == []


def test_a_job_that_starts_without_being_ready_is_told() -> None:
    assert overtaken(told(started(1, "a")), {}, {}) == ["a started without being ready"]
    twice = told(ready(0, "a", 1), started(1, "a"), done(2, "a"), started(3, "a"))
    assert overtaken(twice, {}, {}) == ["a started without being ready"]


def test_a_job_whose_group_is_full_may_be_overtaken_and_no_longer_afterwards() -> None:
    exclusive, limits = {"one": ("g",), "two": ("g",)}, {"g": 1}
    begin = (ready(0, "one", 9), ready(0, "two", 8), ready(0, "small", 1), ready(0, "tiny", 0.5), started(1, "one"))
    assert overtaken(told(*begin, started(2, "small", "s2")), exclusive, limits) == []
    after = told(*begin, done(3, "one"), started(4, "small"))
    assert overtaken(after, exclusive, limits) == ["small overtook two"]


def test_a_job_that_somebody_else_is_doing_may_be_overtaken_until_it_is_asked_for_again() -> None:
    busy = (3, "job_busy", "long", {"retry_after": 2.0})
    begin = (ready(0, "long", 9), ready(0, "short", 1), started(1, "long"), busy, ready(3, "long", 9))
    assert overtaken(told(*begin, started(4, "short")), {}, {}) == []
    assert overtaken(told(*begin, started(6, "short")), {}, {}) == ["short overtook long"]


def test_a_row_goes_before_a_chain_that_the_end_does_not_wait_for() -> None:
    both, rank = (ready(0, "row", 1), ready(0, "long", 9)), {"row": 0, "long": 1}
    early, late = ({"slot": "s1", "share": share} for share in (1000.0, 9.0))
    assert overtaken(told(*both, (1, "job_started", "row", early)), {}, {}, rank) == []
    assert overtaken(told(*both, (1, "job_started", "long", early)), {}, {}, rank) == ["long overtook row"]
    assert overtaken(told(*both, (1, "job_started", "row", late)), {}, {}, rank) == ["row overtook long"]


def test_an_evaluation_beside_the_work_of_a_later_stage_of_its_chain_is_a_backfill() -> None:
    parents = {
        "distil-1": (), "distil-other": (), "evaluate-1": ("distil-1",), "evaluate-random": ("select-1",),
        "experts-2": ("distil-1",), "distil-2": ("experts-2", "distil-1"), "evaluate-2": ("distil-1", "distil-2"),
    }  # fmt: skip
    chain = (started(0, "distil-1"), done(1, "distil-1"), started(1, "experts-2"), done(3, "experts-2"))
    tail = (started(3, "distil-2"), done(5, "distil-2"))
    beside = told(*chain, started(4, "evaluate-1", "s2"), *tail, done(6, "evaluate-1"))
    assert backfills(beside, parents) == [("evaluate-1", "distil-2")]
    after = told(*chain, *tail, started(5, "evaluate-1"), started(5, "evaluate-2", "s2"))
    assert backfills(after, parents) == []
    others = told(started(0, "evaluate-1", "s2"), started(0, "evaluate-random", "s3"), started(0, "distil-other"))
    assert backfills(others, parents) == []


def test_the_row_that_takes_the_least_work_comes_first_and_the_bound_last() -> None:
    """`cheap` needs the set `a`; `dear` needs it, too, and a set of its own; the bound is cheaper than both."""
    parents = {"a": (), "b": ("a",), "cheap": ("a",), "dear": ("a", "b"), "full": ()}
    rows = [Row(("dear",)), Row(("full",), bound=True), Row(("cheap",))]
    rank = rank_rows(rows, parents, dict.fromkeys(parents, 1.0))
    assert rank == {"a": 0, "cheap": 0, "b": 1, "dear": 1, "full": 2}
    done = {"a": 0.0, "b": 0.0, "cheap": 2.0, "dear": 1.0, "full": 1.0}
    assert rank_rows(rows, parents, done)["dear"] == 0, "what is done takes nothing"


# A real run.

TWO_ARMS = {
    "name": "two_arms",
    "dataset": "digits",
    "scale": "tiny",
    "networks": 6,
    "set": {"distil.iterations": 30},
    "arms": [
        {"method": "mtt", "ipc_per_stage": 2, "set": {"distil.iterations": 2}},
        {"method": "mtt", "stages": 2, "ipc_per_stage": 1},
    ],
}


@pytest.mark.timeout(900)
def test_a_run_on_two_workers_keeps_every_rule_of_the_order(tmp_path: Path) -> None:
    """One run for all rules, because a run takes as long as all other tests of this file together."""
    experiment = tmp_path / "two_arms.yaml"
    experiment.write_text(yaml.safe_dump(TWO_ARMS))
    with shell_in(tmp_path) as shell:
        ended = shell.run("run", str(experiment), "--workers", "2", "--json")
        assert ended.exit == 0, ended.err
        (records,) = shell.runs()
    plan = resolve(Request(experiments=(str(experiment),))).plan
    parents = {job.key: job.parent_keys() for job in plan.graph}
    began = {record["key"] for record in records if record["event"] == "job_started"}
    assert began == parents.keys()

    assert before_their_parents(records, parents) == []
    assert too_many_at_once(records, plan.exclusive, plan.limits) == []
    assert overtaken(records, plan.exclusive, plan.limits, first_rank(plan, tmp_path)) == []
    assert backfills(records, parents) != []

    by_key = {stay.key: stay for stay in stays(records)}
    distils = sorted((by_key[key] for key in parents if kind_of(key) == "distil"), key=lambda stay: stay.began)
    assert len(distils) == 3
    for one, next_one in zip(distils, distils[1:], strict=False):
        assert one.ended <= next_one.began
    for job in plan.graph:
        if isinstance(job.spec, DistilSpec):
            experts = [other for other in plan.graph if other.key in job.parents["experts"]]
            assert {other.spec.stage for other in experts if isinstance(other.spec, ExpertsSpec)} == {job.spec.stage}
            assert by_key[job.key].began >= max(by_key[other.key].ended for other in experts)
    workers = {record["slot"] for record in records if record["event"] == "job_started"}
    assert len(workers) == 2


def test_the_checks_of_the_real_run_are_not_empty() -> None:
    plan = resolve(Request(experiments=("tiny",))).plan
    assert plan.exclusive and set(plan.limits.values()) == {1}
    assert any(len(job.parents.get("experts", ())) == 2 for job in plan.graph)
    with pytest.raises(KeyError):
        before_their_parents(told(started(0, "unknown")), {})
