"""`cluster.yaml`: where runs can happen.

Named clusters, a default among them, and the store. Nothing in it can change a result, so nothing of it enters a
key. Unknown keys are refused with the known ones; a file that is not there means the built-in local cluster.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from jobs.documents import read_yaml, validate
from jobs.errors import BadInput
from jobs.specs import Count, Frozen

FILE = "cluster.yaml"


class LocalClusterSpec(Frozen):
    """This machine: `workers` processes of one core each; `auto` is one per core it may use."""

    kind: Literal["local"] = "local"
    workers: Count | Literal["auto"] = "auto"

    def count(self) -> int:
        """The number of worker processes."""
        return len(os.sched_getaffinity(0)) if self.workers == "auto" else self.workers


class ClusterFile(Frozen):
    """The whole file."""

    store: str = "pdd-store"
    default: str = "local"
    clusters: Annotated[dict[str, LocalClusterSpec], Field(min_length=1)] = {"local": LocalClusterSpec()}


@dataclass(frozen=True)
class Place:
    """Where one run happens: the cluster by name, its description, and the store."""

    name: str
    cluster: LocalClusterSpec
    store: str


def choose(file: Path | None, name: str | None, store: str | None, workers: int | None) -> Place:
    """The cluster and the store that the file and the command line say together; the command line wins.

    Args:
        file: `--cluster-file`; None looks for `cluster.yaml` in the current folder.
        name: `--cluster`; None takes the file's default.
        store: `--store`.
        workers: `--workers`.

    Raises:
        BadInput: a file that does not validate or is named and absent, an unknown cluster, no worker.
    """
    path = file if file is not None else Path(FILE)
    known = ClusterFile()
    if file is not None or path.is_file():
        known = validate(ClusterFile, read_yaml(path), str(path))
    asked = name if name is not None else known.default
    if asked not in known.clusters:
        place, field = ("command line", "--cluster") if name is not None else (str(path), "default")
        raise BadInput(place, field, asked, f"must be one of {', '.join(sorted(known.clusters))} (see {path})")
    if workers is not None and workers < 1:
        raise BadInput("command line", "--workers", workers, "must be at least 1")
    cluster = known.clusters[asked]
    if workers is not None:
        cluster = cluster.model_copy(update={"workers": workers})
    return Place(asked, cluster, store if store is not None else known.store)
