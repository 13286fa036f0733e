"""`--cluster slurm` on a real SLURM of four nodes: the same results as here, whatever happens to the jobs meanwhile."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator import journal
from tests.orchestrator.minislurm import MiniSlurm, wait_until, why_not

REASON = why_not()
pytestmark = [
    pytest.mark.slurm,
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(bool(REASON), reason=REASON),
]

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 900.0
"""Seconds a run may take on a machine that does much else."""
EXPERIMENT = {
    "name": "live",
    "dataset": "digits",
    "scale": "tiny",
    "networks": 1,
    "arms": [{"method": "mtt", "stages": 2, "ipc_per_stage": 1}],
}


@pytest.fixture(scope="module")
def slurm() -> Iterator[MiniSlurm]:
    with MiniSlurm() as cluster:
        yield cluster


@dataclass
class Site:
    """Our command line beside a real SLURM; its store lies where all nodes see it."""

    slurm: MiniSlurm
    folder: Path

    def cluster_file(self, **fields: Any) -> Path:
        head = {"cpus": 1, "memory": "1G", **fields.pop("head", {})}
        spec = {"kind": "slurm", "partition": "main", "minutes": 30, "max_workers": 2, "memory": "5G", "head": head}
        path = self.folder / "cluster.yaml"
        local = {"kind": "local", "workers": 1}
        path.write_text(yaml.safe_dump({"clusters": {"slurm": {**spec, **fields}, "local": local}}))
        return path

    def start(self, *words: str, store: str = "store") -> subprocess.Popen[str]:
        """`pdd` with these words, on the cluster file that was written last."""
        lengths = {"LIVE": 300, "LONG": 3000}
        for word, iterations in lengths.items():
            document = EXPERIMENT | {"set": {"distil.iterations": iterations}}
            (self.folder / f"{word}.yaml").write_text(yaml.safe_dump(document))
        words = tuple(str(self.folder / f"{word}.yaml") if word in lengths else word for word in words)
        common = ("--store", str(self.folder / store), "--json")
        with open(self.folder / "errors.txt", "a") as errors:
            return subprocess.Popen(
                [sys.executable, "-m", "orchestrator.launch", *words, *common],
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
        out, _ = started.communicate(timeout=PATIENCE)
        assert started.returncode == code, (self.folder / "errors.txt").read_text()[-3000:]
        document: dict[str, Any] = json.loads(out)
        return document

    def on_slurm(self) -> tuple[str, ...]:
        return "--cluster-file", str(self.folder / "cluster.yaml"), "--cluster", "slurm"

    def records(self) -> list[journal.Record]:
        paths = sorted((self.folder / "store" / "runs").glob("*/journal.jsonl"))
        return [record for path in paths for record in journal.read(path)]

    def wait_for_stage(self) -> None:
        """Until a stage is being distilled and has saved once."""
        checkpoints = self.folder / "store" / "checkpoints"

        def going() -> bool:
            begun = {r["key"] for r in self.records() if r["event"] == "job_started" and r["kind"] == "distil"}
            return bool(begun) and any(path.is_file() for path in checkpoints.rglob("*"))

        wait_until(going, PATIENCE)

    def jobs(self, name: str, state: str = "RUNNING") -> list[str]:
        rows = self.slurm.run("squeue", "--noheader", "--array", "--format", "%i|%j|%T").split()
        return [r.split("|")[0] for r in rows if r.split("|")[1].endswith(name) and r.endswith(f"|{state}")]


@pytest.fixture
def site(slurm: MiniSlurm) -> Iterator[Site]:
    with tempfile.TemporaryDirectory(prefix="pdd-live-", dir="/tmp") as folder:
        made = Site(slurm, Path(folder))
        made.cluster_file()
        yield made
        slurm.run("scancel", "--full", "--user", "root")
        wait_until(lambda: not slurm.run("squeue", "--noheader").strip(), 120)


@pytest.fixture(scope="module")
def undisturbed(slurm: MiniSlurm) -> dict[str, str]:
    """What the experiment makes on this machine, by key."""
    with tempfile.TemporaryDirectory(prefix="pdd-live-") as folder:
        here = Site(slurm, Path(folder))
        file = here.cluster_file()
        return digests(here.pdd("run", "LIVE", "--cluster-file", str(file), "--cluster", "local"))


def digests(document: dict[str, Any]) -> dict[str, str]:
    return {artifact["key"]: artifact["digest"] for artifact in document["artifacts"]}


def processes(word: str) -> list[int]:
    """Processes of SLURM's jobs with this word on their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command, environment = (path / "cmdline").read_bytes(), (path / "environ").read_bytes()
        except OSError:
            continue
        if word.encode() in command and b"\0SLURM_JOB_ID=" in environment:
            found.append(int(path.name))
    return found


def test_the_results_are_those_of_a_run_here_and_nothing_stays(site: Site, undisturbed: dict[str, str]) -> None:
    done = site.pdd("run", "LIVE", *site.on_slurm())
    assert done["exit"] == 0 and digests(done) == undisturbed
    assert site.slurm.run("squeue", "--noheader").strip() == ""
    assert list(Path("/tmp").glob("pdd-node-*")) == []
    assert processes("ray") == []
    states = site.slurm.run("sacct", "--allocations", "--noheader", "--format", "State").split()
    assert set(states) == {"COMPLETED"}


def test_the_token_is_seen_by_nobody_and_asked_of_everybody(site: Site) -> None:
    going = site.start("run", "LIVE", *site.on_slurm())
    site.wait_for_stage()
    (meeting,) = (site.folder / "store" / "runs").glob("*/slurm")
    token = (meeting / "token").read_text()
    assert (meeting / "token").stat().st_mode & 0o777 == 0o600 and meeting.stat().st_mode & 0o777 == 0o700
    for job in site.jobs(""):
        assert token not in site.slurm.run("scontrol", "show", "job", job)
        assert token not in site.slurm.run("scontrol", "write", "batch_script", job.partition("_")[0], "-")
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            assert token.encode() not in path.read_bytes()
        except OSError:
            continue
    with_token = [path for path in meeting.parent.rglob("*") if path.is_file() and token in _text(path)]
    assert with_token == [meeting / "token"]
    address = json.loads((meeting / "head.json").read_text())["address"]
    for attempt in (None, "0" * 64):
        assert "let in" not in _try_to_join(address, attempt)
    assert site.end(going)["exit"] == 0


def _text(path: Path) -> str:
    return path.read_bytes().decode(errors="replace")


def _try_to_join(address: str, token: str | None) -> str:
    """What becomes of a Ray client that has no token, or a wrong one."""
    environment = {**os.environ, "RAY_AUTH_MODE": "token" if token else "disabled", "HOME": "/nowhere"}
    if token:
        environment["RAY_AUTH_TOKEN"] = token
    code = (
        f"from ray._raylet import GcsClient; print(GcsClient(address={address!r}).get_all_node_info()); print('let in')"
    )
    command = [sys.executable, "-c", code]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        return "kept waiting"
    return done.stdout


def _cancel_worker(site: Site) -> None:
    site.slurm.run("scancel", site.jobs("-worker")[0])


def _kill_driver(site: Site) -> None:
    for pid in processes("orchestrator.drive"):
        os.kill(pid, signal.SIGKILL)


def _requeue_head(site: Site) -> None:
    site.slurm.run("scontrol", "requeue", site.jobs("-head")[0])


def _take_all_nodes(site: Site) -> None:
    """All nodes are drained and the workers end; the run waits, says so, and goes on when nodes are back."""
    site.slurm.run("scontrol", "update", "nodename=node[1-4]", "state=drain", "reason=test")
    for job in site.jobs("-worker"):
        site.slurm.run("scancel", job)
    waiting = "waiting for SLURM"
    wait_until(lambda: any(waiting in r["text"] for r in site.records() if r["event"] == "note"), PATIENCE)
    site.slurm.run("scontrol", "update", "nodename=node[1-4]", "state=resume")


@pytest.mark.parametrize("disturb", [_cancel_worker, _kill_driver, _requeue_head, _take_all_nodes])
def test_a_disturbed_run_ends_with_the_same_results(
    site: Site, undisturbed: dict[str, str], disturb: Callable[[Site], None]
) -> None:
    going = site.start("run", "LIVE", *site.on_slurm())
    site.wait_for_stage()
    disturb(site)
    done = site.end(going)
    assert done["exit"] == 0 and digests(done) == undisturbed


def _requeue_gang(site: Site) -> None:
    site.slurm.run("scontrol", "requeue", site.jobs("-gang")[0])


@pytest.mark.parametrize("disturb", [lambda site: None, _requeue_gang])
def test_a_gang_is_one_job_with_the_same_results(
    site: Site, undisturbed: dict[str, str], disturb: Callable[[Site], None]
) -> None:
    site.cluster_file(mode="gang")
    going = site.start("run", "LIVE", *site.on_slurm())
    site.wait_for_stage()
    wait_until(lambda: len({r["slot"] for r in site.records() if r["event"] == "slot_joined"}) == 2, PATIENCE)
    assert site.jobs("-worker") == [] and len(site.jobs("-gang")) == 1
    disturb(site)
    done = site.end(going)
    assert done["exit"] == 0 and digests(done) == undisturbed
    assert site.slurm.run("squeue", "--noheader").strip() == ""


def test_two_launches_at_once_share_the_work(site: Site, undisturbed: dict[str, str]) -> None:
    both = [site.start("run", "LIVE", *site.on_slurm()) for _ in range(2)]
    done = [site.end(one) for one in both]
    assert [digests(one) for one in done] == [undisturbed, undisturbed]
    made = [record["key"] for record in site.records() if record["event"] == "job_done"]
    assert sorted(made) == sorted(undisturbed)


def test_workers_whose_walltime_is_shorter_than_a_stage_come_back_until_it_is_done(
    site: Site,
) -> None:
    site.cluster_file(minutes=1, lead_seconds=30, max_workers=1, head={"minutes": 30})
    going = site.start("run", "LONG", *site.on_slurm())
    done = site.end(going)
    rows = site.slurm.run(
        "sacct", "--allocations", "--duplicates", "--noheader", "--format", "JobName%60,State"
    ).split()
    assert done["exit"] == 0
    assert rows.count("REQUEUED") >= 2
    assert any(record["event"] == "job_yielded" for record in site.records())
    here = ("--cluster-file", str(site.folder / "cluster.yaml"), "--cluster", "local")
    assert digests(done) == digests(site.pdd("run", "LONG", *here, store="here"))


def test_a_run_that_nobody_follows_is_asked_after_and_cancelled(site: Site) -> None:
    run = site.pdd("run", "LIVE", *site.on_slurm(), "--detach")["run"]
    wait_until(lambda: site.jobs("-head"), 120)
    assert any(line.startswith("head ") for line in site.pdd("status", run)["slurm"])
    site.wait_for_stage()
    assert site.pdd("cancel", run)["asked"]
    wait_until(lambda: not site.slurm.run("squeue", "--noheader").strip(), 240)
    found = site.pdd("status", run)
    assert (found["state"], found["exit"]) == ("ended", 130)


def test_a_worker_gets_the_gpus_it_asked_for_and_one_that_sees_more_refuses(site: Site) -> None:
    site.cluster_file(gpus=1)
    assert site.pdd("run", "LIVE", *site.on_slurm())["exit"] == 0
    site.cluster_file(gpus=1, setup=["export CUDA_VISIBLE_DEVICES=0,1"])
    more = site.pdd("run", "LIVE", "--seed", "5", *site.on_slurm(), code=1)
    assert more["exit"] == 1
    assert "others may be working there" in (site.folder / "errors.txt").read_text()


def test_the_doctor_finds_what_the_cluster_does_not_have(site: Site) -> None:
    assert site.pdd("doctor", *site.on_slurm())["well"]
    site.cluster_file(partition="nowhere", head={"partition": "short", "minutes": 10})
    found = {one["name"]: one for one in site.pdd("doctor", *site.on_slurm(), code=2)["findings"]}
    assert "there is no partition nowhere" in found["partition of workers"]["found"]
    assert found["partition of head"]["mend"] == "set minutes to 1 or less"


def test_the_cluster_is_our_own(slurm: MiniSlurm) -> None:
    assert slurm.states() == ["idle"] * 4
    where = slurm.run("srun", "--nodes=1", "hostname").strip()
    assert where.startswith("node") and where != socket.gethostname()
