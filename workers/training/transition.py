"""The transition: networks that have been through the earlier synthetic sets (paper section 4.1, facts 5.2, 6.2).

A chain is a random network trained on S_1, then on S_1+S_2, and so on, each link with an optimiser of its own. Base
methods that match experts have their chains in the experts' trajectories (`workers.tasks.experts`); the others ask
`StartNetworks` for networks, which in stage 1, or without a transition, are simply random.

Network number j is a function of the job's key and j alone, so a stage that is resumed meets the same networks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from jobs.specs import TransitionSpec
from workers.data import synthetic_set
from workers.data.synthetic_set import SyntheticSet
from workers.training.networks import Network, flatten, load_flat
from workers.training.students import fit, trainer_for

Beat = Callable[[], None]
"""Called after every epoch; may raise to break off."""


def learned_from(sets: Sequence[SyntheticSet], spec: TransitionSpec) -> SyntheticSet:
    """What the link behind S_1..S_k is trained on: their union, or without conditioning S_k alone (facts 5.6)."""
    return synthetic_set.union(sets if spec.on == "union" else sets[-1:])


def link(
    network: Network, union: SyntheticSet, spec: TransitionSpec, generator: torch.Generator, beat: Beat = lambda: None
) -> None:
    """Train a network on a union at the step size learned with its last set, else at the spec's rate, in place.

    Args:
        network: at the end of the link before.
        union: the sets so far.
        spec: how a link is trained.
        generator: a CPU generator of the order of the images and of their augmentation.
        beat: called after every epoch; may raise to break off.
    """
    device = next(network.parameters()).device
    images, labels = union.training_data(spec.temperature)
    trainer = trainer_for(network, spec, generator, lr=union.step_size)
    fit(trainer, images.to(device), labels.to(device), spec, progress=lambda epoch: beat())


class StartNetworks:
    """Networks of a stage by number, each at the end of its own chain.

    Args:
        random_network: network number j before it has seen anything.
        generator: the source of number j's chain.
        sets: S_1..S_{i-1} in the training space; empty in stage 1.
        spec: how a link is trained; None for no transition, which leaves all networks random.
        pool: numbers are taken modulo this where there is a chain to train; None for no limit.
        beat: called after every epoch of a link.
    """

    def __init__(
        self,
        random_network: Callable[[int], Network],
        generator: Callable[[int], torch.Generator],
        sets: Sequence[SyntheticSet],
        spec: TransitionSpec | None,
        pool: int | None,
        beat: Beat = lambda: None,
    ) -> None:
        self._random_network, self._generator = random_network, generator
        self._sets, self._spec, self._pool, self._beat = sets, spec, pool, beat
        self._ends: dict[int, torch.Tensor] = {}

    def network(self, number: int) -> Network:
        """Network `number`, fresh to be trained on; asking again gives an equal one."""
        if self._spec is None or not self._sets:
            return self._random_network(number)
        number = number if self._pool is None else number % self._pool
        network = self._random_network(number)
        if number in self._ends:
            load_flat(network, self._ends[number])
            return network
        generator = self._generator(number)
        for stage in range(1, len(self._sets) + 1):
            link(network, learned_from(self._sets[:stage], self._spec), self._spec, generator, self._beat)
        if self._pool is not None:
            self._ends[number] = flatten(network)
        return network
