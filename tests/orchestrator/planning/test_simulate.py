"""Schedules, simulated: how soon there are answers, and what that costs in time.

The workloads are random ones of progressive distillation on 1 to 256 slots, the quickstart with the times that its jobs
took on two cores, and the quickstart on CIFAR-10 with estimated times.
"""

from __future__ import annotations

import csv
import heapq
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from statistics import fmean

import pytest

from jobs.datasets import DATASETS
from jobs.expansion import expand
from jobs.experiment import Plan, load
from orchestrator.planning import simulate
from orchestrator.planning.durations import Durations, estimate_durations, schedule_of
from orchestrator.scheduler.schedule import DUE, FIRST_COME, Row, Schedule, chain_paths, rank_rows
from workers.store.store import Store

DATA = Path(__file__).parents[2] / "data"


@dataclass
class Workload:
    """Jobs in the order of a graph: parents, seconds, and of stages the seed that they belong to; and the rows."""

    parents: dict[str, tuple[str, ...]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    seeds: dict[str, str] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)

    def add(self, key: str, parents: Sequence[str], seconds: float) -> str:
        self.parents.setdefault(key, tuple(parents))
        self.seconds.setdefault(key, seconds)
        return key

    def schedule(self) -> Schedule:
        children: dict[str, tuple[str, ...]] = {
            key: tuple(child for child, parents in self.parents.items() if key in parents) for key in self.parents
        }
        path = chain_paths(self.paths(children), children, self.seconds, {key: [g] for key, g in self.seeds.items()})
        return Schedule(
            keys=tuple(self.parents),
            parents=self.parents,
            children=children,
            remaining_path=path,
            wanted=frozenset(key for row in self.rows for key in row.keys),
            exclusive={key: (seed,) for key, seed in self.seeds.items()},
            limits=dict.fromkeys(self.seeds.values(), 1),
            seconds=self.seconds,
            rank=rank_rows(self.rows, self.parents, self.seconds),
        )

    def paths(self, children: Mapping[str, Sequence[str]]) -> dict[str, float]:
        path: dict[str, float] = {}
        for key in reversed(self.parents):
            path[key] = self.seconds[key] + max((path[child] for child in children[key]), default=0.0)
        return path

    def bound(self, slots: int) -> float:
        """What no schedule can beat: the critical path, the work of each slot, and the stages of each seed in a row."""
        schedule = self.schedule()
        tail, head = self.paths(schedule.children), dict[str, float]()
        for key, parents in self.parents.items():
            head[key] = max((head[parent] + self.seconds[parent] for parent in parents), default=0.0)
        stages = defaultdict(list)
        for key, seed in self.seeds.items():
            stages[seed].append(key)
        serial = [
            min(head[key] for key in keys)
            + sum(self.seconds[key] for key in keys)
            + min(tail[key] - self.seconds[key] for key in keys)
            for keys in stages.values()
        ]
        return max(*tail.values(), sum(self.seconds.values()) / slots, *serial)


def random_workload(seed: int) -> tuple[Workload, int]:
    """Some arms, stages, experts, seeds and networks, with times of a wide range; and a number of slots."""
    chance, work = random.Random(seed), Workload()
    data = work.add("dataset", (), chance.uniform(0.5, 5))
    architectures, networks, seeds = chance.randint(1, 3), chance.randint(1, 5), chance.randint(1, 3)
    evaluation = [chance.lognormvariate(2.5, 1) for _ in range(architectures)]
    for number, seconds in enumerate(evaluation):
        full = seconds * chance.uniform(1, 12)
        keys = [work.add(f"full-{number}-{net}", (data,), full * chance.uniform(0.9, 1.1)) for net in range(networks)]
        work.rows.append(Row(keys, bound=True))
    if chance.random() < 0.7:
        for number, seconds in enumerate(evaluation):
            draws = [work.add(f"select-{net}", (data,), 1.0) for net in range(networks)]
            keys = [work.add(f"evaluate-{draw}-{number}", (draw, data), seconds) for draw in draws]
            work.rows.append(Row(keys))
    for arm in range(chance.randint(1, 4)):
        experts, distil = chance.lognormvariate(2.5, 1), chance.lognormvariate(3.5, 1)
        stages, batches, cells = chance.randint(1, 5), chance.randint(0, 12), defaultdict(list)
        for of_seed in range(seeds):
            sets: list[str] = []
            before: list[str] = []
            for stage in range(stages):
                name = f"{arm}-{of_seed}-{stage}"
                before = [
                    work.add(f"experts-{name}-{batch}", (data, *sets, *before[batch : batch + 1]), experts)
                    for batch in range(batches)
                ]
                key = work.add(f"distil-{name}", (data, *before, *sets), distil * chance.uniform(0.8, 1.2))
                work.seeds[key] = f"seed{of_seed}"
                sets.append(key)
                for number, seconds in enumerate(evaluation):
                    for net in range(networks):
                        took = seconds * (stage + 1) * chance.uniform(0.8, 1.2)
                        cells[stage, number].append(work.add(f"evaluate-{name}-{number}-{net}", (data, *sets), took))
        work.rows += map(Row, cells.values())
    return work, chance.choice([1, 2, 3, 4, 8, 16, 32, 64, 128, 256])


def longest_first(schedule: Schedule) -> Schedule:
    """The order before answers went first: always the longest chain."""
    return replace(schedule, seconds={}, rank={})


def first_come(work: Workload, slots: int) -> float:
    """The makespan when jobs start in the order in which they become ready, as their groups allow."""
    missing = {key: set(parents) for key, parents in work.parents.items()}
    ready = [key for key, parents in missing.items() if not parents]
    running: list[tuple[float, str]] = []
    in_use, now = Counter[str](), 0.0
    while ready or running:
        for key in list(ready):
            if len(running) < slots and not in_use[work.seeds.get(key, "")]:
                ready.remove(key)
                heapq.heappush(running, (now + work.seconds[key], key))
                in_use.update({work.seeds[key]} if key in work.seeds else ())
        now, ended = heapq.heappop(running)
        in_use.subtract({work.seeds[ended]} if ended in work.seeds else ())
        for key, parents in missing.items():
            if ended in parents:
                parents.remove(ended)
                ready += [] if parents else [key]
    return now


def answers(schedule: Schedule, seconds: Mapping[str, float], rows: Sequence[Row], slots: int) -> tuple[float, ...]:
    """The makespan; and when the first row that is not the bound stands, and half of them, as shares of it."""
    ends = simulate.ends(schedule, (), seconds.__getitem__, slots)
    whole = sorted(max(ends[key] for key in row.keys) for row in rows if not row.bound)
    makespan = max(ends.values())
    return makespan, whole[0] / makespan, whole[(len(whole) - 1) // 2] / makespan


@cache
def simulated() -> list[tuple[Workload, int, tuple[float, ...], tuple[float, ...]]]:
    """200 workloads, each with its slots, its answers as they are scheduled, and as they were before."""
    runs = []
    for seed in range(200):
        work, slots = random_workload(seed)
        schedule = work.schedule()
        chosen, makespan = simulate.in_order(schedule, (), work.seconds.__getitem__, slots)
        orders = (chosen, longest_first(schedule))
        runs.append((work, slots, *(answers(order, work.seconds, work.rows, slots) for order in orders)))
        assert runs[-1][2][0] == makespan
    return runs


@pytest.mark.slow
def test_schedules_of_random_workloads_are_nearly_as_short_as_they_can_be() -> None:
    """Within 5 % of the bound on the mean, and never longer than first come first served."""
    shares = [now[0] / work.bound(slots) for work, slots, now, _ in simulated()]
    assert fmean(shares) <= 1.05
    against = [now[0] / first_come(work, slots) for work, slots, now, _ in simulated()]
    assert fmean(against) < 0.97 and max(against) <= 1 + 1e-9


@pytest.mark.slow
def test_answers_come_early_where_slots_are_few_and_the_makespan_hardly_grows() -> None:
    few = [(now, before) for _, slots, now, before in simulated() if slots <= 4]
    assert fmean(now[1] for now, _ in few) < 0.15 < 0.5 < fmean(before[1] for _, before in few)
    assert fmean(now[2] for now, _ in few) < 0.45 < 0.8 < fmean(before[2] for _, before in few)
    assert fmean(now[0] / before[0] for *_, now, before in simulated()) < 1.005


@pytest.mark.parametrize(("seed", "due"), [(0, DUE), (68, 0.0), (115, 0.35), (159, FIRST_COME)])
def test_a_run_goes_in_the_first_order_that_is_no_longer_than_first_come_first_served(seed: int, due: float) -> None:
    work, slots = random_workload(seed)
    schedule = work.schedule()
    chosen, makespan = simulate.in_order(schedule, (), work.seconds.__getitem__, slots)
    in_turn = replace(schedule, due=FIRST_COME)
    as_they_come = max(simulate.ends(in_turn, (), work.seconds.__getitem__, slots).values())
    assert chosen == replace(schedule, due=due) and makespan <= as_they_come
    assert as_they_come == pytest.approx(first_come(work, slots))
    every = max(simulate.ends(schedule, (), work.seconds.__getitem__, slots).values())
    assert (every > as_they_come) == (due != DUE)


def test_nothing_is_left_to_order_where_all_is_there() -> None:
    work, slots = random_workload(1)
    schedule = work.schedule()
    assert simulate.in_order(schedule, schedule.keys, work.seconds.__getitem__, slots) == (schedule, 0.0)


def rows_of(plan: Plan) -> list[Row]:
    return [Row(cell.jobs, bound=not cell.stage) for cell in plan.cells]


def quickstart(dataset: str) -> Plan:
    experiment, place, _ = load("quickstart")
    chosen = experiment.dataset.model_copy(update={"name": dataset})
    return expand(experiment.model_copy(update={"dataset": chosen}), DATASETS[dataset], place)


def cases(folder: Path) -> Iterator[tuple[Plan, dict[str, float]]]:
    """The quickstart on digits as measured, and on CIFAR-10 as estimated."""
    digits, cifar10 = quickstart("digits"), quickstart("cifar10")
    with (DATA / "quickstart_seconds.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["kind"] for line in lines] == [job.kind for job in digits.graph]
    yield digits, {key: float(line["seconds"]) for key, line in zip(digits.graph.jobs, lines, strict=True)}
    yield cifar10, dict(estimate_durations(cifar10.graph, Store(folder)).seconds)


def test_the_quickstart_on_two_workers_has_rows_long_before_its_end(tmp_path: Path) -> None:
    for plan, seconds in cases(tmp_path):
        schedule = schedule_of(plan, Durations(seconds, {}))
        schedule, _ = simulate.in_order(schedule, (), seconds.__getitem__, 2)
        makespan, first, half = answers(schedule, seconds, rows_of(plan), 2)
        before, *_ = answers(longest_first(schedule), seconds, rows_of(plan), 2)
        assert first < 1 / 5 and half < 3 / 5 and makespan < 1.02 * before


def test_a_run_ends_each_of_its_jobs_and_none_that_is_there(tmp_path: Path) -> None:
    (plan, seconds), _ = cases(tmp_path)
    schedule = schedule_of(plan, Durations(seconds, {}))
    stored = [job.key for job in plan.graph if job.kind in ("dataset", "select")]
    ends = simulate.ends(schedule, stored, seconds.__getitem__, 2)
    assert ends.keys() == plan.graph.jobs.keys() - set(stored)
    assert max(ends.values()) == simulate.makespan(schedule, stored, seconds.__getitem__, 2)
    assert simulate.ends(schedule, list(plan.graph.jobs), seconds.__getitem__, 2) == {}
