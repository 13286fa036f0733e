"""Jobs that only pretend: what the tests of pools and driver let workers execute.

A fake job is a `SelectSpec`; its `draw` says what it does. Marks are files in the store's folder, so a test can see
from outside what happened in a worker.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from jobs.graph import Graph, Job
from jobs.keys import kind_of
from jobs.specs import SelectSpec
from orchestrator.scheduler.schedule import Schedule
from workers.store.store import Audit

WORKS, FAILS, RAISES, SLEEPS, WAITS_FOR_STOP, CRASHES_ONCE, CRASHES, PRINTS, BUSY_ONCE, TELLS, CARD_FAILS_ONCE = range(
    11
)


class FakeStore:
    """A folder with a file for each artifact, as the fake jobs make them."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def has(self, key: str) -> bool:
        return (self.root / f"{key}.made").exists()

    def audit(self, keys: Collection[str]) -> Audit:
        return Audit(frozenset(key for key in keys if self.has(key)), {})

    def made(self) -> set[str]:
        return {path.stem for path in self.root.glob("*.made")}

    def starts(self, key: str) -> list[int]:
        """The process of each attempt at a job."""
        path = self.root / f"{key}.started"
        return [int(line) for line in path.read_text().split()] if path.exists() else []


def graph_of(draws: Iterable[int], chained: bool = False) -> tuple[Graph, list[str]]:
    """A graph of fake jobs and its keys; chained, each is the parent of the next one."""
    graph, keys = Graph(), list[str]()
    for number, draw in enumerate(draws):
        parents = {"before": keys[-1:]} if chained else {}
        keys.append(graph.add(SelectSpec(rule="random", ipc_total=1, draw=draw, seed=number), parents))
    return graph, keys


def plan_of(graph: Graph, **fields: Any) -> Schedule:
    """A plan that wants every job of the graph."""
    return Schedule.of(graph, graph.jobs, lambda job: 1.0, **fields)


def execute(job: Mapping[str, Any], store_root: str, run: str, memory_level: int) -> dict[str, Any]:
    """What `workers.execute.execute` is to real jobs."""
    made, root = Job.from_json(job), Path(store_root)
    assert isinstance(made.spec, SelectSpec)
    with (root / f"{made.key}.started").open("a") as marks:
        marks.write(f"{os.getpid()}\n")
    attempt = len((root / f"{made.key}.started").read_text().split())
    answer = _act(made.spec.draw, attempt, root / "runs" / run / "stop")
    if answer["status"] == "done":
        text = json.dumps([kind_of(made.key), memory_level, os.environ.get("OMP_NUM_THREADS")])
        (root / f"{made.key}.made").write_text(text)
    return {"key": made.key, "seconds": 0.25, **answer}


def show_card(job: Mapping[str, Any], store_root: str, run: str, memory_level: int) -> dict[str, Any]:
    """An `execute` whose message is the card that the worker sees and the threads that it takes."""
    import torch

    seen = f"{os.environ.get('CUDA_VISIBLE_DEVICES')} {torch.get_num_threads()}"
    return {"key": Job.from_json(job).key, "status": "done", "message": seen}


def _act(draw: int, attempt: int, stop: Path) -> dict[str, Any]:
    if draw == FAILS:
        return {"status": "failed", "reason": "diverged", "message": "NaN at iteration 3", "log": "x.log"}
    if draw == RAISES:
        raise RuntimeError("execute broke its promise")
    if draw == SLEEPS:
        time.sleep(60)
    if draw == WAITS_FOR_STOP:
        _wait_for(stop)
        return {"status": "yielded"}
    if draw == CRASHES or (draw == CRASHES_ONCE and attempt == 1):
        os.kill(os.getpid(), 9)
    if draw == PRINTS:
        print("this must not reach the driver's standard output")
    if draw == CARD_FAILS_ONCE and attempt == 1:
        message = "RuntimeError: CUDA error: device-side assert triggered"
        return {"status": "failed", "reason": "card", "message": message, "card": "GPU-7"}
    if draw == BUSY_ONCE and attempt == 1:
        return {"status": "busy", "retry_after": 0.1}
    return {"status": "done"}


def _wait_for(path: Path, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
