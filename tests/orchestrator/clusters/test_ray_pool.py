"""The pool on a real Ray cluster: one is shared by most of the tests, since each start takes seconds."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, ClassVar

import pytest

from jobs.errors import BadInput
from orchestrator.clusters import ray_cluster, ray_pool, reaper
from orchestrator.clusters.ray_cluster import LocalCluster
from orchestrator.clusters.ray_pool import RayPool, _look_for_gcs, _Slot
from orchestrator.runs.driver import RunInfo, run
from orchestrator.runs.journal import Journal, read
from orchestrator.runs.pool import JobReturned, PoolBroken, PoolEvent, WorkerJoined, WorkerLeft
from tests.orchestrator import fakes
from tests.orchestrator.fakes import FakeStore, graph_of, plan_of
from workers.runtime.compiler import SCRATCH
from workers.store.claims import Claims

EXECUTE = "tests.orchestrator.fakes.execute"
RUN = "r1"
ROOT = Path(__file__).resolve().parents[3]

linux = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc")


def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait for something that happens in another process."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


class Shared:
    """A cluster of two slots, its pool, and the store its jobs write to."""

    def __init__(self, root: Path) -> None:
        self.root, self.store = root, FakeStore(root)
        self.cluster = LocalCluster(2)
        self.pool = RayPool(self.cluster, str(root), RUN, EXECUTE)
        self.slots: set[str] = set()

    def start(self) -> None:
        self.pool.start()
        self.slots = {event.slot for event in self.hear(WorkerJoined, WorkerJoined) if isinstance(event, WorkerJoined)}

    def hear(self, *kinds: type[PoolEvent]) -> list[PoolEvent]:
        """The next events, which must be of these kinds in some order."""
        heard: list[PoolEvent] = []
        deadline = time.monotonic() + 60.0
        while len(heard) < len(kinds):
            assert time.monotonic() < deadline, f"heard only {heard}"
            heard += self.pool.events(1.0)
        assert sorted(type(event).__name__ for event in heard) == sorted(kind.__name__ for kind in kinds)
        return heard

    def submit(self, draw: int, slot: str, seed: int = 0) -> str:
        graph, _ = graph_of([fakes.WORKS] * seed + [draw])
        job = list(graph)[-1]
        self.pool.submit(job.to_json(), slot, 1, 0)
        return job.key


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    made = Shared(tmp_path_factory.mktemp("store"))
    try:
        made.start()
        folder = made.cluster.folder
        assert folder is not None and folder.exists()
        yield made
    finally:
        made.pool.close(0.0)
    assert not folder.exists()
    assert reaper.processes_of(folder) == []


def test_two_jobs_run_on_two_slots_at_a_time(shared: Shared) -> None:
    first, second = sorted(shared.slots)
    keys = [shared.submit(fakes.WORKS, first, 1), shared.submit(fakes.WORKS, second, 2)]
    answers = shared.hear(JobReturned, JobReturned)
    assert {(answer.slot, answer.key, answer.status) for answer in answers if isinstance(answer, JobReturned)} == {
        (first, keys[0], "done"),
        (second, keys[1], "done"),
    }
    assert shared.store.starts(keys[0]) != shared.store.starts(keys[1])
    kind, level, threads = json.loads((shared.root / f"{keys[0]}.made").read_text())
    assert (kind, level, threads) == ("select", 0, "1")


def test_an_exception_out_of_execute_is_an_answer_and_the_worker_stays(shared: Shared) -> None:
    slot = min(shared.slots)
    shared.submit(fakes.RAISES, slot)
    (answer,) = shared.hear(JobReturned)
    assert isinstance(answer, JobReturned) and (answer.status, answer.reason) == ("failed", "bug")
    assert "execute broke its promise" in answer.message
    shared.submit(fakes.WORKS, slot)
    shared.hear(JobReturned)


def test_a_killed_worker_leaves_and_another_comes_under_a_new_name(
    shared: Shared, capfd: pytest.CaptureFixture[str]
) -> None:
    slot = min(shared.slots)
    key = shared.submit(fakes.SLEEPS, slot)
    until(lambda: shared.store.starts(key))
    os.kill(shared.store.starts(key)[0], signal.SIGKILL)
    left, joined = sorted(shared.hear(WorkerLeft, WorkerJoined), key=lambda event: isinstance(event, WorkerJoined))
    assert isinstance(left, WorkerLeft) and (left.slot, left.reason) == (slot, "crashed")
    assert "worker process has died" in left.message
    assert isinstance(joined, WorkerJoined) and joined.slot not in shared.slots
    shared.slots = shared.slots - {slot} | {joined.slot}
    time.sleep(0.5)  # Ray's own report of the death comes a little later
    assert capfd.readouterr().out == ""


@linux
def test_a_worker_that_is_halted_is_killed_and_replaced_once_its_claim_is_silent(
    shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared.pool, "_hang_seconds", 2.0)
    monkeypatch.setattr(shared.pool, "_next_look_at_claims", 0.0)
    slot = min(shared.slots)
    key = shared.submit(fakes.SLEEPS, slot, 3)
    until(lambda: shared.store.starts(key))
    (pid,) = shared.store.starts(key)
    claims = Claims(shared.root)
    (shared.root / "claims").mkdir(exist_ok=True)
    (shared.root / "tmp").mkdir(exist_ok=True)
    claims.put(replace(claims._new_claim(key, RUN), pid=pid, process_start=""))
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    left, joined = sorted(shared.hear(WorkerLeft, WorkerJoined), key=lambda event: isinstance(event, WorkerJoined))
    assert isinstance(left, WorkerLeft) and (left.slot, left.reason) == (slot, "crashed")
    assert left.message.startswith("silent for") and time.monotonic() - began >= 1.5
    assert isinstance(joined, WorkerJoined)
    shared.slots = shared.slots - {slot} | {joined.slot}
    until(lambda: not is_running(pid), seconds=5.0)


def test_a_worker_whose_claim_is_beaten_is_left_alone(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared.pool, "_hang_seconds", 3.0)
    monkeypatch.setattr(shared.pool, "_next_look_at_claims", 0.0)
    slot = min(shared.slots)
    key = shared.submit(fakes.WAITS_FOR_STOP, slot)
    claims, until_then = Claims(shared.root), time.monotonic() + 6.0
    (shared.root / "claims").mkdir(exist_ok=True)
    (shared.root / "tmp").mkdir(exist_ok=True)
    while time.monotonic() < until_then:
        claims.put(claims._new_claim(key, "another run"))  # else this process is killed if it is slow
        assert shared.pool.events(0.2) == []
    (shared.root / "runs" / RUN).mkdir(parents=True, exist_ok=True)
    stop = shared.root / "runs" / RUN / "stop"
    stop.touch()
    shared.hear(JobReturned)
    stop.unlink()


def test_what_a_job_prints_stays_out_of_the_drivers_output(shared: Shared, capfd: pytest.CaptureFixture[str]) -> None:
    shared.submit(fakes.PRINTS, min(shared.slots))
    shared.hear(JobReturned)
    assert capfd.readouterr().out == ""


def test_waiting_for_nothing_takes_the_time_it_was_given(shared: Shared) -> None:
    began = time.monotonic()
    assert shared.pool.events(0.3) == []
    assert 0.3 <= time.monotonic() - began < 3.0


def test_the_token_is_private_and_on_no_command_line(shared: Shared) -> None:
    folder = shared.cluster.folder
    assert folder is not None
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "token").stat().st_mode) == 0o600
    token = (folder / "token").read_text()
    assert len(token) == 64
    assert reaper.TOKEN_VARIABLE not in os.environ
    for pid in reaper.processes_of(folder):
        assert token.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()


def test_a_client_without_the_token_is_turned_away(shared: Shared) -> None:
    address = shared.pool._ray.get_runtime_context().gcs_address
    assert address.startswith("127.0.0.1:")
    ask = (
        "import sys; from ray._raylet import GcsClient;"
        "print(GcsClient(address=sys.argv[1]).internal_kv_keys(b'', None)); print('LET IN')"
    )
    strangers = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    strangers |= {"HOME": str(shared.root), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
    asked = [sys.executable, "-c", ask, address]
    answer = subprocess.run(asked, env=strangers, capture_output=True, text=True, timeout=60)
    assert "LET IN" not in answer.stdout
    assert "InvalidAuthToken" in answer.stderr
    owners = strangers | {"RAY_AUTH_TOKEN": ray_cluster._token or ""}
    answer = subprocess.run(asked, env=owners, capture_output=True, text=True, timeout=60)
    assert "LET IN" in answer.stdout


@linux
def test_a_local_cluster_starts_no_process_that_nobody_asks(shared: Shared) -> None:
    assert shared.cluster.folder is not None
    commands = [Path(f"/proc/{pid}/cmdline").read_text() for pid in reaper.processes_of(shared.cluster.folder)]
    assert any("gcs_server" in command for command in commands)
    assert not [command for command in commands if "monitor.py" in command]


@linux
def test_no_process_of_a_cluster_gets_the_signals_of_our_group(shared: Shared) -> None:
    assert shared.cluster.folder is not None
    groups = {os.getpgid(pid) for pid in reaper.processes_of(shared.cluster.folder)}
    assert groups and os.getpgid(0) not in groups


@linux
def test_every_port_listens_on_the_loopback_address(shared: Shared) -> None:
    folder = shared.cluster.folder
    assert folder is not None
    ours = {str(pid) for pid in [*reaper.processes_of(folder), os.getpid()]}
    sockets = {
        os.readlink(link)
        for pid in ours
        for link in Path(f"/proc/{pid}/fd").iterdir()
        if link.is_symlink() and "socket" in os.readlink(link)
    }
    listening = [
        line.split()[1]
        for table in ("/proc/net/tcp", "/proc/net/tcp6")
        for line in Path(table).read_text().splitlines()[1:]
        if line.split()[3] == "0A" and f"socket:[{line.split()[9]}]" in sockets
    ]
    loopback = ("0100007F", "0000000000000000FFFF00000100007F")
    assert listening and all(address.startswith(loopback) for address in listening)


def is_running(pid: int) -> bool:
    """Whether there is such a process, and not just a zombie that nobody has asked for."""
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


# Whole drivers, each a process of its own.

DRIVER = """
import sys
from pathlib import Path
from tests.orchestrator.clusters.test_ray_pool import drive
sys.exit(drive(Path(sys.argv[1]), [int(draw) for draw in sys.argv[2].split(",")]))
"""


def drive(root: Path, draws: list[int]) -> int:
    """A run of unconnected fake jobs on two local workers; returns its exit code."""
    graph, _ = graph_of(draws)
    pool = RayPool(LocalCluster(2), str(root), RUN, EXECUTE)
    with Journal.open(root / "runs" / RUN) as journal:
        return run(plan_of(graph), graph, pool, journal, FakeStore(root), about=RunInfo(RUN)).exit


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """Where a driver keeps its temporary files; the path of a socket has to be short."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as folder:
        yield Path(folder)


StartDriver = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start_driver(tmp_path: Path, short_folder: Path) -> Iterator[StartDriver]:
    """Starts a driver over fake jobs with these draws; what still runs when the test ends is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(*draws: int) -> subprocess.Popen[str]:
        driver = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", DRIVER, str(tmp_path), ",".join(map(str, draws))],
            cwd=ROOT,
            env=os.environ | {"TMPDIR": str(short_folder)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(driver)
        return driver

    yield start
    for driver in started:
        driver.kill()
        driver.communicate()


def ended(driver: subprocess.Popen[str], seconds: float = 120.0) -> tuple[int, str, str]:
    """The exit code and what the driver printed."""
    try:
        out, err = driver.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        driver.kill()
        out, err = driver.communicate()
        pytest.fail(f"the driver did not end: {out}{err}")
    return driver.returncode, out, err


@linux
@pytest.mark.slow
def test_a_run_survives_a_worker_that_crashes_and_leaves_nothing_behind(
    tmp_path: Path, short_folder: Path, start_driver: StartDriver
) -> None:
    driver = start_driver(fakes.CRASHES_ONCE, fakes.WORKS, fakes.PRINTS)
    assert ended(driver) == (0, "", "")
    events = [record["event"] for record in read(tmp_path / "runs" / RUN / "journal.jsonl")]
    assert events.count("job_done") == 3
    assert events.count("slot_left") == 1
    assert events.count("slot_joined") >= 2
    assert list(short_folder.iterdir()) == []


@linux
@pytest.mark.slow
def test_a_sticky_error_of_a_card_costs_a_worker_and_no_job(tmp_path: Path, start_driver: StartDriver) -> None:
    driver = start_driver(*[fakes.CARD_FAILS_ONCE] * 3, *[fakes.WORKS] * 21)
    assert ended(driver) == (0, "", "")
    records = list(read(tmp_path / "runs" / RUN / "journal.jsonl"))
    events = [record["event"] for record in records]
    assert (events.count("job_done"), events.count("slot_left")) == (24, 3)
    assert events.count("slot_joined") == 4, "two workers, and one for each of the first two that left"
    told = [record["message"] for record in records if record["event"] == "slot_left"]
    assert all("card GPU-7 of node" in message and "device-side assert" in message for message in told)
    assert any("is left alone: it failed 3 times" in str(record) for record in records)


@linux
@pytest.mark.slow
def test_ctrl_c_in_the_terminal_lets_jobs_yield_and_leaves_nothing_behind(
    tmp_path: Path, short_folder: Path, start_driver: StartDriver
) -> None:
    driver = start_driver(fakes.WAITS_FOR_STOP, fakes.WAITS_FOR_STOP)
    until(lambda: len(list(tmp_path.glob("*.started"))) == 2)
    os.killpg(driver.pid, signal.SIGINT)  # a terminal tells the whole group
    assert ended(driver) == (130, "", "")
    events = [record["event"] for record in read(tmp_path / "runs" / RUN / "journal.jsonl")]
    assert events.count("job_yielded") == 2
    assert "slot_left" not in events
    assert list(short_folder.iterdir()) == []


@linux
@pytest.mark.slow
def test_kill_9_of_the_driver_leaves_no_process_and_no_folder(
    tmp_path: Path, short_folder: Path, start_driver: StartDriver
) -> None:
    driver = start_driver(fakes.SLEEPS, fakes.WORKS)
    until(lambda: list(tmp_path.glob("*.made")) and len(list(tmp_path.glob("*.started"))) == 2)
    (folder,) = short_folder.iterdir()
    assert len(reaper.processes_of(folder)) > 5
    driver.kill()
    assert ended(driver)[0] == -signal.SIGKILL
    until(lambda: not reaper.processes_of(folder) and not folder.exists(), seconds=15.0)
    workers = [pid for marks in tmp_path.glob("*.started") for pid in FakeStore(tmp_path).starts(marks.stem)]
    until(lambda: not any(map(is_running, workers)), seconds=5.0)  # a killed one takes a moment to be gone


class TwoNodes(LocalCluster):
    """A cluster of up to two nodes on this machine, each with one slot; the second one comes and goes."""

    OFFER: ClassVar[dict[str, Any]] = {
        "num_cpus": 1,
        "resources": {ray_cluster.SLOT: 1},
        "object_store_memory": 100_000_000,
    }

    def open(self) -> Any:
        self.folder = Path(tempfile.mkdtemp(prefix="pdd-"))
        self._reaper = reaper.watch(self.folder)
        ray_cluster._token = "0" * 64
        (self.folder / "token").write_text(ray_cluster._token)
        with self.settings():
            self._ray = ray_cluster.import_ray()
            from ray.cluster_utils import Cluster

            self.nodes = Cluster(initialize_head=True, head_node_args={**self.OFFER, "include_dashboard": False})
            self._ray.init(address=self.nodes.address, log_to_driver=False, logging_level="ERROR")
        return self._ray

    def settings(self) -> Any:
        assert self.folder is not None
        temporary = {"RAY_TMPDIR": str(self.folder / "ray")}
        return ray_cluster._environment(ray_cluster._settings(self.folder / "token") | temporary)

    def add(self) -> Any:
        with self.settings():
            return self.nodes.add_node(**self.OFFER)

    def close(self) -> None:
        self._ray.shutdown()
        self.nodes.shutdown()  # type: ignore[no-untyped-call]
        super().close()


def watch_nodes_come_and_go(root: Path) -> None:
    """Prints what a pool says of a node that joins, takes a job, dies and joins again."""
    cluster = TwoNodes(2)
    pool = RayPool(cluster, str(root), RUN, EXECUTE)
    pool.start()
    try:
        hear_one(pool)
        node = cluster.add()
        other = hear_one(pool)
        graph, (key,) = graph_of([fakes.SLEEPS])
        pool.submit(graph[key].to_json(), other, 1, 0)
        until(lambda: FakeStore(root).starts(key))
        cluster.nodes.remove_node(node, allow_graceful=False)
        hear_one(pool)
        cluster.add()
        hear_one(pool)
    finally:
        pool.close(0.0)


def hear_one(pool: RayPool) -> str:
    heard: list[Any] = []
    while not heard:
        heard = pool.events(1.0)
    (event,) = heard
    print(type(event).__name__, getattr(event, "reason", ""))
    slot: str = event.slot
    return slot


@linux
@pytest.mark.slow
@pytest.mark.long
def test_slots_follow_a_node_that_dies_and_comes_again(tmp_path: Path, short_folder: Path) -> None:
    script = "import sys, pathlib, tests.orchestrator.clusters.test_ray_pool as t\n"
    script += "t.watch_nodes_come_and_go(pathlib.Path(sys.argv[1]))"
    watched = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(short_folder)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert watched.returncode == 0, watched.stderr
    assert watched.stdout.splitlines() == ["WorkerJoined ", "WorkerJoined ", "WorkerLeft lost", "WorkerJoined "]
    assert list(short_folder.iterdir()) == []


@pytest.mark.slow
def test_a_worker_that_cannot_start_ends_the_run_with_the_reason(tmp_path: Path, short_folder: Path) -> None:
    draw = "import tests.orchestrator.clusters.test_ray_pool as t; t.EXECUTE = 'tests.orchestrator.fakes.nothing'\n"
    driver = subprocess.run(
        [sys.executable, "-c", draw + DRIVER, str(tmp_path), "0"],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(short_folder)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert driver.returncode == 1
    assert "PoolBroken: no worker starts on" in driver.stderr
    assert "has no nothing" in driver.stderr
    assert list(short_folder.iterdir()) == []


# Without a cluster.


class SlowStart(LocalCluster):
    """Ray does not start at the first attempts."""

    def __init__(self, failures: int) -> None:
        super().__init__(1)
        self.failures, self.closed = failures, 0

    def _start(self) -> Any:
        self.failures -= 1
        if self.failures >= 0:
            raise Exception("The current node timed out during startup.\n This could happen because")
        return "ray"

    def close(self) -> None:
        self.closed += 1


def test_workers_are_told_of_the_clusters_own_folder(tmp_path: Path) -> None:
    assert ray_cluster._settings(tmp_path / "token")[SCRATCH] == str(tmp_path)


def test_ray_that_does_not_start_is_tried_once_more_and_then_told_in_one_sentence() -> None:
    once = SlowStart(1)
    assert once.open() == "ray" and once.closed == 1
    with pytest.raises(PoolBroken, match="did not start in 2 attempts; is the machine overloaded.*timed out") as broken:
        SlowStart(2).open()
    assert "\n" not in str(broken.value)


def test_a_gcs_that_is_gone_breaks_the_pool_and_one_that_listens_does_not() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        _look_for_gcs(address)
    with pytest.raises(PoolBroken, match="GCS") as broken:
        _look_for_gcs(address)
    assert isinstance(broken.value.__cause__, OSError), "it is no bug of ours"


def test_running_jobs_get_little_time_to_save_when_the_gcs_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    pool = RayPool(LocalCluster(1), str(tmp_path), RUN)
    pool._ray = SimpleNamespace(
        get_runtime_context=lambda: SimpleNamespace(gcs_address="127.0.0.1:1"),
        wait=lambda owed, num_returns, timeout: waits.append(timeout),
    )
    pool._slots, pool._pending = {"w": _Slot(None, "n", "h", 0, joined=True)}, {"ref": "w"}
    monkeypatch.setattr(ray_pool, "LOST_GRACE_SECONDS", 0.5)
    monkeypatch.setattr(pool, "_cluster", SimpleNamespace(close=lambda: None))
    with pytest.raises(PoolBroken, match="GCS"):
        pool.events(0.0)
    pool.close(30.0)
    assert waits == [0.5]


def test_ray_imported_by_somebody_else_is_refused() -> None:
    ask = "import ray; from orchestrator.clusters.ray_cluster import LocalCluster; LocalCluster(1).open()"
    answer = subprocess.run([sys.executable, "-c", ask], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert "PoolBroken: Ray was imported before" in answer.stderr


def test_a_long_folder_for_temporary_files_is_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 40)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with pytest.raises(BadInput, match="TMPDIR"):
        LocalCluster(1).open()
    assert list(long.iterdir()) == []


def test_the_environment_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "theirs")
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    with ray_cluster._environment({"RAY_AUTH_TOKEN": None, "RAY_AUTH_MODE": "token"}):
        assert "RAY_AUTH_TOKEN" not in os.environ and os.environ["RAY_AUTH_MODE"] == "token"
    assert os.environ["RAY_AUTH_TOKEN"] == "theirs" and "RAY_AUTH_MODE" not in os.environ


@linux
def test_a_process_that_has_no_environment_any_more_is_known_by_an_output_of_its_cluster(short_folder: Path) -> None:
    folder = short_folder / "cluster"
    folder.mkdir()

    def sleeping(inherited: IO[bytes], **more: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(["/bin/sleep", "100"], env={}, pass_fds=[inherited.fileno()], **more)

    with open(folder / "raylet.out", "wb") as output, open(folder / "driver.log", "wb") as log:
        prints, inherits, driver = sleeping(output, stdout=output), sleeping(output), sleeping(log)
    with open(folder / "raylet.out", "rb") as output:
        reader = sleeping(output)
    try:
        until(lambda: sorted(reaper.processes_of(folder)) == sorted([prints.pid, inherits.pid]))
        reaper.clear(folder, grace=0.0, quiet=0.2)
        assert prints.wait(10) == inherits.wait(10) == -signal.SIGKILL and not folder.exists()
        assert driver.poll() is None and reader.poll() is None
    finally:
        for process in (prints, inherits, driver, reader):
            process.kill()
            process.wait()


@linux
def test_the_reaper_kills_what_stays_and_removes_the_folder(short_folder: Path) -> None:
    folder = short_folder / "cluster"
    folder.mkdir()
    (folder / "token").touch()
    stays = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(60)"],
        env={reaper.TOKEN_VARIABLE: str(folder / "token")},
    )
    until(lambda: reaper.processes_of(folder) == [stays.pid])
    reaper.clear(folder, grace=0.1, quiet=0.3)
    assert stays.wait(timeout=5) == -signal.SIGKILL
    assert not folder.exists()
