"""The request of experiments, from the command line to the graph: overrides, datasets inspected, jobs.

All input is checked here, before anything starts: the experiment files, every `--set`, the dataset on the disk, the
base methods' own numbers. What leaves this module can be run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

import yaml

from jobs.datasets import NORMALISATIONS
from jobs.documents import closest, set_path, validate, validate_part, yaml_value
from jobs.errors import BadInput
from jobs.expansion import expand
from jobs.experiment import DatasetChoice, Experiment, Plan, dataset_fields, load
from jobs.graph import Job
from jobs.inputs import dataset_of
from jobs.kinds import ImportedSpec
from jobs.methods import NO_BATCH_NORM
from jobs.plugins import FORM, is_plug_in
from jobs.recipe import flat
from jobs.recipe_numbers import Recipe
from jobs.specs import DatasetSpec, DistilSpec, ExpertsSpec, NetworkSpec
from orchestrator.planning.reading import reading
from workers.data import sources
from workers.data.remembered import Memory
from workers.methods import expert_epochs_needed, settings_for, takes_soft_labels
from workers.runtime.compiler import has_cxx, require_cxx
from workers.store.store import Store

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
    data: Mapping[str, str] = field(default_factory=dict)
    """Where datasets lie of which only the name is said."""
    store: str | None = None
    """Where the facts of datasets are remembered."""


@dataclass(frozen=True)
class ResolvedRequest:
    """The experiments as they will be run, and the plan that answers all of them."""

    experiments: tuple[Experiment, ...]
    plan: Plan = field(default_factory=Plan)

    @property
    def names(self) -> tuple[str, ...]:
        """The experiments' names, each once."""
        return tuple(dict.fromkeys(experiment.name for experiment in self.experiments))


def resolve(request: Request) -> ResolvedRequest:
    """The one graph of all experiments asked for.

    Raises:
        BadInput: anything that cannot work, with its place, field, value and fix.
    """
    plan = Plan()
    experiments = []
    named = [_experiment(name, request) for name in dict.fromkeys(request.experiments)]
    for experiment, place in named:
        check_words(experiment, place)
    for experiment, place in named:
        facts = inspect_dataset(experiment.source, place, request.store)
        expand(experiment, facts, place, plan, _imports(experiment, request.store))
        for note in facts.notes:
            plan.note(f"{experiment.dataset_title(facts)}: {note}")
        methods_fit(plan, place)
        experiments.append(experiment)
    return ResolvedRequest(tuple(experiments), plan)


def resolve_experiment(experiment: Experiment, place: str, store: str | None = None) -> Plan:
    """The graph of one experiment by itself, checked as `resolve` checks.

    Args:
        experiment: as its file or a sweep says it.
        place: where that stands.
        store: where the facts of datasets are remembered.

    Raises:
        BadInput: it cannot work.
    """
    check_words(experiment, place)
    facts = inspect_dataset(experiment.source, place, store)
    plan = expand(experiment, facts, place, imports=_imports(experiment, store))
    methods_fit(plan, place)
    return plan


def check_words(experiment: Experiment, place: str) -> None:
    """The numbers that an experiment sets are numbers of a recipe, which is known before its dataset is read.

    Raises:
        BadInput: the first that is none, or has another form.
    """
    for settings in (experiment.set, *(arm.set for arm in experiment.arms)):
        numbers: dict[str, Any] = {}
        for path, value in flat(settings):
            set_path(numbers, path, value, place)
        validate_part(Recipe, numbers, place, prefix="set")


def _experiment(name: str, request: Request) -> tuple[Experiment, str]:
    """The experiment of a file or name with the command line's words on top, and where both stand."""
    experiment, place, raw = load(name)
    changed = overridden(raw, request)
    if changed == raw:
        return _found(experiment, request), place
    place = f"command line over {place}"
    return _found(validate(Experiment, changed, place), request), place


def _found(experiment: Experiment, request: Request) -> Experiment:
    """The experiment with the path of its dataset, if only the name is said and the request knows where it lies."""
    chosen = experiment.source
    if chosen.path is not None or chosen.name not in request.data:
        return experiment
    lies = chosen.model_copy(update={"path": request.data[chosen.name]})
    return experiment.model_copy(update={"dataset": lies})


def overridden(raw: Mapping[str, Any], request: Request) -> dict[str, Any]:
    """A copy of an experiment file's mapping with the command line's words on top."""
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
    """Apply one `path=value`."""
    path, equals, text = setting.partition("=")
    if not equals or not path:
        raise BadInput("command line", "--set", setting, "write path.to.field=value")
    try:
        value = yaml_value(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise BadInput("command line", f"--set {path}", text, "write a YAML value") from None
    assign(changed, path, value, "command line")


def assign(changed: dict[str, Any], path: str, value: object, place: str) -> None:
    """Set a field of an experiment's mapping; a path that begins with a recipe's section changes its number.

    Raises:
        BadInput: the path runs through something without fields.
    """
    first, _, rest = path.partition(".")
    if first == "dataset" and rest in DatasetChoice.model_fields:
        fields = dataset_fields(changed.get("dataset", {}))
        changed["dataset"] = dict(fields) if isinstance(fields, dict) else {"name": fields}
        changed["dataset"][rest] = value
    elif rest and first in Recipe.model_fields:
        changed.setdefault("set", {})[path] = value
    else:
        set_path(changed, path, value, place)


@lru_cache(maxsize=8)
def inspect_dataset(chosen: DatasetChoice, place: str, store: str | None = None) -> sources.Facts:
    """The facts of a dataset as it lies on the disk.

    Args:
        chosen: what the user says of it.
        place: where that stands.
        store: where the facts are remembered, and looked up.

    Raises:
        BadInput: it is not there, or something about it is wrong.
    """
    if chosen.name not in sources.LAYOUTS and not is_plug_in(chosen.name):
        fix = (
            f"must be one of {', '.join(sources.LAYOUTS)}, or {FORM} of a reader{closest(chosen.name, sources.LAYOUTS)}"
        )
        if Path(chosen.name).exists():
            fix = f"write ./{chosen.name} for what lies in this folder"
        raise BadInput(place, "dataset.name", chosen.name, fix)
    path = Path(chosen.path).expanduser() if chosen.path else None
    try:
        with reading(str(path or chosen.name)) as report:
            source = sources.Source(
                layout=chosen.name,
                path=path,
                image_field=chosen.image,
                label_field=chosen.label,
                test=chosen.test_words,
                size=chosen.size,
                place=place,
                report=report,
            )
            return sources.inspect(source, Memory.beside(store))
    except BadInput as error:  # an experiment has shorter names for the columns
        raise BadInput(error.place, error.field.removesuffix("_field"), error.value, error.fix) from error


def _imports(experiment: Experiment, store: str | None) -> dict[str, ImportedSpec]:
    """What the store has of the imports that an experiment names, by key."""
    named = {key for arm in experiment.arms for key in (arm.imported_experts, arm.imported_set) if key is not None}
    if not named or store is None:
        return {}
    from workers.tasks.imported import spec_of  # takes torch along

    opened = Store.for_reading(store)
    return {key: spec for key in named if (spec := spec_of(opened, key)) is not None}


def methods_fit(plan: Plan, place: str) -> None:
    """The base methods' own numbers and the names of normalisations, which `jobs` cannot know."""
    known = {"measured", "unit", "zca", *NORMALISATIONS}
    for job in plan.graph:
        network = getattr(job.spec, "network", None)
        if network is not None and is_plug_in(network.architecture):
            from workers.training.networks import network_class  # takes torch along

            network_class(network.architecture, place)
        _imported_parameters_fit(job, plan, place)
        match job.spec:
            case DistilSpec() as spec:
                needed = expert_epochs_needed(spec.method, settings_for(spec.method, spec.settings, place))
                _experts_reach(needed or 0, job, plan, place)
                if spec.labels is not None and not takes_soft_labels(spec.method):
                    fix = f"{spec.method} matches with the images' classes; leave it out"
                    raise BadInput(place, "distil.labels", spec.labels.source, fix)
                if spec.settings.get("engine") == "compiled":
                    data = dataset_of(job, plan.graph)
                    _compiled_takes(spec.network, (data.channels, data.height, data.width), data.classes, place)
            case DatasetSpec() as spec if spec.normalise not in known:
                fix = f"must be one of {', '.join(sorted(known))}"
                raise BadInput(place, "dataset.normalise", spec.normalise, fix)


@lru_cache
def _compiled_takes(network: NetworkSpec, shape: tuple[int, int, int], classes: int, place: str) -> None:
    """The compiled engine goes through images a few at a time, which a network of one's own may not allow."""
    if network.norm == "batch":
        raise BadInput(place, "distil.settings.engine", "compiled", NO_BATCH_NORM)
    if is_plug_in(network.architecture):
        import torch

        from workers.methods.trajectory.compiled import require_separate_images
        from workers.training.students import build_network

        module = build_network(network, shape, classes, torch.Generator(), torch.device("cpu"))
        require_separate_images(module, shape, place)


def require_compiler(jobs: Iterable[Job]) -> None:
    """Refuse jobs by compiled code on this machine's cores where it has no C++ compiler.

    Raises:
        BadInput: a job asks for compiled code.
    """
    if not has_cxx() and (job := next((job for job in jobs if _is_compiled(job.to_json()["spec"])), None)):
        require_cxx(job.key)


def _is_compiled(value: Any) -> bool:
    """Whether a part of a spec names the engine."""
    if not isinstance(value, dict):
        return False
    return value.get("engine") == "compiled" or any(map(_is_compiled, value.values()))


def _experts_reach(needed: int, job: Job, plan: Plan, place: str) -> None:
    """The experts of a stage must be trained up to the last epoch that its method may read."""
    parents = [plan.graph[key].spec for key in job.parents.get("experts", ())]
    trained = min((_epochs(spec) for spec in parents if isinstance(spec, ExpertsSpec | ImportedSpec)), default=0)
    if trained < needed:
        assert isinstance(job.spec, DistilSpec)
        field = "experts.real.epochs" if job.spec.stage == 1 else "experts.later_epochs"
        fix = f"must be at least {needed} for the last target of {job.spec.method}; or lower its distil.settings"
        raise BadInput(place, field, trained, fix)


def _epochs(spec: ExpertsSpec | ImportedSpec) -> int:
    """Epochs of trajectories after their start."""
    return spec.epochs if isinstance(spec, ImportedSpec) else spec.real.epochs + spec.real.extra_epoch


def _imported_parameters_fit(job: Job, plan: Plan, place: str) -> None:
    """Trajectories of others must have the parameters of the network that starts from them, one by one."""
    parents = (plan.graph[key].spec for role in ("experts", "chain") for key in job.parents.get(role, ()))
    imported = next((spec for spec in parents if isinstance(spec, ImportedSpec)), None)
    if imported is None or not isinstance(job.spec, DistilSpec | ExpertsSpec):
        return
    from workers.training.students import parameter_shapes  # takes torch along

    data = dataset_of(job, plan.graph)
    network = job.spec.network
    shapes = parameter_shapes(network, (data.channels, data.height, data.width), data.classes)
    if shapes != imported.shapes:
        differ = [(own, other) for own, other in zip_longest(shapes, imported.shapes) if own != other]
        fix = f"must be {differ[0][0]} as in {network.architecture} (width {network.channels}, {network.norm} norm); "
        fix += "name the network that the experts have under set.network, or import others"
        raise BadInput(place, "imported_experts, shape of a parameter", differ[0][1], fix)
