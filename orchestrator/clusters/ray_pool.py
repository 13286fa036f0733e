"""Workers on a Ray cluster of our own: one actor a slot, pinned to its node.

Ray carries specs and keys to processes and tells which processes died, and does nothing else.
Retries, order and results are ours, so every one of Ray's own retries is off, and artifacts travel
through the store.

Slots follow the living nodes that offer `pdd_slot`: a node that comes gets its actors, a node that goes
takes its slots along, an actor that dies on a living node is replaced under a new name. Where the nodes
come from is a `Cluster` (`orchestrator.clusters.ray_cluster`).
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any, Literal

from jobs.graph import Job
from orchestrator.clusters.config import usable_cores
from orchestrator.clusters.ray_cluster import CPU_SLOT, SLOT, Cluster, NodeUsage, brief
from orchestrator.clusters.versions import versions as our_versions
from orchestrator.runs.pool import (
    EXECUTE,
    JobReturned,
    Message,
    PoolBroken,
    PoolEvent,
    WorkerJoined,
    WorkerLeft,
    perform,
    prepare_worker,
    resolve,
)
from orchestrator.scheduler.events import LeaveReason
from workers.runtime.time_limit import TimeLimit
from workers.store.claims import Claims

NODE_POLL_SECONDS = 1.0
"""Seconds between two looks at the list of nodes."""
CARD_FAULTS = 3
"""Sticky errors of a card after which it is left alone."""
CLAIMS_POLL_SECONDS = 5.0
"""Seconds between two looks at the claims of running jobs."""
LOST_GRACE_SECONDS = 3.0
"""Seconds that running jobs get to save when Ray's control process is gone; then a minute is left, but people wait."""
FEW = 16
"""Running jobs up to which one question at a time is asked of Ray: the next one finds what else ended meanwhile."""
START_ATTEMPTS = 3
"""Workers in a row that may fail to start on a node before the node is given up."""


@dataclass
class _Slot:
    actor: Any
    node: str
    host: str
    number: int
    """Its number on the node."""
    card: int | Literal["none"] | None = None
    """The number of the node's card that it keeps to, or that it has none beside cards; None where Ray decides."""
    joined: bool = False
    key: str = ""
    """The job that it was given last."""
    beat: float | None = None
    """What that job's claim said last, by the clock of its host."""
    heard: float = 0.0
    """Since when it says that, by our clock."""


class RayPool:
    """A pool of actors on a Ray cluster; see `orchestrator.runs.pool.Pool`."""

    def __init__(
        self,
        cluster: Cluster,
        store_root: str,
        run: str,
        execute: str = EXECUTE,
        uninterrupted: Callable[[Job], float] = lambda job: 0.0,
        hang_seconds: float = inf,
    ) -> None:
        self._cluster, self._uninterrupted = cluster, uninterrupted
        self._job_place = (execute, store_root, run)
        self._claims, self._run, self._hang_seconds = Claims(Path(store_root)), run, hang_seconds
        self._ray: Any = None
        self._actor_class: Any = None
        self._slots: dict[str, _Slot] = {}
        self._pending: dict[Any, str] = {}
        """Ray's object refs, each with the slot that owes it: a greeting, then one answer at a time."""
        self._failed_starts: Counter[str] = Counter()
        self._card_faults: Counter[str] = Counter()
        self._retired: list[_Slot] = []
        """Workers that hold a broken card and get no jobs."""
        self._released: set[str] = set()
        self._lost = False
        """Whether Ray's control process is gone."""
        self._started = 0
        self._next_look = self._next_look_at_claims = 0.0

    def start(self) -> None:
        """Open the cluster; each worker is an event when it reports."""
        self._ray = self._cluster.open()
        self._actor_class = self._ray.remote(max_restarts=0, max_task_retries=0)(SlotWorker)

    def submit(self, job: dict[str, Any], slot: str, attempt: int, memory_level: int) -> None:
        """Send the job to the slot's actor."""
        parsed, worker = Job.from_json(job), self._slots[slot]
        worker.key, worker.beat, worker.heard = parsed.key, None, time.monotonic()
        seconds = self._uninterrupted(parsed)
        self._pending[worker.actor.run.remote(job, memory_level, seconds)] = slot

    def events(self, timeout: float) -> list[PoolEvent]:
        """What happened since the last call; Ray's completions wake it.

        Raises:
            PoolBroken: on no living node a worker starts.
        """
        deadline = time.monotonic() + timeout
        happened: list[PoolEvent] = []
        while True:
            if time.monotonic() >= self._next_look:
                happened += self._look_at_nodes()
            until = min(deadline, self._next_look)
            for object_ref in self._wait(0.0 if happened else max(0.0, until - time.monotonic())):
                happened += self._collect(object_ref)
            if happened or time.monotonic() >= deadline:
                return happened

    def close(self, grace_seconds: float) -> None:
        """Wait for running jobs, at most that long, and close the cluster."""
        grace_seconds = min(grace_seconds, LOST_GRACE_SECONDS) if self._lost else grace_seconds
        owed = [object_ref for object_ref, slot in self._pending.items() if self._slots[slot].joined]
        if owed and grace_seconds > 0:
            self._ray.wait(owed, num_returns=len(owed), timeout=grace_seconds)
        self._slots.clear()
        self._pending.clear()
        self._cluster.close()

    def _wait(self, seconds: float) -> list[Any]:
        """The object refs that have a result; waits for the first of them if there is none."""
        if not self._pending:
            time.sleep(seconds)
            return []
        ready, others = self._ray.wait(list(self._pending), num_returns=1, timeout=seconds)
        if ready and len(others) > FEW:
            more, _ = self._ray.wait(others, num_returns=len(others), timeout=0)
            ready = [*ready, *more]
        return list(ready)

    def _look_at_nodes(self) -> Iterator[PoolEvent]:
        """Let the slots follow the living nodes.

        Raises:
            PoolBroken: Ray's control process, the GCS, is gone; Ray itself would end this process after a minute.
        """
        self._next_look = time.monotonic() + NODE_POLL_SECONDS
        try:
            _look_for_gcs(self._ray.get_runtime_context().gcs_address)
        except PoolBroken:
            self._lost = True
            raise
        yield from self._end_hung_workers()
        nodes = self._living_nodes()
        for name in [name for name, slot in self._slots.items() if slot.node not in nodes]:
            yield from self._drop(name, "lost", "its node is gone")
        yield from self._reconcile(nodes)
        for node in nodes.values():
            if node["NodeID"] not in self._released:
                self._fill(node)

    def _fill(self, node: Mapping[str, Any]) -> None:
        """Start a worker in every free slot of a node, until too many failed to start."""
        for number in self._free_slots(node):
            if self._failed_starts[node["NodeID"]] < START_ATTEMPTS:
                self._start_worker(node, number)

    def _free_slots(self, node: Mapping[str, Any]) -> list[int]:
        """The slots of a node that have no worker, without those on cards that are left alone."""
        retired = [slot for slot in self._retired if slot.node == node["NodeID"]]
        taken = {slot.number for slot in (*self._slots.values(), *retired) if slot.node == node["NodeID"]}
        left_alone = {slot.card for slot in retired} - {None}
        numbers = range(self._cluster.offers(node["Resources"]) + int(node["Resources"].get(CPU_SLOT, 0)))
        return [number for number in numbers if number not in taken and _own_card(node, number) not in left_alone]

    def _end_hung_workers(self) -> Iterator[PoolEvent]:
        """Kill the workers that hang: the claims of their jobs have not been beaten for too long."""
        now = time.monotonic()
        if now < self._next_look_at_claims:
            return
        self._next_look_at_claims = now + min(CLAIMS_POLL_SECONDS, self._hang_seconds / 4)
        for name in [name for name in self._pending.values() if self._slots[name].joined]:
            slot = self._slots[name]
            try:
                claim = self._claims.read(slot.key)
            except OSError:  # the file system is away for us
                continue
            beat = claim.beat_at if claim is not None else None
            if beat != slot.beat:
                slot.beat, slot.heard = beat, now
            elif (silent := now - slot.heard) >= self._hang_seconds:
                self._ray.kill(slot.actor)
                if claim is not None and claim.run == self._run and claim.process.running():
                    os.kill(claim.pid, signal.SIGKILL)  # a process that is halted does not hear Ray
                yield from self._drop(name, "crashed", f"silent for {silent:.0f} s: killed and replaced (hang_seconds)")

    def _reconcile(self, nodes: Mapping[str, Mapping[str, Any]]) -> Iterator[PoolEvent]:
        """Let the cluster manage its nodes, and drop the slots of those that it releases."""
        at_work = Counter(self._slots[name].node for name in self._pending.values() if self._slots[name].joined)
        uses = [
            NodeUsage(name, node["NodeManagerHostname"], node["Resources"], at_work[name])
            for name, node in nodes.items()
            if name not in self._released
        ]
        actions = self._cluster.reconcile(uses)
        for text in actions.say:
            yield Message(text)
        for name in [name for name, slot in self._slots.items() if slot.node in actions.release]:
            yield from self._drop(name, "preempted", "its node is given back")
        self._released |= set(actions.release)
        self._cluster.released([use for use in uses if use.id in actions.release])

    def _living_nodes(self) -> dict[str, dict[str, Any]]:
        nodes = self._ray.nodes()  # lists the dead ones too
        return {node["NodeID"]: node for node in nodes if node["Alive"] and self._cluster.offers(node["Resources"])}

    def _start_worker(self, node: Mapping[str, Any], number: int) -> None:
        place = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ours, gpus = SLOT in node["Resources"], node["Resources"].get("GPU", 0.0)
        card, offered = _own_card(node, number), self._cluster.offers(node["Resources"])
        actor = self._actor_class.options(
            num_cpus=1,
            num_gpus=0 if ours else gpu_share(gpus, offered, number),
            resources={CPU_SLOT if card == "none" else SLOT: 1} if ours else {},
            scheduling_strategy=place,
        ).remote(*self._job_place, card, offered)
        host = node["NodeManagerHostname"]
        name = f"{host}-{self._started}"
        self._started += 1
        self._slots[name] = _Slot(actor, node["NodeID"], host, number, card)
        self._pending[actor.greet.remote()] = name

    def _collect(self, object_ref: Any) -> Iterator[PoolEvent]:
        """The events that an object ref with a result, or an error, stands for."""
        name = self._pending.pop(object_ref)
        slot, broken = self._slots[name], self._ray.exceptions
        try:
            value = self._ray.get(object_ref)
        except broken.OutOfMemoryError as error:  # Ray's memory monitor killed it before the kernel would
            yield from self._drop(name, "memory", brief(error))
        except broken.ActorUnavailableError as error:
            self._ray.kill(slot.actor)  # it may still be there, but nobody could tell what became of its job
            yield from self._drop(name, "lost", brief(error))
        except broken.RayActorError as error:
            yield from self._drop(name, self._why_dead(slot, error), brief(error))
        except broken.RayTaskError as error:
            yield JobReturned(name, "failed", "", reason="bug", message=brief(error))
        except broken.RayError as error:
            yield from self._drop(name, "lost", brief(error))
        else:
            if slot.joined and value.get("reason") == "card":
                yield from self._lose_card(name, slot, value)
            elif slot.joined:
                yield JobReturned(slot=name, **value)
            elif version_mismatch := self._cluster.version_mismatch(value):
                self._ray.kill(slot.actor)
                yield from self._drop(name, "crashed", f"{slot.host} does not fit: {version_mismatch}")
            else:
                slot.joined = True
                self._failed_starts[slot.node] = 0
                card = f"{slot.host}/{slot.card}" if isinstance(slot.card, int) else ""
                yield WorkerJoined(name, slot.host, card, cpu_only=slot.card == "none")

    def _lose_card(self, name: str, slot: _Slot, result: Mapping[str, Any]) -> Iterator[PoolEvent]:
        """End a worker after a sticky error of its card; its job is tried again by another one.

        A card that fails time and again is kept by a worker that gets no jobs, so that no other gets it.
        """
        card = f"card {result['card']} of node {slot.host}"
        self._card_faults[card] += 1
        if self._card_faults[card] < CARD_FAULTS:
            self._ray.kill(slot.actor)
        else:
            self._retired.append(slot)
            yield Message(f"{card} is left alone: it failed {self._card_faults[card]} times; ask for its repair")
        yield from self._drop(name, "crashed", f"{card}: {result['message']}")
        self._require_a_card()

    def _require_a_card(self) -> None:
        """Refuse to go on when all slots of all nodes are on cards that are left alone."""
        nodes = self._living_nodes().values()
        with_card = [slot for slot in self._slots.values() if slot.card != "none"]
        free = [_own_card(node, number) for node in nodes for number in self._free_slots(node)]
        if with_card or not nodes or any(card != "none" for card in free):
            return
        raise PoolBroken(f"every card of {', '.join(node['NodeManagerHostname'] for node in nodes)} is left alone")

    def _why_dead(self, slot: _Slot, error: Any) -> LeaveReason:
        if error.preempted:
            return "preempted"
        return "crashed" if slot.node in self._living_nodes() else "lost"

    def _drop(self, name: str, reason: LeaveReason, message: str) -> Iterator[PoolEvent]:
        """Forget a slot; its node is looked at again at once."""
        slot = self._slots.pop(name)
        self._pending = {object_ref: owner for object_ref, owner in self._pending.items() if owner != name}
        self._next_look = 0.0
        if slot.joined:
            yield WorkerLeft(name, reason, message)
        elif reason != "lost":
            yield from self._count_failed_start(slot, message)

    def _count_failed_start(self, slot: _Slot, message: str) -> Iterator[PoolEvent]:
        self._failed_starts[slot.node] += 1
        if self._failed_starts[slot.node] != START_ATTEMPTS:
            return
        if all(self._failed_starts[node] >= START_ATTEMPTS for node in self._living_nodes()):
            raise PoolBroken(f"no worker starts on {slot.host}: {message}")
        yield Message(f"node {slot.host} is not used any more: no worker starts on it: {message}")


class SlotWorker:
    """The process of one slot: settles on the machine once, then does one job after the other."""

    def __init__(
        self, execute: str, store_root: str, run: str, card: int | Literal["none"] | None = None, slots: int = 1
    ) -> None:
        """Keep to the node's card of this number, and take one thread, with a card the node's cores by its slots."""
        prepare_worker(max(1, usable_cores() // slots) if isinstance(card, int) else 1, card)
        self._execute, self._store_root, self._run = resolve(execute), store_root, run

    def greet(self) -> dict[str, str]:
        """Which versions it has, when the process is ready."""
        return our_versions()

    def run(self, job: dict[str, Any], memory_level: int, uninterrupted: float = 0.0) -> dict[str, Any]:
        """Do the job (see `workers.execute.execute`), unless the time limit ends before its next checkpoint.

        `uninterrupted` is what it takes to get there, in seconds.
        """
        if not TimeLimit.current().has_room_for(uninterrupted):
            return {"status": "yielded", "key": "", "leaving": True}
        return perform(self._execute, job, self._store_root, self._run, memory_level)


def _look_for_gcs(address: str) -> None:
    """Connect to HOST:PORT; an answer that is only slow is left to Ray.

    Raises:
        PoolBroken: it was refused twice.
    """
    host, _, port = address.rpartition(":")
    for last in (False, True):
        try:
            return socket.create_connection((host.strip("[]"), int(port)), 5.0).close()
        except TimeoutError:
            return None
        except OSError as error:
            if last:
                text = "Ray's control process (GCS) is gone; what is finished stays, run the same command again"
                raise PoolBroken(text) from error
            time.sleep(0.5)


def _own_card(node: Mapping[str, Any], number: int) -> int | Literal["none"] | None:
    """The card of a slot on a node of ours, all of whose cards are ours too; None on other nodes and without cards.

    The last slots of such a node have none where it offers slots beside its cards.
    """
    cards, slots = int(node["Resources"].get("GPU", 0)), node["Resources"].get(SLOT)
    if not cards or slots is None:
        return None
    return number % cards if number < slots else "none"


def gpu_share(gpus: float, slots: int, number: int) -> float:
    """The GPUs, or the part of one, that slot `number` asks of a node that is not ours.

    Ray fills one GPU with parts before it begins another, so the parts are such that n mod G share one and fill it.

    Args:
        gpus: those of the node.
        slots: how many slots share them.
        number: the slot, counted from 0.
    """
    if gpus < 1:
        return 0.0
    if gpus >= slots:
        return float(gpus // slots)
    return 1.0 / len(range(int(number % gpus), slots, int(gpus)))
