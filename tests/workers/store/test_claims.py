"""`workers.store.claims`: the living keep what they claim, the dead are succeeded by exactly one."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from workers.store.claims import Claim, Claims, Held
from workers.store.processes import Process

KEY = "distil-demo-0123456789abcdef"
GONE: dict[str, Any] = {"host": Process.current().host, "pid": 2**31 - 1}
"""What the claim of a process of this host says that is no more."""
ROOT = Path(__file__).resolve().parents[3]

HOLDER = """
import sys, time
from pathlib import Path
from workers.store.claims import Claims
held = Claims(Path(sys.argv[1])).take(sys.argv[2], "their-run")
print("taken" if held else "refused", flush=True)
sys.stdin.readline()
"""

RACER = """
import os, sys
from pathlib import Path
from workers.store.claims import Claims
claims = Claims(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for number in range(int(sys.argv[2])):
    held = claims.take(f"distil-n{number}", "race")
    print(number if held else -1, flush=True)
print("done", flush=True)
sys.stdin.readline()
"""


class Clock:
    """Unix seconds that move only when told to."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def claims(tmp_path: Path, clock: Clock) -> Claims:
    return Claims(tmp_path, clock=clock, steady=clock)


@pytest.fixture
def held(claims: Claims) -> Iterator[Held]:
    with taken(claims) as held:
        yield held


def taken(claims: Claims, key: str = KEY) -> Held:
    held = claims.take(key, "our-run")
    assert held is not None
    return held


def by_hand(claims: Claims, **changes: Any) -> Claim:
    """Write the claim of a process of another host, changed as told."""
    now = claims.clock()
    theirs = Claim(
        key=KEY,
        run="their-run",
        owner="them",
        host="elsewhere",
        pid=4,
        process_start="77",
        claimed_at=now,
        beat_at=now,
    )
    claim = replace(theirs, **changes)
    folder = claim_file(claims, claim.key).parent
    folder.mkdir(exist_ok=True)
    claim_file(claims, claim.key).write_text(json.dumps(asdict(claim)))
    return claim


def claim_file(claims: Claims, key: str = KEY) -> Path:
    return claims._folder / f"{key}.json"


def start(program: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def eventually(true: Callable[[], bool]) -> bool:
    until = time.monotonic() + 5
    while not (answer := true()) and time.monotonic() < until:
        time.sleep(0.01)
    return answer


def test_a_claim_says_who_computes_what(claims: Claims, held: Held) -> None:
    claim = claims.read(KEY)
    assert claim == held.claim
    assert claim is not None and (claim.key, claim.run, claim.pid) == (KEY, "our-run", os.getpid())
    assert claim.process == Process.current() and claim.process_start.isdecimal()
    assert claim.claimed_at == claim.beat_at == 1_000_000.0 and claim.done == 0.0
    assert claims.alive(claim) and claims.all() == [claim]


def test_the_process_start_is_field_22_even_if_the_name_holds_blanks_and_parentheses(tmp_path: Path) -> None:
    program = tmp_path / "odd ) name ("
    program.symlink_to("/bin/sleep")
    process = subprocess.Popen([program, "60"])
    try:
        ticks = os.sysconf("SC_CLK_TCK")
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        assert eventually(lambda: "odd" in Path(f"/proc/{process.pid}/comm").read_text())
        start = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[19]
        assert abs(int(start) / ticks - uptime) < 30
        us = Process.current()
        assert Process(us.host, process.pid, start).running() is True
        assert Process(us.host, process.pid, str(int(start) + 1)).running() is False
    finally:
        process.kill()
        process.wait()


def test_a_killed_process_nobody_waited_for_is_not_running() -> None:
    process = subprocess.Popen(["sleep", "60"])
    them = replace(Process.current(), pid=process.pid, start="")
    assert them.running() is True
    process.kill()
    assert eventually(lambda: them.running() is False)  # a zombie by now
    assert process.wait() == -signal.SIGKILL
    assert them.running() is False


@pytest.mark.parametrize("pid", [0, -1, 2**40])
def test_an_impossible_pid_is_not_running(pid: int) -> None:
    assert replace(Process.current(), pid=pid, start="").running() is False


def test_what_cannot_be_seen_is_neither_running_nor_gone() -> None:
    us = Process.current()
    assert replace(us, host="elsewhere").running() is None
    assert replace(us, space="1").running() is None
    assert replace(us, space="").running() is True


def test_a_temporary_name_tells_its_process_and_is_never_given_twice() -> None:
    us = Process.current()
    assert Process.from_temporary_name(us.temporary_name()) == us
    assert us.temporary_name() != us.temporary_name()
    assert Process.from_temporary_name("stray.txt") is None
    assert Process.from_temporary_name("host~pid~1~2~3") is None


def test_a_live_claim_is_refused_until_it_is_released(claims: Claims) -> None:
    with taken(claims):
        assert claims.take(KEY, "another-run") is None
        taken(claims, "distil-other").release()
    assert claims.read(KEY) is None and claims.all() == []
    taken(claims).release()


def test_sweeping_removes_the_claims_of_the_dead_and_what_is_no_claim(claims: Claims, held: Held) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    for key, content in (
        ("distil-dead", json.dumps(asdict(replace(held.claim, key="distil-dead", pid=gone.pid))).encode()),
        ("distil-elsewhere", json.dumps(asdict(replace(held.claim, key="distil-elsewhere", host="other"))).encode()),
        ("distil-flipped", b"{\x00"),
    ):
        claim_file(claims).with_name(f"{key}.json").write_bytes(content)
    claims.sweep("ours")
    assert [claim.key for claim in claims.all()] == [KEY, "distil-elsewhere"]
    assert len(list(claim_file(claims).parent.iterdir())) == 2


def test_releasing_twice_or_after_a_crash_in_the_block_is_fine(claims: Claims) -> None:
    with pytest.raises(ZeroDivisionError), taken(claims) as held:
        raise ZeroDivisionError
    held.release()
    assert claims.all() == []


def test_claims_are_private_and_leave_nothing_else_behind(claims: Claims, tmp_path: Path) -> None:
    with taken(claims) as held:
        held.beat(0.5, force=True)
        assert claim_file(claims).stat().st_mode & 0o777 == 0o600
        assert claim_file(claims).parent.stat().st_mode & 0o777 == 0o700
        assert os.listdir(tmp_path / "claims") == [f"{KEY}.json"]
    assert os.listdir(tmp_path / "tmp") == os.listdir(tmp_path / "claims") == []


def test_a_live_process_is_refused_and_succeeded_once_it_is_killed(tmp_path: Path) -> None:
    claims = Claims(tmp_path)
    process = start(HOLDER, tmp_path, KEY)
    assert first_line(process) == "taken"
    assert claims.take(KEY, "our-run") is None
    process.kill()
    theirs = claims.read(KEY)
    assert theirs is not None and theirs.run == "their-run"
    assert eventually(lambda: not claims.alive(theirs))
    process.communicate()
    with taken(claims) as held:
        assert claims.all() == [held.claim] and held.claim.run == "our-run"


def test_a_claim_whose_pid_is_used_by_a_later_process_is_dead(claims: Claims) -> None:
    us = Process.current()
    by_hand(claims, host=us.host, pid=us.pid, process_start=us.start)
    assert claims.take(KEY, "our-run") is None
    by_hand(claims, host=us.host, pid=us.pid, process_start=str(int(us.start) - 1))
    taken(claims).release()


def test_a_claim_of_another_host_is_believed_for_a_lease(claims: Claims, clock: Clock) -> None:
    theirs = by_hand(claims)
    assert claims.take(KEY, "our-run") is None
    clock.now += 29
    assert claims.alive(theirs) and claims.take(KEY, "our-run") is None
    clock.now += 2
    assert not claims.alive(theirs)
    with taken(claims) as held:
        assert claims.read(KEY) == held.claim


@pytest.mark.parametrize("ahead", [-3600.0, 600.0, 3e8])
def test_whatever_another_hosts_clock_says_its_claim_lives_while_it_changes(
    claims: Claims, clock: Clock, ahead: float
) -> None:
    for _ in range(5):
        by_hand(claims, beat_at=clock.now + ahead)
        assert claims.take(KEY, "our-run") is None
        clock.now += 25
    clock.now += 6
    taken(claims).release()


def test_a_claim_is_watched_across_the_attempts_of_a_process(claims: Claims, clock: Clock, tmp_path: Path) -> None:
    by_hand(claims, beat_at=clock.now + 1e9)
    assert Claims(tmp_path, clock=clock, steady=clock).take(KEY, "our-run") is None
    clock.now += 31
    taken(Claims(tmp_path, clock=clock, steady=clock)).release()


def test_a_long_silence_on_the_same_host_is_not_death(claims: Claims, clock: Clock, held: Held) -> None:
    clock.now += 3600
    assert claims.take(KEY, "another-run") is None and not held.lost()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"key": "distil-x"}', b"\xff\xfe", b"[" * 100_000])
def test_an_unreadable_claim_counts_as_dead(claims: Claims, content: bytes) -> None:
    by_hand(claims)
    claim_file(claims).write_bytes(content)
    assert claims.read(KEY) is None and claims.all() == []
    taken(claims).release()
    assert claims.all() == []


def test_a_pipe_in_the_place_of_a_claim_counts_as_a_dead_one(claims: Claims) -> None:
    by_hand(claims)
    claim_file(claims).unlink()
    os.mkfifo(claim_file(claims))
    assert claims.read(KEY) is None and claims.all() == []
    taken(claims).release()


ODD = [
    {"owner": []}, {"host": 5}, {"note": None}, {"pid": "x"}, {"pid": 10**30}, {"beat_at": float("nan")},
    {"beat_at": "now"}, {"claimed_at": {}}, {"done": "half"}, {"key": "../x"}, {"pid_space": 7},
]  # fmt: skip


@pytest.mark.parametrize("changes", ODD)
def test_a_claim_with_a_field_of_an_odd_type_counts_as_dead(claims: Claims, changes: dict[str, object]) -> None:
    document = asdict(by_hand(claims))
    claim_file(claims).write_text(json.dumps(document | changes))
    assert claims.read(KEY) is None and claims.all() == []
    taken(claims).release()


def test_a_claim_of_a_later_version_can_be_read(claims: Claims) -> None:
    theirs = by_hand(claims)
    claim_file(claims).write_text(json.dumps(asdict(theirs) | {"colour": "blue"}))
    assert claims.read(KEY) == theirs


def test_a_claim_that_was_beaten_while_we_judged_it_is_left_alone(
    claims: Claims, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert claims.alive(by_hand(claims))
    clock.now += 31
    inherit = Claims._inherit

    def slow(self: Claims, path: Path, dead: bytes, claim: Claim) -> bool:
        by_hand(claims)  # they were only slow, and beat now
        return inherit(self, path, dead, claim)

    monkeypatch.setattr(Claims, "_inherit", slow)
    assert claims.take(KEY, "our-run") is None
    survivor = claims.read(KEY)
    assert survivor is not None and survivor.owner == "them" and survivor.beat_at == clock.now
    assert os.listdir(claim_file(claims).parent) == [f"{KEY}.json"]


def test_an_heir_that_died_half_way_is_inherited_too(
    claims: Claims, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert claims.alive(by_hand(claims))
    clock.now += 31

    def die(source: Path, target: Path) -> None:
        raise SystemExit("killed between becoming the heir and replacing the claim")

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(os, "replace", die)
        patch.setattr(Path, "unlink", lambda self, missing_ok=False: None)
        claims.take(KEY, "dying-run")
    (heir,) = claim_file(claims).parent.glob(".heir-*")
    dead = json.loads(heir.read_bytes()) | {"pid": 2**31 - 1, "process_start": "1"}
    heir.write_text(json.dumps(dead))
    with taken(claims) as held:
        assert claims.read(KEY) == held.claim
        assert os.listdir(claim_file(claims).parent) == [f"{KEY}.json"]


def test_a_beat_is_written_at_most_once_a_second_unless_forced(claims: Claims, clock: Clock, held: Held) -> None:
    def written() -> tuple[float, str, float]:
        claim = claims.read(KEY)
        assert claim is not None
        return claim.done, claim.note, claim.beat_at - 1_000_000.0

    held.beat(0.1, "expert 1 of 10")
    assert written() == (0.1, "expert 1 of 10", 0.0)
    clock.now += 0.5
    held.beat(0.2, "expert 2 of 10")
    assert written() == (0.1, "expert 1 of 10", 0.0)
    held.beat(0.3, "expert 3 of 10", force=True)
    assert written() == (0.3, "expert 3 of 10", 0.5)
    clock.now += 1.5
    held.beat(0.4)
    assert written() == (0.4, "", 2.0)


@pytest.mark.parametrize(("said", "written"), [(-0.5, 0.0), (1.0000001, 1.0), (0.25, 0.25)])
def test_progress_stays_between_nothing_and_all(claims: Claims, held: Held, said: float, written: float) -> None:
    held.beat(said, force=True)
    claim = claims.read(KEY)
    assert claim is not None and claim.done == written


def test_the_heart_beats_through_a_long_call(tmp_path: Path) -> None:
    claims = Claims(tmp_path, lease_seconds=0.3)
    with taken(claims) as held:
        before = held.claim
        assert eventually(lambda: (now := claims.read(KEY)) is not None and now.beat_at > before.beat_at + 0.1)
    time.sleep(0.1)
    assert claims.all() == []


def test_a_claim_taken_from_us_is_lost_and_left_alone(claims: Claims, held: Held) -> None:
    assert not held.lost()
    theirs = by_hand(claims)
    assert held.lost()
    held.beat(0.9, force=True)
    held.release()
    assert claims.read(KEY) == theirs


def test_a_claim_that_was_deleted_comes_back_with_the_next_beat(claims: Claims, held: Held) -> None:
    claim_file(claims).unlink()
    assert not held.lost()
    held.beat(0.5, force=True)
    assert claims.read(KEY) == held.claim


def test_a_beat_that_cannot_be_written_does_not_stop_the_job(
    held: Held, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(source: Path, target: Path) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(os, "replace", full)
        held.beat(0.5, force=True)
    assert "No space left" in caplog.text and not held.lost()
    assert os.listdir(tmp_path / "tmp") == []


def test_of_eight_threads_exactly_one_inherits_a_dead_claim(tmp_path: Path) -> None:
    for trial in range(25):
        claims = Claims(tmp_path / str(trial))
        (tmp_path / str(trial)).mkdir()
        by_hand(claims, **GONE)
        barrier = threading.Barrier(8)
        winners: list[Held] = []

        def race(claims: Claims = claims, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            if (held := claims.take(KEY, "race")) is not None:
                winners.append(held)  # noqa: B023

        threads = [threading.Thread(target=race) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(winners) == 1
        assert claims.read(KEY) == winners[0].claim
        winners[0].release()
        assert os.listdir(tmp_path / str(trial) / "claims") == []


def test_of_racing_processes_exactly_one_takes_each_key_dead_or_free(tmp_path: Path) -> None:
    keys = 60
    claims = Claims(tmp_path)
    for number in range(0, keys, 2):
        by_hand(claims, key=f"distil-n{number}", **GONE)
    racers = [start(RACER, tmp_path, keys) for _ in range(4)]
    try:
        assert [first_line(racer) for racer in racers] == ["ready"] * 4
        for racer in racers:
            go(racer)
        won: list[str] = []
        for racer in racers:
            while (line := first_line(racer)) != "done":
                assert line, "a racer failed"
                won.append(line)
    finally:
        for racer in racers:
            racer.kill()
            racer.communicate()
    assert sorted(int(line) for line in won if line != "-1") == list(range(keys))
