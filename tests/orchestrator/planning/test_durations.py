from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pytest

from jobs import cost, machines
from jobs.graph import Graph, Job
from orchestrator.planning.durations import estimate_durations
from orchestrator.planning.requests import Request, resolve
from orchestrator.planning.simulate import jobs_to_run, makespan
from orchestrator.scheduler.schedule import Schedule
from workers.methods.base import Method
from workers.store.store import Store


def plan_of(parents: Mapping[str, str], seconds: Mapping[str, float], wanted: str = "", **fields: Any) -> Schedule:
    """A plan from e.g. {"a": "", "b": "a"}, keys being single letters, with honest remaining paths."""
    keys = tuple(parents)
    children = {key: tuple(child for child in keys if key in parents[child]) for key in keys}
    path: dict[str, float] = {}
    for key in reversed(keys):
        path[key] = seconds[key] + max((path[child] for child in children[key]), default=0.0)
    held = {key: tuple(parents[key]) for key in keys}
    return Schedule(keys, held, children, path, frozenset(wanted or keys), **fields)


def span(
    parents: Mapping[str, str], seconds: Mapping[str, float], workers: int, cached: Collection[str] = (), **fields: Any
) -> float:
    return makespan(plan_of(parents, seconds, **fields), cached, seconds.__getitem__, workers)


CHAIN = {"a": "", "b": "a", "c": "b"}
ALONE = {"a": "", "b": "", "c": ""}
DIAMOND = {"a": "", "b": "a", "c": "a", "d": "bc"}


@pytest.mark.parametrize("workers", [1, 2, 64])
def test_a_chain_takes_its_sum_on_any_number_of_workers(workers: int) -> None:
    assert span(CHAIN, {"a": 1, "b": 2, "c": 4}, workers) == 7


@pytest.mark.parametrize(("workers", "seconds"), [(1, 10), (2, 8), (3, 8)])
def test_a_diamond_takes_its_longer_side_once_two_workers_are_there(workers: int, seconds: float) -> None:
    """a=1, then b=2 beside c=4, then d=3: 1+2+4+3 on one worker, 1+4+3 on two."""
    assert span(DIAMOND, {"a": 1, "b": 2, "c": 4, "d": 3}, workers) == seconds


def test_the_longest_path_goes_first_as_in_a_real_run() -> None:
    """In the order of the plan it would be 1 beside 1, then 2: three seconds."""
    assert span(ALONE, {"a": 1, "b": 1, "c": 2}, 2) == 2
    unaware = Schedule(
        tuple("abc"), dict.fromkeys("abc", ()), dict.fromkeys("abc", ()), dict.fromkeys("abc", 1.0), frozenset("abc")
    )
    assert makespan(unaware, (), {"a": 1, "b": 1, "c": 2}.__getitem__, 2) == 3


def test_jobs_of_one_group_queue_up_and_others_pass_them() -> None:
    exclusive: dict[str, Any] = {"exclusive": {"a": ("g",), "b": ("g",)}, "limits": {"g": 1}}
    assert span(ALONE, {"a": 3, "b": 3, "c": 2}, 3, **exclusive) == 6
    assert span(ALONE, {"a": 3, "b": 3, "c": 6}, 2, **exclusive) == 6
    assert span(ALONE, {"a": 3, "b": 3, "c": 2}, 3) == 3


def test_what_is_cached_takes_no_time_and_what_is_not_needed_neither() -> None:
    seconds = {"a": 1, "b": 2, "c": 4, "d": 3}
    assert span(DIAMOND, seconds, 1, "a") == 9
    assert span(DIAMOND, seconds, 1, "ab") == 7
    assert span(DIAMOND, seconds, 1, "d", wanted="d") == 0
    assert span(DIAMOND, seconds, 1, "abcd") == 0


def test_only_what_a_target_still_lacks_is_to_run() -> None:
    plan = plan_of(DIAMOND, dict.fromkeys("abcd", 1), wanted="d")
    assert jobs_to_run(plan, ()) == list("abcd")
    assert jobs_to_run(plan, "bc") == ["d"]
    assert jobs_to_run(plan, "b") == ["a", "c", "d"]
    assert jobs_to_run(plan, "d") == []


# Durations.


def tiny() -> Graph:
    return resolve(Request(experiments=("tiny",))).plan.graph


def stored(store: Store, graph: Graph, key: str, seconds: float) -> None:
    job = graph[key]
    with store.put(key, job.kind, job.canonical()["spec"], job.parents, device="cpu", seconds=seconds) as folder:
        (folder / "data").write_text("x")


def priced(job: Job, graph: Graph) -> float:
    return machines.estimate(cost.effort(job, graph))


def test_without_any_measurement_every_duration_is_the_estimate(tmp_path: Path) -> None:
    graph = tiny()
    found = estimate_durations(graph, Store.open(tmp_path))
    assert found.count()["measured"] == 0
    assert found.seconds == {job.key: priced(job, graph) for job in graph}
    assert all(found.of(job) == found.seconds[job.key] > 0 for job in graph)


def test_a_job_that_was_done_tells_the_duration_of_itself_of_those_of_its_size_and_the_pace_of_others(
    tmp_path: Path,
) -> None:
    graph, store = tiny(), Store.open(tmp_path)
    one, other = (key for key in graph.jobs if key.startswith("full"))
    stored(store, graph, one, 7.0)
    found = estimate_durations(graph, store)
    assert found.count()["measured"] == 2 and found.seconds[one] == found.seconds[other] == 7.0
    rest = [job for job in graph if job.key not in (one, other)]
    slower = 7.0 / priced(graph[one], graph)
    assert all(found.seconds[job.key] == pytest.approx(slower * priced(job, graph)) for job in rest), (
        "a machine that is slower with one kind is slower with the others"
    )


def test_a_job_believes_its_own_time_rather_than_that_of_another_of_its_size(tmp_path: Path) -> None:
    graph, store = tiny(), Store.open(tmp_path)
    one, other = (key for key in graph.jobs if key.startswith("full"))
    stored(store, graph, one, 7.0)
    stored(store, graph, other, 9.0)
    found = estimate_durations(graph, store)
    assert (found.count()["measured"], found.seconds[one], found.seconds[other]) == (2, 7.0, 9.0)


# Methods from outside.


class Undeclared(Method):
    """Declares no cost."""


class Declared(Method):
    """Declares that an iteration costs one look at every synthetic image."""

    @staticmethod
    def iteration_cost(match: cost.Match, settings: cost.Settings) -> machines.Effort:
        return match.seen(match.union)


def distilled_by(name: str) -> Graph:
    """Tiny's graph with all distillations by a method of this module."""
    graph, renamed = Graph(), dict[str, str]()
    for job in tiny():
        spec = job.spec.model_copy(update={"method": f"{__name__}:{name}"}) if job.kind == "distil" else job.spec
        parents = {role: [renamed[key] for key in keys] for role, keys in job.parents.items()}
        renamed[job.key] = graph.add(spec, parents)
    return graph


def test_a_method_that_declares_no_cost_is_marked_as_assumed_and_stays_so_when_others_are_corrected(
    tmp_path: Path,
) -> None:
    graph, store = distilled_by("Undeclared"), Store.open(tmp_path)
    distils = {key for key in graph.jobs if key.startswith("distil")}
    found = estimate_durations(graph, store)
    assert {key for key, source in found.sources.items() if source == "assumed"} == distils
    both = Graph()
    for job in [*tiny(), *graph]:
        both.add(job.spec, job.parents)
    stored(store, both, next(key for key in tiny().jobs if key.startswith("distil")), 7.0)
    again = estimate_durations(both, store)
    assert {again.sources[key] for key in distils} == {"assumed"} and again.count()["measured"] >= 1
    stored(store, both, next(iter(distils)), 9.0)
    assert estimate_durations(both, store).sources[next(iter(distils))] == "measured"


def test_a_method_may_declare_its_own_cost(tmp_path: Path) -> None:
    declared, assumed = distilled_by("Declared"), distilled_by("Undeclared")
    found = estimate_durations(declared, Store.open(tmp_path))
    assert found.count()["assumed"] == 0
    as_mtt = estimate_durations(assumed, Store.open(tmp_path))
    distils = [[took for key, took in each.seconds.items() if key.startswith("distil")] for each in (found, as_mtt)]
    assert all(own < mtt for own, mtt in zip(*distils, strict=True))
