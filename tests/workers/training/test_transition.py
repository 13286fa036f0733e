"""The transition of methods without experts: networks by number, each at the end of its own chain."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from jobs.errors import Yielded
from jobs.specs import TransitionSpec
from workers.data import synthetic_set
from workers.data.synthetic_set import SyntheticSet
from workers.training.networks import Network, build, flatten
from workers.training.students import fit, trainer_for
from workers.training.transition import StartNetworks

SPEC = TransitionSpec(epochs=2, lr=0.1, momentum=0.9, batch_size=3)


def seeded(*numbers: int) -> torch.Generator:
    return torch.Generator().manual_seed(sum(number * 100**place for place, number in enumerate(numbers)))


def network(number: int) -> Network:
    return build(
        "convnet", channels=1, size=4, classes=2, width=2, depth=1, norm="instance", generator=seeded(number, 1)
    )


def sets(count: int) -> list[SyntheticSet]:
    return [
        SyntheticSet(torch.randn(4, 1, 4, 4, generator=seeded(one, 2)), torch.tensor([0, 0, 1, 1]), None)
        for one in range(count)
    ]


def starts(count: int = 2, **changes: Any) -> StartNetworks:
    given: dict[str, Any] = {"sets": sets(count), "spec": SPEC, "pool": None, **changes}
    return StartNetworks(network, lambda number: seeded(number, 3), **given)


def test_without_earlier_sets_or_without_a_transition_a_start_is_random() -> None:
    assert torch.equal(flatten(starts(0).network(5)), flatten(network(5)))
    assert torch.equal(flatten(starts(2, spec=None).network(5)), flatten(network(5)))


def test_a_chain_goes_through_the_growing_unions_with_a_fresh_optimiser_each() -> None:
    expected, generator, earlier = network(1), seeded(1, 3), sets(2)
    for union in (earlier[0], synthetic_set.union(earlier)):
        fit(trainer_for(expected, SPEC, generator), union.images, union.labels, SPEC)
    assert torch.equal(flatten(starts().network(1)), flatten(expected))


def test_without_conditioning_each_link_is_trained_on_the_newest_set_alone() -> None:
    spec = SPEC.model_copy(update={"on": "newest"})
    expected, generator = network(1), seeded(1, 3)
    for one in sets(2):
        fit(trainer_for(expected, spec, generator), one.images, one.labels, spec)
    assert torch.equal(flatten(starts(spec=spec).network(1)), flatten(expected))
    assert not torch.equal(flatten(starts().network(1)), flatten(expected))


def test_a_learned_step_size_wins_over_the_rate_of_the_recipe() -> None:
    learned = [SyntheticSet(one.images, one.labels, 0.01) for one in sets(1)]
    same = starts(1, spec=SPEC.model_copy(update={"lr": 0.01}))
    assert torch.equal(flatten(starts(sets=learned).network(0)), flatten(same.network(0)))


def test_a_start_depends_on_its_number_alone_and_is_fresh_each_time() -> None:
    one = starts()
    first = flatten(one.network(3))
    changed = one.network(3)
    with torch.no_grad():
        next(changed.parameters()).zero_()
    one.network(4)
    assert torch.equal(flatten(one.network(3)), first) and torch.equal(flatten(starts().network(3)), first)
    assert not torch.equal(flatten(one.network(4)), first)


def test_a_pool_comes_round_again() -> None:
    one = starts(pool=2)
    assert torch.equal(flatten(one.network(0)), flatten(one.network(2)))
    assert torch.equal(flatten(one.network(3)), flatten(starts().network(1)))


def test_random_networks_need_no_pool() -> None:
    assert torch.equal(flatten(starts(0, pool=2).network(5)), flatten(network(5)))
    assert torch.equal(flatten(starts(2, spec=None, pool=2).network(5)), flatten(network(5)))


def test_a_chain_can_be_broken_off_between_epochs() -> None:
    def stop() -> None:
        raise Yielded("asked")

    with pytest.raises(Yielded):
        starts(beat=stop).network(0)
