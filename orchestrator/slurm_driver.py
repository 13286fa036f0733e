"""The driver's process beside a Ray head in a SLURM job: `python -m orchestrator.slurm_driver FOLDER HEAD ADDRESS`.

It takes up the workload of the order in the run's folder, attaches to the head and runs to the end. The exit code is
the run's; the head job starts it again if a signal kills it.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from jobs.errors import PddError
from orchestrator.clusters.config import SlurmClusterSpec, Target
from orchestrator.clusters.ray_cluster import AttachedCluster
from orchestrator.clusters.slurm import submit
from orchestrator.clusters.slurm.autoscaler import OpenJobs, SlurmAutoscaler
from orchestrator.clusters.slurm.run_folder import RunFolder
from orchestrator.runs import journal
from orchestrator.workloads import launcher
from orchestrator.workloads.base import LaunchOptions, Run, Workload
from orchestrator.workloads.experiments import ExperimentWorkload
from orchestrator.workloads.sweep.sweep import SweepWorkload
from orchestrator.workloads.tables import TableWorkload
from workers.store.store import Store

LOCK_SECONDS = 120.0
"""Seconds for which a journal may stay locked by an earlier driver whose host lost its power."""

WORKLOADS: Mapping[str, type[Workload]] = {
    workload.kind: workload for workload in (ExperimentWorkload, TableWorkload, SweepWorkload)
}
"""What an order may ask for."""


def drive(folder: Path, head: str, address: str) -> int:
    """Run the order of a folder on the cluster of a head, from the node with this address."""
    run_folder = RunFolder(folder)
    order = run_folder.order()
    spec = SlurmClusterSpec.model_validate(order["cluster"])
    attached, jobs = AttachedCluster(head, Path(os.environ["PDD_NODE_TOKEN"]), address), OpenJobs()
    submit_workers = partial(submit.submit_jobs, run_folder, "worker")
    autoscaler = SlurmAutoscaler(attached, run_folder, order["run"], spec, submit_workers, open_jobs=jobs.count)
    store = Store.open(order["store"])
    journal.wait_until_free(store.run_folder(order["run"]), LOCK_SECONDS)
    if order.get("successor"):
        submit.submit_successor(run_folder, os.environ["PDD_HEAD_JOB"])
    options = LaunchOptions(command=order["command"], fail_fast=order["fail_fast"])
    run = Run(
        name=order["run"],
        store=store,
        target=Target(order["cluster_name"], spec, order["store"], logger=order.get("logger")),
        options=options,
        cluster=autoscaler if spec.mode == "elastic" else attached,
        queued=True,
    )
    workload = workload_from_order(order["workload"], store, run.workers)
    return launcher.drive(workload, run, jobs.take).exit


def workload_from_order(order: Mapping[str, Any], store: Store, workers: int) -> Workload:
    """The workload of an order, by its kind."""
    workload: type[Workload] = WORKLOADS[order["kind"]]
    return workload.from_order(order, store, workers)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        sys.exit(drive(Path(sys.argv[1]), sys.argv[2], sys.argv[3]))
    except PddError as error:
        logging.error("%s", error)
        RunFolder(Path(sys.argv[1])).fail(str(error))
        sys.exit(1)
