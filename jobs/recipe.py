"""Recipes: every number of a method, by scale and setting, each with where it comes from.

A recipe file (`jobs/recipes/<method>.yaml`) is a list of layers. A layer applies when each entry of its
`when` matches the setting; later layers overwrite earlier ones; every leaf of `set` is `[value, source]`. So
the published numbers, the reductions for two cores, and the choices that are ours stand side by side and can
be printed with their origin (`pdd explain`). Recipes hold numbers, never code.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from jobs.documents import read_yaml, validate
from jobs.errors import BadInput
from jobs.specs import (
    Augmentation,
    ChoiceSpec,
    Count,
    Drop,
    Family,
    Fraction,
    Frozen,
    ImageOptimiserSpec,
    Init,
    NetworkSpec,
    NonNegative,
    Positive,
    Settings,
    SgdSpec,
    TransitionSpec,
)

Scale = Literal["paper", "small", "tiny"]
FOLDER = Path(__file__).parent / "recipes"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a layer's `when` may ask about."""

    scale: Scale
    dataset: str
    size: int
    """Height of the images in pixels."""
    stages: int = 1
    ipc_per_stage: int = 0

    @property
    def progressive(self) -> bool:
        """Whether there is more than one stage."""
        return self.stages > 1

    def matches(self, when: Mapping[str, Any]) -> bool:
        """Whether every asked field has the asked value, or one of a list of them."""
        return all(
            getattr(self, name) in (wanted if isinstance(wanted, list) else [wanted]) for name, wanted in when.items()
        )


class DatasetNumbers(Frozen):
    """Normalisation, the held-out share of the training split, and how much of the data is used."""

    normalise: str
    validation_fraction: Fraction
    train_per_class: Count | None = None
    test_per_class: Count | None = None


class ExpertsNumbers(Frozen):
    """The expert pool of every stage: `number` experts in jobs of `cohort`."""

    number: Count
    cohort: Count
    real: SgdSpec
    """Stage 1; later stages train `later_epochs` on real data with otherwise the same numbers."""
    later_epochs: Count | None = None


class DistilNumbers(Frozen):
    """One stage of distillation; `settings` belong to the base method."""

    iterations: Count
    image: ImageOptimiserSpec
    init: Init = "real"
    factor: Count = 1
    conditioning: bool = True
    starts: Count | None = None
    choice: ChoiceSpec
    settings: Settings
    checkpoint_every: Count = 50


class EvaluateNumbers(Frozen):
    """How a network is trained on the sets.

    Exactly one of `epochs` (of every stage) and `epochs_total` (the paper's int(total / (p + 1)) for a prefix
    of p stages, section 5.1) is given. `networks` changes the architecture's numbers by name at reduced
    scale.
    """

    epochs: Count | None = None
    epochs_total: Count | None = None
    lr: Positive | None = None
    momentum: Fraction = 0.9
    weight_decay: NonNegative = 5e-4
    batch_size: Count = 256
    augmentation: Augmentation = "none"
    family: Family = "mtt"
    cutmix: Fraction = 0.0
    drop: Drop = "half"
    extra_epoch: bool = False
    networks: dict[str, NetworkSpec] = {}

    def training(self, prefix: int) -> SgdSpec:
        """The SGD numbers of every link when a prefix of `prefix` stages is evaluated."""
        epochs = self.epochs if self.epochs is not None else int((self.epochs_total or 0) / (prefix + 1))
        shared = self.model_dump(exclude={"epochs", "epochs_total", "networks"})
        return SgdSpec(epochs=max(1, epochs), **shared)


class Recipe(Frozen):
    """The resolved numbers of one method in one setting; absent sections are not needed by that method."""

    dataset: DatasetNumbers
    network: NetworkSpec
    evaluate: EvaluateNumbers
    experts: ExpertsNumbers | None = None
    transition: TransitionSpec | None = None
    distil: DistilNumbers | None = None


@dataclass(frozen=True)
class Resolved:
    """A recipe and, for each leaf by dotted path, the source of its number."""

    recipe: Recipe
    sources: Mapping[str, str]


def methods() -> list[str]:
    """The names of all methods that have a recipe file."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def resolve(
    method: str,
    setting: Setting,
    overrides: Mapping[str, Any],
    place: str,
    shared: Mapping[str, Any] | None = None,
) -> Resolved:
    """The numbers of `method` in `setting`, with the user's own on top.

    Args:
        method: name of a recipe file.
        setting: what the layers' `when` are asked about.
        overrides: the user's numbers for this arm, by dotted path or nested as in a recipe file.
        place: where the user wrote them.
        shared: the user's numbers for all arms; sections that this method does not have are passed over,
            since a selection baseline has nothing to distil. `overrides` win over them.

    Raises:
        BadInput: no such method, no numbers for this setting, or an override that does not fit.
    """
    if method not in methods():
        raise BadInput(place, "method", method, f"must be one of {', '.join(methods())}")
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for layer in _layers(method):
        if setting.matches(layer.get("when", {})):
            for path, (value, source) in flat(layer["set"]):
                _put(values, sources, path, deepcopy(value), source)
    if not {"dataset", "network", "evaluate"} <= set(values):
        raise BadInput(place, "scale", setting.scale, f"method {method!r} has no numbers for {setting}; choose another")
    absent = set(Recipe.model_fields) - set(values)
    for path, value in flat(shared or {}):
        if path.split(".")[0] not in absent:
            _put(values, sources, path, value, place)
    for path, value in flat(overrides):
        _put(values, sources, path, value, place)
    recipe = validate(Recipe, values, place, prefix="set")
    _refuse_contradictions(recipe, place)
    return Resolved(recipe, sources)


def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested mappings, by dotted path."""
    for name, node in tree.items():
        path = f"{prefix}.{name}" if prefix else str(name)
        if isinstance(node, Mapping):
            yield from flat(node, path)
        else:
            yield path, node


@cache
def _layers(method: str) -> list[dict[str, Any]]:
    layers: list[dict[str, Any]] = read_yaml(FOLDER / f"{method}.yaml")["layers"]
    return layers


def _put(values: dict[str, Any], sources: dict[str, str], path: str, value: Any, source: str) -> None:
    *way, last = path.split(".")
    here = values
    for name in way:
        here = here.setdefault(name, {})
        if not isinstance(here, dict):
            raise BadInput(source, f"set.{path}", value, f"{name} is a number, not a section; leave {last} out")
    here[last] = value
    sources[path] = source


def _refuse_contradictions(recipe: Recipe, place: str) -> None:
    """What no field can see of itself."""
    evaluate, experts, distil = recipe.evaluate, recipe.experts, recipe.distil
    if (evaluate.epochs is None) == (evaluate.epochs_total is None):
        mend = "give exactly one of evaluate.epochs and evaluate.epochs_total, set the other to null"
        raise BadInput(place, "set.evaluate.epochs", evaluate.epochs, mend)
    for name, network in evaluate.networks.items():
        if name != network.architecture:
            field, mend = (
                f"set.evaluate.networks.{name}.architecture",
                f"must be {name}, the name it stands under",
            )
            raise BadInput(place, field, network.architecture, mend)
    if experts is not None and experts.real.lr is None:
        raise BadInput(place, "set.experts.real.lr", None, "give a number; experts learn no step size")
    if distil is None and evaluate.lr is None:
        raise BadInput(place, "set.evaluate.lr", None, "give a number; no stage learns a step size here")
    if distil is not None and distil.choice.by == "validation" and not recipe.dataset.validation_fraction:
        mend = "hold images out, or set distil.choice.by to last"
        raise BadInput(place, "set.dataset.validation_fraction", 0.0, mend)
