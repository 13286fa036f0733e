"""Doing one job: claim it, work, put the artifact in place, say how it ended.

This is what every way of running shares: a Ray actor, a SLURM worker and a plain Python session all call
`execute`. It never raises for what a job does; it returns an `JobResult`, because the driver decides what an
ending means. Log lines of a job go to `runs/<run>/logs/<key>.log` in the store.
"""

from __future__ import annotations

import logging
import re
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypedDict

from jobs.errors import BadInput, Damaged, Diverged, Yielded
from jobs.graph import Graph, Job
from jobs.outcomes import Outcome
from jobs.specs import DistilSpec, Kind
from workers.methods import method_named, settings_for
from workers.runtime.arithmetic import described, tf32_of, with_tf32
from workers.runtime.cards import card_of_process, trouble_of
from workers.runtime.context import JobContext
from workers.runtime.process import device_of_choice
from workers.runtime.time_limit import TimeLimit
from workers.store.checkpoints import Checkpoints
from workers.store.claims import Claims, Held
from workers.store.files import make_folder, share
from workers.store.store import Store
from workers.tasks import dataset, distil, evaluate, experts, forgetting, imported, select

Work = Callable[[JobContext, Path], Outcome]

WORK: dict[Kind, Work] = {
    "dataset": dataset.prepare,
    "experts": experts.train_experts,
    "forgetting": forgetting.score,
    "select": select.select,
    "distil": distil.distil,
    "evaluate": evaluate.evaluate,
    "full": evaluate.train_full,
    "imported": imported.convert,
}
"""What each kind of job does."""

_BUSY_SECONDS = 2.0
"""How long the driver should wait before it asks again for a job somebody else is doing."""


class JobResult(TypedDict, total=False):
    """How a job ended: `done`, `found` (already there), `busy` (someone alive has it), `yielded` or `failed`.

    `reason` of a failure is one of bug, diverged, memory, too_large, card, input, disk, parent. `too_large` is out of
    memory where the job cannot do with less; `card` is a sticky error of the card named, after which the process is of
    no more use; with `parent` the key of an artifact that was damaged or gone comes along. `leaving` says that the
    worker's time limit is over: it will do no other job.
    """

    status: str
    key: str
    seconds: float
    reason: str
    message: str
    log: str
    retry_after: float
    parent: str
    leaving: bool
    card: str


def execute(job: Mapping[str, Any], store_root: str, run: str, memory_level: int = 0) -> JobResult:
    """Do the job (as `Job.to_json` wrote it) for a run, unless it is done or being done, or the time limit is over."""
    began, time_limit = time.monotonic(), TimeLimit.current()
    made = Job.from_json(job)
    log = Store(store_root).run_folder(run) / "logs" / f"{made.key}.log"
    try:
        with time_limit.working():
            ended = _attempt(made, Store.open(store_root), run, memory_level, log, time_limit)
    except Exception as error:  # the store, the claim or the log
        ended = _failure(error)
        if ended["reason"] == "bug":
            _log(error)
    ended["key"], ended["seconds"], ended["log"] = made.key, time.monotonic() - began, str(log)
    return ended


def _attempt(job: Job, store: Store, run: str, memory_level: int, log: Path, time_limit: TimeLimit) -> JobResult:
    if store.has(job.key):
        return JobResult(status="found")
    if time_limit.over():
        return JobResult(status="yielded", message="the worker's time limit is over", leaving=True)
    claim = Claims(store.root).take(job.key, run)
    if claim is None:
        return JobResult(status="busy", retry_after=_BUSY_SECONDS)
    with claim, _logging_to(log):
        absent = next((key for key in job.parent_keys() if not store.has(key)), None)
        if absent is not None:
            return _failed("parent", f"{job.key}: parent {absent} is not in the store", parent=absent)
        if store.has(job.key):
            return JobResult(status="found")
        return _work(job, store, run, memory_level, claim, time_limit)


def _work(job: Job, store: Store, run: str, memory_level: int, claim: Held, time_limit: TimeLimit) -> JobResult:
    context = JobContext(
        job=job,
        store=store,
        device=device_of_choice(),
        checkpoints=Checkpoints(store.root),
        report=claim.beat,
        stop_file=store.run_folder(run) / "stop",
        time_limit=time_limit,
        memory_level=memory_level,
    )
    try:
        perform(context)
    except Yielded as error:
        logging.info("%s", error)
        return JobResult(status="yielded", message=str(error), leaving=time_limit.over())
    except Exception as error:
        _log(error)
        failure, damaged = _failure(error), _damaged_parent(job, store)
        if damaged is not None:
            return _failed("parent", failure["message"], parent=damaged)
        return _out_of_memory(failure, job, memory_level) if failure["reason"] == "memory" else failure
    return JobResult(status="done")


def perform(context: JobContext) -> None:
    """Do the job at the context and put its artifact into the store; whatever goes wrong is raised."""
    job = context.job
    extra: dict[str, Any] = {}
    tf32 = tf32_of(job.spec)
    artifact = context.store.put(
        job.key,
        job.kind,
        job.canonical()["spec"],
        job.parents,
        device=str(context.device),
        arithmetic=described(context.device, job.spec),
        extra=extra,
    )
    with artifact as folder, with_tf32(context.device, tf32):
        extra.update(WORK[job.kind](context, folder).to_extra())
    context.checkpoints.drop(job.key)
    if job.kind == "experts":
        experts.drop_checkpoints(context)


def perform_missing(graph: Graph, store: Store, keys: Iterable[str] | None = None) -> None:
    """Do jobs in this process with all they need, parents first; what is in the store already is left alone.

    Args:
        graph: a job needs its parents in it or in the store.
        store: where the artifacts go.
        keys: of the jobs that are wanted; all of the graph by default.
    """
    wanted = graph.jobs if keys is None else graph.ancestors(keys)
    for job in graph:
        if job.key in wanted and not store.has(job.key):
            perform(JobContext.alone(job, store))


def _out_of_memory(failure: JobResult, job: Job, memory_level: int) -> JobResult:
    """The failure with what the next attempt does, or the end of a job that would only fail again, with its sizes."""
    if isinstance(job.spec, DistilSpec):
        method, settings = method_named(job.spec.method), settings_for(job.spec.method, job.spec.settings)
        if memory_level < method.memory_levels(settings):
            return _failed("memory", f"{failure['message']}; now {method.saving}")
    sizes = ", ".join(f"{name} {value}" for name, value in _sizes(job.canonical()["spec"]))
    fix = f"{job.kind} cannot do with less memory than this; use a larger card or node, or smaller numbers ({sizes})"
    return _failed("too_large", f"{failure['message']}: {fix}")


def _sizes(spec: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, int]]:
    """The numbers of a spec on which its memory depends, by their paths."""
    for name, value in spec.items():
        if isinstance(value, Mapping):
            yield from _sizes(value, f"{path}{name}.")
        elif isinstance(value, int) and re.match(r"batch|width|depth|ipc|max_synthetic|syn_steps", name):
            yield f"{path}{name}", value


def _damaged_parent(job: Job, store: Store) -> str | None:
    """The first parent whose bytes are not what its manifest says, whatever the job made of them.

    It is quarantined, so that it will be made again.
    """
    for key in job.parent_keys():
        if complaints := store.verify(key):
            with suppress(FileNotFoundError):  # was quarantined already
                store.quarantine(key, "; ".join(complaints))
            return key
    return None


def _failure(error: Exception) -> JobResult:
    """The failure that an error stands for."""
    message = " ".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ())])
    if isinstance(error, Diverged):
        return _failed("diverged", message)
    if isinstance(error, BadInput):
        return _failed("input", message)
    if isinstance(error, Damaged):
        return _failed("parent", message)
    if (trouble := trouble_of(error)) == "memory":
        return _failed("memory", message)
    if trouble == "card":
        return _failed("card", message, card=card_of_process())
    if isinstance(error, OSError):
        return _failed("disk", message)
    return _failed("bug", message)


def _log(error: Exception) -> None:
    logging.error("%s", "".join(traceback.format_exception(error)))


def _failed(reason: str, message: str, **more: str) -> JobResult:
    ended = JobResult(status="failed", reason=reason, message=message)
    ended.update(more)  # type: ignore[typeddict-item]
    return ended


class _LogFile(logging.FileHandler):
    """A job's log; a line that cannot be written is left out, since the job itself tells of a disk in trouble."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Say nothing."""

    def close(self) -> None:
        """Close the file, whether the rest can be written or not."""
        with suppress(OSError):
            super().close()


@contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    for folder in (path.parent.parent, path.parent):
        make_folder(folder)
    path.touch(0o600)
    share(path)
    writer = _LogFile(path)
    writer.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    root = logging.getLogger()
    level = root.level
    root.addHandler(writer)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(writer)
        root.setLevel(level)
        writer.close()
