"""`jobs.graph`: every job once, parents first, and the longest chain."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from jobs.graph import Graph, Job
from jobs.specs import ExpertsSpec, NetworkSpec, SelectSpec, SgdSpec, TransitionSpec


def select(draw: int) -> SelectSpec:
    return SelectSpec(rule="random", ipc_total=1, draw=draw)


class Diamond:
    """a -> b -> d, a -> c -> d, and e that hangs on nothing; seconds 1, 10, 2, 5 and 15."""

    def __init__(self) -> None:
        self.graph = Graph()
        self.a = self.graph.add(select(0))
        self.b = self.graph.add(select(1), {"dataset": [self.a]})
        self.c = self.graph.add(select(2), {"dataset": [self.a]})
        self.d = self.graph.add(select(3), {"sets": [self.b, self.c], "dataset": [self.b]})
        self.e = self.graph.add(select(4))

    def seconds(self, job: Job) -> float:
        return {self.a: 1.0, self.b: 10.0, self.c: 2.0, self.d: 5.0, self.e: 15.0}[job.key]


@pytest.fixture
def diamond() -> Diamond:
    return Diamond()


def test_a_job_that_is_there_is_not_added_again_but_counted_as_requested() -> None:
    graph = Graph()
    first, again = graph.add(select(0)), graph.add(select(0), {"sets": []})
    assert first == again
    assert (len(graph), graph.requested) == (1, 2)
    graph.add(select(1), {"dataset": [first]})
    assert (len(graph), graph.requested) == (2, 3)


def test_iterating_meets_parents_before_children(diamond: Diamond) -> None:
    assert [job.key for job in diamond.graph] == [diamond.a, diamond.b, diamond.c, diamond.d, diamond.e]
    assert diamond.graph[diamond.b].spec == select(1)


def test_a_parent_that_is_not_in_the_graph_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match="select-nowhere"):
        Graph().add(select(0), {"dataset": ["select-nowhere"]})


def test_a_parent_in_two_roles_is_one_parent(diamond: Diamond) -> None:
    assert diamond.graph[diamond.d].parent_keys() == (diamond.b, diamond.c)
    assert diamond.graph.children() == {
        diamond.a: (diamond.b, diamond.c),
        diamond.b: (diamond.d,),
        diamond.c: (diamond.d,),
        diamond.d: (),
        diamond.e: (),
    }


def test_the_remaining_path_is_the_job_and_the_longest_chain_after_it(diamond: Diamond) -> None:
    assert diamond.graph.remaining_path(diamond.seconds) == {
        diamond.a: 1 + 10 + 5,
        diamond.b: 10 + 5,
        diamond.c: 2 + 5,
        diamond.d: 5,
        diamond.e: 15,
    }


def test_the_critical_path_is_the_longest_chain_and_not_the_longest_job(diamond: Diamond) -> None:
    assert diamond.graph.critical_path(diamond.seconds) == [diamond.a, diamond.b, diamond.d]


def test_the_critical_path_may_be_a_single_job(diamond: Diamond) -> None:
    assert diamond.graph.critical_path(lambda job: 15.0 * (job.key == diamond.e)) == [diamond.e]


def test_an_empty_graph_has_an_empty_critical_path() -> None:
    assert Graph().critical_path(lambda job: 1.0) == []


def test_ancestors_are_the_jobs_and_all_they_hang_on(diamond: Diamond) -> None:
    assert diamond.graph.ancestors([diamond.c]) == {diamond.a, diamond.c}
    assert diamond.graph.ancestors([diamond.d]) == {diamond.a, diamond.b, diamond.c, diamond.d}
    assert diamond.graph.ancestors([diamond.e, diamond.a]) == {diamond.e, diamond.a}
    assert diamond.graph.ancestors([]) == set()


def test_a_job_comes_back_from_json_as_it_was() -> None:
    spec = ExpertsSpec(
        stage=2,
        first=0,
        count=1,
        network=NetworkSpec(width=8),
        real=SgdSpec(epochs=1, lr=0.1),
        transition=TransitionSpec(epochs=3, momentum=0.9),
        partition=(0, 3),
    )
    job = Job.make(spec, {"sets": ["distil-b", "distil-a"], "dataset": ["dataset-c"], "chain": []})
    back = Job.from_json(json.loads(json.dumps(job.to_json())))
    assert back == job
    assert back.canonical() == job.canonical()
    assert (back.kind, back.parents["sets"]) == ("experts", ("distil-b", "distil-a"))


def test_json_that_was_tampered_with_is_refused() -> None:
    value = Job.make(select(0), {}).to_json()
    with pytest.raises(ValidationError):
        Job.from_json({**value, "spec": {**value["spec"], "ipc": 0}})
