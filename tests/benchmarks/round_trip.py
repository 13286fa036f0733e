"""What a job costs beyond Ray: jobs that do nothing on warm workers, and Ray's own round trip in the same session."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from orchestrator.clusters.ray_cluster import LocalCluster
from orchestrator.clusters.ray_pool import RayPool
from orchestrator.runs import driver
from orchestrator.runs.driver import RunInfo
from orchestrator.runs.journal import Journal, read
from orchestrator.scheduler.schedule import Schedule
from tests.benchmarks.driver import EmptyStore, graph_of
from tests.benchmarks.measure import Row

JOBS, WORKERS = 1_000, 2


def nothing(job: dict[str, Any], store_root: str, run: str, memory_level: int) -> dict[str, Any]:
    """A job without work."""
    return {"status": "done", "key": "", "seconds": 0.0}


class Idle:
    """An actor without work."""

    def nothing(self, job: dict[str, Any]) -> dict[str, Any]:
        return {"status": "done", "key": "", "seconds": 0.0}


class MeasuredPool(RayPool):
    """A pool that measures Ray's own round trips before it closes the session."""

    bare_seconds = 0.0

    def close(self, grace_seconds: float) -> None:
        job = next(iter(graph_of(1))).to_json()
        actors = [self._ray.remote(num_cpus=0)(Idle).remote() for _ in range(WORKERS)]
        self._ray.get([actor.nothing.remote(job) for actor in actors])
        began = time.perf_counter()
        pending = {actor.nothing.remote(job): actor for actor in actors}
        for _ in range(JOBS):
            (ended,), _ = self._ray.wait(list(pending))
            actor = pending.pop(ended)
            self._ray.get(ended)
            pending[actor.nothing.remote(job)] = actor
        self.bare_seconds = time.perf_counter() - began
        super().close(grace_seconds)


def rows() -> list[Row]:
    """The wall time of a job through the driver, by that of a call through Ray alone."""
    graph = graph_of(JOBS + 100)
    schedule = Schedule.of(graph, graph.jobs, lambda job: 1.0)
    with tempfile.TemporaryDirectory() as folder:
        pool = MeasuredPool(LocalCluster(WORKERS), folder, "run", execute="tests.benchmarks.round_trip.nothing")
        with Journal.open(Path(folder) / "run") as journal:
            end = driver.run(schedule, graph, pool, journal, EmptyStore(), about=RunInfo("run"))
        assert end.exit == 0, end
        ended = [
            record["seconds"] for record in read(Path(folder) / "run/journal.jsonl") if record["event"] == "job_done"
        ]
    ours = ended[-1] - ended[-1 - JOBS]
    return [
        Row(
            part="round_trip",
            name=f"{JOBS} jobs without work",
            cpu_seconds=None,
            wall_seconds=ours / JOBS,
            per="job",
            ratio=ours / pool.bare_seconds,
            goal=1.5,
            note=f"of Ray's own {1000 * pool.bare_seconds / JOBS:.2f} ms, {WORKERS} actors",
        )
    ]
