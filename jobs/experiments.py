"""Experiments: what a user asks for, and the graph of jobs that answers it.

An experiment names a dataset, a scale, architectures, and *arms*: a selection baseline, a distillation with
its stages and images per class, or full-data training. `expand` turns it into jobs and into *cells*, the
entries of the table at the end. Every prefix of a distillation is evaluated, so a run that stops early still
fills its rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from jobs.documents import read_yaml, validate
from jobs.errors import BadInput
from jobs.facts import Facts, deepest_convnet, split
from jobs.graph import Graph
from jobs.recipe import Recipe, Resolved, Scale, Setting, flat, methods, resolve
from jobs.specs import (
    Architecture,
    Count,
    DatasetSpec,
    DistilSpec,
    EvaluateSpec,
    ExpertsSpec,
    Frozen,
    FullSpec,
    Index,
    Mode,
    NetworkSpec,
    SelectSpec,
)

FOLDER = Path(__file__).parent / "experiments"
QUICKSTART = FOLDER / "quickstart.yaml"
SELECTIONS = ("random",)


Item = TypeVar("Item")


def _distinct(items: tuple[Item, ...]) -> tuple[Item, ...]:
    """A repeated seed would be counted twice in every mean."""
    if len(set(items)) < len(items):
        raise PydanticCustomError("repeated", "name each only once")
    return items


Several = Annotated[tuple[Item, ...], Field(strict=False, min_length=1), AfterValidator(_distinct)]


def _known(method: str) -> str:
    if method not in methods():
        raise PydanticCustomError("method", "must be one of {known}", {"known": ", ".join(methods())})
    return method


class DatasetChoice(Frozen):
    """The dataset a user names: a known name, a path, or both."""

    name: str = "auto"
    path: str | None = None
    image: str | None = None
    label: str | None = None


def _as_choice(value: object) -> object:
    """A bare word is a dataset's name, or its path if it looks like one."""
    if not isinstance(value, str):
        return value
    return {"path" if "/" in value or value.startswith(".") else "name": value}


class Arm(Frozen):
    """One row group of the table.

    `ipc_per_stage` counts new images per class in each of `stages` stages; a selection baseline takes their
    product at once. `set` changes recipe numbers for this arm by dotted path.
    """

    method: Annotated[str, AfterValidator(_known)]
    name: str | None = None
    stages: Count = 1
    ipc_per_stage: Count | None = None
    modes: Several[Mode] = ("progressive",)
    prefixes: Literal["all", "last"] = "all"
    set: dict[str, Any] = {}

    @property
    def label(self) -> str:
        """The arm's name in tables."""
        return (
            self.name
            or {"random": "Random", "full": "Full data"}.get(self.method)
            or (f"PDD+{self.method.upper()}" if self.stages > 1 else self.method.upper())
        )

    @property
    def ipc_total(self) -> int:
        """Images per class in the union of all stages; 0 for full data."""
        return self.stages * (self.ipc_per_stage or 0)


class Experiment(Frozen):
    """A whole experiment as its YAML file says it."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    about: str = ""
    dataset: Annotated[DatasetChoice, BeforeValidator(_as_choice)] = DatasetChoice(name="digits")
    scale: Scale = "small"
    seeds: Several[Index] = (0,)
    architectures: Several[Architecture] = ("convnet",)
    networks: Count = 5
    arms: Annotated[tuple[Arm, ...], Field(strict=False, min_length=1)]
    distil_at_once: Count = 1
    """How many `distil` jobs of one seed of this experiment may run at a time."""
    set: dict[str, Any] = {}
    """Recipe numbers for every arm, by dotted path; an arm's own `set` wins."""

    @property
    def source(self) -> DatasetChoice:
        """Where the images come from; also when the file says no more than a name or a path."""
        return self.dataset


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One entry of a table: the networks whose accuracies are averaged, and what they were trained on."""

    experiment: str
    method: str
    base_method: str
    dataset: str
    scale: Scale
    architecture: str
    mode: str
    ipc_per_stage: int
    stages: int
    stage: int
    """The prefix of stages this cell is about, 1-based; 0 for full data."""
    jobs: tuple[str, ...]
    """Keys of the `evaluate` or `full` jobs, by seed and then network."""

    @property
    def ipc_total(self) -> int:
        """Images per class the networks of this cell saw; 0 for full data."""
        return self.ipc_per_stage * self.stage


@dataclass
class Plan:
    """A graph, the cells it fills, and how the driver may run it."""

    graph: Graph = field(default_factory=Graph)
    cells: list[Cell] = field(default_factory=list)
    sources: dict[str, Resolved] = field(default_factory=dict)
    """By key: the recipe a job's numbers come from."""
    exclusive: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """By key of a `distil` job: the groups of which at most `limits` may run at once."""
    limits: dict[str, int] = field(default_factory=dict)

    def wanted(self) -> tuple[str, ...]:
        """The jobs that were asked for, each once: those that fill a cell."""
        return tuple(dict.fromkeys(key for cell in self.cells for key in cell.jobs))


def load(name: str) -> tuple[Experiment, str, dict[str, Any]]:
    """The experiment of a YAML file or of a name in `jobs/experiments`, its place, and the raw mapping.

    Raises:
        BadInput: there is no such file or name, or the file does not validate.
    """
    path = Path(name)
    if not path.suffix:
        path = FOLDER / f"{name}.yaml"
        if not path.is_file():
            known = ", ".join(sorted(file.stem for file in FOLDER.glob("*.yaml")))
            raise BadInput("command line", "experiment", name, f"must be a YAML file or one of {known}")
    raw = read_yaml(path)
    place = path.name if path.parent == FOLDER else str(path)
    return validate(Experiment, raw, place), place, raw


def expand(experiment: Experiment, facts: Facts, place: str, plan: Plan | None = None) -> Plan:
    """Add the experiment's jobs and cells to `plan` (a new one by default).

    Raises:
        BadInput: an arm cannot be made from this dataset, e.g. a class has fewer images than it asks for.
    """
    plan = plan if plan is not None else Plan()
    if facts.height != facts.width:
        raise BadInput(place, "dataset", f"{facts.height}x{facts.width}", "crop or pad the images to squares")
    arms = [
        _ArmExpansion(experiment, arm, f"arms.{number}", facts, place, plan)
        for number, arm in enumerate(experiment.arms)
    ]
    for arm in arms:
        arm.run()
    for path, value in flat(experiment.set):
        if not any(path in arm.resolved.sources for arm in arms):
            raise BadInput(place, f"set.{path}", value, "no arm has this section; leave it out")
    return plan


@dataclass
class _ArmExpansion:
    """The jobs of one arm over all seeds."""

    experiment: Experiment
    arm: Arm
    path: str
    facts: Facts
    place: str
    plan: Plan
    resolved: Resolved = field(init=False)
    recipe: Recipe = field(init=False)

    def run(self) -> None:
        setting = Setting(
            scale=self.experiment.scale,
            dataset=self.facts_name(),
            size=self.facts.height,
            stages=self.arm.stages,
            ipc_per_stage=self.arm.ipc_per_stage or 0,
        )
        self.resolved = resolve(self.arm.method, setting, self.arm.set, self.place, self.experiment.set)
        self.recipe = self.resolved.recipe
        self._networks_fit()
        if self.arm.method == "full":
            return self._full()
        if self.arm.ipc_per_stage is None:
            raise BadInput(self.place, f"{self.path}.ipc_per_stage", None, "required; images per class of one stage")
        self._enough_images()
        if self.arm.method in SELECTIONS:
            return self._selection()
        return self._distillation()

    def facts_name(self) -> str:
        chosen = self.experiment.source.name
        return self.facts.layout if chosen == "auto" else chosen

    def _full(self) -> None:
        data = self._dataset()
        for architecture in self.experiment.architectures:
            keys = [
                self._add(
                    FullSpec(
                        network=self._network(architecture),
                        training=self.recipe.evaluate.training(1),
                        index=index,
                        seed=seed,
                    ),
                    {"dataset": [data]},
                )
                for seed in self.experiment.seeds
                for index in range(self.experiment.networks)
            ]
            self._cell(architecture, "full", stage=0, keys=keys)

    def _selection(self) -> None:
        """Each network gets a draw of its own, so the spread in the table includes the choice of images."""
        data = self._dataset()
        ipc = self.arm.ipc_total
        draws = {
            (seed, index): self._add(SelectSpec(rule="random", ipc=ipc, draw=index, seed=seed), {"dataset": [data]})
            for seed in self.experiment.seeds
            for index in range(self.experiment.networks)
        }
        for architecture in self.experiment.architectures:
            keys = [
                self._evaluate(architecture, "union", data, [chosen], 1, seed, index)
                for (seed, index), chosen in draws.items()
            ]
            self._cell(architecture, "union", stage=self.arm.stages, keys=keys)

    def _distillation(self) -> None:
        data = self._dataset()
        chains = {seed: self._chain(data, seed) for seed in self.experiment.seeds}
        first = self.arm.stages if self.arm.prefixes == "last" else 1
        for prefix in range(first, self.arm.stages + 1):
            for mode in self.arm.modes:
                for architecture in self.experiment.architectures:
                    keys = [
                        self._evaluate(architecture, mode, data, chain[:prefix], prefix, seed, index)
                        for seed, chain in chains.items()
                        for index in range(self.experiment.networks)
                    ]
                    self._cell(architecture, mode, stage=prefix, keys=keys)

    def _chain(self, data: str, seed: int) -> list[str]:
        """The sets S_1..S_P of one seed; the experts of stage i have been through S_1..S_{i-1}."""
        sets: list[str] = []
        experts: list[str] = []
        for stage in range(1, self.arm.stages + 1):
            experts = self._experts(data, stage, sets, experts, seed)
            sets.append(self._distil(data, stage, sets, experts, seed))
        return sets

    def _experts(self, data: str, stage: int, sets: list[str], before: list[str], seed: int) -> list[str]:
        numbers = self.recipe.experts
        if numbers is None:
            return []
        real = numbers.real
        if stage > 1 and numbers.later_epochs is not None:
            real = real.model_copy(update={"epochs": numbers.later_epochs})
        cohorts: list[str] = []
        for number, first in enumerate(range(0, numbers.number, numbers.cohort)):
            spec = ExpertsSpec(
                stage=stage,
                first=first,
                count=min(numbers.cohort, numbers.number - first),
                network=self.recipe.network,
                real=real,
                transition=self.recipe.transition if stage > 1 else None,
                seed=seed,
            )
            parents = {"dataset": [data], "chain": before[number : number + 1], "sets": sets}
            cohorts.append(self._add(spec, parents))
        return cohorts

    def _distil(self, data: str, stage: int, sets: list[str], experts: list[str], seed: int) -> str:
        numbers = self.recipe.distil
        assert numbers is not None, f"recipe of {self.arm.method} has no distil section"
        spec = DistilSpec(
            method=self.arm.method,
            stage=stage,
            ipc=self.arm.ipc_per_stage or 0,
            network=self.recipe.network,
            transition=self.recipe.transition if stage > 1 and self.recipe.experts is None else None,
            seed=seed,
            **{name: getattr(numbers, name) for name in type(numbers).model_fields},
        )
        key = self._add(spec, {"dataset": [data], "experts": experts, "sets": sets})
        group = f"{self.experiment.name}/seed{seed}"
        self.plan.exclusive[key] = tuple(dict.fromkeys([*self.plan.exclusive.get(key, ()), group]))
        self.plan.limits[group] = self.experiment.distil_at_once
        return key

    def _evaluate(
        self,
        architecture: Architecture,
        mode: Mode,
        data: str,
        sets: list[str],
        prefix: int,
        seed: int,
        index: int,
    ) -> str:
        spec = EvaluateSpec(
            mode=mode,
            network=self._network(architecture),
            training=self.recipe.evaluate.training(prefix),
            index=index,
            seed=seed,
        )
        return self._add(spec, {"dataset": [data], "sets": sets})

    def _dataset(self) -> str:
        numbers, facts, source = self.recipe.dataset, self.facts, self.experiment.source
        validation, kept = self._split()
        spec = DatasetSpec(
            name=self.facts_name(),
            fingerprint=facts.fingerprint,
            channels=facts.channels,
            height=facts.height,
            width=facts.width,
            classes=len(facts.class_names),
            train_images=sum(kept),
            normalise=numbers.normalise,
            validation_per_class=validation,
            train_per_class=numbers.train_per_class,
            test_per_class=numbers.test_per_class,
            layout=facts.layout,
            path=source.path,
            image_field=source.image,
            label_field=source.label,
        )
        return self._add(spec, {})

    def _split(self) -> tuple[int, list[int]]:
        numbers = self.recipe.dataset
        return split(self.facts, numbers.validation_fraction, numbers.train_per_class)

    def _enough_images(self) -> None:
        _, kept = self._split()
        for name, images in zip(self.facts.class_names, kept, strict=True):
            if images < self.arm.ipc_total:
                asked = f"{self.arm.stages} x {self.arm.ipc_per_stage} images per class are asked for"
                raise BadInput(
                    self.place,
                    f"{self.path}.ipc_per_stage",
                    self.arm.ipc_per_stage,
                    f"{asked}, but class {name!r} has {images} training images after the held-out split; "
                    "ask for fewer or add images",
                )

    def _networks_fit(self) -> None:
        """Every block of a ConvNet halves the map, which must not vanish."""
        deepest = deepest_convnet(self.facts)
        for network in (self.recipe.network, *map(self._network, self.experiment.architectures)):
            if network.architecture == "convnet" and network.blocks > deepest:
                mend = f"images of {self.facts.height} pixels allow at most {deepest} blocks"
                raise BadInput(self.place, "set.network.depth", network.blocks, mend)

    def _network(self, architecture: Architecture) -> NetworkSpec:
        """The network the recipe has under this name, else the published one."""
        if architecture in self.recipe.evaluate.networks:
            return self.recipe.evaluate.networks[architecture]
        if architecture == self.recipe.network.architecture:
            return self.recipe.network
        return NetworkSpec(architecture=architecture)

    def _add(self, spec: Any, parents: Mapping[str, Iterable[str]]) -> str:
        key = self.plan.graph.add(spec, {role: tuple(keys) for role, keys in parents.items()})
        self.plan.sources.setdefault(key, self.resolved)
        return key

    def _cell(self, architecture: str, mode: str, *, stage: int, keys: list[str]) -> None:
        self.plan.cells.append(
            Cell(
                experiment=self.experiment.name,
                method=self.arm.label,
                base_method=self.arm.method,
                dataset=self.facts_name(),
                scale=self.experiment.scale,
                architecture=architecture,
                mode=mode,
                ipc_per_stage=self.arm.ipc_per_stage or 0,
                stages=self.arm.stages,
                stage=stage,
                jobs=tuple(keys),
            )
        )
