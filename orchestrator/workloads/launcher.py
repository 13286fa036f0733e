"""The one way in which a workload is launched: driven by this process, or handed to a queue and followed.

A queue (SLURM) gets the workload as plain values, its order; the process that it starts takes the workload up again and
drives it by `drive`, as a process at a terminal does. Either way the result is read from the
run's journal and the store.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from jobs.errors import BadInput, Damaged
from jobs.memory import peak_bytes
from orchestrator.clusters.config import (
    LocalClusterSpec,
    RayClusterSpec,
    SlurmClusterSpec,
    Target,
    card_gigabytes,
    has_only_own_cores,
)
from orchestrator.clusters.ray_cluster import Cluster, ExternalCluster, LocalCluster
from orchestrator.clusters.ray_pool import RayPool
from orchestrator.clusters.slurm.follow import POINTER, SlurmRun
from orchestrator.clusters.slurm.follow import follow as follow_to_end
from orchestrator.clusters.slurm.jobs import AllocationCluster
from orchestrator.clusters.versions import package_versions
from orchestrator.planning.card_memory import require_room
from orchestrator.planning.durations import uninterrupted
from orchestrator.planning.requests import require_compiler
from orchestrator.runs import driver, journal
from orchestrator.runs.journal import Journal
from orchestrator.runs.pool import InProcessPool, Pool
from orchestrator.runs.status import from_records
from orchestrator.scheduler.state import State
from orchestrator.workloads import loggers
from orchestrator.workloads.base import LaunchOptions, Run, RunEnd, RunResult, Session, Workload, speaker
from workers.runtime.visible_cards import visible_cards
from workers.store.checkpoints import Checkpoints
from workers.store.claims import Claims
from workers.store.store import Store


def launch(workload: Workload, target: Target, store: Store, options: LaunchOptions) -> RunResult | str:
    """Run a workload where the target says.

    Args:
        workload: what to run.
        target: the cluster.
        store: where results go.
        options: the command line, and how much is said.

    Returns:
        What came of it; of a run that a queue has and that is not followed to its end, only its name.

    Raises:
        BadInput: the workload cannot run there, a job fits no card or needs a compiler that is not here, or a queue has
            it already.
        NotSubmitted: the queue refuses.
        HeadGone: the run ended in the queue without a last word.
        JournalLost: another process drives it.
    """
    loggers.check(target.logger)
    _require_room(workload, target, store)
    if has_only_own_cores(target.cluster):
        require_compiler(job for job in workload.graph if not store.has(job.key))
    if isinstance(target.cluster, SlurmClusterSpec) and target.cluster.mode != "allocation":
        return _launch_on_slurm(workload, target, store, options)
    if workload.needs_ray and _in_process(target):
        fix = f"say 1 or more: a {workload.kind} needs processes of its own; `run` one of its experiments instead"
        raise BadInput("command line", "--workers", 0, fix)
    name = workload.run_name()
    _take_back(store, name)
    cluster = cluster_of(target, store.run_folder(name))
    return drive(workload, Run(name=name, store=store, target=target, options=options, cluster=cluster))


def _require_room(workload: Workload, target: Target, store: Store) -> None:
    """Refuse a run with a job that is still to be done and fits no card, as `plan` does; nobody may know the cards."""
    gigabytes = card_gigabytes(target.cluster)
    if gigabytes is not None:
        graph = workload.graph
        peaks = {job.key: peak_bytes(job, graph) for job in graph if not store.has(job.key)}
        require_room(peaks, graph, gigabytes, target.name)


def drive(workload: Workload, run: Run, watch: Callable[[State], None] = lambda state: None) -> RunResult:
    """Drive a run of a workload in this process to its end and write its report; `watch` is called at each change."""
    about = {"experiments": ", ".join(workload.names), "command": run.options.command, "workers": run.workers}
    say = speaker(run.options.quiet)
    run.store.sweep()
    Claims(run.store.root).sweep(run.name)
    Checkpoints(run.store.root).sweep(run.store.has)
    with (
        Journal.open(run.folder) as book,
        loggers.logging_to(run.target.logger, run.name, run.store, about, say) as logger,
        workload.session(run, book) as session,
    ):

        def on_change(state: State) -> None:
            if logger is not None:
                logger.begin()
            watch(state)
            session.on_change(state)

        driver.run(
            session.schedule,
            session.graph,
            _pool(session, run),
            book,
            run.store,
            on_change,
            about=driver.RunInfo(
                run=run.name,
                command=run.options.command,
                experiments=workload.names,
                store=str(run.store.root),
                workers=run.workers,
                versions=package_versions(),
            ),
            schedule_source=session.source,
        )
    end = end_of(run.store, run.name, run.workers, run.options.command)
    say("saving the report")
    result = workload.result(_reported(session, end))
    if logger is not None:
        logger.end(result.results)
    return result


def _reported(session: Session, end: RunEnd) -> RunEnd:
    """Write the report of a run; where that cannot be done, the run's end says so and what it made stays."""
    try:
        session.report(end)
    except OSError as error:
        text = f"the report could not be written ({error.strerror or error}): free space, then run the command again"
        return replace(end, exit=end.exit or 3, why=f"{end.why}; {text}")
    return end


def end_of(store: Store, run: str, workers: int, command: str) -> RunEnd:
    """How a run ended, by its journal.

    Raises:
        Damaged: the journal does not say so; it was removed or damaged meanwhile.
    """
    path = store.run_folder(run) / journal.NAME
    records = journal.read(path)
    last = next((record for record in reversed(records) if record["event"] == "run_ended"), None)
    if last is None:
        raise Damaged(f"{path}: has lost the end of the run; what is finished stays, run the same command again")
    status = from_records(run, records, (), 0.0, driver_lives=True)
    return RunEnd(
        run=run,
        command=command,
        store=store,
        workers=workers,
        exit=last["exit"],
        why=last["why"],
        seconds=last["seconds"],
        counts={name: status.jobs[name] for name in ("done", "cached", "unneeded", "failed", "skipped")},
        failures=status.failures,
    )


def _launch_on_slurm(workload: Workload, target: Target, store: Store, options: LaunchOptions) -> RunResult | str:
    """Submit a workload, or find that SLURM has it, and follow it; whoever follows may leave at any time."""
    if shutil.which("srun") is None:
        fix = "no srun is on the PATH: type it where SLURM can be reached, or choose another --cluster"
        raise BadInput("command line", "--cluster", target.name, fix)
    from orchestrator.clusters.slurm import submit  # takes Submitit along, which a run on this machine does without

    def order(home: Path) -> dict[str, Any]:
        return {"kind": workload.kind, **workload.to_order(home)}

    name, say = workload.run_name(), speaker(options.quiet)
    job = submit.submit(
        order,
        workload.names,
        workload.graph,
        store,
        target,
        name,
        command=options.command,
        fail_fast=options.fail_fast,
    )
    say(f"run {name}: its head is SLURM job {job}" if job else f"run {name} is with SLURM already")
    if not options.follow:
        return name
    slurm_run = SlurmRun.of(store, name)
    assert slurm_run is not None
    try:
        follow_to_end(store, slurm_run, say)
    except KeyboardInterrupt:
        return name
    return workload.result(end_of(store, name, target.cluster.count(), options.command))


def _take_back(store: Store, name: str) -> None:
    """Drive here what SLURM drove before, unless it still does."""
    slurm_run = SlurmRun.of(store, name)
    if slurm_run is None:
        return
    if jobs := slurm_run.head():
        fix = f"SLURM has it ({jobs[0].sentence()}); follow it with --cluster, or end it with `pdd cancel {name}`"
        raise BadInput("command line", "run", name, fix)
    (store.run_folder(name) / POINTER).unlink()


def cluster_of(target: Target, home: Path) -> Cluster | None:
    """The cluster of a run that this process drives itself; None if it does the jobs, too.

    Args:
        target: where the run happens.
        home: the run's folder.

    Raises:
        BadInput: the token's file cannot be read, or the command was not typed in an allocation of SLURM.
    """
    match target.cluster:
        case LocalClusterSpec():
            return None if _in_process(target) else LocalCluster(target.cluster.count(), len(visible_cards(os.environ)))
        case RayClusterSpec(address=address, token_file=token):
            if token is not None and not Path(token).expanduser().is_file():
                raise BadInput("cluster.yaml", f"clusters.{target.name}.token_file", token, "name a file you can read")
            slots = target.cluster.slots_per_node
            return ExternalCluster(address, Path(token).expanduser() if token else None, slots)
        case SlurmClusterSpec(mode="allocation"):
            return AllocationCluster(target.cluster, home)
    raise AssertionError("a run on SLURM is driven from its head job")


def _in_process(target: Target) -> bool:
    return isinstance(target.cluster, LocalClusterSpec) and target.cluster.in_process


def _pool(session: Session, run: Run) -> Pool:
    """The workers of a run."""
    cluster, root = session.cluster or run.cluster, str(run.store.root)
    if cluster is None:
        return InProcessPool(root, run.name)
    return RayPool(
        cluster,
        root,
        run.name,
        uninterrupted=lambda job: uninterrupted(job, session.seconds(job)),
        hang_seconds=run.target.cluster.hang_seconds,
    )
