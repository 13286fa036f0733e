"""`--cluster slurm` on a real SLURM of four nodes: the same results as here, whatever happens to the jobs meanwhile."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.orchestrator.minislurm import MiniSlurm, wait_until
from tests.orchestrator.slurm_site import EXPERIMENTS, PATIENCE, Site, digests, processes, seconds_at

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(1800), pytest.mark.usefixtures("slurm")]


def test_the_quickstart_has_the_results_of_one_here_begins_soon_and_leaves_nothing(site: Site) -> None:
    done = site.pdd(*site.on_slurm())
    assert done["exit"] == 0 and site.left() == []
    assert set(site.ended(done["run"], "head")) == {"COMPLETED"}
    assert set(site.ended(done["run"], "worker")) == {"COMPLETED"}
    submitted, started = site.records("submitted")[0], site.records("job_started")[0]
    seconds = seconds_at(started) - seconds_at(submitted)
    print(f"from submission to the first job: {seconds:.1f} s at a load of {os.getloadavg()[0]:.1f}")
    assert seconds < 30
    assert digests(done) == digests(site.pdd(*site.here(), store="here"))


# The token.


def test_the_token_is_seen_by_nobody_and_asked_of_everybody(site: Site) -> None:
    going = site.start("run", "LONG", *site.on_slurm())
    site.wait_for_stage()
    (run_folder,) = (site.folder / "store" / "runs").glob("*/slurm")
    token = (run_folder / "token").read_text()
    assert (run_folder / "token").stat().st_mode & 0o777 == 0o600 and run_folder.stat().st_mode & 0o777 == 0o700
    for job in site.jobs(""):
        assert token not in site.slurm.run("scontrol", "show", "job", job)
        assert token not in site.slurm.run("scontrol", "write", "batch_script", job.partition("_")[0], "-")
    assert [path for path in Path("/proc").glob("[0-9]*/cmdline") if token in _text(path)] == []
    assert [pid for pid, environment in processes("").items() if token in environment.values()] == []
    assert _files_with(token, run_folder.parent) == [run_folder / "token"]
    nodes = list(Path("/tmp").glob("pdd-node-*"))  # all nodes have one /tmp here
    assert len(nodes) >= 2 and {node.stat().st_mode & 0o777 for node in nodes} == {0o700}
    for node in nodes:
        assert _files_with(token, node) == [node / "token"] and (node / "token").stat().st_mode & 0o777 == 0o600
    address = json.loads((run_folder / "head.json").read_text())["address"]
    for wrong in (None, "0" * 64):
        assert "let in" not in _ask_for_nodes(address, wrong)
        assert _work_for(address, wrong, site.folder / "ray") != 0
    assert _ask_for_nodes(address, token).count("let in") == 1
    assert all(record["host"].startswith("node") for record in site.records("slot_joined"))
    assert site.pdd("cancel")["asked"]
    assert site.end(going, 130)["exit"] == 130


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode(errors="replace")
    except OSError:  # gone meanwhile
        return ""


def _files_with(token: str, folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and token in _text(path)]


def _environment(token: str | None) -> dict[str, str]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return plain | {
        "HOME": "/nowhere",
        "RAY_AUTH_MODE": "token" if token else "disabled",
        "RAY_AUTH_TOKEN": token or "",
    }


def _ask_for_nodes(address: str, token: str | None) -> str:
    """What becomes of a Ray client with this token, or with none."""
    ask = f"GcsClient(address={address!r}).get_all_node_info()"
    command = [sys.executable, "-c", f"from ray._raylet import GcsClient; {ask}; print('let in')"]
    try:
        done = subprocess.run(command, env=_environment(token), capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        return "kept waiting"
    return done.stdout


def _work_for(address: str, token: str | None, folder: Path) -> int | None:
    """How a worker with this token, or with none, ends; None if it was kept waiting."""
    options = [f"--address={address}", "--num-cpus=1", '--resources={"pdd_slot": 1}', "--block"]
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", *options, f"--temp-dir={folder}"]
    try:
        return subprocess.run(command, env=_environment(token), capture_output=True, timeout=120).returncode
    except subprocess.TimeoutExpired:
        return None


# Drills, in the middle of a stage.


def _cancel_worker(site: Site) -> None:
    site.slurm.run("scancel", *site.jobs("-worker", node=site.stage_node()))


def _kill_raylet(site: Site) -> None:
    (raylet,) = processes("raylet/raylet", "-worker", site.stage_node())
    os.kill(raylet, signal.SIGKILL)


def _power_off(site: Site) -> None:
    site.slurm.cut_node(int(site.stage_node().removeprefix("node")))


def _set_down(site: Site) -> None:
    site.slurm.run("scontrol", "update", f"nodename={site.stage_node()}", "state=down", "reason=drill")


def _preempt(site: Site) -> None:
    where = ("--partition=high", f"--nodelist={site.stage_node()}", "--exclusive")
    site.slurm.run("sbatch", *where, "--output=/dev/null", "--wrap=sleep 20")


def _kill_driver(site: Site) -> None:
    for pid in processes("orchestrator.slurm_driver"):
        os.kill(pid, signal.SIGKILL)


def _requeue_head(site: Site) -> None:
    site.slurm.run("scontrol", "requeue", site.jobs("-head")[0])


def _take_all_nodes(site: Site) -> None:
    """All nodes are drained and the workers end; the run waits, says so, and goes on when nodes are back."""
    site.slurm.run("scontrol", "update", "nodename=node[1-4]", "state=drain", "reason=drill")
    site.slurm.run("scancel", *site.jobs("-worker"))
    wait_until(lambda: any("waiting for SLURM" in r["text"] for r in site.records("note")), PATIENCE)
    assert site.jobs("-worker") == []
    site.slurm.run("scontrol", "update", "nodename=node[1-4]", "state=resume")


DRILLS = [
    _cancel_worker,
    _kill_raylet,
    _power_off,
    _set_down,
    _preempt,
    _kill_driver,
    _requeue_head,
    _take_all_nodes,
]


@pytest.mark.parametrize("disturb", DRILLS)
def test_a_disturbed_run_ends_with_the_same_results(
    site: Site, undisturbed: dict[str, str], disturb: Callable[[Site], None]
) -> None:
    site.cluster_file(memory="7500M")  # none on the head's node
    going = site.start("run", "LIVE", *site.on_slurm())
    site.wait_for_stage()
    key, before = site.stages()[-1]["key"], site.before()
    disturb(site)
    done = site.end(going)
    assert done["exit"] == 0 and digests(done) == undisturbed
    assert len([one for one in site.stages() if one["key"] == key]) >= 2  # it fell into the stage
    site.figures(disturb.__name__, before)
    wait_until(lambda: not site.queue(), 60)
    if disturb is not _power_off:
        assert site.left() == []


def test_a_run_whose_launching_terminal_is_killed_ends_without_it(site: Site, undisturbed: dict[str, str]) -> None:
    going = site.start("run", "LIVE", *site.on_slurm())
    site.wait_for_stage()
    going.kill()
    going.communicate()
    wait_until(lambda: site.records("run_ended") and site.left() == [], PATIENCE)
    found = site.pdd("status")
    assert (found["state"], found["exit"]) == ("ended", 0)
    cached = site.pdd("run", "LIVE", *site.here())
    assert cached["jobs"]["done"] == 0 and digests(cached) == undisturbed


def test_workers_whose_walltime_is_shorter_than_a_stage_come_back_until_it_is_done(site: Site) -> None:
    """SLURM looks at limits twice a minute and so warns half a minute early: a worker has less than that for work."""
    site.cluster_file(minutes=1, lead_seconds=20, max_workers=1, head={"minutes": 30})
    site.pdd("run", "LIVE", *site.here(), "--workers", "0")
    seconds = max(record["job_seconds"] for record in site.records("job_done") if record["kind"] == "distil")
    work = 100 * min(1, 3 / seconds)  # seconds; a busy machine starts slower, too, and each walltime leaves less
    iterations = round(work * EXPERIMENTS["LIVE"]["set"]["distil.iterations"] / seconds)
    slow = ("run", "SLOW", "--set", f"distil.iterations={iterations}")
    here = site.start(*slow, *site.here(), "--workers", "0", store="here")
    done = site.pdd(*slow, *site.on_slurm())
    assert done["exit"] == 0 and site.left() == []
    assert site.ended(done["run"], "worker").count("REQUEUED") >= 2
    yields = site.records("job_yielded")
    assert any(record["key"].startswith("distil") for record in yields)
    again = [[s for s in site.stages() if s["key"] == y["key"] and s["seq"] > y["seq"]] for y in yields]
    gaps = [seconds_at(starts[0]) - seconds_at(y) for starts, y in zip(again, yields, strict=True)]
    print(f"{len(yields)} yields, again after {', '.join(f'{gap:.1f}' for gap in gaps)} s")
    assert digests(done) == digests(site.end(here))


# Workers come and go.


def test_a_worker_without_work_is_given_back_within_a_minute_and_there_are_never_too_many(site: Site) -> None:
    going = site.start("run", "LONG", *site.on_slurm())
    most = 0

    def one_is_left() -> bool:
        nonlocal most
        rows = [row for row in site.queue("%j").split() if row.endswith("-worker")]
        most = max(most, len(rows))
        return most == 2 and len(rows) == 1 and bool(site.stages())

    wait_until(one_is_left, PATIENCE)
    now, stage = time.time(), site.stages()[-1]
    assert stage["key"] not in {record["key"] for record in site.records("job_done")}  # the run goes on
    worked = site.records("slot_joined", "job_done")
    idle = now - max(seconds_at(one) for one in worked if one["slot"] != stage["slot"])
    print(f"given back after {idle:.1f} s without work, at a load of {os.getloadavg()[0]:.1f}")
    assert idle < 60 and most == 2
    assert site.pdd("cancel")["asked"]
    assert site.end(going, 130)["exit"] == 130
    assert site.left() == []


def test_a_worker_sees_its_own_gpu_and_one_that_sees_more_refuses(site: Site) -> None:
    """Both workers are on one node of two GPUs; then something between SLURM and Python widens what a worker sees."""
    site.cluster_file(gpus=1, memory="3G", sbatch={"nodelist": "node2"})
    going = site.start("run", "WIDE", "--set", "evaluate.epochs=6000", *site.on_slurm())  # both have work for long
    wait_until(lambda: len(_devices()) == 2, PATIENCE)
    assert sorted(_devices().values()) == ["0", "1"]
    assert site.end(going)["exit"] == 0
    site.cluster_file(gpus=1, python=f"env CUDA_VISIBLE_DEVICES=0,1 {sys.executable}")
    more = site.pdd("run", "LIVE", "--seed", "5", *site.on_slurm(), code=1)
    assert more["exit"] == 1 and "others may be working there" in site.errors()


def _devices() -> dict[str, str]:
    """What the workers' processes see, by SLURM job."""
    found = processes("ray::SlotWorker", "-worker").values()
    return {one["SLURM_JOB_ID"]: one.get("CUDA_VISIBLE_DEVICES", "all") for one in found}


# More than one launch, and other ways to run.


def test_two_launches_at_once_share_the_work(site: Site, undisturbed: dict[str, str]) -> None:
    both = [site.start("run", "LIVE", *site.on_slurm()) for _ in range(2)]
    done = [site.end(one) for one in both]
    assert [one["exit"] for one in done] == [0, 0] and [digests(one) for one in done] == [undisturbed, undisturbed]
    assert sorted(record["key"] for record in site.records("job_done")) == sorted(undisturbed)


def test_a_sweep_has_the_metrics_of_one_here_and_a_second_launch_joins_the_first(site: Site) -> None:
    alone = site.start("sweep", "stages_x_ipc", *site.here(), store="here")
    run = site.pdd("sweep", "stages_x_ipc", *site.on_slurm(), "--detach")["run"]
    going = site.start("sweep", "stages_x_ipc", *site.on_slurm())
    wait_until(lambda: site.records("trial_reported"), PATIENCE)
    _kill_driver(site)
    done, here = site.end(going), site.end(alone)
    assert run == here["run"]
    assert f"run {run} is with SLURM already" in site.errors()
    assert len(site.records("run_began")) == 2
    assert (done["run"], done["exit"], len(done["trials"])) == (run, 0, 4)
    for measured in ("values", "state", "metrics", "rank"):
        assert [one[measured] for one in done["trials"]] == [one[measured] for one in here["trials"]]
    assert (done["results"], digests(done)) == (here["results"], digests(here))
    assert site.left() == []
    again = site.pdd("sweep", "stages_x_ipc", *site.on_slurm())
    assert again["jobs"]["done"] == 0 and again["trials"] == done["trials"]


def test_tables_have_the_cells_of_a_run_here_though_the_driver_was_killed(site: Site) -> None:
    words = ("reproduce", "table5", "figure4", "--scale", "tiny", "--dataset", "digits")
    alone = site.start(*words, *site.here(), store="here")
    going = site.start(*words, *site.on_slurm())
    wait_until(lambda: site.records("job_done"), PATIENCE)
    _kill_driver(site)
    done, here = site.end(going), site.end(alone)
    assert (done["exit"], len(site.records("run_began"))) == (0, 2)
    assert {cell["status"] for table in done["tables"].values() for cell in table} == {"measured"}
    for same in ("tables", "results"):
        assert done[same] == here[same]
    assert digests(done) == digests(here)
    report = Path(done["report"]).read_text()
    assert "another dataset stands in for the paper's" in report and "Predicted before the run" in report
    assert sorted(record["key"] for record in site.records("job_done")) == sorted(digests(done))
    assert site.left() == []
    assert site.pdd(*words, *site.on_slurm())["jobs"]["done"] == 0


def _requeue_gang(site: Site) -> None:
    site.slurm.run("scontrol", "requeue", site.jobs("-gang")[0])


@pytest.mark.parametrize("disturb", [lambda site: None, _requeue_gang])
def test_a_gang_is_one_job_with_the_same_results(
    site: Site, undisturbed: dict[str, str], disturb: Callable[[Site], None]
) -> None:
    site.cluster_file(mode="gang")
    going = site.start("run", "LIVE", *site.on_slurm())
    site.wait_for_stage()
    wait_until(lambda: len({record["slot"] for record in site.records("slot_joined")}) == 2, PATIENCE)
    assert site.jobs("-worker") == [] and len(site.jobs("-gang")) == 1
    disturb(site)
    done = site.end(going)
    assert done["exit"] == 0 and digests(done) == undisturbed
    assert site.left() == []


def test_a_run_that_nobody_follows_is_asked_after_and_cancelled(site: Site) -> None:
    run = site.pdd("run", "LIVE", *site.on_slurm(), "--detach")["run"]
    wait_until(lambda: site.jobs("-head"), 120)
    assert any(line.startswith("head ") for line in site.pdd("status", run)["slurm"])
    site.wait_for_stage()
    assert site.pdd("cancel", run)["asked"]
    wait_until(lambda: not site.queue(), 240)
    found = site.pdd("status", run)
    assert (found["state"], found["exit"]) == ("ended", 130)
    assert any(line.startswith("head: 1 submitted, 0 requeued") for line in found["slurm"])  # from the accounting


def test_the_doctor_finds_what_the_cluster_does_not_have(site: Site) -> None:
    asked = site.pdd("doctor", "--nodes", "4", *site.on_slurm())
    assert asked["ok"] and [one["name"] for one in asked["findings"]].count("versions: node3") == 1
    site.cluster_file(partition="nowhere", head={"partition": "short", "minutes": 10})
    found = {one["name"]: one for one in site.pdd("doctor", *site.on_slurm(), code=2)["findings"]}
    assert "there is no partition nowhere" in found["partition of workers"]["found"]
    assert found["partition of head"]["fix"].startswith("set head.minutes (or minutes) to 1 or less")


def test_the_cluster_is_our_own(slurm: MiniSlurm) -> None:
    assert slurm.states() == ["idle"] * 4
    where = slurm.run("srun", "--nodes=1", "hostname").strip()
    assert where.startswith("node") and where != socket.gethostname()
