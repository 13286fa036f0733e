"""From what stands on the command line to a graph: experiments, overrides, datasets inspected, jobs.

All input is checked here, before anything starts: the experiment files, every `--set`, the dataset on the disk, the
base methods' own numbers. What leaves this module can be run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from jobs.documents import set_path, validate
from jobs.errors import BadInput
from jobs.experiments import DatasetChoice, Experiment, Plan, expand, load
from jobs.recipe import Recipe
from jobs.specs import DatasetSpec, DistilSpec
from workers import preprocess, sources
from workers.methods import settings_for

QUICKSTART = "quickstart"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user asked for; None leaves the experiment file's word."""

    experiments: Sequence[str] = (QUICKSTART,)
    scale: str | None = None
    dataset: str | None = None
    seed: int | None = None
    settings: Sequence[str] = ()
    """`path.to.field=value`, as given to `--set`."""


@dataclass(frozen=True)
class Asked:
    """The experiments as they will be run, and the plan that answers all of them."""

    experiments: tuple[Experiment, ...]
    plan: Plan = field(default_factory=Plan)


def answer(request: Request) -> Asked:
    """The one graph of all experiments asked for.

    Raises:
        BadInput: anything that cannot work, with its place, field, value and mend.
    """
    plan = Plan()
    experiments = []
    for name in request.experiments:
        experiment, place = _experiment(name, request)
        expand(experiment, _inspected(experiment.source, place), place, plan)
        experiments.append(experiment)
    _methods_fit(plan)
    return Asked(tuple(experiments), plan)


def _experiment(name: str, request: Request) -> tuple[Experiment, str]:
    """The experiment of a file or name with the command line's words on top."""
    experiment, place, raw = load(name)
    changed = _overridden(raw, request)
    return (validate(Experiment, changed, place), place) if changed != raw else (experiment, place)


def _overridden(raw: Mapping[str, Any], request: Request) -> dict[str, Any]:
    changed: dict[str, Any] = yaml.safe_load(yaml.safe_dump(dict(raw)))
    if request.scale is not None:
        changed["scale"] = request.scale
    if request.dataset is not None:
        changed["dataset"] = request.dataset
    if request.seed is not None:
        changed["seeds"] = [request.seed]
    for setting in request.settings:
        _set(changed, setting)
    return changed


def _set(changed: dict[str, Any], setting: str) -> None:
    """Apply one `path=value`; a path that begins with a recipe's section changes the recipe's number."""
    path, equals, text = setting.partition("=")
    if not equals or not path:
        raise BadInput("command line", "--set", setting, "write path.to.field=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise BadInput("command line", f"--set {path}", text, "write a YAML value") from None
    first, _, rest = path.partition(".")
    if first == "dataset" and rest in DatasetChoice.model_fields:
        if not isinstance(changed.get("dataset"), dict):
            changed["dataset"] = {"name": changed.get("dataset", "auto")}
        changed["dataset"][rest] = value
    elif rest and first in Recipe.model_fields:
        changed.setdefault("set", {})[path] = value
    else:
        set_path(changed, path, value, "command line")


@lru_cache(maxsize=8)
def _inspected(chosen: DatasetChoice, place: str) -> sources.Facts:
    if chosen.name not in sources.LAYOUTS:
        mend = f"must be one of {', '.join(sources.LAYOUTS)}"
        raise BadInput(place, "dataset.name", chosen.name, mend)
    path = Path(chosen.path).expanduser() if chosen.path else None
    return sources.inspect(
        sources.Source(layout=chosen.name, path=path, image_field=chosen.image, label_field=chosen.label, place=place)
    )


def _methods_fit(plan: Plan) -> None:
    """The base methods' own numbers and the names of normalisations, which `jobs` cannot know."""
    known = {"measured", "unit", "zca", *preprocess.CONSTANTS}
    for job in plan.graph:
        match job.spec:
            case DistilSpec() as spec:
                settings_for(spec.method, dict(spec.settings))
            case DatasetSpec() as spec if spec.normalise not in known:
                mend = f"must be one of {', '.join(sorted(known))}"
                raise BadInput("recipe", "dataset.normalise", spec.normalise, mend)
