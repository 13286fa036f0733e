"""Our command line beside a real SLURM, as its users have it; and what the tests look at while a run goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from orchestrator.runs import journal
from orchestrator.runs.records import Record
from tests.orchestrator.minislurm import MiniSlurm, wait_until

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 900.0
"""Seconds a run may take on a machine that does much else."""
EXPERIMENT: dict[str, Any] = {
    "name": "live",
    "dataset": "digits",
    "scale": "tiny",
    "networks": 1,
    "arms": [{"method": "mtt", "stages": 2, "ipc_per_stage": 1}],
}
WIDE_EXPERIMENT = EXPERIMENT | {"arms": [{"method": "random", "ipc_per_stage": 1}]}
EXPERIMENTS: dict[str, dict[str, Any]] = {
    "LIVE": EXPERIMENT | {"set": {"distil.iterations": 300}},
    "LONG": EXPERIMENT | {"set": {"distil.iterations": 12_000}},
    "SLOW": EXPERIMENT | {"arms": [{"method": "mtt", "ipc_per_stage": 1}]},
    "WIDE": WIDE_EXPERIMENT | {"networks": 8, "set": {"evaluate.epochs": 1_500}},
    "FLOW": WIDE_EXPERIMENT | {"networks": 1_000, "set": {"evaluate.epochs": 500}},
    "FLOWN": WIDE_EXPERIMENT | {"networks": 2, "set": {"evaluate.epochs": 500}},
}
"""The experiments that these words stand for, each sized where a core does a hundred iterations a second.

A stage of LIVE takes three seconds, one of LONG two minutes: an idle worker is given back meanwhile. SLOW has one
stage, as long as a test makes it. WIDE has eight jobs of some two seconds that could run at once, FLOW hundreds of half
a second each, of which FLOWN has a few.
"""


@dataclass(frozen=True)
class Before:
    """A moment, and when work was saved last before it; None: there was nothing to save. In seconds since 1970."""

    at: float
    saved: float | None


@dataclass
class Site:
    """A login node; its store lies where all nodes see it."""

    slurm: MiniSlurm
    folder: Path

    def cluster_file(self, **fields: Any) -> Path:
        """Write the cluster file that the next commands use."""
        head = {"cpus": 1, "memory": "1G", **fields.pop("head", {})}
        spec = {"kind": "slurm", "partition": "main", "minutes": 30, "max_workers": 2, "memory": "5G", "head": head}
        path = self.folder / "cluster.yaml"
        local = {"kind": "local", "workers": 2}
        path.write_text(yaml.safe_dump({"clusters": {"slurm": {**spec, **fields}, "local": local}}))
        return path

    def on_slurm(self) -> tuple[str, ...]:
        """The words for a command on SLURM."""
        return "--cluster-file", str(self.folder / "cluster.yaml"), "--cluster", "slurm"

    def here(self) -> tuple[str, ...]:
        """The words for a command on this machine."""
        return "--cluster-file", str(self.folder / "cluster.yaml"), "--cluster", "local"

    def start(self, *words: str, store: str = "store", inside: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        """`pdd` with these words, started by what stands before them, as `salloc` does."""
        for word, document in EXPERIMENTS.items():
            (self.folder / f"{word}.yaml").write_text(yaml.safe_dump(document))
        words = tuple(str(self.folder / f"{word}.yaml") if word in EXPERIMENTS else word for word in words)
        common = ("--store", str(self.folder / store), "--json")
        with open(self.folder / "errors.txt", "a") as errors:
            return subprocess.Popen(
                [*inside, sys.executable, "-m", "orchestrator.launch", *words, *common],
                cwd=ROOT,
                env=self.slurm.environment,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def pdd(self, *words: str, store: str = "store", code: int = 0) -> dict[str, Any]:
        """The same, to its end."""
        return self.end(self.start(*words, store=store), code)

    def end(self, started: subprocess.Popen[str], code: int = 0) -> dict[str, Any]:
        """The document of a command, when it has ended with this code."""
        out, _ = started.communicate(timeout=PATIENCE)
        assert started.returncode == code, self.errors()[-3000:]
        document: dict[str, Any] = json.loads(out)
        return document

    def errors(self) -> str:
        """What all commands said to people."""
        return (self.folder / "errors.txt").read_text()

    # What a run does.

    def records(self, *names: str) -> list[Record]:
        """The records of all runs, of these events."""
        paths = sorted((self.folder / "store" / "runs").glob("*/journal.jsonl"))
        found = [record for path in paths for record in journal.read(path)]
        return [record for record in found if not names or record["event"] in names]

    def stages(self) -> list[Record]:
        """The beginnings of stages, the latest last."""
        return [record for record in self.records("job_started") if record["kind"] == "distil"]

    def wait_for_stage(self) -> None:
        """Until a stage is being distilled and has saved once."""
        checkpoints = self.folder / "store" / "checkpoints"
        wait_until(lambda: self.stages() and any(path.is_file() for path in checkpoints.rglob("*")), PATIENCE)

    def before(self) -> Before:
        """What is to be known of the moment before something happens."""
        checkpoints = (self.folder / "store" / "checkpoints").rglob("*")
        saved = [path.stat().st_mtime for path in checkpoints if path.is_file()]
        return Before(time.time(), max(saved, default=None))

    def figures(self, name: str, before: Before, note: str = "") -> None:
        """Print when the driver knew of what happened, when work went on, and how much of it was lost; in seconds.

        It knew when it said these words or, without any, when it missed a worker or ended itself.
        """
        known = self.records("slot_left", "run_ended", "run_began") if not note else self.notes(note)
        times = {"noticed": known, "again": self.stages() or self.records("job_started")}
        text = ", ".join(f"{word} {_first(records, before.at)}" for word, records in times.items())
        lost = "none" if before.saved is None else f"{before.at - before.saved:.1f}"
        print(f"{name}: {text}, lost {lost}, at a load of {os.getloadavg()[0]:.1f}")

    def notes(self, words: str) -> list[Record]:
        """What the runs said to people that has these words in it."""
        return [record for record in self.records("note") if words in record["text"]]

    def on_path(self, name: str, body: str) -> Path:
        """A program of ours in a folder that may be put in front of PATH."""
        folder = self.folder / "bin"
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
        return folder / name

    def stage_node(self) -> str:
        """The node on which the latest stage began."""
        return str(self.stages()[-1]["host"])

    def jobs(self, name: str, state: str = "RUNNING", node: str = "") -> list[str]:
        """The SLURM jobs in this state whose names end so, of all nodes or of one."""
        rows = [row.split("|") for row in self.queue("%i|%j|%T|%N").split()]
        return [i for i, named, now, on in rows if named.endswith(name) and now == state and node in ("", on)]

    def queue(self, columns: str = "%i") -> str:
        """What SLURM holds."""
        return self.slurm.run("squeue", "--noheader", "--array", "--format", columns).strip()

    def ended(self, run: str, role: str) -> list[str]:
        """How each start of a run's jobs of a role ended, as the accounting remembers it."""
        name, columns = f"pdd-{run}-{role}", "JobName%90,State%20"
        rows = self.slurm.run("sacct", "--allocations", "--duplicates", "--noheader", "--format", columns).splitlines()
        return [row.split()[1] for row in rows if row.split()[0] == name]

    def left(self) -> list[str]:
        """What a run has left: jobs in the queue, processes of ours, folders on the nodes."""
        found = [f"job {row}" for row in self.queue("%i %j").splitlines()]
        found += [f"process {pid}" for word in ("ray", "orchestrator") for pid in processes(word)]
        return found + [str(path) for path in Path("/tmp").glob("pdd-node-*")]


def _first(records: list[Record], at: float) -> str:
    """How many seconds after this moment the first of them was written."""
    return next((f"{seconds_at(record) - at:.1f}" for record in records if seconds_at(record) > at), "never")


def seconds_at(record: Record) -> float:
    """When a record was written, in seconds since 1970."""
    return datetime.fromisoformat(record["t"].replace("Z", "+00:00")).astimezone(UTC).timestamp()


def digests(document: dict[str, Any]) -> dict[str, str]:
    """The artifacts of a run, by key."""
    return {artifact["key"]: artifact["digest"] for artifact in document["artifacts"]}


def processes(word: str, job: str = "", node: str = "") -> dict[int, dict[str, str]]:
    """Living processes of SLURM's jobs with this word on their command line, each with its environment."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command, pairs = (path / "cmdline").read_bytes(), (path / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        environment = dict(pair.decode(errors="replace").partition("=")[::2] for pair in pairs if pair)
        of_job = environment.get("SLURM_JOB_NAME", "").endswith(job) and "SLURM_JOB_ID" in environment
        if word.encode() in command and of_job and node in ("", environment.get("SLURMD_NODENAME")):
            found[int(path.name)] = environment
    return found
