"""The driver's process beside a Ray head in a SLURM job: `python -m orchestrator.drive FOLDER HEAD ADDRESS`.

It answers the request anew from the order in the run's folder, attaches to the head and runs to the end. The exit
code is the run's; the head job starts it again if a signal kills it.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from jobs.errors import PddError
from orchestrator import running, slurm
from orchestrator.cluster import Place, SlurmClusterSpec
from orchestrator.fleet import SlurmFleet, open_jobs
from orchestrator.ray_cluster import AttachedCluster
from orchestrator.rendezvous import Rendezvous
from orchestrator.request import Request, answer
from orchestrator.state import State
from workers.store import Store


def drive(folder: Path, head: str, address: str) -> int:
    """Run the order of a folder on the cluster of a head, from the node with this address."""
    meeting = Rendezvous(folder)
    order = meeting.order()
    spec = SlurmClusterSpec.model_validate(order["cluster"])
    asked, store = answer(Request(**order["request"])), Store.open(order["store"])
    attached = AttachedCluster(head, Path(os.environ["PDD_NODE_TOKEN"]), address)
    fleet = SlurmFleet(attached, meeting, order["run"], spec, lambda count: slurm.submit(meeting, "worker", count))

    def demand(state: State) -> None:
        fleet.open_jobs = open_jobs(state)

    done = running.run(
        asked,
        store,
        Place(order["cluster_name"], spec, order["store"]),
        command=order["command"],
        fail_fast=order["fail_fast"],
        name=order["run"],
        cluster=fleet if spec.mode == "elastic" else attached,
        watch=demand,
    )
    return done.exit


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        sys.exit(drive(Path(sys.argv[1]), sys.argv[2], sys.argv[3]))
    except PddError as error:
        logging.error("%s", error)
        sys.exit(1)
