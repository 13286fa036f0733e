"""How long a run takes to start: its first job beside a bare Ray session, and the quickstart when all of it is done."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

from tests.benchmarks.measure import Row

BARE = """
import logging, os
os.environ["OMP_NUM_THREADS"] = "1"
import ray
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)

@ray.remote(num_cpus=1)
class Worker:
    def __init__(self):
        import torch

    def ready(self):
        return True

ray.get(Worker.remote().ready.remote())
print("ready", flush=True)
"""
REPEATS = 3
PDD = [sys.executable, "-m", "orchestrator.launch"]


def bare_start() -> float:
    """Seconds from the start of a Python process until an actor of a Ray session of its own has imported torch."""
    began = time.perf_counter()
    with subprocess.Popen([sys.executable, "-c", BARE], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        return time.perf_counter() - began


def first_job(store: str) -> float:
    """Seconds from the command until the journal says that its first job runs; the run is then broken off."""
    began = time.time()
    command = [*PDD, "run", "tiny", "--store", store, "--workers", "2", "--quiet", "--json"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
        pass
    (journal,) = Path(store).glob("runs/*/journal.jsonl")
    records = map(json.loads, journal.read_text().splitlines())
    started = next(record["t"] for record in records if record["event"] == "job_started")
    return datetime.fromisoformat(started).timestamp() - began


def rows() -> list[Row]:
    """The first job by a bare start, and a command that finds all of its jobs done."""
    bare, ours = [], []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(REPEATS):
            bare.append(bare_start())
            ours.append(first_job(f"{folder}/{number}"))
        again = [*PDD, "run", "tiny", "--store", f"{folder}/0", "--quiet", "--json"]
        began = time.perf_counter()
        subprocess.run(again, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        cached = time.perf_counter() - began
    least = min(bare)
    return [
        Row(
            part="start",
            name="first job runs",
            cpu_seconds=None,
            wall_seconds=min(ours),
            ratio=min(ours) / least,
            goal=1.25,
            note=f"of a bare ray.init and an actor that imports torch, {least:.1f} s; each the best of {REPEATS}",
        ),
        Row(
            part="start",
            name="tiny again, all cached",
            cpu_seconds=None,
            wall_seconds=cached,
            goal=2.5,
            note="the whole command, with its report",
        ),
    ]
