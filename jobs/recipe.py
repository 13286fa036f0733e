"""Recipes: every number of a method, by scale and setting, each with where it comes from.

A recipe file (`jobs/recipes/<method>.yaml`) is a list of layers. A layer applies when each entry of its `when`
matches the setting; later layers overwrite earlier ones; every leaf of `set` is `[value, source]`. So the published
numbers, the reductions for two cores, and the choices that are ours stand side by side and can be printed with their
origin (`pdd explain`). Recipes hold numbers, never code.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jobs.documents import read_yaml, validate
from jobs.errors import BadInput
from jobs.specs import (
    ChoiceSpec,
    Count,
    Fraction,
    Frozen,
    ImageOptimiserSpec,
    NetworkSpec,
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
        return all(getattr(self, name) in (wanted if isinstance(wanted, list) else [wanted]) for name, wanted in when.items())


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
    init: Literal["real", "noise"] = "real"
    conditioning: bool = True
    choice: ChoiceSpec
    settings: dict[str, Any]
    checkpoint_every: Count = 50


class EvaluateNumbers(Frozen):
    """How a network is trained on the sets.

    Exactly one of `epochs` (of every stage) and `epochs_total` (the paper's int(total / (p + 1)) for a prefix of
    p stages, section 5.1) is given. `networks` changes the architecture's numbers by name at reduced scale.
    """

    epochs: Count | None = None
    epochs_total: Count | None = None
    lr: float | None = None
    momentum: Fraction = 0.9
    weight_decay: float = 5e-4
    batch_size: Count = 256
    augmentation: str = "none"
    drop: Literal["none", "half"] = "half"
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


def resolve(method: str, setting: Setting, overrides: Mapping[str, Any], place: str) -> Resolved:
    """The numbers of `method` in `setting`, with `overrides` (dotted path -> value) on top.

    Raises:
        BadInput: no such method, no numbers for this setting, or an override that does not fit.
    """
    if method not in methods():
        raise BadInput(place, "method", method, f"must be one of {', '.join(methods())}")
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for layer in read_yaml(FOLDER / f"{method}.yaml")["layers"]:
        if setting.matches(layer.get("when", {})):
            for path, (value, source) in _leaves(layer["set"]):
                _put(values, sources, path, value, source)
    for path, value in overrides.items():
        _put(values, sources, path, value, place)
    if not {"dataset", "network", "evaluate"} <= set(values):
        raise BadInput(place, "scale", setting.scale, f"method {method!r} has no numbers for {setting}; choose another")
    return Resolved(validate(Recipe, values, place, prefix="set"), sources)


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, tuple[Any, str]]]:
    for name, node in tree.items():
        path = f"{prefix}.{name}" if prefix else name
        if isinstance(node, dict):
            yield from _leaves(node, path)
        else:
            value, source = node
            yield path, (value, source)


def _put(values: dict[str, Any], sources: dict[str, str], path: str, value: Any, source: str) -> None:
    *way, last = path.split(".")
    here = values
    for name in way:
        here = here.setdefault(name, {})
    here[last] = value
    sources[path] = source
