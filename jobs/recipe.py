"""Recipes: every number of a method, by scale and setting, each with where it comes from.

A recipe file (`jobs/recipes/<method>.yaml`) is a list of layers. A layer applies when each entry of its `when` matches
the setting; later layers overwrite earlier ones; every leaf of `set` is `[value, source]`. So published numbers,
reductions for two cores and choices of ours stand side by side, and `pdd explain` prints them with their origin. A
source that says "facts 5.1" is that paragraph of docs/facts.md.

A value may be proportional to the images per class of a stage (`{per_image: 0.5}`). An entry of `when` is a value, a
list of values, or bounds (`{at_least: 2, at_most: 5}`). With `stage` a layer gives a number to some stages only. A
published setting may be the nearest one for settings that were never published: its layer names those under `also`,
which replaces entries of its `when`, and its sources then read "ours: as published for …".

A file may also name a `base`, the recipe whose layers come before its own, and a `method`, the class
(`package.module:Class`) of a base method that lives outside of `workers.methods`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from jobs.documents import read_yaml, validate
from jobs.errors import BadInput
from jobs.fields import Frozen
from jobs.recipe_numbers import Recipe

Scale = Literal["paper", "medium", "small", "tiny"]
"""`medium` begins with the layers of `paper` and cuts some of their numbers."""
Protocol = Literal["published", "augmented", "dd_ranking"]
"""How sets are evaluated: as the printed rows were; selection baselines augmented, as the distilled rows beside them;
or as DD-Ranking, the field's benchmark, does."""
FOLDER = Path(__file__).parent / "recipes"
SHARED = FOLDER / "shared"
"""Files of layers that come after those of every method."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a layer's `when` may ask about."""

    scale: Scale
    dataset: str
    size: int
    """Height of the images in pixels."""
    stages: int = 1
    ipc_per_stage: int = 0
    stage: int = 1
    """The stage whose numbers are asked for, 1-based; see `varies_by_stage`."""
    protocol: Protocol = "published"
    class_incremental: bool = False

    @property
    def progressive(self) -> bool:
        """Whether there is more than one stage."""
        return self.stages > 1

    def matches(self, when: Mapping[str, Any]) -> bool:
        """Whether every field in `when` has the value there, one of a list of values, or one within bounds."""
        return all(self._has(name, wanted) for name, wanted in when.items())

    def _has(self, name: str, wanted: Any) -> bool:
        value = getattr(self, name)
        return _is_wanted(value, wanted) or (name == "scale" and value == "medium" and _is_wanted("paper", wanted))


def _is_wanted(value: Any, wanted: Any) -> bool:
    """Whether a field's value is the wanted one, in the wanted list, or within `{at_least: …, at_most: …}`."""
    if isinstance(wanted, Mapping):
        lowest, highest = wanted.get("at_least", value), wanted.get("at_most", value)
        return bool(lowest <= value <= highest)
    return value in (wanted if isinstance(wanted, list) else [wanted])


@dataclass(frozen=True)
class Resolved:
    """A recipe and, for each leaf by dotted path, the source of its number."""

    recipe: Recipe
    sources: Mapping[str, str]

    def changed(self, source: str, numbers: Mapping[str, Any]) -> Resolved:
        """A recipe with other numbers in it, by dotted path, which all have this source."""
        values, sources = self.recipe.model_dump(), dict(self.sources)
        for path, value in numbers.items():
            _put(values, sources, path, value, source)
        return Resolved(Recipe.model_validate(values), sources)


def methods() -> list[str]:
    """The names of all methods that have a recipe file."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def is_file(method: str) -> bool:
    """Whether a method is named by the path of a recipe file of the user's own."""
    return method.endswith(".yaml")


def class_of(method: str) -> str:
    """What `workers.methods` knows a recipe's base method by: the class it names, else its own name.

    Raises:
        BadInput: a recipe file of the user's own that names none.
    """
    if not is_file(method):
        return method
    named = _file(method).method
    if named is None:
        raise BadInput(method, "method", named, "name the class of the base method, as package.module:Class")
    return named


def varies_by_stage(method: str) -> bool:
    """Whether a method's recipe has numbers for some stages only."""
    return any("stage" in layer.when for layer in _layers(method))


def resolve(
    method: str,
    setting: Setting,
    overrides: Mapping[str, Any],
    place: str,
    shared: Mapping[str, Any] | None = None,
    borrowed: Mapping[str, str] | None = None,
) -> Resolved:
    """The numbers of `method` in `setting`, with the user's own on top.

    Args:
        method: name of a recipe file, or the path of one.
        setting: what the layers' `when` are asked about.
        overrides: the user's numbers for this arm, by dotted path or nested as in a recipe file.
        place: where the user wrote them.
        shared: the user's numbers for all arms; sections that this method does not have are passed over,
            since a selection baseline has nothing to distil. `overrides` win over them.
        borrowed: sections taken from the recipes of other methods.

    Raises:
        BadInput: no such method, no numbers for this setting, or an override that does not fit.
    """
    if method not in methods() and not is_file(method):
        raise BadInput(place, "method", method, f"must be one of {', '.join(methods())}")
    layers = _layers(method)
    if setting.protocol != "published" and not any(
        layer.when.get("protocol") == setting.protocol for layer in (*layers, *_shared_layers())
    ):
        fix = f"{method!r} is evaluated in one way only; leave it out"
        raise BadInput(place, "protocol", setting.protocol, fix)
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    _lay([*layers, *_shared_layers()], setting, values, sources)
    for section, lender in (borrowed or {}).items():
        _lay(_layers(lender), setting, values, sources, section)
    if is_file(method) and "distil" not in values:
        raise BadInput(method, "layers", None, f"no layer sets a distil section for {setting}; add its numbers")
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


class _Layer(Frozen):
    """Numbers for the settings that match `when`, or `when` with the entries of `also` in the place of its own."""

    when: dict[str, Any] = {}
    also: dict[str, Any] = {}
    set: Annotated[dict[str, Any], Field(min_length=1)]

    @field_validator("when", "also")
    @classmethod
    def _can_be_answered(cls, when: dict[str, Any]) -> dict[str, Any]:
        known = [*Setting.__dataclass_fields__, "progressive"]
        if unknown := set(when) - set(known):
            raise PydanticCustomError("when", "no setting has {unknown}; known: {known}", _unknown(unknown, known))
        for name, wanted in when.items():
            if isinstance(wanted, Mapping) and not (wanted and set(wanted) <= {"at_least", "at_most"}):
                raise PydanticCustomError(
                    "when", "write {name} as a value, a list, or bounds: at_least, at_most", {"name": name}
                )
        return when

    def numbers(self, setting: Setting) -> Iterator[tuple[str, Any, str]]:
        """Path, value and source of every number that the layer has for a setting; none if it does not apply."""
        published = setting.matches(self.when)
        if published or (self.also and setting.matches(self.when | self.also)):
            for path, (value, source) in flat(self.set):
                yield path, _of_setting(value, setting), source if published else self._nearest(source)

    def _nearest(self, source: str) -> str:
        """The source of a number that was published for another setting, the nearest one."""
        where = ", ".join(f"{name} {self.when[name]}" for name in self.also if name in self.when)
        return f"ours: as published for {where} ({source})"

    @field_validator("set")
    @classmethod
    def _have_sources(cls, numbers: dict[str, Any]) -> dict[str, Any]:
        for path, leaf in flat(numbers):
            if not (isinstance(leaf, list) and len(leaf) == 2 and isinstance(leaf[1], str)):
                raise PydanticCustomError("leaf", "write {path} as [value, source]", {"path": path})
            if isinstance(leaf[0], Mapping) and "per_image" in leaf[0] and not isinstance(leaf[0]["per_image"], float):
                raise PydanticCustomError(
                    "leaf", "write per_image of {path} as a number such as 5.0e-4", {"path": path}
                )
        return numbers


def _of_setting(value: Any, setting: Setting) -> Any:
    """The value itself, or what it is for the setting's images per class; to 12 digits, as one would write it."""
    if isinstance(value, Mapping) and "per_image" in value:
        return float(f"{value['per_image'] * setting.ipc_per_stage:.12g}")
    return value


class _File(Frozen):
    """A recipe file."""

    base: str | None = None
    method: str | None = None
    layers: Annotated[tuple[_Layer, ...], Field(strict=False)]


@cache
def _file(method: str) -> _File:
    path = Path(method).expanduser() if is_file(method) else FOLDER / f"{method}.yaml"
    return validate(_File, read_yaml(path), method)


def _layers(method: str) -> list[_Layer]:
    """A recipe's layers, those of its base first.

    Raises:
        BadInput: the file is absent or is no recipe.
    """
    file = _file(method)
    if file.base is not None and file.base not in methods():
        raise BadInput(method, "base", file.base, f"must be one of {', '.join(methods())}")
    return [*(_layers(file.base) if file.base else []), *file.layers]


@cache
def _shared_layers() -> tuple[_Layer, ...]:
    """The layers that come after those of every method."""
    paths = sorted(SHARED.glob("*.yaml"))
    return tuple(layer for path in paths for layer in validate(_File, read_yaml(path), path.name).layers)


def _unknown(unknown: Iterable[str], known: Iterable[str]) -> dict[str, str]:
    return {"unknown": ", ".join(sorted(unknown)), "known": ", ".join(known)}


def _lay(
    layers: Iterable[_Layer],
    setting: Setting,
    values: dict[str, Any],
    sources: dict[str, str],
    section: str | None = None,
) -> None:
    """Put the numbers of all layers that apply over each other.

    Args:
        layers: in their order.
        setting: what they are asked about.
        values: nested numbers, changed in place.
        sources: by dotted path, changed in place.
        section: the only section that is taken, if one is named.
    """
    for layer in layers:
        for path, value, source in layer.numbers(setting):
            if section is None or path.split(".")[0] == section:
                _put(values, sources, path, deepcopy(value), source)


def _put(values: dict[str, Any], sources: dict[str, str], path: str, value: Any, source: str) -> None:
    """Set one number by its dotted path, with its source."""
    *sections, last = path.split(".")
    section = values
    for name in sections:
        section = section.setdefault(name, {})
        if not isinstance(section, dict):
            raise BadInput(source, f"set.{path}", value, f"{name} is a number, not a section; leave {last} out")
    section[last] = value
    sources[path] = source


def _refuse_contradictions(recipe: Recipe, place: str) -> None:
    """Refuse numbers that contradict each other, which no field can see of itself.

    Raises:
        BadInput: the first contradiction.
    """
    evaluate, experts, distil = recipe.evaluate, recipe.experts, recipe.distil
    if (evaluate.epochs is None) == (evaluate.epochs_total is None):
        fix = "give exactly one of evaluate.epochs and evaluate.epochs_total, set the other to null"
        raise BadInput(place, "set.evaluate.epochs", evaluate.epochs, fix)
    for name, network in evaluate.networks.items():
        if network.architecture not in (name, f"idc_{name}"):
            field = f"set.evaluate.networks.{name}.architecture"
            fix = f"must be {name}, the name it stands under, or idc_{name}"
            raise BadInput(place, field, network.architecture, fix)
    if experts is not None and experts.real.lr is None:
        raise BadInput(place, "set.experts.real.lr", None, "give a number; experts learn no step size")
    if recipe.scores is not None and recipe.scores.training.lr is None:
        raise BadInput(place, "set.scores.training.lr", None, "give a number; nothing is learned before")
    if evaluate.start == "expert" and experts is None:
        raise BadInput(place, "set.evaluate.start", "expert", "this method has no experts; start from random weights")
    if distil is not None and experts is None and distil.init == "classified":
        raise BadInput(place, "set.distil.init", "classified", "this method has no experts; start from real images")
    if distil is not None and experts is None and distil.labels is not None and distil.labels.source != "classes":
        fix = "this method has no experts; take the labels from the classes"
        raise BadInput(place, "set.distil.labels.source", distil.labels.source, fix)
    if distil is None and evaluate.lr is None:
        raise BadInput(place, "set.evaluate.lr", None, "give a number; no stage learns a step size here")
    if distil is not None and distil.choice.by == "validation" and not recipe.dataset.validation_fraction:
        fix = "hold images out, or set distil.choice.by to last"
        raise BadInput(place, "set.dataset.validation_fraction", 0.0, fix)
