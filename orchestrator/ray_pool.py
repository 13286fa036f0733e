"""Workers on a Ray cluster of our own: one actor a slot, pinned to its node.

Ray is the muscle and nothing else: it carries specs and keys to processes and tells which processes died.
Retries, order and results are ours, so every one of Ray's own retries is off, and artifacts travel
through the store.

Slots follow the living nodes that offer `pdd_slot`: a node that comes gets its actors, a node that goes
takes its slots along, an actor that dies on a living node is replaced under a new name. Where the nodes
come from is a `Cluster`: `LocalCluster` starts one on this machine, `AttachedCluster` joins one by its address. A
cluster whose nodes are lent (`orchestrator.fleet`) looks after them itself: it is told what each node has to do, and
says which of them to let go.

What is kept from others on the machine or the network: token authentication is always on, with a fresh
token in a 0600 file inside a 0700 folder; a local cluster's ports listen on the loopback address; no dashboard; nothing
is reported to Ray's makers. Ray reads its authentication settings once, when it is imported; therefore it
is imported here, late, and finding it imported by somebody else is an error.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, Literal, Protocol

from jobs.errors import BadInput
from jobs.graph import Job
from orchestrator import reaper
from orchestrator.events import LeaveReason
from orchestrator.pool import EXECUTE, Answer, Joined, Left, PoolBroken, PoolEvent, Said, perform, resolve
from orchestrator.rendezvous import difference
from orchestrator.rendezvous import versions as our_versions
from workers.shift import Shift

SLOT = "pdd_slot"
"""The resource a node offers once for each job it may run at a time."""
LONGEST_FOLDER = 40
"""Ray adds up to 64 characters to its folder, and the path of a Unix socket may have 107 bytes."""
OBJECT_STORE_BYTES = 200_000_000
"""Enough by far: only specs and answers pass through it."""
LOOK_EVERY = 1.0
"""Seconds between two looks at the list of nodes."""
START_ATTEMPTS = 3
"""Workers in a row that may fail to start on a node before the node is given up."""

_token: str | None = None
"""This process's token: Ray keeps the first it reads, so all clusters of one process share it."""


@dataclass(frozen=True)
class NodeUse:
    """A living node, what it offers, and how many of its slots have a job."""

    id: str
    host: str
    resources: Mapping[str, float]
    busy: int


@dataclass(frozen=True)
class Care:
    """What a cluster wants after a look at its nodes: words for people, and the ids of the nodes to let go."""

    say: tuple[str, ...] = ()
    release: tuple[str, ...] = ()


class Cluster(Protocol):
    """Where the nodes come from."""

    def open(self) -> Any:
        """Connect this process to the cluster and return the module `ray`."""

    def tend(self, nodes: Sequence[NodeUse]) -> Care:
        """Look after the nodes; called about once a second.

        Raises:
            PoolBroken: no node will come.
        """

    def released(self, nodes: Sequence[NodeUse]) -> None:
        """These nodes were let go, as `tend` wished: nothing runs on them and nothing more will."""

    def offers(self, resources: Mapping[str, float]) -> int:
        """The slots of a node with these resources."""

    def complaint(self, versions: Mapping[str, str]) -> str:
        """Why a worker that has these versions must not work; empty if it may."""

    def close(self) -> None:
        """Disconnect, and end what `open` started."""


class PlainNodes:
    """What clusters have in common whose nodes offer slots and need no care."""

    def tend(self, nodes: Sequence[NodeUse]) -> Care:
        """Nothing is to be done."""
        return Care()

    def released(self, nodes: Sequence[NodeUse]) -> None:
        """None ever is."""

    def offers(self, resources: Mapping[str, float]) -> int:
        """What the node says."""
        return int(resources.get(SLOT, 0))

    def complaint(self, versions: Mapping[str, str]) -> str:
        """None: it runs what we run."""
        return ""


class LocalCluster(PlainNodes):
    """A Ray cluster on this machine that offers `workers` slots and leaves nothing behind."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.folder: Path | None = None
        self._reaper: subprocess.Popen[bytes] | None = None
        self._ray: Any = None

    def open(self) -> Any:
        """Start the cluster.

        Raises:
            BadInput: the folder for temporary files has too long a name.
            PoolBroken: Ray was imported before, without our settings.
        """
        self.folder = _private_folder()
        self._reaper = reaper.watch(self.folder)
        with _environment(_settings(self.folder / "token")):
            self._ray = import_ray()
            _write_private(self.folder / "token", _token or "")
            self._ray.init(
                address="local",
                num_cpus=self.workers,
                resources={SLOT: self.workers},
                object_store_memory=OBJECT_STORE_BYTES,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _node_ip_address="127.0.0.1",
                _temp_dir=str(self.folder / "ray"),  # Ray opens it to everybody; the folder above stays ours
            )
        return self._ray

    def close(self) -> None:
        """End the cluster's processes and remove its folder."""
        if self._ray is not None:
            self._ray.shutdown()
        if self._reaper is not None and self._reaper.stdin is not None:
            self._reaper.stdin.close()
            self._reaper.wait()
            self._reaper = None


class AttachedCluster(PlainNodes):
    """A Ray cluster that runs already, joined by its address and with its token."""

    def __init__(self, address: str, token_file: Path | None, node_address: str | None = None) -> None:
        self.address, self.token_file, self.node_address = address, token_file, node_address
        self._ray: Any = None

    def open(self) -> Any:
        """Connect.

        Raises:
            PoolBroken: Ray was imported before with another token, or the cluster does not answer or let us in.
        """
        with _environment(settings(self.token_file)):
            self._ray = import_ray(self.token_file)
            more = {} if self.node_address is None else {"_node_ip_address": self.node_address}
            try:
                self._ray.init(address=self.address, log_to_driver=False, logging_level=logging.ERROR, **more)
            except (ConnectionError, RuntimeError, self._ray.exceptions.RayError) as error:
                raise PoolBroken(f"Ray at {self.address} does not let us in: {brief(error)}") from error
        return self._ray

    def close(self) -> None:
        """Disconnect; the cluster goes on."""
        if self._ray is not None:
            self._ray.shutdown()


class ForeignCluster(AttachedCluster):
    """A Ray cluster that somebody else keeps running: its nodes do not offer slots by themselves.

    Every worker says which Python, Ray and code of ours it has, and one that differs gets no job.
    """

    def __init__(self, address: str, token_file: Path | None, slots: int | Literal["auto"] = "auto") -> None:
        super().__init__(address, token_file)
        self.slots = slots

    def offers(self, resources: Mapping[str, float]) -> int:
        """One slot a GPU, or a core where there is none; the head of a cluster often offers none of both."""
        if self.slots != "auto":
            return self.slots if resources.get("CPU", 0) else 0
        return int(resources.get("GPU", 0) or resources.get("CPU", 0))

    def complaint(self, versions: Mapping[str, str]) -> str:
        """What differs from this process."""
        return difference(versions, our_versions())


@dataclass
class _Slot:
    actor: Any
    node: str
    host: str
    joined: bool = False


class RayPool:
    """The pool over a cluster; see `orchestrator.pool.Pool`."""

    def __init__(
        self,
        cluster: Cluster,
        store_root: str,
        run: str,
        execute: str = EXECUTE,
        uninterrupted: Callable[[Job], float] = lambda job: 0.0,
    ) -> None:
        self._cluster, self._uninterrupted = cluster, uninterrupted
        self._job_place = (execute, store_root, run)
        self._ray: Any = None
        self._actor_class: Any = None
        self._slots: dict[str, _Slot] = {}
        self._pending: dict[Any, str] = {}
        """Ray's promises, each with the slot that owes it: a greeting, then one answer at a time."""
        self._failed_starts: Counter[str] = Counter()
        self._released: set[str] = set()
        self._started = 0
        self._next_look = 0.0

    def start(self) -> None:
        """Open the cluster; workers are told as they report."""
        self._ray = self._cluster.open()
        self._actor_class = self._ray.remote(max_restarts=0, max_task_retries=0)(SlotWorker)

    def submit(self, job: dict[str, Any], slot: str, attempt: int, memory_level: int) -> None:
        """Send the job to the slot's actor."""
        seconds = self._uninterrupted(Job.from_json(job))
        self._pending[self._slots[slot].actor.run.remote(job, memory_level, seconds)] = slot

    def events(self, timeout: float) -> list[PoolEvent]:
        """What happened since the last call; Ray's completions wake it.

        Raises:
            PoolBroken: on no living node a worker starts.
        """
        deadline = time.monotonic() + timeout
        found: list[PoolEvent] = []
        while True:
            if time.monotonic() >= self._next_look:
                found += self._look_at_nodes()
            until = min(deadline, self._next_look)
            for promise in self._wait(0.0 if found else max(0.0, until - time.monotonic())):
                found += self._collect(promise)
            if found or time.monotonic() >= deadline:
                return found

    def close(self, grace_seconds: float) -> None:
        """Wait for running jobs, at most that long, and close the cluster."""
        owed = [promise for promise, slot in self._pending.items() if self._slots[slot].joined]
        if owed and grace_seconds > 0:
            self._ray.wait(owed, num_returns=len(owed), timeout=grace_seconds)
        self._slots.clear()
        self._pending.clear()
        self._cluster.close()

    def _wait(self, seconds: float) -> list[Any]:
        """The promises that were kept; waits for the first of them."""
        if not self._pending:
            time.sleep(seconds)
            return []
        promises = list(self._pending)
        kept, _ = self._ray.wait(promises, num_returns=1, timeout=seconds)
        if kept:
            kept, _ = self._ray.wait(promises, num_returns=len(promises), timeout=0)
        return list(kept)

    def _look_at_nodes(self) -> Iterator[PoolEvent]:
        """Let the slots follow the living nodes."""
        self._next_look = time.monotonic() + LOOK_EVERY
        nodes = self._living_nodes()
        for name in [name for name, slot in self._slots.items() if slot.node not in nodes]:
            yield from self._drop(name, "lost", "its node is gone")
        yield from self._tend(nodes)
        taken = Counter(slot.node for slot in self._slots.values())
        for node in nodes.values():
            if node["NodeID"] in self._released:
                continue
            offered = self._cluster.offers(node["Resources"])
            for _ in range(offered - taken[node["NodeID"]]):
                if self._failed_starts[node["NodeID"]] < START_ATTEMPTS:
                    self._start_worker(node, offered)

    def _tend(self, nodes: Mapping[str, Mapping[str, Any]]) -> Iterator[PoolEvent]:
        """Let the cluster look after its nodes, and let go those that it wants back."""
        at_work = Counter(self._slots[name].node for name in self._pending.values() if self._slots[name].joined)
        uses = [
            NodeUse(name, node["NodeManagerHostname"], node["Resources"], at_work[name])
            for name, node in nodes.items()
            if name not in self._released
        ]
        care = self._cluster.tend(uses)
        for text in care.say:
            yield Said(text)
        for name in [name for name, slot in self._slots.items() if slot.node in care.release]:
            yield from self._drop(name, "preempted", "its node is given back")
        self._released |= set(care.release)
        self._cluster.released([use for use in uses if use.id in care.release])

    def _living_nodes(self) -> dict[str, dict[str, Any]]:
        nodes = self._ray.nodes()  # lists the dead ones too
        return {node["NodeID"]: node for node in nodes if node["Alive"] and self._cluster.offers(node["Resources"])}

    def _start_worker(self, node: Mapping[str, Any], offered: int) -> None:
        place = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        actor = self._actor_class.options(
            num_cpus=1,
            num_gpus=gpu_share(node["Resources"].get("GPU", 0.0), offered),
            resources={SLOT: 1} if SLOT in node["Resources"] else {},
            scheduling_strategy=place,
        ).remote(*self._job_place)
        name = f"{node['NodeManagerHostname']}-{self._started}"
        self._started += 1
        self._slots[name] = _Slot(actor, node["NodeID"], node["NodeManagerHostname"])
        self._pending[actor.greet.remote()] = name

    def _collect(self, promise: Any) -> Iterator[PoolEvent]:
        """What a kept, or broken, promise means."""
        name = self._pending.pop(promise)
        slot, broken = self._slots[name], self._ray.exceptions
        try:
            value = self._ray.get(promise)
        except broken.OutOfMemoryError as error:  # Ray's memory monitor killed it before the kernel would
            yield from self._drop(name, "memory", brief(error))
        except broken.ActorUnavailableError as error:
            self._ray.kill(slot.actor)  # it may still be there, but nobody could tell what became of its job
            yield from self._drop(name, "lost", brief(error))
        except broken.RayActorError as error:
            yield from self._drop(name, self._why_dead(slot, error), brief(error))
        except broken.RayTaskError as error:
            yield Answer(name, "failed", "", reason="bug", message=brief(error))
        except broken.RayError as error:
            yield from self._drop(name, "lost", brief(error))
        else:
            if slot.joined:
                yield Answer(slot=name, **value)
            elif complaint := self._cluster.complaint(value):
                self._ray.kill(slot.actor)
                yield from self._drop(name, "crashed", f"{slot.host} does not fit: {complaint}")
            else:
                slot.joined = True
                self._failed_starts[slot.node] = 0
                yield Joined(name, slot.host)

    def _why_dead(self, slot: _Slot, error: Any) -> LeaveReason:
        if error.preempted:
            return "preempted"
        return "crashed" if slot.node in self._living_nodes() else "lost"

    def _drop(self, name: str, reason: LeaveReason, message: str) -> Iterator[PoolEvent]:
        """Forget a slot; its node is looked at again at once."""
        slot = self._slots.pop(name)
        self._pending = {promise: owner for promise, owner in self._pending.items() if owner != name}
        self._next_look = 0.0
        if slot.joined:
            yield Left(name, reason, message)
        elif reason != "lost":
            yield from self._count_failed_start(slot, message)

    def _count_failed_start(self, slot: _Slot, message: str) -> Iterator[PoolEvent]:
        self._failed_starts[slot.node] += 1
        if self._failed_starts[slot.node] != START_ATTEMPTS:
            return
        if all(self._failed_starts[node] >= START_ATTEMPTS for node in self._living_nodes()):
            raise PoolBroken(f"no worker starts on {slot.host}: {message}")
        yield Said(f"node {slot.host} is not used any more: no worker starts on it: {message}")


class SlotWorker:
    """The process of one slot: settles on the machine once, then does one job after the other."""

    def __init__(self, execute: str, store_root: str, run: str) -> None:
        _settle_on_machine()
        self._execute, self._store_root, self._run = resolve(execute), store_root, run

    def greet(self) -> dict[str, str]:
        """Which versions it has, when the process is ready."""
        return our_versions()

    def run(self, job: dict[str, Any], memory_level: int, uninterrupted: float = 0.0) -> dict[str, Any]:
        """Do the job (see `workers.execute.execute`), unless the shift ends before its next checkpoint.

        `uninterrupted` is what it takes to get there, in seconds.
        """
        if not Shift.current().has_room_for(uninterrupted):
            return {"status": "yielded", "key": "", "leaving": True}
        return perform(self._execute, job, self._store_root, self._run, memory_level)


def _settle_on_machine() -> None:
    try:
        prepare = resolve("workers.process.prepare_process")
    except ModuleNotFoundError:  # a node that runs something else than our jobs, as the tests do
        return
    prepare()


def gpu_share(gpus: float, slots: int) -> float:
    """The GPUs, or the part of one, that each of a node's slots gets so that all of them fit."""
    if gpus < 1:
        return 0.0
    return float(gpus // slots) if gpus >= slots else 1.0 / ceil(slots / gpus)


def import_ray(token_file: Path | None = None) -> Any:
    """Import Ray under the settings in the environment, which it reads now and never again.

    Raises:
        PoolBroken: somebody else imported it first, or this process has had another token before.
    """
    global _token
    wanted = token_file.read_text(encoding="ascii") if token_file is not None else None
    if _token is not None and wanted not in (None, _token):
        raise PoolBroken("this process has used Ray with another token; attach from a process of its own")
    if _token is None:
        if "ray" in sys.modules:
            raise PoolBroken(
                "Ray was imported before the worker pool could set its authentication: "
                "import nothing that imports ray before the run starts"
            )
        _token = wanted or secrets.token_hex(32)
    import ray
    import ray.exceptions
    import ray.util.scheduling_strategies

    # Ray prints what befell its workers on standard output, where --json has its one document; the pool
    # says it as `Left`.
    ray._private.worker.print_to_stdstream = lambda *_, **__: None
    return ray


def _settings(token: Path) -> dict[str, str | None]:
    """The same for a cluster that keeps to the loopback address, which Ray does on Linux only when told."""
    return settings(token) | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


def settings(token: Path | None) -> dict[str, str | None]:
    """The variables under which Ray's processes start, with this file as their token; None unsets one."""
    return {
        "RAY_AUTH_MODE": "disabled" if token is None else "token",
        reaper.TOKEN_VARIABLE: None if token is None else str(token),
        "RAY_AUTH_TOKEN": None,  # would go before the file
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # leave a worker's list of GPUs alone, and do not warn
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }


@contextmanager
def _environment(settings: Mapping[str, str | None]) -> Iterator[None]:
    """Set variables for the processes that start meanwhile; None unsets one."""
    before = {name: os.environ.get(name) for name in settings}
    _set(settings)
    try:
        yield
    finally:
        _set(before)


def _set(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _private_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="pdd-"))
    if len(str(folder / "ray")) > LONGEST_FOLDER:
        folder.rmdir()
        mend = f"name a folder of at most {LONGEST_FOLDER - 17} characters, such as /tmp"
        raise BadInput("environment", "TMPDIR", tempfile.gettempdir(), mend)
    return folder


def _write_private(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "w", encoding="ascii") as file:
        file.write(text)


def brief(error: BaseException) -> str:
    """Ray's message without the advice at its end, on one line."""
    text = re.sub(r"\s+", " ", str(error)).split(" Some common causes")[0]
    return text if len(text) <= 500 else text[:500] + " …"
