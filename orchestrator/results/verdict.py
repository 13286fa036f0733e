"""The verdict: whether progressive distillation beats its base method at equal images per class, and by how much.

For each base method and architecture the accuracy of an arm in several stages is compared with that of the same
method in one stage. Where both have three or more seeds in common, the seeds are paired: then the interval speaks of
distilling again. Else Welch's test compares the networks: with one synthetic set an arm, that speaks of training alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from jobs.experiment import SELECTIONS, Cell, Plan
from orchestrator.results.cells import Reader, accuracy_of
from orchestrator.results.comparisons import LEAST_SEEDS, accuracy_by_seed, arm_in_brief
from orchestrator.results.statistics import Difference, Sample, mean, paired_difference, welch_difference

Test = Literal["paired", "welch", "none"]
HEADLINES = 3
"""So many verdicts are told one by one; more are counted."""
NO_VERDICT = (
    "No verdict: no arm in several stages and its base method in one were both measured at equal images per class."
)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """PDD minus its base method, in percentage points of test accuracy.

    Attributes:
        pdd: the arm in several stages, with stages x images per class: `PDD+MTT (5 x 10)`.
        base: the same method in one stage: `MTT (1 x 50)`.
        ipc_total: images per class that the networks of either saw.
        difference: mean and 95 % interval; the interval is NaN where nothing was tested.
        test: `paired` over seeds, `welch` over networks, or `none` where an arm has a single network.
        n: seeds in common, or networks of PDD; `n_base` counts those of the base method.
    """

    experiment: str
    dataset: str
    scale: str
    architecture: str
    base_method: str
    pdd: str
    base: str
    ipc_total: int
    difference: Difference
    test: Test
    n: int
    n_base: int

    @property
    def significant(self) -> bool | None:
        """Whether the difference is more than noise at the level 0.05; None where it was not tested."""
        return self.difference.significant

    @property
    def over(self) -> str:
        """Over what the test was made: `paired over 5 seeds`."""
        match self.test:
            case "paired":
                return f"paired over {self.n} seeds"
            case "welch":
                return f"Welch's test, {self.n} against {self.n_base} networks"
        return "one network alone has no spread"

    @property
    def words(self) -> str:
        """The verdict in words: significantly better, no significant difference, ..."""
        better = "better" if self.difference.mean > 0 else "worse"
        match self.significant:
            case True:
                return f"significantly {better}"
            case False:
                return "no significant difference"
        return f"{better}, not tested" if self.difference.mean else "equal, not tested"

    @property
    def sentence(self) -> str:
        """The verdict for people, as one sentence."""
        where = f"on {self.architecture}, {self.ipc_total} images per class"
        points = signed(self.difference.mean)
        match self.significant:
            case None:
                return f"{self.pdd} minus {self.base} is {points} points {where}: not tested, {self.over}."
            case True:
                relation = f"is {self.words} than {self.base}"
            case False:
                relation = f"does not differ significantly from {self.base}"
        bounds = f"{signed(self.difference.low)} to {signed(self.difference.high)}"
        return f"{self.pdd} {relation} {where}: {points} points (95 % interval {bounds}; {self.over})."

    def to_json(self) -> dict[str, Any]:
        """The verdict as plain values; an interval that was not tested is null."""
        names = ("experiment", "dataset", "scale", "architecture", "base_method", "pdd", "base", "ipc_total")
        tested = self.significant is not None
        return {name: getattr(self, name) for name in names} | {
            "difference": self.difference.mean,
            "interval": [self.difference.low, self.difference.high] if tested else None,
            "test": self.test,
            "n": self.n,
            "n_base": self.n_base,
            "significant": self.significant,
            "sentence": self.sentence,
        }


def verdicts(plan: Plan, store: Reader) -> list[Verdict]:
    """Every arm in several stages against its base method, as far as both are measured.

    Arms are compared that end at the same images per class in one experiment or table; networks are those trained one
    stage after another.

    Args:
        plan: the cells, and the graph that knows their seeds.
        store: where the accuracies are.
    """
    return list(_verdicts(plan, store))


def lines_of(several: Sequence[Verdict], titles: Mapping[str, str] | None = None) -> list[str]:
    """The verdicts for people: a few one by one, of more a line for each experiment or table.

    Args:
        several: the verdicts.
        titles: by name of an experiment or table, what it is called; its name if it is not there.
    """
    if len(several) <= HEADLINES:
        return [verdict.sentence for verdict in several]
    by_experiment: dict[str, list[Verdict]] = {}
    for verdict in several:
        by_experiment.setdefault(verdict.experiment, []).append(verdict)
    named = [((titles or {}).get(name, name), members) for name, members in by_experiment.items()]
    return [f"{name}: {m[0].sentence}" if len(m) == 1 else summary(name, m) for name, m in named]


def headlines(several: Sequence[Verdict], titles: Mapping[str, str] | None = None) -> list[str]:
    """What stands above a report: the lines of its verdicts (`lines_of`), or the sum of them if the lines are many."""
    lines = lines_of(several, titles)
    if not lines:
        return [NO_VERDICT]
    distinct = list({replace(verdict, experiment=""): verdict for verdict in several}.values())
    return lines if len(lines) <= HEADLINES else [summary("In all", distinct)]


def limits(several: Sequence[Verdict]) -> list[str]:
    """What the verdicts do not show, in sentences."""
    scales = sorted({verdict.scale for verdict in several} - {"paper"})
    datasets, networks = ({getattr(verdict, name) for verdict in several} for name in ("dataset", "architecture"))
    notes = []
    if any(verdict.test != "paired" for verdict in several):
        notes.append(
            "What would come of distilling again: networks that share their synthetic set tell of training alone. With "
            f"{LEAST_SEEDS} seeds in common or more, distillations are compared."
        )
    if scales:
        notes.append(f"What the paper's settings reach: the scale is {' and '.join(scales)}.")
    notes.append(
        "What equal compute buys: the arms have equal images per class, but every stage has experts and iterations of "
        "its own."
    )
    if len(several) > 1:
        notes.append(
            "That all of these hold at once: each interval stands for itself, and of 20 comparisons without any "
            "difference one is expected to look significant."
        )
    notes.append(
        f"What another data set or network would say: measured were {', '.join(sorted(datasets))} and "
        f"{', '.join(sorted(networks))}."
    )
    return notes


def summary(name: str, several: Sequence[Verdict]) -> str:
    """The verdicts of one experiment or table in one line: how many fall which way.

    Args:
        name: what the experiment or table is called.
        several: its verdicts, at least one.
    """
    better = sum(verdict.significant is True and verdict.difference.mean > 0 for verdict in several)
    worse = sum(verdict.significant is True and verdict.difference.mean < 0 for verdict in several)
    same = sum(verdict.significant is False for verdict in several)
    untested = len(several) - better - worse - same
    counts = [f"significantly better than its base method in {better} of {len(several)} comparisons"]
    counts += [f"significantly worse in {worse}"] if worse else []
    counts += [f"without a significant difference in {same}"] if same else []
    counts += [f"not tested in {untested}"] if untested else []
    differences = [verdict.difference.mean for verdict in several]
    return f"{name}: PDD is {', '.join(counts)} ({signed(min(differences))} to {signed(max(differences))} points)."


def signed(points: float) -> str:
    """Percentage points with a sign that is as wide as a plus: `−1.2`."""
    return f"{points:+.1f}".replace("-", "−")


def _verdicts(plan: Plan, store: Reader) -> Iterator[Verdict]:
    candidates = [
        cell for cell in plan.cells if cell.stage == cell.stages and cell.base_method not in (*SELECTIONS, "full")
    ]
    seen: set[tuple[str, tuple[str, ...], tuple[str, ...]]] = set()
    for pdd in candidates:
        for base in candidates:
            pair = (pdd.experiment, pdd.jobs, base.jobs)
            if _comparable(pdd, base) and pair not in seen:
                seen.add(pair)
                yield from _verdict(pdd, base, plan, store)


def _comparable(pdd: Cell, base: Cell) -> bool:
    """Whether `pdd` is an arm in several stages, and `base` its method in one with as many images."""
    same = ("experiment", "dataset", "scale", "architecture", "base_method", "ipc_total", "phase")
    return (
        pdd.stages > 1
        and base.stages == 1
        and pdd.mode == base.mode == "progressive"
        and all(getattr(pdd, name) == getattr(base, name) for name in same)
    )


def _verdict(pdd: Cell, base: Cell, plan: Plan, store: Reader) -> Iterator[Verdict]:
    """The verdict on two cells; nothing while one of them has no network."""
    values, others = _accuracies(pdd, store), _accuracies(base, store)
    if values and others:
        test, difference = _difference(pdd, base, plan, store, values, others)
        paired = test == "paired"
        yield Verdict(
            experiment=pdd.experiment,
            dataset=pdd.dataset,
            scale=pdd.scale,
            architecture=pdd.architecture,
            base_method=pdd.base_method,
            pdd=arm_in_brief(pdd),
            base=arm_in_brief(base),
            ipc_total=pdd.ipc_total,
            difference=difference,
            test=test,
            n=difference.n if paired else len(values),
            n_base=difference.n if paired else len(others),
        )


def _difference(
    pdd: Cell, base: Cell, plan: Plan, store: Reader, values: Sequence[float], others: Sequence[float]
) -> tuple[Test, Difference]:
    """The strongest test that the accuracies allow, and what it says."""
    by_seed, base_by_seed = accuracy_by_seed(pdd, plan, store), accuracy_by_seed(base, plan, store)
    seeds = sorted(by_seed.keys() & base_by_seed.keys())
    if len(seeds) >= LEAST_SEEDS:
        return "paired", paired_difference([by_seed[seed] for seed in seeds], [base_by_seed[seed] for seed in seeds])
    if min(len(values), len(others)) > 1:
        return "welch", welch_difference(Sample.of(values), Sample.of(others))
    return "none", Difference.untested((mean(values) or 0.0) - (mean(others) or 0.0))


def _accuracies(cell: Cell, store: Reader) -> list[float]:
    return [accuracy for key in cell.jobs if (accuracy := accuracy_of(store, key)) is not None]
