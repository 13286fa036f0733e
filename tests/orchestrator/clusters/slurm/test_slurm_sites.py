"""Sites that are less kind than ours, on a real SLURM: refusals, limits, bad nodes, cancellation, other clocks."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest

from tests.documents import check
from tests.orchestrator.minislurm import wait_until
from tests.orchestrator.slurm_site import PATIENCE, Site, digests, seconds_at

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(1800), pytest.mark.usefixtures("slurm")]

ALONE = "7500M"
"""Memory of a worker that leaves no room for another job on its node; the head's is the first."""


# Preemption that cancels.


@pytest.mark.parametrize("role", ["head", "worker"])
def test_a_job_that_preemption_cancels_is_followed_by_another(
    site: Site, undisturbed: dict[str, str], role: str
) -> None:
    site.cluster_file(
        memory=ALONE, **({"partition": "cheap"} if role == "worker" else {"head": {"partition": "cheap"}})
    )
    with site.slurm.without_user_signal():
        going = site.start("run", "LIVE", *site.on_slurm())
        site.wait_for_stage()
        assert len(site.jobs("-head", "PENDING")) == 1  # the successor
        (job,), before = site.jobs(f"-{role}", node=site.stage_node() if role == "worker" else ""), site.before()
        node = site.slurm.run("squeue", "--noheader", "--jobs", job, "--format", "%N").strip()
        where = ("--partition=high", f"--nodelist={node}", "--exclusive")
        site.slurm.run("sbatch", *where, "--output=/dev/null", "--wrap=sleep 20")
        done = site.end(going)
    assert done["exit"] == 0 and digests(done) == undisturbed
    site.figures(f"preemption by CANCEL of the {role}", before)
    assert len(site.records("run_began")) == (2 if role == "head" else 1)
    assert any(seconds_at(record) > before.at for record in site.records("slot_left", "run_began"))
    # Within the grace time a worker leaves in order, and a head with 130 or, on a busy machine, not in time.
    in_order = {"head": {"FAILED", "PREEMPTED"}, "worker": {"COMPLETED"}}
    assert site.ended(done["run"], role)[0] in in_order[role]
    wait_until(lambda: site.left() == [], 90)  # the reaper of a head that was killed takes its time


# Nodes on which workers fail.


def _setup_line(site: Site) -> dict[str, Any]:
    return {"setup": ['case $SLURM_JOB_NAME in *-worker) test "$(hostname)" != node2;; esac']}


def _package(site: Site) -> dict[str, Any]:
    lacking = f'[ "$(hostname)" = node2 ] && exec {sys.executable} -S "$@"'
    return {"python": str(site.on_path("python", f'{lacking}\nexec {sys.executable} "$@"'))}


def _store(site: Site) -> dict[str, Any]:
    return {}


@pytest.mark.parametrize(
    ("lacks", "cause"),
    [
        (_setup_line, "a setup line of cluster.yaml failed with exit code 1"),
        (_package, "No module named"),
        (_store, "SLURM could not open its log): it left no log; does the node see"),
    ],
)
def test_a_node_on_which_workers_fail_is_left_out_and_the_run_goes_on(
    site: Site, undisturbed: dict[str, str], lacks: Callable[[Site], dict[str, Any]], cause: str
) -> None:
    """The first node that is free lacks something: a module of the site, a package, or the sight of the store."""
    site.cluster_file(memory=ALONE, max_workers=1, **lacks(site))
    before = site.before()
    with ExitStack() as stack:
        if lacks is _store:
            (site.folder / "store").mkdir(mode=0o700)
            stack.enter_context(site.slurm.hidden(2, site.folder / "store"))
        done = site.pdd("run", "LIVE", *site.on_slurm())
    assert done["exit"] == 0 and digests(done) == undisturbed
    failures = [record["text"] for record in site.notes("failed on node2")]
    site.figures(f"a node that fails ({lacks.__name__})", before, "failed on node2")
    print(failures)
    assert 1 <= len(failures) <= 2 and cause in failures[0]
    assert site.ended(done["run"], "worker").count("FAILED") <= 2


def test_a_node_on_which_one_worker_fails_is_used_by_the_next(site: Site, undisturbed: dict[str, str]) -> None:
    """A setup line that fails once, as where a module is away for a moment, on the node that is free first."""
    fails = f'[ "$(hostname)" != node2 ] || [ -e {site.folder}/once ] || {{ mkdir {site.folder}/once; false; }}'
    once = f"case $SLURM_JOB_NAME in *-worker) {fails};; esac"
    site.cluster_file(memory=ALONE, max_workers=1, setup=[once])
    before = site.before()
    done = site.pdd("run", "LIVE", *site.on_slurm())
    assert done["exit"] == 0 and digests(done) == undisturbed
    site.figures("a node that fails once", before, "failed on node2")
    (failure,) = site.notes("failed on")
    assert "left out" not in failure["text"] and "a setup line of cluster.yaml failed" in failure["text"]
    assert {record["host"] for record in site.records("slot_joined")} >= {"node2"}


def test_a_node_that_does_not_see_the_store_is_left_out_after_others_joined_too(
    site: Site, undisturbed: dict[str, str]
) -> None:
    site.cluster_file(memory=ALONE, max_workers=1)
    going = site.start("run", "LIVE", *site.on_slurm())
    site.wait_for_stage()
    node = site.stage_node()
    blind = next(number for number in (2, 3, 4) if node != f"node{number}")
    with site.slurm.hidden(blind, site.folder / "store"):
        before = site.before()
        site.slurm.run("scontrol", "update", f"nodename={node}", "state=drain", "reason=drill")
        site.slurm.run("scancel", *site.jobs("-worker"))
        done = site.end(going)
    assert done["exit"] == 0 and digests(done) == undisturbed
    failures = [record["text"] for record in site.notes(f"failed on node{blind}")]
    site.figures("a node without the store, later", before, f"failed on node{blind}")
    print(failures)
    assert 1 <= len(failures) <= 2


# Limits.


def test_a_limit_of_submitted_jobs_makes_a_run_slower_and_one_of_running_jobs_names_gang_mode(
    site: Site, wide: dict[str, str]
) -> None:
    site.cluster_file(qos="few", max_workers=8, memory="1G")  # the head and one worker
    before = site.before()
    done = site.pdd("run", "WIDE", *site.on_slurm())
    assert done["exit"] == 0 and digests(done) == wide
    refusals = [record["text"] for record in site.notes("sbatch refuses")]
    site.figures("a limit of two submitted jobs", before, "sbatch refuses")
    assert len(refusals) == 1 and "QOSMaxSubmitJobPerUserLimit" in refusals[0]
    site.cluster_file(qos="alone")
    before = site.before()
    site.pdd("run", "LIVE", *site.on_slurm(), code=1)
    print(f"a limit of one running job: told after {time.time() - before.at:.1f} s")
    assert "set `mode: gang` in cluster.yaml" in site.errors()


def test_a_default_partition_of_half_an_hour_is_told_and_met(site: Site, undisturbed: dict[str, str]) -> None:
    with site.slurm.limited(minutes=30):
        site.cluster_file(partition=None, minutes=240)
        refused = site.pdd("run", "LIVE", *site.on_slurm(), code=2)
        assert "main allows 30 minutes and 240 are asked for" in refused["error"]["message"]
        found = {one["name"]: one for one in site.pdd("doctor", *site.on_slurm(), code=2)["findings"]}
        assert found["partition of workers"]["fix"].startswith("set minutes to 30 or less")
        site.cluster_file(partition=None, minutes=30)
        done = site.pdd("run", "LIVE", *site.on_slurm())
    assert done["exit"] == 0 and digests(done) == undisturbed


def test_arrays_stay_within_the_sites_limit_and_an_element_that_is_cancelled_while_it_waits_is_replaced(
    site: Site, wide: dict[str, str]
) -> None:
    """No worker fits beside the head, and the other nodes are drained at first; MaxArraySize is 3."""
    site.cluster_file(memory=ALONE, max_workers=5)
    short = ("--set", "evaluate.epochs=1")  # leaves what the evaluations need, so that all of them are ready at once
    site.pdd("run", "WIDE", *short, *site.here(), "--workers", "0")
    site.slurm.run("scontrol", "update", "nodename=node[2-4]", "state=drain", "reason=drill")
    going = site.start("run", "WIDE", *site.on_slurm())
    wait_until(lambda: len(site.jobs("-worker", "PENDING")) == 5, PATIENCE)
    waiting, before = site.jobs("-worker", "PENDING"), site.before()
    assert sorted(job.partition("_")[2] for job in waiting) == ["0", "0", "1", "1", "2"]
    site.slurm.run("scancel", waiting[0])
    wait_until(lambda: len(site.jobs("-worker", "PENDING")) == 5, PATIENCE)
    assert waiting[0] not in site.jobs("-worker", "PENDING")
    again = site.jobs("-worker", "PENDING")[:2]  # two at once, one of an array that has lost one before
    site.slurm.run("scancel", *again)
    wait_until(lambda: len(site.jobs("-worker", "PENDING")) == 5, PATIENCE)
    assert not {waiting[0], *again} & set(site.jobs("-worker", "PENDING"))
    site.slurm.run("scontrol", "update", "nodename=node[2-4]", "state=resume")
    done = site.end(going)
    site.figures("a waiting element of an array cancelled", before, "submitted 1 worker")
    assert done["exit"] == 0 and digests(done) == wide
    assert not site.notes("failed on")


# The controller.


def test_a_worker_that_sbatch_refuses_once_is_submitted_again(site: Site, undisturbed: dict[str, str]) -> None:
    words = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"
    once = f'mkdir {site.folder}/refused 2>/dev/null && {{ echo "{words}" >&2; exit 1; }}'
    program = site.on_path("sbatch", f'{once}\nexec {shutil.which("sbatch")} "$@"')
    site.cluster_file(max_workers=1, setup=[f"export PATH={program.parent}:$PATH"])
    before = site.before()
    done = site.pdd("run", "LIVE", *site.on_slurm())
    assert done["exit"] == 0 and digests(done) == undisturbed
    site.figures("sbatch refuses once", before, "sbatch refuses")
    (refusal,) = site.notes("sbatch refuses the worker: ")
    assert "Socket timed out" in refusal["text"]
    submitted = next(record for record in site.notes("submitted 1 worker"))
    assert seconds_at(submitted) - seconds_at(refusal) < 30


def test_jobs_flow_while_the_controller_is_silent(site: Site) -> None:
    site.cluster_file(memory="1G")
    going = site.start("run", "FLOW", *site.on_slurm())
    wait_until(lambda: len({record["slot"] for record in site.records("job_done")}) == 2, PATIENCE)
    with site.slurm.silent_controller():
        at = time.time()
        time.sleep(75)
        now = time.time()
        done = sorted(seconds_at(record) for record in site.records("job_done") if seconds_at(record) > at)
    pauses = [later - earlier for earlier, later in zip([at, *done], [*done, now], strict=True)]
    print(f"{len(done)} jobs done in 75 s without a controller, the longest pause {max(pauses):.1f} s")
    assert len(done) >= 75 and site.records("slot_left") == []
    assert site.pdd("cancel")["asked"]
    assert site.end(going, 130)["exit"] == 130
    few = [
        digests(site.pdd("run", "FLOWN", *site.here(), "--workers", "0", store=store)) for store in ("store", "here")
    ]
    assert few[0] == few[1]


# What one has said oneself.


def test_a_setup_line_that_fails_and_a_walltime_that_is_too_long_are_told(site: Site) -> None:
    site.cluster_file(setup=["echo no such module: cuda", "false"])
    site.pdd("run", "LIVE", *site.on_slurm(), code=1)
    assert "no such module: cuda | a setup line of cluster.yaml failed with exit code 1: false" in site.errors()
    (run,) = (path.name for path in (site.folder / "store" / "runs").iterdir())
    wait_until(lambda: set(site.ended(run, "head")) == {"FAILED"}, 60)
    assert "no such module" in site.pdd("status", run)["why"]
    site.cluster_file(partition="short")
    refused = site.pdd("run", "LIVE", *site.on_slurm(), code=2)
    assert "short allows 1 minutes and 30 are asked for" in refused["error"]["message"]
    assert sorted(site.pdd("run", "LIVE", "--dry-run", *site.on_slurm(), code=2)) == ["error", "exit", "schema"]
    site.cluster_file()
    document = site.pdd("run", "LIVE", "--dry-run", *site.on_slurm())
    check("dry_run", document)
    assert sorted(document["scripts"]) == ["head", "worker"]


def test_a_driver_whose_clock_is_an_hour_ahead_has_the_same_results(site: Site, undisturbed: dict[str, str]) -> None:
    """Python's clocks in the processes of the head job, which import what lies first on their path."""
    (site.folder / "sitecustomize.py").write_text(AHEAD)
    ahead = f"case $SLURM_JOB_NAME in *-head) PYTHONPATH={site.folder}:$PYTHONPATH;; esac"
    site.cluster_file(python=str(site.on_path("python", f'{ahead}\nexec {sys.executable} "$@"')))
    done = site.pdd("run", "LIVE", *site.on_slurm())
    assert done["exit"] == 0 and digests(done) == undisturbed
    began = seconds_at(site.records("run_began")[0])
    print(f"the driver's clock: {began - time.time():.0f} s ahead of ours at the end of its run")
    assert began > time.time() + 1800
    assert site.left() == []


AHEAD = """
import datetime, time
true = {name: getattr(time, name) for name in ("time", "time_ns")}
time.time = lambda: true["time"]() + 3600
time.time_ns = lambda: true["time_ns"]() + 3600 * 10**9
class Ahead(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return super().now(tz) + datetime.timedelta(hours=1)
datetime.datetime = Ahead
"""


def test_an_allocation_that_one_has_already_is_used(site: Site, undisturbed: dict[str, str]) -> None:
    site.cluster_file(mode="allocation")
    inside = ("salloc", "--nodes=2", "--cpus-per-task=1", "--mem=5G", "--time=30")
    refused = site.pdd("run", "LIVE", *site.on_slurm(), code=2)
    assert "type it inside salloc" in refused["error"]["message"]
    done = site.end(site.start("run", "LIVE", *site.on_slurm(), inside=inside))
    assert done["exit"] == 0 and digests(done) == undisturbed
    assert {record["host"] for record in site.records("slot_joined")} == {"node1", "node2"}
    wait_until(lambda: site.left() == [], 60)
    examined = site.end(site.start("doctor", "--nodes", "2", *site.on_slurm(), inside=inside))
    assert examined["ok"] and [one["name"] for one in examined["findings"]].count("versions: node2") == 1
