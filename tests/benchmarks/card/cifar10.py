"""MTT on CIFAR-10 on one card, by the paper's protocol as far as some minutes carry it.

    python -m tests.benchmarks.card.cifar10 FOLDER --seconds 300 --json cifar10.json

FOLDER holds CIFAR-10 as Hugging Face's two Parquet files. The jobs are those of `pdd run`, done by the workers' code in
processes that share the card, without Ray. The recipe's numbers are kept, but for what the time does not allow: as many
experts are trained as fit into a share of the time, then the iterations are chosen that fit into what is left. What was
cut stands in the table. The JSON is written anew after each job, and the store is kept, so a program that is stopped
has lost nothing that was done.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Collection
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, get_args

import torch

from jobs.datasets import Facts
from jobs.expansion import expand
from jobs.experiment import Experiment, Plan
from jobs.graph import Graph
from jobs.methods import Engine
from tests.benchmarks.card.loops import MATCHING, SIDE
from tests.benchmarks.card.measured import measured
from tests.benchmarks.cases.case import CLASSES
from tests.gpu.__main__ import card
from tests.workers.short_jobs import Problem, matching
from workers.data import sources
from workers.execute import JobResult, execute
from workers.runtime.process import device_of_choice, prepare_process
from workers.store.store import Store

IPC = (1, 10)
EPOCHS = 21
"""Of an expert: the last that the recipe at ten images a class reads."""
MOST_EXPERTS, MOST_ITERATIONS = 100, 5_000
"""The published numbers."""
JUDGES = 2
"""Networks that judge an iterate."""
RUN = "card"
"""The name of the run, under which jobs keep their logs."""
EXPERTS = 0.27
"""Share of the time in which experts are trained."""
EVALUATION = 60.0
"""Seconds that are kept for the networks that judge iterates, the last evaluations and the end."""
NETWORKS = 5
RANDOM = "Random"
PUBLISHED = {("MTT", 1): 46.3, ("MTT", 10): 65.3, (RANDOM, 1): 14.4, (RANDOM, 10): 26.0}
"""Accuracies as their papers print them: MTT's Table 1, and Random as it stands there."""
TOGETHER = 2.0
"""How many times as long an iteration takes when both stages and evaluations share the card: assumed."""


@dataclass(frozen=True)
class Images:
    """The data set, what is known of it, and the scale of the recipes."""

    dataset: dict[str, str]
    facts: Facts
    scale: str = "paper"

    @classmethod
    def of(cls, data: Path) -> Images:
        """CIFAR-10 in a folder."""
        facts = sources.inspect(sources.Source(layout="cifar10", place="command line", path=data))
        return cls({"name": "cifar10", "path": str(data)}, facts)


def plan_of(images: Images, experts: int, iterations: dict[int, int], engine: Engine) -> Plan:
    """The plan of a run with so many experts and iterations.

    Args:
        images: the data set.
        experts: how many.
        iterations: of each stage, by images per class.
        engine: of matching.
    """
    experiment = Experiment.model_validate(
        {
            "name": RUN,
            "dataset": images.dataset,
            "scale": images.scale,
            "networks": NETWORKS,
            "arms": [
                *(
                    {"method": "mtt", "ipc_per_stage": ipc, "set": _cut(experts, iterations[ipc], engine)}
                    for ipc in IPC
                ),
                *({"method": "random", "ipc_per_stage": ipc} for ipc in IPC),
            ],
        }
    )
    return expand(experiment, images.facts, "command line")


def _cut(experts: int, iterations: int, engine: Engine) -> dict[str, Any]:
    """The recipe's numbers that the time does not allow."""
    return {
        "experts.number": experts,
        "experts.real.epochs": EPOCHS,
        "distil.iterations": iterations,
        "distil.settings.engine": engine,
        "distil.choice.every": max(1, iterations // 2),
        "distil.choice.networks": JUDGES,
        "distil.checkpoint_every": 100,
    }


@dataclass
class Processes:
    """Processes that share the card and do jobs of a store."""

    store: Store
    pool: ProcessPoolExecutor
    number: int
    watch: Callable[[JobResult], None]

    def do(self, graph: Graph, keys: Collection[str], until: float = math.inf) -> None:
        """Do jobs with all they need, each as soon as its parents are done.

        Args:
            graph: where they are.
            keys: theirs.
            until: by the monotonic clock; no job is begun that would not be done by then if it took as long as the
                longest before it.
        """
        needed = graph.ancestors(keys)
        waiting = {job.key: job for job in graph if job.key in needed and not self.store.has(job.key)}
        running: set[Future[JobResult]] = set()
        longest = 0.0
        while True:
            ready = [job for job in waiting.values() if all(self.store.has(key) for key in job.parent_keys())]
            if time.monotonic() + longest > until:
                ready = []
            for job in ready[: self.number - len(running)]:
                running.add(self.pool.submit(execute, waiting.pop(job.key).to_json(), str(self.store.root), RUN))
            if not running:  # all is done, it is too late, or a parent failed
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for result in (each.result() for each in done):
                longest = max(longest, result["seconds"])
                self.watch(result)


class Protocol:
    """The run in its three parts, and what is known of it so far.

    Args:
        images: the data set.
        seconds: that it may take.
        store: where artifacts go.
        file: for the JSON.
        engine: of matching.
    """

    def __init__(self, images: Images, seconds: float, store: Store, file: Path, engine: Engine = "graphs") -> None:
        self._images, self._store, self._file, self._engine = images, store, file, engine
        self._began, self._seconds = time.monotonic(), seconds
        self._jobs = list[JobResult]()
        self._experts, self._iterations = MOST_EXPERTS, dict.fromkeys(IPC, 1)

    def run(self, number: int) -> None:
        """Do all of it with so many processes."""
        threads = max(1, len(os.sched_getaffinity(0)) // number)
        with ProcessPoolExecutor(number, get_context("spawn"), prepare_process, (threads,)) as pool:
            processes = Processes(self._store, pool, number, self._note)
            plan = self.plan
            processes.do(plan.graph, [job.key for job in plan.graph if job.kind == "dataset"])
            processes.do(plan.graph, [key for cell in plan.cells if cell.method == RANDOM for key in cell.jobs])
            experts = [job.key for job in plan.graph if job.kind == "experts"]
            processes.do(plan.graph, experts, time.monotonic() + EXPERTS * self._left)
            self._experts = sum(self._store.has(key) for key in experts)
            self._iterations = self._affordable()
            print(f"{self._experts} experts; iterations by images per class: {self._iterations}", flush=True)
            processes.do(self.plan.graph, self.plan.wanted())

    @property
    def plan(self) -> Plan:
        """The jobs with the experts and iterations that are known by now."""
        return plan_of(self._images, self._experts, self._iterations, self._engine)

    @property
    def _left(self) -> float:
        return self._began + self._seconds - time.monotonic()

    def _affordable(self) -> dict[int, int]:
        """How many iterations of each stage fit into the time that is left, when both run side by side."""
        device, iterations = device_of_choice(), {}
        for ipc in IPC:
            steps, images = MATCHING[ipc]
            problem = Problem(images, steps, width=128, side=SIDE, classes=CLASSES)
            seconds = measured(device, matching(device, self._engine, problem)).seconds
            iterations[ipc] = max(2, int((self._left - EVALUATION) / (TOGETHER * seconds)))
        if device.type == "cuda":
            torch.cuda.empty_cache()
        return {ipc: min(count, MOST_ITERATIONS) for ipc, count in iterations.items()}

    def _note(self, result: JobResult) -> None:
        """Keep how a job ended, and write what is known."""
        self._jobs.append(result)
        ending = f"{result['status']} in {result['seconds']:.1f} s"
        print(f"{self._seconds - self._left:5.0f} s  {result['key']}: {ending} {result.get('message', '')}", flush=True)
        temporary = self._file.with_suffix(".new")
        temporary.write_text(json.dumps(self.document(), indent=2) + "\n", encoding="utf-8")
        temporary.replace(self._file)

    def document(self) -> dict[str, Any]:
        """All that is known so far."""
        return {
            "card": card(),
            "seconds": round(self._seconds - self._left, 1),
            "cut": self.cut(),
            "rows": self.rows(),
            "jobs": self._jobs,
        }

    def cut(self) -> dict[str, str]:
        """The numbers of the published protocol that the time did not allow: here, and published."""
        iterations = ", ".join(f"{count} at {ipc} a class" for ipc, count in self._iterations.items())
        return {
            "experts": f"{self._experts} of {MOST_EXPERTS}",
            "epochs of an expert": f"{EPOCHS} of 50, of which the recipe reads 3 and 21",
            "iterations": f"{iterations}, of {MOST_ITERATIONS}",
            "iterates that are judged": f"every half by {JUDGES} networks, not every 100 by 5",
        }

    def rows(self) -> list[dict[str, Any]]:
        """The accuracies that are known by now, by method and images per class."""
        rows = list[dict[str, Any]]()
        for cell in self.plan.cells:
            known = [self._store.manifest(key).extra["accuracy"] for key in cell.jobs if self._store.has(key)]
            if known:
                rows.append(
                    {
                        "method": cell.method,
                        "images per class": cell.ipc_total,
                        "accuracy": round(statistics.mean(known), 2),
                        "deviation": round(statistics.stdev(known), 2) if len(known) > 1 else None,
                        "networks": len(known),
                        "published": PUBLISHED.get((cell.method, cell.ipc_total)),
                    }
                )
        return rows


def table(protocol: Protocol) -> str:
    """The rows and the cuts for people."""
    lines = ["", f"{'method':20} {'a class':>8} {'accuracy':>16} {'networks':>9} {'published':>10}"]
    for row in protocol.rows():
        accuracy = f"{row['accuracy']:.1f} +- {row['deviation'] or 0:.1f}"
        published = row["published"] or ""
        lines.append(
            f"{row['method']:20} {row['images per class']:8} {accuracy:>16} {row['networks']:9} {published:>10}"
        )
    return "\n".join([*lines, *(f"{name}: {value}" for name, value in protocol.cut().items())])


def main() -> None:
    """Run the protocol within the seconds that are given."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.card.cifar10")
    parser.add_argument("data", type=Path, help="the folder with CIFAR-10's two Parquet files")
    parser.add_argument("--seconds", type=float, default=300.0, help="that it may take")
    parser.add_argument("--processes", type=int, default=4, help="that share the card")
    parser.add_argument("--engine", choices=get_args(Engine), default="graphs", help="of matching")
    parser.add_argument(
        "--store", type=Path, default=None, help="a folder for artifacts; one that is dropped by default"
    )
    parser.add_argument("--json", type=Path, default=Path("cifar10.json"), help="a file for what came out")
    words = parser.parse_args()
    prepare_process()
    with tempfile.TemporaryDirectory() as folder:
        store = Store.open(words.store or folder)
        protocol = Protocol(Images.of(words.data), words.seconds, store, words.json, words.engine)
        protocol.run(words.processes)
        print(table(protocol))


if __name__ == "__main__":
    main()
