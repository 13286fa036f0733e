"""What `plan` says that runs take, held against what they take: six kinds of runs on fresh stores, of a minute each.

Jobs run one after the other in a process of its own, which pays its imports as a worker does, and their CPU time is
measured, so that neighbours count as little as can be; a core is timed likewise, before and after. Both makespans are
the scheduler's on two workers, with the measured times and with the prices for such a core.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

import workers.execute
from jobs.experiment import Plan
from jobs.keys import kind_of
from jobs.machines import CORE, Machine
from orchestrator.planning import simulate
from orchestrator.planning.durations import Durations, estimate_durations, schedule_of
from orchestrator.planning.forecast import Planned, forecast
from orchestrator.planning.requests import Request, resolve
from orchestrator.planning.table_requests import ResolvedTables, TableRequest, resolve_tables
from orchestrator.runs import driver
from orchestrator.runs.driver import RunInfo
from orchestrator.runs.journal import NAME, Journal, read
from orchestrator.runs.pool import InProcessPool
from orchestrator.workloads.sweep.sweep import SweepWorkload
from tests.benchmarks.measure import Row, Timer
from workers.runtime.process import prepare_process
from workers.store.store import Store
from workers.training.speed import epoch_seconds, slowness_of

WORKERS = 2
MAKESPAN, KIND = 1.25, 1.5
"""How far a makespan, and the jobs of a kind, may be from what was predicted, either way."""
NOTICED = 0.02
"""A kind with a smaller share of a run's seconds has no row: a few short jobs say nothing."""
SMALL_BUDGET = "0.008gpu-h"
SETTINGS = ("architectures=[convnet, resnet10]", "networks=1")
"""Of the quickstart on own images."""
GRADIENT = {
    "name": "gradient",
    "dataset": "digits",
    "scale": "small",
    "networks": 2,
    "architectures": ["convnet"],
    "set": {"distil.iterations": 6},
    "arms": [{"method": method, "ipc_per_stage": 2} for method in ("dc", "dsa", "dm", "idc")],
}
"""Methods that match gradients or features, with fewer iterations than at scale small."""


def plans(folder: Path) -> dict[str, Callable[[], Plan]]:
    """The six runs by name, and what plans each; what they read is written into the folder."""
    images, experiment = folder / "images", folder / "gradient.yaml"
    write_images(images)
    experiment.write_text(yaml.safe_dump(GRADIENT))
    small = TableRequest(scale="small", dataset="digits", budget=SMALL_BUDGET)
    return {
        "tables at tiny": lambda: resolve_tables(TableRequest(scale="tiny", dataset="digits")).tables.plan,
        f"tables at small, reduced to {SMALL_BUDGET}": lambda: reduced(resolve_tables(small)),
        "ablations at tiny": lambda: resolve(Request(experiments=("ablations",), scale="tiny")).plan,
        "sweep of stages at tiny": lambda: SweepWorkload.of("stages_x_ipc", Request()).plan,
        "own images": lambda: resolve(Request(dataset=str(images), settings=SETTINGS)).plan,
        "gradient methods, 6 iterations": lambda: resolve(Request(experiments=(str(experiment),))).plan,
    }


def reduced(tables: ResolvedTables) -> Plan:
    """The cells of tables that fit into their budget."""
    planned = Planned.of(tables)
    selection = forecast(planned, Store(Path("none")), WORKERS, tables.request.seconds(), CORE).budget
    assert selection is not None
    return replace(planned.plan, cells=[entry.cell for entry in selection.cells if entry.cell is not None])


def write_images(folder: Path, classes: int = 5, count: int = 60, side: int = 16) -> None:
    """Noisy patches, a subfolder a class, of which a third are for tests."""
    chance = np.random.default_rng(0)
    for label in range(classes):
        colour = chance.integers(64, 192, (1, 1, 3))
        for number in range(count):
            pixels = np.clip(colour + chance.normal(0, 40, (side, side, 3)), 0, 255).astype(np.uint8)
            path = folder / ("train" if number % 3 else "test") / f"class{label}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)


def execute(job: dict[str, Any], store_root: str, run: str, memory_level: int) -> dict[str, Any]:
    """Do a job; its seconds are CPU time."""
    with Timer() as timer:
        result = workers.execute.execute(job, store_root, run, memory_level)
    return {**result, "seconds": timer.cpu}


def measured(plan: Plan, folder: Path) -> dict[str, float]:
    """Seconds of CPU time of every job of a plan, run on a fresh store."""
    graph, store = plan.graph, Store.open(str(folder / "store"))
    schedule = schedule_of(plan, estimate_durations(graph, store))
    pool = InProcessPool(str(store.root), "prices", f"{__name__}.execute")
    with Journal.open(folder / "run") as journal:
        end = driver.run(schedule, graph, pool, journal, store, about=RunInfo("prices"))
    assert end.exit == 0, end.why
    records = read(folder / "run" / NAME)
    return {record["key"]: record["job_seconds"] for record in records if record["event"] == "job_done"}


def makespan(plan: Plan, seconds: Mapping[str, float], done: Collection[str]) -> float:
    """The makespan of the jobs that were done, by these seconds."""
    durations = Durations(dict.fromkeys(plan.graph.jobs, 0.0) | dict(seconds), {})
    schedule = replace(schedule_of(plan, durations), wanted=frozenset(done))
    return simulate.makespan(schedule, plan.graph.jobs.keys() - done, durations.seconds.__getitem__, WORKERS)


def apart(one: float, other: float) -> float:
    """How far two times are apart: the larger by the smaller."""
    return max(one / other, other / one)


def core_now() -> Machine:
    """A core as it is now, by its CPU time."""
    return CORE.slower(*slowness_of(epoch_seconds(clock=time.process_time)))


def rows_of(name: str, plan: Plan, folder: Path) -> Iterator[Row]:
    """A row for the makespan and one for each kind that matters.

    Args:
        name: of the run.
        plan: of the run.
        folder: for its store.
    """
    before, taken, after = core_now(), measured(plan, folder), core_now()
    none = Store(folder / "none")
    first, second = (estimate_durations(plan.graph, none, machine).seconds for machine in (before, after))
    prices = {key: (first[key] + second[key]) / 2 for key in first}
    yield row(name, makespan(plan, taken, taken.keys()), makespan(plan, prices, taken.keys()), MAKESPAN)
    sums, hoped = Counter[str](), Counter[str]()
    for key, seconds in taken.items():
        sums[kind_of(key)] += seconds  # type: ignore[assignment]
        hoped[kind_of(key)] += prices[key]  # type: ignore[assignment]
    for kind in sorted(sums):
        if sums[kind] >= NOTICED * sums.total():
            yield row(f"{name}: {kind}", sums[kind], hoped[kind], KIND)


def row(name: str, taken: float, hoped: float, goal: float) -> Row:
    """A figure beside its price."""
    note = f"{taken:.1f} s measured, {hoped:.1f} s predicted"
    return Row(part="prices", name=name, cpu_seconds=taken, ratio=apart(taken, hoped), goal=goal, note=note)


def alone(name: str, folder: str) -> list[Row]:
    """The rows of one run in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_rows_of_named, (name, folder))


def _rows_of_named(name: str, folder: str) -> list[Row]:
    prepare_process(1, "none")
    place = Path(folder)
    return list(rows_of(name, plans(place)[name](), place))


def rows(names: Collection[str] = ()) -> list[Row]:
    """All six runs, or some by the beginnings of their names."""
    figures: list[Row] = []
    with tempfile.TemporaryDirectory() as root:
        for number, name in enumerate(plans(Path(root))):
            if not names or any(name.startswith(begin) for begin in names):
                (folder := Path(root) / f"{number}").mkdir()
                figures += alone(name, str(folder))
    return figures
