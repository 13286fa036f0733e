"""Lineage: the jobs behind one arm's table cells, what each is told and whose results it takes.

What two arms have in common needs no care here: equal jobs have equal keys. Each of the paper's ablations is one
difference in what a job is told or hangs on:

* without transition every stage matches the first stage's experts, further along their real training, or starts from
  random networks (Table 4; facts 5.6);
* without conditioning neither the matching nor the links of the chain see earlier sets (Table 4);
* with a partition the experts and the distillation of a stage see images of like forgetting scores (Table 6).

Left out: which of these jobs an arm asks for (`jobs.expansion`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from jobs.datasets import Facts, split
from jobs.experiment import Arm, Experiment, Plan
from jobs.kinds import ImportedSpec
from jobs.recipe import Resolved, class_of
from jobs.recipe_numbers import Recipe
from jobs.specs import (
    Architecture,
    DatasetSpec,
    DistilSpec,
    EvaluateSpec,
    ExpertsSpec,
    ForgettingSpec,
    FullSpec,
    Mode,
    NetworkSpec,
    Rule,
    SelectSpec,
    SgdSpec,
    TransitionSpec,
)

Phases = tuple[tuple[int, ...], ...]
"""Class ids by phase, ascending inside a phase; none outside of class-incremental learning."""


@dataclass(frozen=True)
class Lineage:
    """The jobs of one arm; every method adds jobs to the plan, or finds them there, and returns their keys."""

    experiment: Experiment
    arm: Arm
    facts: Facts
    stages: tuple[Resolved, ...]
    """The recipe of each stage."""
    plan: Plan
    imports: Mapping[str, ImportedSpec] = field(default_factory=dict)
    """What others have computed, by key."""
    trainings: dict[tuple[int, Mode], SgdSpec] = field(default_factory=dict)
    """The numbers of evaluations, by prefix and mode, as far as they were asked for."""

    @property
    def resolved(self) -> Resolved:
        """The recipe of the first stage, which has the numbers that all stages share."""
        return self.stages[0]

    @property
    def recipe(self) -> Recipe:
        """The numbers that all stages share."""
        return self.resolved.recipe

    def select(self, data: str, seed: int, index: int) -> str:
        """Select the arm's images, all at once, by its rule.

        Each network gets a draw of its own, so the spread of Random in a table includes the choice of images.
        """
        rule = cast(Rule, self.arm.method)
        parents = {"dataset": [data]}
        match rule:
            case "herding" | "k_center":
                parents["experts"] = self._experts(data, 1, [], [], seed)
            case "forgetting":
                parents["forgetting"] = self._scores(data, seed)
        draw = index if rule == "random" else 0
        return self._add(SelectSpec(rule=rule, ipc_total=self.arm.ipc_total, draw=draw, seed=seed), parents)

    def chain(self, data: str, seed: int) -> list[str]:
        """Distil the sets S_1..S_P of one seed; the experts of stage i have been through S_1..S_{i-1}."""
        sets = [] if self.arm.imported_set is None else [self._imported_set(data, self.arm.imported_set)]
        experts = self._experts(data, 1, [], [], seed) if sets and self.arm.stages > 1 else []
        for stage in range(len(sets) + 1, self.arm.stages + 1):
            if stage == 1 or self.arm.transition:
                experts = self._experts(data, stage, sets, experts, seed)
            sets.append(self._distil(data, stage, sets, experts, seed))
        return sets

    def _experts(self, data: str, stage: int, sets: list[str], before: list[str], seed: int) -> list[str]:
        resolved = self.stages[stage - 1]
        numbers = resolved.recipe.experts
        if numbers is None:
            return []
        imported = self.arm.imported_experts
        if stage == 1 and imported is not None:
            return [self._add(self.imports[imported], {})]
        number_of_experts = min(numbers.number, self.imports[imported].count) if imported else numbers.number
        real = numbers.real
        if stage > 1 and numbers.later_epochs is not None:
            real = real.model_copy(update={"epochs": numbers.later_epochs})
        batches: list[str] = []
        for number, first in enumerate(range(0, number_of_experts, numbers.expert_batch)):
            spec = ExpertsSpec(
                stage=stage,
                first=first,
                count=min(numbers.expert_batch, number_of_experts - first),
                network=self.recipe.network,
                real=real,
                transition=self._transition(stage),
                partition=self._partition(stage),
                seed=seed,
            )
            chain = before if imported and stage == 2 else before[number : number + 1]
            parents = {"dataset": [data], "chain": chain, "sets": sets}
            parents["forgetting"] = self._partition_scores(data, seed)
            batches.append(self._add(spec, parents, resolved))
        return batches

    def _imported_set(self, data: str, key: str) -> str:
        """The set of others as a stage of this dataset; it is the same for all seeds."""
        source = self._add(self.imports[key], {})
        return self._add(
            SelectSpec(rule="imported", ipc_total=self.arm.ipc_per_stage or 0), {"dataset": [data], "source": [source]}
        )

    def _partition_scores(self, data: str, seed: int) -> list[str]:
        return self._scores(data, seed) if self.arm.partition is not None else []

    def _scores(self, data: str, seed: int) -> list[str]:
        numbers = self.recipe.scores
        assert numbers is not None, f"recipe of {self.arm.method} has no scores section"
        spec = ForgettingSpec(
            network=self.recipe.network,
            training=numbers.training,
            runs=numbers.runs,
            never_learned=numbers.never_learned,
            levels=numbers.levels,
            seed=seed,
        )
        return [self._add(spec, {"dataset": [data]})]

    def _distil(self, data: str, stage: int, sets: list[str], experts: list[str], seed: int) -> str:
        resolved = self._resolved_for(stage)
        numbers = resolved.recipe.distil
        assert numbers is not None, f"recipe of {self.arm.method} has no distil section"
        fields = {name: getattr(numbers, name) for name in type(numbers).model_fields.keys() - {"iterations_total"}}
        if numbers.iterations_total is not None:  # equal compute, however many stages share it
            fields["iterations"] = max(1, numbers.iterations_total // self.arm.stages)
        spec = DistilSpec(
            method=class_of(self.arm.method),
            stage=stage,
            ipc_per_stage=self.arm.ipc_per_stage or 0,
            network=self.recipe.network,
            transition=self._transition(stage) if self.recipe.experts is None else None,
            partition=self._partition(stage),
            seed=seed,
            **{**fields, "earlier_rate": numbers.earlier_rate if stage > 1 else 0.0},
        )
        parents = {"dataset": [data], "experts": experts, "sets": sets}
        parents["forgetting"] = self._partition_scores(data, seed)
        key = self._add(spec, parents, resolved)
        group = f"{self.experiment.name}/seed{seed}{self._phase_of(data)}"
        self.plan.exclusive[key] = tuple(dict.fromkeys([*self.plan.exclusive.get(key, ()), group]))
        self.plan.limits[group] = self.experiment.distil_at_once
        return key

    def _phase_of(self, data: str) -> str:
        """The group in which stages wait for each other: phases of class-incremental learning do not, nor do seeds."""
        spec = self.plan.graph[data].spec
        assert isinstance(spec, DatasetSpec)
        return f"/classes-{'-'.join(map(str, spec.subset))}" if spec.subset else ""

    def _resolved_for(self, stage: int) -> Resolved:
        """The recipe of one stage: without transition its matching starts later on the first stage's experts."""
        resolved = self.stages[stage - 1]
        if self.arm.transition or resolved.recipe.experts is None or stage == 1:
            return resolved
        assert resolved.recipe.distil is not None
        span = resolved.recipe.distil.settings["max_start_epoch"]
        return resolved.changed(
            "ours: stage i starts in [(i-1) T, i T) without transition (facts 5.6)",
            {
                "distil.settings.min_start_epoch": (stage - 1) * span,
                "distil.settings.max_start_epoch": stage * span,
            },
        )

    def _transition(self, stage: int) -> TransitionSpec | None:
        return self.stages[stage - 1].recipe.transition if stage > 1 and self.arm.transition else None

    def _partition(self, stage: int) -> tuple[int, int] | None:
        if self.arm.partition is None:
            return None
        assert self.recipe.scores is not None
        return self.recipe.scores.bounds(stage)

    def evaluate(
        self,
        architecture: Architecture,
        mode: Mode,
        data: str,
        sets: list[str],
        prefix: int,
        seed: int,
        index: int,
        phases: Phases = (),
    ) -> str:
        """Train a network on sets and test it.

        Args:
            architecture: its name; `network` says what that means here.
            mode: how it is trained on the stages.
            data: the dataset's key.
            sets: keys of the synthetic sets, by phase and stage.
            prefix: how many stages there are.
            seed: of the arm.
            index: which network of the table's cell.
            phases: the classes of each phase, if there are phases.

        Returns:
            The key of the job.
        """
        network = self.network(architecture)
        stored = self.recipe.evaluate.start == "expert" and network == self.recipe.network and not phases
        spec = EvaluateSpec(
            mode=mode,
            network=network,
            training=self._training(prefix, mode),
            start="expert" if stored else "random",
            best_of=self.recipe.evaluate.best_of,
            phases=phases,
            index=index,
            seed=seed,
        )
        experts = self._experts(data, 1, [], [], seed)[:1] if stored else []
        return self._add(spec, {"dataset": [data], "sets": sets, "experts": experts})

    def _training(self, prefix: int, mode: Mode = "progressive") -> SgdSpec:
        """How the networks of a prefix are trained; the same object for all, so its text is written once."""
        if (prefix, mode) not in self.trainings:
            self.trainings[prefix, mode] = self.recipe.evaluate.training(prefix, mode)
        return self.trainings[prefix, mode]

    def full(self, architecture: Architecture, data: str, seed: int, index: int) -> str:
        """Train network `index` of a cell on the whole training split."""
        training = self._training(1)
        spec = FullSpec(network=self.network(architecture), training=training, index=index, seed=seed)
        return self._add(spec, {"dataset": [data]})

    def dataset(self) -> str:
        """The dataset, its splits cut."""
        return self._add(self._dataset_spec(), {})

    def _dataset_spec(self) -> DatasetSpec:
        numbers, facts, source = self.recipe.dataset, self.facts, self.experiment.source
        held_out, kept = self.split()
        return DatasetSpec(
            name=self.experiment.dataset_name(self.facts),
            fingerprint=facts.fingerprint,
            channels=facts.channels,
            height=facts.height,
            width=facts.width,
            classes=len(facts.class_names),
            train_images=sum(kept),
            normalise=numbers.normalise,
            validation_per_class=_one_for_all(held_out),
            train_per_class=numbers.train_per_class,
            test_per_class=numbers.test_per_class,
            layout=facts.layout,
            path=source.path,
            image_field=source.image,
            label_field=source.label,
            test=source.test_words,
            size=source.size,
            called=self.experiment.dataset_title(self.facts),
            licence=source.licence,
            url=source.url,
        )

    def phase(self, data: str, group: tuple[int, ...]) -> str:
        """The dataset of the classes of one phase, taken from the whole."""
        held_out, kept = self.split()
        few = {
            "classes": len(group),
            "train_images": sum(kept[label] for label in group),
            "validation_per_class": _one_for_all([held_out[label] for label in group]),
            "subset": group,
        }
        return self._add(self._dataset_spec().model_copy(update=few), {"dataset": [data]})

    def split(self) -> tuple[list[int], list[int]]:
        """By class, the held-out images and the training images that are left."""
        numbers = self.recipe.dataset
        return split(self.facts, numbers.validation_fraction, numbers.train_per_class)

    def network(self, architecture: Architecture) -> NetworkSpec:
        """The network the recipe has under this name, else the published one."""
        if architecture in self.recipe.evaluate.networks:
            return self.recipe.evaluate.networks[architecture]
        if architecture == self.recipe.network.architecture:
            return self.recipe.network
        return NetworkSpec(architecture=architecture, tf32=self.recipe.network.tf32)

    def _add(self, spec: Any, parents: Mapping[str, Iterable[str]], resolved: Resolved | None = None) -> str:
        key = self.plan.graph.add(spec, {role: tuple(keys) for role, keys in parents.items()})
        self.plan.sources.setdefault(key, resolved or self.resolved)
        return key


def _one_for_all(held_out: Sequence[int]) -> int | tuple[int, ...]:
    """One number where all classes have the same, as in every key of a data set with even classes."""
    return held_out[0] if len(set(held_out)) == 1 else tuple(held_out)
