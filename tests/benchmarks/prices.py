"""What `plan` says that runs take, held against what they take: six kinds of runs on fresh stores, of a minute each.

Predicted is the makespan that the scheduler would have with the prices of the jobs that the run did, before any was
measured; measured is the time from its first start of a job to its last end. Cluster and report are no part of either.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import numpy as np
import yaml
from PIL import Image

from jobs.experiment import Plan
from jobs.keys import kind_of
from orchestrator.planning import simulate
from orchestrator.planning.durations import estimate_durations, machine_of, schedule_of
from orchestrator.planning.requests import Request, resolve
from orchestrator.planning.table_requests import TableRequest, resolve_tables
from orchestrator.runs import journal
from orchestrator.workloads.sweep.sweep import SweepWorkload
from tests.benchmarks.measure import Row
from workers.store.store import Store

WORKERS = 2
MAKESPAN, KIND = 1.25, 1.5
"""How far a makespan, and the jobs of a kind, may be from what was predicted, either way."""
NOTICED = 0.02
"""A kind with a smaller share of a run's seconds has no row: a few short jobs say nothing."""
SMALL_BUDGET = "0.025gpu-h"
GRADIENT = {
    "name": "gradient",
    "dataset": "digits",
    "scale": "small",
    "networks": 2,
    "architectures": ["convnet"],
    "set": {"distil.iterations": 20},
    "arms": [{"method": method, "ipc_per_stage": 2} for method in ("dc", "dsa", "dm", "idc")],
}
"""Methods that match gradients or features, with fewer iterations than at scale small."""


@dataclass(frozen=True)
class Example:
    """A run: its name, the words of its command, and the plan of the same words."""

    name: str
    words: tuple[str, ...]
    plan: Callable[[], Plan]


def examples(folder: Path) -> Iterator[Example]:
    """The six runs; what they read is written into the folder."""
    images, experiment = folder / "images", folder / "gradient.yaml"
    write_images(images)
    experiment.write_text(yaml.safe_dump(GRADIENT))
    digits = ("--dataset", "digits")
    yield Example(
        "tables at tiny",
        ("reproduce", "--all", "--scale", "tiny", *digits),
        lambda: resolve_tables(TableRequest(scale="tiny", dataset="digits")).tables.plan,
    )
    yield Example(
        f"tables at small, reduced to {SMALL_BUDGET}",
        ("reproduce", "--all", "--scale", "small", *digits, "--budget", SMALL_BUDGET),
        lambda: resolve_tables(TableRequest(scale="small", dataset="digits")).tables.plan,
    )
    yield Example(
        "ablations at tiny",
        ("run", "ablations", "--scale", "tiny"),
        lambda: resolve(Request(experiments=("ablations",), scale="tiny")).plan,
    )
    yield Example("sweep at tiny", ("sweep", "stages_x_ipc"), lambda: SweepWorkload.of("stages_x_ipc", Request()).plan)
    yield Example(
        "quickstart on own images",
        ("run", "quickstart", "--dataset", str(images)),
        lambda: resolve(Request(dataset=str(images))).plan,
    )
    yield Example(
        "gradient methods, 20 iterations",
        ("run", str(experiment)),
        lambda: resolve(Request(experiments=(str(experiment),))).plan,
    )


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


def run(example: Example, store: Path) -> dict[str, tuple[float, float]]:
    """Run an example on a fresh store; returns when each of its jobs ended, by the run's clock, and how long it took.

    The first start is at 0.
    """
    words = [*example.words, "--store", str(store), "--workers", str(WORKERS), "--quiet"]
    subprocess.run([sys.executable, "-m", "orchestrator.launch", *words], check=True, stdout=subprocess.DEVNULL)
    (path,) = store.glob("runs/*/journal.jsonl")
    records = journal.read(path)
    began = next(record["seconds"] for record in records if record["event"] == "job_started")
    return {
        record["key"]: (record["seconds"] - began, record["job_seconds"])
        for record in records
        if record["event"] == "job_done"
    }


def predicted(plan: Plan, done: Mapping[str, object], store: Store) -> tuple[float, dict[str, float]]:
    """The makespan of these jobs by their prices, and the seconds of each of them."""
    estimated = estimate_durations(plan.graph, store, machine_of("small", WORKERS))
    schedule = replace(schedule_of(plan, estimated), wanted=frozenset(done))
    others = plan.graph.jobs.keys() - done.keys()
    makespan = simulate.makespan(schedule, others, estimated.seconds.__getitem__, WORKERS)
    return makespan, {key: estimated.seconds[key] for key in done}


def apart(measured: float, expected: float) -> float:
    """How far two times are apart, as the larger by the smaller."""
    return max(measured / expected, expected / measured)


def rows_of(example: Example, folder: Path) -> Iterator[Row]:
    """A row for the makespan and one for each kind that matters."""
    plan, store = example.plan(), Store.for_reading(str(folder / "none"))
    ended = run(example, folder / "store")
    expected, prices = predicted(plan, ended, store)
    taken = max(at for at, _ in ended.values())
    note = f"predicted {expected:.1f} s, load {os.getloadavg()[0]:.1f}"
    ratio = apart(taken, expected)
    yield Row(
        part="prices", name=example.name, cpu_seconds=None, wall_seconds=taken, ratio=ratio, goal=MAKESPAN, note=note
    )
    sums: Counter[str] = Counter()
    hoped: Counter[str] = Counter()
    for key, (_, seconds) in ended.items():
        sums[kind_of(key)] += seconds
        hoped[kind_of(key)] += prices[key]
    for kind in sorted(sums):
        if sums[kind] >= NOTICED * sum(sums.values()):
            name, note = f"{example.name}: {kind}", f"predicted {hoped[kind]:.1f} s"
            ratio = apart(sums[kind], hoped[kind])
            yield Row(
                part="prices", name=name, cpu_seconds=None, wall_seconds=sums[kind], ratio=ratio, goal=KIND, note=note
            )


@contextmanager
def fresh_memory(folder: str) -> Iterator[None]:
    """A cache folder of its own, so that the cores are timed now."""
    with mock.patch.dict(os.environ, {"PDD_CACHE": folder}):
        yield


def rows() -> list[Row]:
    """All six runs."""
    figures: list[Row] = []
    with tempfile.TemporaryDirectory() as root, fresh_memory(f"{root}/cache"):
        for number, example in enumerate(examples(Path(root))):
            figures += rows_of(example, Path(root) / f"{number}")
    return figures
