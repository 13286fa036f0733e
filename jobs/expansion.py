"""Expansion: from an experiment to the table cells that answer it, and with them to its jobs.

Decided here: which networks are trained for an arm, and what is refused before anything starts. Every prefix of a
distillation is evaluated, so a run that stops early still fills its rows. In class-incremental learning each phase is
a dataset of its own, and networks are trained after every phase (Table 7; facts 5.8). The jobs behind the networks
are an arm's `jobs.arm_jobs`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import numpy as np

from jobs.architectures import deepest_convnet
from jobs.arm_jobs import Lineage, Phases
from jobs.datasets import FEW_HELD_OUT, Facts
from jobs.errors import BadInput
from jobs.experiment import SELECTIONS, Arm, Cell, ClassIncremental, Experiment, Plan
from jobs.imported import require_fitting
from jobs.kinds import ImportedSpec
from jobs.recipe import Resolved, Setting, flat, resolve, varies_by_stage
from jobs.recipe_numbers import Recipe
from jobs.specs import Architecture, Mode


def expand(
    experiment: Experiment,
    facts: Facts,
    place: str,
    plan: Plan | None = None,
    imports: Mapping[str, ImportedSpec] | None = None,
) -> Plan:
    """Add the experiment's jobs and cells to a plan.

    Args:
        experiment: what is wanted.
        facts: the dataset.
        place: where the experiment stands, for complaints.
        plan: what is added to; a new one by default.
        imports: what others have computed and the store has, by key.

    Returns:
        The plan.

    Raises:
        BadInput: an arm cannot be made from this dataset, e.g. a class has fewer images than it asks for.
    """
    plan = plan if plan is not None else Plan()
    if facts.height != facts.width:
        raise BadInput(place, "dataset", f"{facts.height}x{facts.width}", "crop or pad the images to squares")
    lineages = [
        Lineage(experiment, arm, facts, _stages(experiment, arm, f"arms.{number}", facts, place), plan, imports or {})
        for number, arm in enumerate(experiment.arms)
    ]
    for number, lineage in enumerate(lineages):
        _ArmExpansion(lineage, f"arms.{number}", place).run()
    for path, value in flat(experiment.set):
        if not any(path in lineage.resolved.sources for lineage in lineages):
            raise BadInput(place, f"set.{path}", value, "no arm has this section; leave it out")
    return plan


def class_order(classes: int, phases: int, order: int) -> Phases:
    """The classes of each phase in one random order.

    Args:
        classes: how many there are; `phases` divides it.
        phases: how many groups of equal size are made.
        order: the seed of numpy's permutation, as in DM's code (facts 5.8).
    """
    shuffled = np.random.RandomState(order).permutation(classes).reshape(phases, -1)
    return tuple(tuple(sorted(map(int, group))) for group in shuffled)


def _stages(experiment: Experiment, arm: Arm, path: str, facts: Facts, place: str) -> tuple[Resolved, ...]:
    """The recipe of an arm for each of its stages; one recipe for all where it does not tell them apart."""
    differ = range(1, arm.stages + 1) if varies_by_stage(arm.method) else (1,)
    recipes = tuple(_numbers(experiment, arm, stage, path, facts, place) for stage in differ)
    labels = [resolved.recipe.distil.labels for resolved in recipes if resolved.recipe.distil is not None]
    if len({one and one.temperature for one in labels}) > 1:
        fix = "stages come together in one union: give all of them soft labels of one temperature, or none"
        raise BadInput(place, f"{path}.set.distil.labels", "differs by stage", fix)
    return recipes if len(recipes) == arm.stages else recipes * arm.stages


def _numbers(experiment: Experiment, arm: Arm, stage: int, path: str, facts: Facts, place: str) -> Resolved:
    """The recipe of a stage of an arm with the numbers that the arm's own fields imply."""
    setting = Setting(
        scale=experiment.scale,
        dataset=experiment.dataset_name(facts),
        size=facts.height,
        stages=arm.stages,
        ipc_per_stage=arm.ipc_per_stage or 0,
        stage=stage,
        protocol=arm.protocol,
        class_incremental=arm.class_incremental is not None,
    )
    borrowed = {"scores": "forgetting"} if arm.partition is not None else None
    resolved = resolve(arm.method, setting, arm.set, place, experiment.set, borrowed)
    resolved = resolved.changed(place, _implied(arm, resolved.recipe))
    if arm.transition or arm.stages == 1:
        return resolved
    return _without_transition(resolved, arm.stages, path, place)


def _implied(arm: Arm, recipe: Recipe) -> dict[str, Any]:
    """Numbers of the recipe that stand in fields of the arm."""
    numbers: dict[str, Any] = {}
    if arm.partition is not None:
        numbers |= {f"scores.{name}": value for name, value in arm.partition.model_dump().items()}
    if arm.earlier_rate:
        numbers["distil.earlier_rate"] = arm.earlier_rate
    if not arm.conditioning:
        numbers["distil.conditioning"] = False
        if recipe.transition is not None:
            numbers["transition.on"] = "newest"
    return numbers


def _without_transition(resolved: Resolved, stages: int, path: str, place: str) -> Resolved:
    """Experts that are trained far enough for stage P to match its own span of their epochs."""
    experts, distil = resolved.recipe.experts, resolved.recipe.distil
    if experts is None or distil is None:
        return resolved
    span, reach = distil.settings.get("max_start_epoch"), distil.settings.get("expert_epochs")
    if not (isinstance(span, int) and isinstance(reach, int)):
        fix = "distil.settings has no max_start_epoch and expert_epochs to say which epochs a stage matches"
        raise BadInput(place, f"{path}.transition", False, fix)
    needed = stages * span - 1 + reach
    if experts.real.epochs >= needed:
        return resolved
    source = "ours: P * T - 1 + M epochs, which stage P needs without transition (facts 5.6)"
    return resolved.changed(source, {"experts.real.epochs": needed})


@dataclass(frozen=True)
class _ArmExpansion:
    """The cells of one arm over all seeds."""

    lineage: Lineage
    path: str
    place: str

    @property
    def experiment(self) -> Experiment:
        return self.lineage.experiment

    @property
    def arm(self) -> Arm:
        return self.lineage.arm

    def run(self) -> None:
        self._networks_fit()
        self._some_images()
        lineage = self.lineage
        require_fitting(self.arm, lineage.imports, lineage.recipe, lineage.facts, self.place, self.path)
        if self.arm.method == "full":
            return self._full()
        if self.arm.ipc_per_stage is None:
            raise BadInput(self.place, f"{self.path}.ipc_per_stage", None, "required; images per class of one stage")
        self._enough_images()
        if self.arm.class_incremental is not None:
            return self._class_incremental(self.arm.class_incremental)
        if self.arm.method in SELECTIONS:
            return self._selection()
        return self._distillation()

    def _networks(self) -> Iterator[tuple[int, int]]:
        """Seed and index of every network of a cell."""
        return ((seed, index) for seed in self.experiment.seeds for index in range(self.experiment.networks))

    def _full(self) -> None:
        data = self.lineage.dataset()
        for architecture in self.experiment.architectures:
            keys = [self.lineage.full(architecture, data, seed, index) for seed, index in self._networks()]
            self._cell(architecture, "full", stage=0, keys=keys)

    def _selection(self) -> None:
        data = self.lineage.dataset()
        chosen = {(seed, index): self.lineage.select(data, seed, index) for seed, index in self._networks()}
        for architecture in self.experiment.architectures:
            keys = [
                self.lineage.evaluate(architecture, "union", data, [key], 1, seed, index)
                for (seed, index), key in chosen.items()
            ]
            self._cell(architecture, "union", stage=self.arm.stages, keys=keys)

    def _distillation(self) -> None:
        data = self.lineage.dataset()
        chains = {seed: self.lineage.chain(data, seed) for seed in self.experiment.seeds}
        first = self.arm.stages if self.arm.prefixes == "last" else 1
        for prefix in range(first, self.arm.stages + 1):
            for mode in self.arm.modes:
                for architecture in self.experiment.architectures:
                    keys = [
                        self.lineage.evaluate(architecture, mode, data, chains[seed][:prefix], prefix, seed, index)
                        for seed, index in self._networks()
                    ]
                    self._cell(architecture, mode, stage=prefix, keys=keys)

    def _class_incremental(self, incremental: ClassIncremental) -> None:
        """After each phase, networks are trained on the sets of all phases so far."""
        classes = len(self.lineage.facts.class_names)
        if classes % incremental.phases:
            fix = f"must divide the {classes} classes of the dataset"
            raise BadInput(self.place, f"{self.path}.class_incremental.phases", incremental.phases, fix)
        lineage, selects = self.lineage, self.arm.method in SELECTIONS
        data, modes = lineage.dataset(), ("union",) if selects else self.arm.modes
        orders = [class_order(classes, incremental.phases, order) for order in range(incremental.orders)]

        @cache
        def sets_of(group: tuple[int, ...], seed: int, index: int) -> list[str]:
            part = lineage.phase(data, group)
            return [lineage.select(part, seed, index)] if selects else lineage.chain(part, seed)

        def after(seen: Phases, architecture: Architecture, mode: Mode, seed: int, index: int) -> str:
            sets = [key for group in seen for key in sets_of(group, seed, index if selects else 0)]
            links = 1 if selects else self.arm.stages
            return lineage.evaluate(architecture, mode, data, sets, links, seed, index, phases=seen)

        for phase, mode, architecture in product(
            range(1, incremental.phases + 1), modes, self.experiment.architectures
        ):
            keys = [
                after(order[:phase], architecture, mode, seed, index)
                for seed, order, index in product(self.experiment.seeds, orders, range(self.experiment.networks))
            ]
            self._cell(architecture, mode, stage=self.arm.stages, keys=keys, phase=phase)

    def _enough_images(self) -> None:
        """Every class has the images that the arm selects, or that the new images of a stage start from."""
        _, kept = self.lineage.split()
        distil, ipc_per_stage = self.lineage.recipe.distil, self.arm.ipc_per_stage or 0
        drawn = ipc_per_stage * distil.factor**2 if distil is not None and distil.init != "noise" else 0
        for name, images in zip(self.lineage.facts.class_names, kept, strict=True):
            if images < max(self.arm.ipc_total, drawn):
                needed = f"{self.arm.stages} x {ipc_per_stage} images per class are asked for"
                if drawn > self.arm.ipc_total:
                    each = drawn // ipc_per_stage
                    needed = f"{ipc_per_stage} images per class start from {drawn} real ones ({each} in each)"
                raise BadInput(
                    self.place,
                    f"{self.path}.ipc_per_stage",
                    self.arm.ipc_per_stage,
                    f"{needed}, but class {name!r} has {images} training images after the held-out split; "
                    "ask for fewer or add images",
                )

    def _some_images(self) -> None:
        """Every class keeps a training image; a note says where too few are held out to choose by."""
        held_out, kept = self.lineage.split()
        facts, path = self.lineage.facts, "set.dataset.validation_fraction"
        for name, held, left in zip(facts.class_names, held_out, kept, strict=True):
            if left < 1:
                fraction = self.lineage.recipe.dataset.validation_fraction
                fix = (
                    f"class {name!r} has {held + left} training image and it is held out, so none is left to train on; "
                    "add images, leave the class out, or hold nothing out (0, with distil.choice.by: last)"
                )
                raise BadInput(self.place, path, fraction, fix)
        if 0 < sum(held_out) < FEW_HELD_OUT and self.experiment.scale != "tiny":  # whose numbers mean nothing anyway
            self.lineage.plan.note(
                f"{self.lineage.experiment.dataset_title(facts)}: only {sum(held_out)} images are held out in all, "
                f"{min(held_out)} of the smallest class; accuracies on so few choose iterates almost at random"
            )

    def _networks_fit(self) -> None:
        """Every block of a ConvNet halves the map, which must not vanish; a trajectory has no running statistics."""
        deepest = deepest_convnet(self.lineage.facts.channels, self.lineage.facts.height)
        for network in (self.lineage.recipe.network, *map(self.lineage.network, self.experiment.architectures)):
            if network.architecture == "convnet" and network.pooling != "none" and network.blocks > deepest:
                fix = f"images of {self.lineage.facts.height} pixels allow at most {deepest} blocks"
                raise BadInput(self.place, "set.network.depth", network.blocks, fix)
        if self.arm.method in ("herding", "k_center") and self.lineage.recipe.network.norm == "batch":
            fix = "use instance: an expert's snapshots hold no running statistics, which its features would need"
            raise BadInput(self.place, "set.network.norm", "batch", fix)

    def _classes(self, phase: int) -> int:
        """The classes that a network tells apart: all of them, or those of the phases so far."""
        classes, incremental = len(self.lineage.facts.class_names), self.arm.class_incremental
        return classes if incremental is None else classes * phase // incremental.phases

    def _cell(self, architecture: Architecture, mode: str, *, stage: int, keys: list[str], phase: int = 0) -> None:
        self.lineage.plan.cells.append(
            Cell(
                experiment=self.experiment.name,
                method=self.arm.label,
                base_method=self.arm.base_method,
                dataset=self.experiment.dataset_title(self.lineage.facts),
                scale=self.experiment.scale,
                architecture=self.lineage.network(architecture).architecture,
                mode=mode,
                ipc_per_stage=self.arm.ipc_per_stage or 0,
                stages=self.arm.stages,
                stage=stage,
                phase=phase,
                jobs=tuple(keys),
                guessing=100 / self._classes(phase),
            )
        )
