"""Keys and graphs: equal work has one key wherever it is named, different work never, and a graph keeps its order."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from jobs.graph import Graph, Job
from jobs.keys import canonical, differences, key_of, kind_of, seed_from
from jobs.specs import SelectSpec

specs = st.builds(
    SelectSpec,
    rule=st.sampled_from(["random", "herding", "k_center", "forgetting"]),
    ipc_total=st.integers(1, 50),
    draw=st.integers(0, 9),
    seed=st.integers(0, 2**31),
)
names = st.text("abcdefgh-0123456789", min_size=1, max_size=20)
parents = st.dictionaries(st.sampled_from(["dataset", "experts", "earlier"]), st.lists(names, max_size=3), max_size=3)


@given(specs, parents, specs, parents)
def test_keys_are_equal_exactly_if_all_that_they_stand_for_is(
    one: SelectSpec, before: dict[str, Any], other: SelectSpec, after: dict[str, Any]
) -> None:
    same = canonical(one, before) == canonical(other, after)
    assert (key_of(one, before) == key_of(other, after)) is same
    assert (differences(canonical(one, before), canonical(other, after)) == []) is same


@given(specs, parents, st.randoms(use_true_random=False))
def test_a_key_does_not_depend_on_the_order_of_roles_nor_on_the_way_through_json(
    spec: SelectSpec, roles: dict[str, Any], chance: Any
) -> None:
    shuffled = list(roles.items())
    chance.shuffle(shuffled)
    job = Job.make(spec, dict(shuffled))
    assert job.key == key_of(spec, roles) and kind_of(job.key) == "select"
    assert Job.from_json(json.loads(json.dumps(job.to_json()))) == job


@given(names, st.lists(st.one_of(names, st.integers(0, 99)), max_size=3))
def test_a_seed_fits_torch_and_is_always_the_same(key: str, purpose: list[str | int]) -> None:
    assert 0 <= seed_from(key, *purpose) == seed_from(key, *purpose) < 2**63


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Graphs in which each job hangs on some of those before it."""
    graph, keys = Graph(), list[str]()
    for seed in range(draw(st.integers(0, 25))):
        chosen = draw(st.lists(st.sampled_from(keys), max_size=3)) if keys else []
        spec = SelectSpec(rule="random", ipc_total=1, draw=0, seed=draw(st.sampled_from([seed, 0])))
        keys.append(graph.add(spec, {"before": chosen}))
    return graph


@given(graphs())
def test_children_turn_parents_round_and_paths_grow_towards_the_roots(graph: Graph) -> None:
    children, path = graph.children(), graph.remaining_path(lambda job: 1.0)
    met: set[str] = set()
    for job in graph:
        assert met.issuperset(job.parent_keys())
        met.add(job.key)
        assert all(job.key in children[parent] and path[parent] >= path[job.key] + 1 for parent in job.parent_keys())
    assert sum(map(len, children.values())) == sum(len(job.parent_keys()) for job in graph)
    assert len(graph.critical_path(lambda job: 1.0)) == max(path.values(), default=0)


@given(graphs(), st.randoms(use_true_random=False))
def test_ancestors_are_closed_and_adding_a_graph_to_itself_changes_nothing(graph: Graph, chance: Any) -> None:
    keys = [key for key in graph.jobs if chance.random() < 0.3]
    ancestors = graph.ancestors(keys)
    assert ancestors.issuperset(keys)
    assert all(ancestors.issuperset(graph[key].parent_keys()) for key in ancestors)
    before = list(graph.jobs)
    for job in list(graph):
        assert graph.add(job.spec, job.parents) == job.key
    assert list(graph.jobs) == before
