"""What can be exported: the sets S_1..S_p of one chain, what they hang on, and what networks made of them.

A chain is found in one of three ways: as an arm of an experiment (first seed, first draw), by the key of its last
set, or as the best of a run. All that is said of it afterwards comes from the manifests in the store. Only networks
trained on these very sets count; another seed of the arm is another chain. The best of a run is the best on held-out
images, never on test images, and every byte that leaves is compared with its digest first.

Left out: files and words (`orchestrator.export.writer`, `orchestrator.export.card`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jobs.errors import BadInput, Damaged
from jobs.experiment import Cell, Plan
from jobs.keys import kind_of
from jobs.kinds import SPECS
from jobs.outcomes import DistilOutcome, NetworkOutcome
from jobs.recipe import flat
from jobs.specs import DatasetSpec, DistilSpec, EvaluateSpec, Kind, Spec
from orchestrator.planning.explain import sources_of
from orchestrator.results.cells import manifest_of, outcome_of
from orchestrator.results.stages import arm_label
from orchestrator.results.statistics import mean, population_std
from orchestrator.runs import journal
from workers.store.store import Manifest, Store

_FOUND_IN_JOURNAL = ("job_done", "job_found", "job_cached")
_SET_KINDS = ("distil", "select")

Number = tuple[str, str, str]
"""A field of the recipe, its value, and the source of the value."""


@dataclass(frozen=True, kw_only=True)
class ChainKeys:
    """Keys: the sets S_1..S_P of one seed, made or not, and the networks trained on a prefix of them.

    `scale` is None where nobody has said it; `origin` says in words how the chain was found.
    """

    sets: tuple[str, ...]
    networks: tuple[str, ...]
    method: str
    scale: str | None = None
    origin: str
    numbers: tuple[Number, ...] = ()
    dataset: DatasetSpec | None = None
    """The dataset as an experiment has it, with its title and licence; None where no experiment is named."""

    def prefix(self, stages: int | None) -> ChainKeys:
        """The first `stages` sets, or all.

        Raises:
            BadInput: there are not so many.
        """
        if stages is None or stages == len(self.sets):
            return self
        if not 1 <= stages <= len(self.sets):
            raise BadInput("command line", "--stages", stages, f"must be 1 to {len(self.sets)}")
        return replace(self, sets=self.sets[:stages])


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Test accuracies (percent) of networks that differ in nothing but their random numbers.

    They were trained on the first `stage` sets as `spec` says; `keys` name their jobs, in the order of `values`.
    """

    stage: int
    spec: EvaluateSpec
    keys: tuple[str, ...]
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean accuracy in percent."""
        return mean(self.values) or 0.0

    @property
    def std(self) -> float:
        """Population standard deviation in percentage points; 0 for one network."""
        return population_std(self.values) or 0.0

    def to_json(self) -> dict[str, Any]:
        """As `export --json` prints it."""
        return {
            "stage": self.stage,
            "architecture": self.spec.network.architecture,
            "mode": self.spec.mode,
            "mean": self.mean,
            "std": self.std,
            "n": len(self.values),
        }


@dataclass(frozen=True, kw_only=True)
class ExportSource:
    """What is exported: a chain whose sets are all there, sound, and measured."""

    keys: ChainKeys
    sets: tuple[Manifest, ...]
    dataset: Manifest
    measured: tuple[Measurement, ...]

    @property
    def data(self) -> DatasetSpec:
        """The dataset as it was used."""
        spec, known = spec_of(self.dataset), self.keys.dataset
        assert isinstance(spec, DatasetSpec)
        return spec if known is None or known.subset != spec.subset else known

    @property
    def protocol(self) -> Measurement:
        """The measurement that the card's code repeats: all stages, a ConvNet and one after another if there is one."""
        of_all_stages = [measured for measured in self.measured if measured.stage == len(self.sets)]
        return min(of_all_stages, key=_unlike_the_card)

    @property
    def numbers(self) -> Sequence[Number]:
        """The recipe with its sources; of a chain found by its key the numbers of the last set alone."""
        if self.keys.numbers:
            return self.keys.numbers
        return [(path, json.dumps(value), "the set's manifest") for path, value in flat(self.sets[-1].spec)]

    @property
    def last_distillation(self) -> DistilSpec | None:
        """How the last stage was distilled; None for real images."""
        spec = spec_of(self.sets[-1])
        return spec if isinstance(spec, DistilSpec) else None


def of_experiment(plan: Plan, arm: str | None) -> ChainKeys:
    """The chain of an arm, named as in a table; no name is needed when only one arm has sets.

    Raises:
        BadInput: no arm is called so, or more than one.
    """
    arms = _arms(plan)
    known = " or ".join(map(repr, arms))
    wanted = [name for name, cells in arms.items() if arm is None or arm.casefold() in _names(name, cells[0])]
    if not arms:
        raise BadInput("command line", "experiment", plan.cells[0].experiment, "name one with an arm that makes sets")
    if len(wanted) != 1:
        fix = f"must be one of {known}" if len(arms) > 1 else f"must be {known}"
        raise BadInput("command line", "--arm", "not given" if arm is None else arm, fix)
    cells = arms[wanted[0]]
    longest = max(cells, key=lambda cell: cell.stage)
    ends = {plan.graph[cell.jobs[0]].parents["sets"] for cell in cells if cell.stage == longest.stage}
    if len(ends) > 1:
        fix = "several arms are called so; give each a `name` of its own in the experiment, or export by --key"
        raise BadInput("command line", "--arm", arm or wanted[0], fix)
    (sets,) = ends
    jobs = [plan.graph[key] for cell in cells for key in cell.jobs]
    return ChainKeys(
        sets=sets,
        networks=tuple(
            job.key for job in jobs if job.kind == "evaluate" and _trained_on(job.parents.get("sets", ()), sets)
        ),
        method=longest.method,
        scale=longest.scale,
        origin=f"the arm {arm_label(longest)!r} of the experiment {longest.experiment!r}",
        numbers=tuple(sources_of(plan, sets[-1])),
        dataset=_dataset_of(plan, sets[0]),
    )


def _dataset_of(plan: Plan, key: str) -> DatasetSpec | None:
    spec = plan.graph[plan.graph[key].parents["dataset"][0]].spec
    return spec if isinstance(spec, DatasetSpec) else None


def of_key(store: Store, text: str) -> ChainKeys:
    """The chain that ends with the set whose key holds `text`, and every network of the store trained on it.

    Raises:
        BadInput: no set's key holds it, or more than one.
    """
    keys = [key for kind in _SET_KINDS for key in store.keys(kind) if text in key]
    if text in keys:
        keys = [text]
    if len(keys) != 1:
        several = f"must name one set, not {len(keys)}: {', '.join(keys[:3])}" if keys else "no set's key holds this"
        raise BadInput("command line", "--key", text, f"{several}; `pdd explain` lists the keys of an experiment")
    last = store.manifest(keys[0])
    sets = (*last.parents.get("sets", ()), last.key)
    parents = {
        key: manifest.parents for key in store.keys("evaluate") if (manifest := manifest_of(store, key)) is not None
    }
    networks = tuple(key for key, roles in parents.items() if _trained_on(roles.get("sets", ()), sets))
    method = _as_in_tables(last.spec, len(sets))
    return ChainKeys(sets=sets, networks=networks, method=method, origin=f"the set {last.key!r}, named by its key")


def best_of_run(store: Store, run: str) -> ChainKeys:
    """The chain whose last set was best on held-out images, among all that a run or a sweep made or found.

    Raises:
        BadInput: the run has no set that was measured on held-out images.
    """
    records = journal.read(store.run_folder(run) / journal.NAME)
    keys = {
        record["key"]
        for record in records
        if record["event"] in _FOUND_IN_JOURNAL and kind_of(record["key"]) == "distil"
    }
    outcomes = {key: outcome_of(store, key, DistilOutcome) for key in sorted(keys)}
    scored = {
        key: outcome.held_out
        for key, outcome in outcomes.items()
        if outcome is not None and outcome.held_out is not None
    }
    if not scored:
        fix = "none of its sets was measured on held-out images; name an experiment's arm or a --key instead"
        raise BadInput("command line", "--run", run, fix)
    best = max(scored, key=lambda key: scored[key])
    origin = f"the set of the run {run!r} that was best on held-out images ({scored[best]:.1f} %)"
    return replace(of_key(store, best), origin=origin)


def gather(keys: ChainKeys, store: Store) -> ExportSource:
    """Read and check all that an export needs.

    Raises:
        BadInput: a set is not made yet, or no network was measured on these sets.
        Damaged: a file is not what its manifest says.
    """
    present = [store.has(key) for key in keys.sets]
    if not all(present):
        there = present.index(False)
        fix = "run the experiment to its end first" + (f", or export what is there: --stages {there}" if there else "")
        raise BadInput(str(store.root), f"stage {there + 1}", keys.sets[there], f"not made yet; {fix}")
    sets = tuple(store.manifest(key) for key in keys.sets)
    (dataset,) = sets[0].parents["dataset"]
    for key in (*keys.sets, dataset):
        if complaints := store.verify(key):
            raise Damaged(f"{'; '.join(complaints)}: run the experiment again, which makes it anew")
    measured = tuple(_measured(keys, store))
    if not any(measurement.stage == len(sets) for measurement in measured):
        earlier = max((measurement.stage for measurement in measured), default=0)
        also = f", or export what was measured: --stages {earlier}" if earlier else ""
        fix = f"no network was tested on these sets yet; run the experiment to its end first{also}"
        raise BadInput(str(store.root), f"stage {len(sets)}", keys.sets[-1], fix)
    return ExportSource(keys=keys, sets=sets, dataset=store.manifest(dataset), measured=measured)


def spec_of(manifest: Manifest) -> Spec:
    """What the artifact's job was told."""
    kind: Kind = manifest.kind  # type: ignore[assignment]
    return SPECS[kind].model_validate_json(json.dumps(manifest.spec))


def _unlike_the_card(measurement: Measurement) -> tuple[bool, bool]:
    """Sorts what the card's code trains, a ConvNet on one stage after another, before anything else."""
    return measurement.spec.network.architecture != "convnet", measurement.spec.mode != "progressive"


def _arms(plan: Plan) -> dict[str, list[Cell]]:
    """The cells of every arm with sets, by its name in tables; the experiment is added if there are several."""
    arms: dict[str, list[Cell]] = {}
    several = len({cell.experiment for cell in plan.cells}) > 1
    for cell in plan.cells:
        if cell.jobs and plan.graph[cell.jobs[0]].parents.get("sets"):
            name = arm_label(cell)
            arms.setdefault(f"{cell.experiment}: {name}" if several else name, []).append(cell)
    return arms


def _names(label: str, cell: Cell) -> set[str]:
    return {label.casefold(), cell.method.casefold()}


def _as_in_tables(spec: Mapping[str, Any], stages: int) -> str:
    """What an arm with such a set is called unless its experiment gives it a name."""
    if "method" not in spec:
        return str(spec["rule"]).capitalize()
    return f"PDD+{spec['method'].upper()}" if stages > 1 else str(spec["method"]).upper()


def _trained_on(trained: Sequence[str], sets: Sequence[str]) -> bool:
    """Whether a network was trained on a prefix of the sets."""
    return bool(trained) and tuple(trained) == tuple(sets[: len(trained)])


def _measured(keys: ChainKeys, store: Store) -> Iterable[Measurement]:
    """Networks by stage and by all of their spec but what makes each of them another one."""
    groups: dict[tuple[int, str], list[Manifest]] = {}
    for manifest in (manifest_of(store, key) for key in keys.networks):
        if manifest is not None and (stage := len(manifest.parents["sets"])) <= len(keys.sets):
            groups.setdefault((stage, _protocol(manifest.spec)), []).append(manifest)
    for stage, protocol in sorted(groups, key=lambda group: group[0]):
        members = sorted(groups[stage, protocol], key=lambda network: (network.spec["seed"], network.spec["index"]))
        spec = spec_of(members[0])
        assert isinstance(spec, EvaluateSpec)
        yield Measurement(
            stage=stage,
            spec=spec,
            keys=tuple(network.key for network in members),
            values=tuple(NetworkOutcome.from_extra(network.extra).accuracy for network in members),
        )


def _protocol(spec: Mapping[str, Any]) -> str:
    return json.dumps({name: value for name, value in spec.items() if name not in ("index", "seed")}, sort_keys=True)
