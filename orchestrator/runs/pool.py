"""The pool of workers: jobs go in, how they ended comes out.

The driver knows this protocol only, so the same run happens in one process, on a local Ray cluster or on
SLURM. A pool decides nothing: it has slots, a slot runs one job, and `events` says what happened since
the last call. After `WorkerLeft` a slot is never heard of again.
"""

from __future__ import annotations

import importlib
import socket
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from jobs.errors import PddError
from orchestrator.scheduler.events import FailReason, LeaveReason

EXECUTE = "workers.execute.execute"
"""What a worker calls to do a job; tests name another function."""

Execute = Callable[[dict[str, Any], str, str, int], Mapping[str, Any]]


class PoolBroken(PddError):
    """No worker can be started; waiting would not help."""


@dataclass(frozen=True)
class WorkerJoined:
    """A worker joined with a slot for one job at a time."""

    slot: str
    host: str
    card: str = ""
    """What it shares with other slots of the same name: a card; empty for a core of its own."""
    cpu_only: bool = False
    """Whether it stands without a card beside slots with one, and takes the jobs that need none."""


@dataclass(frozen=True)
class WorkerLeft:
    """A worker left with its slot, and its job did not end."""

    slot: str
    reason: LeaveReason
    message: str = ""


@dataclass(frozen=True)
class JobReturned:
    """How the job in a slot ended: the value that `workers.execute.execute` returned."""

    slot: str
    status: Literal["done", "found", "busy", "yielded", "failed"]
    key: str
    seconds: float = 0.0
    reason: FailReason | Literal[""] = ""
    message: str = ""
    log: str = ""
    retry_after: float = 0.0
    parent: str = ""
    leaving: bool = False
    """The worker's time is up: give it no other job."""
    card: str = ""
    """The card that failed, with the reason `card`: the worker's process can use it no more."""


@dataclass(frozen=True)
class Message:
    """Something the people who watch should read."""

    text: str


PoolEvent = WorkerJoined | WorkerLeft | JobReturned | Message


class Pool(Protocol):
    """Where jobs run."""

    def start(self) -> None:
        """Begin to gather workers; each is reported by `WorkerJoined` when it is ready."""

    def submit(self, job: dict[str, Any], slot: str, attempt: int, memory_level: int) -> None:
        """Run the job (as `Job.to_json` wrote it) in an idle slot."""

    def events(self, timeout: float) -> list[PoolEvent]:
        """What happened since the last call; waits up to `timeout` seconds for something to happen."""

    def close(self, grace_seconds: float) -> None:
        """Give running jobs that long to step aside, then end all that was started."""


class InProcessPool:
    """One slot in this very process, where a debugger can follow."""

    SLOT = "in-process"

    def __init__(self, store_root: str, run: str, execute: str = EXECUTE) -> None:
        self._store_root, self._run, self._execute = store_root, run, execute
        self._waiting: tuple[dict[str, Any], int] | None = None
        self._joined = False

    def start(self) -> None:
        """Find the function; a missing one is an error now and not at the first job."""
        resolve(self._execute)
        prepare_worker()

    def submit(self, job: dict[str, Any], slot: str, attempt: int, memory_level: int) -> None:
        """Keep the job for the next call of `events`."""
        assert slot == self.SLOT and self._waiting is None
        self._waiting = (job, memory_level)

    def events(self, timeout: float) -> list[PoolEvent]:
        """Do the waiting job, however long it takes; with none, nothing can happen but that time goes by."""
        if not self._joined:
            self._joined = True
            return [WorkerJoined(self.SLOT, socket.gethostname())]
        if self._waiting is None:
            time.sleep(timeout)
            return []
        (job, memory_level), self._waiting = self._waiting, None
        ended = perform(resolve(self._execute), job, self._store_root, self._run, memory_level)
        return [JobReturned(slot=self.SLOT, **ended)]

    def close(self, grace_seconds: float) -> None:
        """Do nothing: nothing was started."""


def resolve(dotted: str) -> Any:
    """The object with this dotted name.

    Raises:
        ImportError: there is no such module, or nothing of that name in it.
    """
    module, _, name = dotted.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except AttributeError as error:
        raise ImportError(f"{module} has no {name}") from error


def prepare_worker(threads: int = 1, card: int | Literal["none"] | None = None) -> None:
    """Settle this process on its machine before its first job; a program without our workers, as in tests, has none.

    Args:
        threads: of its operators on the CPU.
        card: the number of the card that it keeps to, or that it sees none; None leaves it all that it sees.
    """
    try:
        prepare = resolve("workers.runtime.process.prepare_process")
    except ModuleNotFoundError:
        return
    prepare(threads, card)


def perform(execute: Execute, job: dict[str, Any], store_root: str, run: str, memory_level: int) -> dict[str, Any]:
    """Call `execute`; an exception out of it, which should not be, is a failure of reason "bug"."""
    try:
        return dict(execute(job, store_root, run, memory_level))
    except Exception:
        return {"status": "failed", "key": "", "reason": "bug", "message": traceback.format_exc()}
