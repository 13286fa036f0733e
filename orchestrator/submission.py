"""Handing a run over to SLURM: the folder in which its jobs meet, its first record, its head job."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from jobs.errors import BadInput, PddError
from orchestrator import slurm
from orchestrator.cluster import Place, SlurmClusterSpec
from orchestrator.journal import Journal
from orchestrator.lent import POINTER
from orchestrator.rendezvous import Rendezvous, write_private
from orchestrator.request import Asked, Request
from workers.store import Store


def submit(
    request: Request, asked: Asked, store: Store, place: Place, run: str, *, command: str, fail_fast: bool
) -> str:
    """Submit a run's head (in gang mode: all of it) and return the SLURM job's id.

    Raises:
        BadInput: the shared folder is not private or cannot be written.
        NotSubmitted: SLURM refuses.
    """
    spec = place.cluster
    assert isinstance(spec, SlurmClusterSpec)
    home = store.run_folder(run)
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    shared = Path(spec.shared_folder).expanduser().resolve() / run if spec.shared_folder else home / "slurm"
    order = {
        "run": run,
        "request": asdict(request) | {"experiments": _kept(request.experiments, home)},
        "cluster": spec.model_dump(mode="json"),
        "cluster_name": place.name,
        "store": str(store.root.resolve()),
        "command": command,
        "fail_fast": fail_fast,
    }
    try:
        meeting = Rendezvous.make(shared, order)
    except OSError as error:
        mend = "name a folder that you can write to and that all nodes see"
        raise BadInput("cluster.yaml", "shared_folder", str(shared), f"{mend} ({error.strerror})") from error
    write_private(home / POINTER, json.dumps({"mode": spec.mode, "folder": str(shared)}))
    kinds = Counter(one.kind for one in asked.plan.graph)
    with Journal.open(home) as book:  # closed before the driver can open it
        names = [one.name for one in asked.experiments]
        book.write("submitted", run=run, command=command, experiments=names, jobs=dict(kinds), cluster=place.name)
    try:
        (job,) = slurm.submit(meeting, "gang" if spec.mode == "gang" else "head")
    except PddError:
        shutil.rmtree(home)
        shutil.rmtree(shared, ignore_errors=True)
        raise
    return job


def _kept(experiments: Sequence[str], home: Path) -> list[str]:
    """The experiments by name; of a file, a copy that stays as it is while the run waits and comes back."""
    kept = []
    for number, name in enumerate(experiments):
        path = Path(name)
        if path.suffix:
            copy = home / "experiments" / f"{number}" / path.name
            copy.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
            name = str(copy.resolve())
        kept.append(name)
    return kept
