"""Drills: processes are killed at random moments, and the results must be those of an undisturbed run, bit for bit.

Each drill types a command until it ends by itself. Moments are drawn from a seeded generator and measured in
what the run achieved, not in seconds, so that a slow machine is hit in its work as well.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from jobs.keys import kind_of
from orchestrator.clusters.reaper import processes_of
from orchestrator.runs.records import Record
from tests.orchestrator.shell import Shell, shell_in, wait_for
from workers.store.claims import Claim, Claims
from workers.store.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(1800)]

ITERATIONS = 200
WORDS = ("run", "tiny", "--set", f"distil.iterations={ITERATIONS}")
HERE = ("--workers", "0")
"""For runs that nobody disturbs: what was saved by workers on Ray goes on in the process of the command."""
KILLS = 8
"""Of the driver, half of them with one worker and half with two."""
IN_STAGE = 1
"""The one kill that is not left to chance: it falls into a stage that has a checkpoint."""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The digests of all artifacts of a run that nobody disturbs."""
    with shell_in(tmp_path_factory.mktemp("undisturbed")) as shell:
        ended = shell.run(*WORDS, *HERE)
        assert ended.exit == 0, ended.err
        yield shell.digests()


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    with shell_in(tmp_path) as found:
        yield found


def test_a_driver_killed_again_and_again_redoes_nothing_and_ends_with_the_same_digests(
    shell: Shell, undisturbed: dict[str, str]
) -> None:
    chance = random.Random(1)
    finished: dict[str, int] = {}
    for kill in range(KILLS):
        driver = shell.start(*WORDS, "--workers", str(2 - kill % 2))
        if kill == IN_STAGE:  # its worker is halted, or on a fast machine the stage may end before its cluster does
            os.kill(claim_in_stage(shell, driver).pid, signal.SIGSTOP)
        else:
            until = achieved(shell) + chance.randrange(1, 16) if kill else 0
            wait_for(lambda: achieved(shell) >= until or driver.poll() is not None)  # noqa: B023
            time.sleep(chance.uniform(0, 0.3))
        assert driver.poll() is None, f"the run ended before kill {kill}: {driver.communicate()}"
        driver.kill()
        assert driver.wait() == -signal.SIGKILL
        finished = made(shell) | finished
    last = shell.run(*WORDS, "--workers", "2", "--json")
    assert last.exit == 0, last.err
    assert shell.digests() == undisturbed == {one["key"]: one["digest"] for one in last.document["artifacts"]}
    assert last.document["jobs"]["cached"] >= len(finished) > 0
    assert {key: made(shell)[key] for key in finished} == finished
    assert done_twice(shell.runs()) == []
    assert [complaint for key in undisturbed for complaint in Store(shell.store).verify(key)] == []
    assert resumed(shell), "no kill fell into a stage"
    nothing_is_left(shell)


def test_a_worker_killed_in_a_stage_is_replaced_and_the_stage_goes_on(
    shell: Shell, undisturbed: dict[str, str]
) -> None:
    driver = shell.start(*WORDS, "--workers", "2", "--json")
    victim = claim_in_stage(shell, driver)
    os.kill(victim.pid, signal.SIGKILL)
    out, err = driver.communicate(timeout=1200)
    assert driver.returncode == 0, err
    assert json.loads(out)["jobs"]["failed"] == 0
    (records,) = shell.runs()
    assert [record["reason"] for record in records if record["event"] == "slot_left"] == ["crashed"]
    attempts = [record["attempt"] for record in started(records, victim.key)]
    assert attempts == [1, 2] and len({record["slot"] for record in started(records, victim.key)}) == 2
    assert resumed(shell) == [victim.key]
    assert shell.digests() == undisturbed and done_twice(shell.runs()) == []
    nothing_is_left(shell)


def test_ctrl_c_and_cancel_save_the_stage_say_how_to_go_on_and_lose_nothing(
    shell: Shell, undisturbed: dict[str, str]
) -> None:
    words = (*WORDS, "--workers", "2")
    driver = shell.start(*words)
    held = claim_in_stage(shell, driver)
    asked = time.monotonic()
    os.killpg(driver.pid, signal.SIGINT)  # a terminal sends it to every process of the group
    out, err = driver.communicate(timeout=1200)
    assert driver.returncode == 130, err
    assert time.monotonic() - asked < 60, "idle, it takes some five seconds"
    assert f"-m orchestrator.launch {' '.join(words)}" in out and "go on with: " in out and "Traceback" not in err
    assert held.key in {record["key"] for record in shell.runs()[0] if record["event"] == "job_yielded"}
    nothing_is_left(shell)

    driver = shell.start(*words, "--json")
    held = claim_in_stage(shell, driver)
    status = shell.run("status", "--json").document
    assert (status["state"], status["exit"]) == ("running", None)
    (job,) = [job for job in status["running"] if job["key"] == held.key]
    assert job["kind"] == "distil" and 0 < job["progress"] <= 1 and "iteration" in job["note"]
    assert shell.run("cancel", "--json").document == {"schema": 1, "run": status["run"], "asked": True}
    out, err = driver.communicate(timeout=1200)
    document = json.loads(out)
    assert (driver.returncode, document["exit"], document["why"]) == (130, 130, "cancelled"), err
    status = shell.run("status", "--json").document
    assert (status["state"], status["exit"], status["why"]) == ("ended", 130, "cancelled")

    last = shell.run(*WORDS, *HERE, "--json")
    assert last.exit == 0, last.err
    assert shell.digests() == undisturbed and done_twice(shell.runs()) == []
    assert held.key in resumed(shell)


def catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    (mask,) = (line.split()[1] for line in lines if line.startswith("SigCgt:"))
    return bool(int(mask, 16) >> (number - 1) & 1)


def test_a_group_that_is_terminated_at_any_moment_saves_says_so_leaves_nothing_and_goes_on(
    shell: Shell, undisturbed: dict[str, str]
) -> None:
    words, chance = (*WORDS, "--workers", "2", "--json"), random.Random(10)
    for signals in [1, 2] * 5:  # `timeout` sends its signal twice
        command = shell.start(*words)
        wait_for(lambda: catches(command.pid, signal.SIGTERM))  # noqa: B023 - before that it is the interpreter's own
        until = achieved(shell) + chance.randrange(0, 12)
        begun = time.monotonic() + chance.uniform(0, 6)  # while it is imported, while Ray starts
        wait_for(lambda: achieved(shell) >= until or time.monotonic() > begun or command.poll() is not None)  # noqa: B023
        if command.poll() is not None:
            break
        asked = time.monotonic()
        for _ in range(signals):
            os.killpg(command.pid, signal.SIGTERM)
        out, err = command.communicate(timeout=120)
        assert command.returncode == 130 and "Traceback" not in err, (command.returncode, signals, until, err)
        assert json.loads(out or "{}").get("exit") == 130, (signals, until, out, err)
        assert time.monotonic() - asked < 30, "on a machine of its own it takes at most 15 seconds"
        nothing_is_left(shell)
    last = shell.run(*WORDS, *HERE)
    assert last.exit == 0 and shell.digests() == undisturbed, last.err
    assert done_twice(shell.runs()) == []


def test_a_gcs_that_is_killed_ends_the_run_in_order_whatever_lies_in_the_current_folder(
    shell: Shell, undisturbed: dict[str, str]
) -> None:
    for name in ("jobs", "workers", "ray", "torch", "numpy"):
        (shell.folder / f"{name}.py").write_text("raise RuntimeError('a file of the user')\n")
    words = (*WORDS, "--workers", "2", "--json")
    command = shell.start(*words)
    held = claim_in_stage(shell, command)
    (folder,) = shell.temporary.glob("pdd-*")
    (gcs,) = [pid for pid in processes_of(folder) if b"gcs_server" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(gcs, signal.SIGKILL)
    asked = time.monotonic()
    out, err = command.communicate(timeout=120)
    assert command.returncode == 3 and "GCS" in json.loads(out)["error"]["message"], err
    assert time.monotonic() - asked < 20, "at a load of ten it takes nine seconds"
    assert "Traceback" not in err and Claims(shell.store).read(held.key) is None
    nothing_is_left(shell)
    assert shell.run(*WORDS, *HERE).exit == 0 and shell.digests() == undisturbed


def achieved(shell: Shell) -> int:
    """What all runs together have done so far: jobs started and ended, and checkpoints of stages."""
    events = [record for records in shell.runs() for record in records]
    steps = sum(record["event"] in ("job_started", "job_done") for record in events)
    stages = sum(record["event"] == "job_done" and record["kind"] == "distil" for record in events)
    saved = (shell.store / "checkpoints").glob("distil-*/*.npz")
    newest: Counter[str] = Counter()
    for path in saved:
        newest[path.parent.name] = max(newest[path.parent.name], int(path.name.split("-")[0]))
    return int(steps + stages * ITERATIONS // 2 + newest.total())


def made(shell: Shell) -> dict[str, int]:
    """The whole artifacts, and when each was written, in nanoseconds."""
    store = Store(shell.store)
    return {key: store.path(key, name).stat().st_mtime_ns for key, name in files(shell).items()}


def files(shell: Shell) -> dict[str, str]:
    return {key: min(manifest.files) for key, manifest in shell.manifests().items()}


def done_twice(runs: list[list[Record]]) -> list[str]:
    """Keys that more than one record of any run calls done."""
    done = Counter(record["key"] for records in runs for record in records if record["event"] == "job_done")
    return [key for key, times in done.items() if times > 1]


def started(records: list[Record], key: str) -> list[Record]:
    return [record for record in records if record["event"] == "job_started" and record["key"] == key]


def resumed(shell: Shell) -> list[str]:
    """The stages whose logs say that they went on from a checkpoint."""
    logs = (shell.store / "runs").glob("*/logs/distil-*.log")
    return sorted({log.stem for log in logs if re.search(r"resumed at iteration [1-9]", log.read_text())})


def claim_in_stage(shell: Shell, driver: subprocess.Popen[str]) -> Claim:
    """The claim on a stage that has a checkpoint made since now, as soon as there is one."""
    before = {path.name for path in (shell.store / "checkpoints").glob("*/*.npz")}
    found: list[Claim] = []

    def look() -> bool:
        assert driver.poll() is None, f"the run ended too early: {driver.communicate()}"
        for claim in Claims(shell.store).all():
            fresh = [p for p in (shell.store / "checkpoints" / claim.key).glob("*.npz") if p.name not in before]
            if kind_of(claim.key) == "distil" and fresh and claim.process.running():
                found.append(claim)
        return bool(found)

    wait_for(look)
    return found[0]


def nothing_is_left(shell: Shell) -> None:
    """Neither a process nor a temporary file, a few seconds after the end; on a busy machine it may take a minute."""
    with suppress(AssertionError):
        wait_for(lambda: not shell.left(), 90)
    assert shell.left() == []
