"""What it costs to plan: expansion, keys, estimates, the order, simulated runs, and looking up what is done."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
import tempfile
from unittest import mock

from jobs.experiment import Plan
from orchestrator.planning import simulate
from orchestrator.planning.durations import estimate_durations, schedule_of
from orchestrator.planning.requests import Request, resolve
from tests.benchmarks.measure import Row, Timer
from workers.store.store import Store

JOBS_PER_SEED = 55
"""Of the quickstart; its dataset is shared by all seeds."""


def plan_of(jobs: int) -> Plan:
    """The quickstart with so many seeds that it has about as many jobs."""
    seeds = list(range(round(jobs / JOBS_PER_SEED)))
    return resolve(Request(experiments=("quickstart",), settings=(f"seeds={seeds}",))).plan


def decide(plan: Plan, store: Store) -> int:
    """Find out what there is to do; returns how many jobs."""
    estimated = estimate_durations(plan.graph, store)
    schedule = schedule_of(plan, estimated)
    return len(simulate.jobs_to_run(schedule, store.audit(schedule.keys).sound))


def fill(store: Store, plan: Plan) -> None:
    """Put a small artifact of every job into a store."""
    with mock.patch("os.fsync"):
        for job in plan.graph:
            spec = job.canonical()["spec"]
            with store.put(job.key, job.kind, spec, job.parents, device="cpu", seconds=1.0) as folder:
                (folder / "data").write_bytes(bytes(1000))


def paper_seconds(folder: str) -> float:
    """CPU time of the command that plans all tables at the published scale, its imports included."""
    text = "import resource; r = resource.getrusage(resource.RUSAGE_CHILDREN); print(r.ru_utime + r.ru_stime)"
    words = ["plan", "--all", "--scale", "paper", "--store", folder, "--json"]
    command = f"import subprocess, sys; subprocess.run({[sys.executable, '-m', 'orchestrator.launch', *words]!r}, "
    command += f"check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL); {text}"
    return float(subprocess.run([sys.executable, "-c", command], check=True, capture_output=True, text=True).stdout)


def rows() -> list[Row]:
    """The command that plans the paper; a plan of 100,000 jobs; and one of 10,000 that are all in the store."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        paper = paper_seconds(folder)
        with Timer() as large:
            plan = plan_of(100_000)
            left = decide(plan, Store.for_reading(f"{folder}/none"))
        assert left == len(plan.graph), left
        store, plan = Store.open(f"{folder}/store"), plan_of(10_000)
        fill(store, plan)
        with Timer() as cached:
            left = decide(plan_of(10_000), store)
        assert left == 0, left
    return [
        Row(part="planning", name="plan --all --scale paper", cpu_seconds=paper, goal=4.0, note="the whole command"),
        Row(part="planning", name="100,000 jobs", cpu_seconds=large.cpu, wall_seconds=large.wall, goal=20.0),
        Row(
            part="planning",
            name="10,000 jobs, all cached",
            cpu_seconds=cached.cpu,
            wall_seconds=cached.wall,
            goal=5.0,
            note="manifests, sizes and bytes looked at",
        ),
    ]
