"""What a base method must be able to do, so that progressive distillation can be written around it once.

PDD's three ingredients live outside the methods: the *transition* is in the start networks a method is given
(its experts' chains), *conditioning* and the *frozen images* are in `LearnableImages`. A method asks `LearnableImages`
for the union, works out a gradient for all of it, and hands that back; the rows of frozen images are dropped there, so
no method can move them.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jobs.cost import IterationCost
from jobs.fields import Frozen
from jobs.learning import ImageOptimiserSpec
from jobs.specs import DistilSpec
from workers.data.dataset import Split, rows_by_class
from workers.data.preprocess import Affine, Zca
from workers.data.synthetic_set import SyntheticSet
from workers.store.trajectories import Trajectories
from workers.training.compute import SGD, Adam
from workers.training.networks import Network
from workers.training.transition import StartNetworks

Arrays = dict[str, NDArray[Any]]
_BUFFERS = {"new": "optimiser/", "earlier": "earlier_optimiser/", "labels": "label_optimiser/"}
"""How the optimisers' buffers are called in a checkpoint."""


@dataclass(frozen=True, eq=False)
class _Learning:
    """Numbers that learn: the tensor, the numbers of its optimiser, and its share of their rate."""

    values: Tensor
    spec: ImageOptimiserSpec
    share: float = 1.0


class LearnableImages:
    """The synthetic images of a stage: the earlier ones, which are frozen, and the new ones that learn.

    With an `earlier_rate` the earlier ones are not frozen but learn too, at this share of the rate (A3.2). Soft labels
    of new images stay as they start, learn too (`label_optimiser`), or are assigned by the method; those of earlier
    images are frozen.

    Attributes:
        new: float32 [classes * ipc_per_stage, C, H, W], the stage's own images.
        earlier: those of the stages before, if they take part in matching.
        labels: int64 classes of the union, earlier first.
        new_logits: soft labels float32 [classes * ipc_per_stage, classes] of the new images, if they have any.
    """

    def __init__(
        self,
        new: SyntheticSet,
        earlier: SyntheticSet | None,
        optimiser: ImageOptimiserSpec,
        iterations: int,
        earlier_rate: float = 0.0,
        label_optimiser: ImageOptimiserSpec | None = None,
    ) -> None:
        self.new = new.images.clone()
        self.earlier = None if earlier is None else earlier.images.clone()
        self.labels = new.labels if earlier is None else torch.cat([earlier.labels, new.labels])
        self.new_logits = None if new.logits is None else new.logits.clone()
        self._earlier_logits = None if earlier is None else earlier.logits
        self._iterations = iterations
        self._learning = {"new": _Learning(self.new, optimiser)}
        if self.earlier is not None and earlier_rate:
            self._learning["earlier"] = _Learning(self.earlier, optimiser, earlier_rate)
        if self.new_logits is not None and label_optimiser is not None:
            self._learning["labels"] = _Learning(self.new_logits, label_optimiser)
        self._optimisers = {name: image_optimiser(part.values, part.spec) for name, part in self._learning.items()}

    def twin(self) -> LearnableImages:
        """The same images with the same optimisers, to be moved on their own."""
        twin = copy(self)
        twin._learning = {name: replace(part, values=part.values.clone()) for name, part in self._learning.items()}
        twin.new = twin._learning["new"].values
        if "earlier" in twin._learning:
            twin.earlier = twin._learning["earlier"].values
        if self.new_logits is not None:
            learning = twin._learning.get("labels")
            twin.new_logits = self.new_logits.clone() if learning is None else learning.values
        twin._optimisers = {name: image_optimiser(part.values, part.spec) for name, part in twin._learning.items()}
        for name, part in twin._learning.items():
            for buffers in self._optimisers[name].state.values():
                twin._optimisers[name].state[part.values] = {
                    buffer: value.clone() if isinstance(value, Tensor) else value for buffer, value in buffers.items()
                }
        return twin

    @cached_property
    def rows(self) -> list[Tensor]:
        """For each class the indices int64 of its images in the union, on their device."""
        return rows_by_class(self.labels, 1 + int(self.labels.max()))

    @property
    def union(self) -> Tensor:
        """All images that take part in matching, earlier first: float32 [n, C, H, W], without a graph."""
        return self.new.clone() if self.earlier is None else torch.cat([self.earlier, self.new])

    @property
    def logits(self) -> Tensor | None:
        """The soft labels of all images that take part in matching, float32 [n, classes]; None if they are hard."""
        if self.new_logits is None or self._earlier_logits is None:
            return None if self.new_logits is None else self.new_logits.clone()
        return torch.cat([self._earlier_logits, self.new_logits])

    def assign_labels(self, logits: Tensor) -> None:
        """Give the new images other soft labels, float32 [classes * ipc_per_stage, classes]."""
        assert self.new_logits is not None, "the stage has hard labels"
        self.new_logits.copy_(logits)

    def assign(self, images: Tensor) -> None:
        """Give the new images other pixels, float32 [classes * ipc_per_stage, C, H, W]."""
        self.new.copy_(images)

    def step(self, gradient: Tensor, iteration: int, labels: Tensor | None = None) -> None:
        """One optimiser step on all that learns; the rows of frozen images and labels are ignored.

        Args:
            gradient: with respect to the union's images.
            iteration: counted from 0, for the learning rates.
            labels: the gradient with respect to the union's soft labels, if they learn.
        """
        older = len(gradient) - len(self.new)
        rows = {"new": gradient[older:], "earlier": gradient[:older]}
        if "labels" in self._learning:
            assert labels is not None, "soft labels learn: the method must give their gradient"
            rows["labels"] = labels[older:]
        for name, part in self._learning.items():
            part.values.grad = rows[name]
            self._optimisers[name].param_groups[0]["lr"] = part.share * self._rate(part.spec, iteration)
            self._optimisers[name].step()

    def _rate(self, spec: ImageOptimiserSpec, iteration: int) -> float:
        lr = spec.lr
        if spec.final_lr is not None:
            lr += iteration / max(1, self._iterations - 1) * (spec.final_lr - lr)
        return lr * 0.5 ** sum(iteration >= at for at in spec.halve_at)

    def state(self) -> Arrays:
        """The images and labels that learn or are assigned, and the optimisers' buffers, as copies."""
        arrays: Arrays = {} if self.new_logits is None else {"labels": self.new_logits.cpu().numpy().copy()}
        for name, part in self._learning.items():
            buffers = self._optimisers[name].state_dict()["state"].get(0, {})
            arrays[name] = part.values.cpu().numpy().copy()
            arrays |= {_BUFFERS[name] + buffer: value.cpu().numpy().copy() for buffer, value in buffers.items()}
        return arrays

    def load_state(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go back to a `state`."""
        if self.new_logits is not None:
            self.new_logits.copy_(torch.from_numpy(np.array(state["labels"])))
        for name, part in self._learning.items():
            part.values.copy_(torch.from_numpy(np.array(state[name])))
            buffers = {
                path.removeprefix(_BUFFERS[name]): torch.from_numpy(np.array(value))
                for path, value in state.items()
                if path.startswith(_BUFFERS[name])
            }
            groups = self._optimisers[name].state_dict()["param_groups"]
            self._optimisers[name].load_state_dict({"state": {0: buffers} if buffers else {}, "param_groups": groups})


@dataclass(frozen=True)
class Stage:
    """What a method may know of its stage; nothing here lets it reach the test split.

    Attributes:
        train: real images in the training space, and their labels.
        transform: between the training space and pixels in [0, 1].
        experts: of methods that match trajectories, else None.
        network: of the stage's architecture; its own weights mean nothing.
        start_networks: networks at the end of their chains, for methods without experts.
        memory_level: raised after each out-of-memory ending; a method may trade time for memory.
    """

    spec: DistilSpec
    train: Split
    classes: int
    transform: Affine | Zca
    experts: Trajectories | None
    network: Network
    start_networks: StartNetworks
    device: torch.device
    memory_level: int


class Method:
    """One base method in one stage; a new one overrides what differs.

    A method is made at the start of a stage and may keep state between iterations; all of that state must be
    in `state`, because a stage is resumed bit for bit from it. Random numbers come from the generator it is
    given, and networks from `Stage.start_networks`.
    """

    soft_labels: ClassVar[bool] = False
    """Whether it matches with soft labels and gives their gradient, so that a recipe may ask for them."""
    Settings: ClassVar[type[Frozen]] = Frozen
    """Its own numbers: the `settings` of a recipe's `distil` section."""
    space: ClassVar[Literal["training", "unit"]] = "training"
    """Where its pixels live: normalised as the dataset is, or in [0, 1], to be normalised inside the loss."""
    saving: ClassVar[str] = "in less memory"
    """How it does with less memory than before, where `memory_levels` says that it can: for the note on a retry."""
    iteration_cost: ClassVar[IterationCost | None] = None
    """What an iteration costs, as a `staticmethod` of (`jobs.cost.Match`, settings), of a method that `jobs.cost` does
    not know. Without it `plan` assumes the cost of MTT, and says so."""

    def __init__(self, stage: Stage, settings: Frozen) -> None:
        self.stage, self.settings = stage, settings

    @classmethod
    def expert_epochs_needed(cls, settings: Frozen) -> int | None:
        """The last epoch it may read of its experts' trajectories; None if it reads none.

        Known before anything runs, so that a recipe which trains its experts too briefly is refused then.
        """
        return None

    @classmethod
    def memory_levels(cls, settings: Frozen) -> int:
        """How many times it can do with less memory than before, each time with an equal result; see `Stage`."""
        return 0

    def begin(self, learnable: LearnableImages, generator: torch.Generator) -> None:
        """What is done once, before the first iterate is judged or moved; a stage that is resumed is past it.

        Args:
            learnable: the images of the stage, as they were chosen or drawn.
            generator: a CPU generator that belongs to the stage.
        """

    def iterate(self, learnable: LearnableImages, iteration: int, generator: torch.Generator) -> float:
        """One iteration: work out gradients, take a `step` on the images, return the loss.

        Args:
            learnable: the images of the stage, and the earlier ones that take part in matching.
            iteration: counted from 0.
            generator: a CPU generator that belongs to the stage.

        Raises:
            Diverged: the method's own quantities left their range.
        """
        raise NotImplementedError

    @property
    def step_size(self) -> float | None:
        """The learning rate learned with the images, if the method learns one."""
        return None

    def start(self, number: int) -> Tensor | None:
        """Parameters [P] from which network `number` starts when iterates are judged; None: random."""
        return None

    def state(self) -> tuple[Arrays, dict[str, Any]]:
        """Arrays and plain values that the next iteration depends on."""
        return {}, {}

    def load_state(self, arrays: Mapping[str, NDArray[Any]], values: Mapping[str, Any]) -> None:
        """Go back to a `state`."""


def image_optimiser(images: Tensor, spec: ImageOptimiserSpec) -> torch.optim.Optimizer:
    """The optimiser of a spec, at its first learning rate."""
    if spec.name == "adam":
        return Adam([images], lr=spec.lr, betas=(spec.momentum, 0.95), foreach=False)
    return SGD([images], lr=spec.lr, momentum=spec.momentum, foreach=False)


def under(prefix: str, arrays: Mapping[str, NDArray[Any]]) -> Arrays:
    """The arrays of a state whose names begin with a prefix, by the rest of their names."""
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}


def draw_without_replacement(queue: list[int], size: int, population: int, generator: torch.Generator) -> list[int]:
    """The next at most `size` entries of a random order of range(population), drawn anew when used up.

    The last chunk of an order is short when `size` does not divide the population; it comes last (the reference takes
    it first, facts 4.2).

    Args:
        queue: what is left of the current order; consumed in place.
        size: entries to take.
        population: how many there are to order.
        generator: a CPU generator of the next order.
    """
    if not queue:
        queue.extend(torch.randperm(population, generator=generator).tolist())
    taken = queue[:size]
    del queue[:size]
    return taken
