"""`cluster.yaml`: where runs can happen.

Named clusters, a default among them, the store, and where datasets lie. Nothing in it can change a result, so nothing
of it enters a key. Unknown keys are refused with the known ones; a file that is not there means the built-in local
cluster.

Three kinds: `local` starts a private Ray cluster on this machine, `slurm` lets SLURM jobs make one, `ray` attaches
to one that somebody else keeps running.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from jobs.documents import matching, read_yaml, validate
from jobs.errors import BadInput
from jobs.fields import Count, Frozen, Index, Positive
from workers.runtime.visible_cards import visible_cards

FILE = "cluster.yaml"
LoggerName = Literal["wandb", "mlflow", "tensorboard"]

Lines = Annotated[tuple[str, ...], Field(strict=False)]


class WatchedClusterSpec(Frozen):
    """What clusters of every kind say of their workers."""

    gpu_memory: Positive | None = None
    """GB of each GPU, so that `plan` refuses what does not fit; null is unknown, on this machine it is seen."""
    hang_seconds: Positive = 120.0
    """A worker whose job gives no sign of life for so long is killed, and the job goes on in another one."""


class LocalClusterSpec(WatchedClusterSpec):
    """This machine: `workers` processes; `auto` is `slots_per_gpu` per GPU, or one per core where there is no GPU."""

    kind: Literal["local"] = "local"
    workers: Count | Literal["auto"] = "auto"
    slots_per_gpu: Count = 1
    """Jobs that share a GPU, for networks that are too small to fill one."""

    @property
    def in_process(self) -> bool:
        """Whether jobs run one after another in the process of the command, as `--workers 0` asks."""
        return self.workers == 0

    def count(self) -> int:
        """How many jobs run at a time."""
        if self.workers != "auto":
            return max(1, self.workers)
        return len(visible_cards(os.environ)) * self.slots_per_gpu or usable_cores()

    def limited(self, workers: int) -> LocalClusterSpec:
        """This cluster with another number of worker processes; 0 is none but this one."""
        return self.model_copy(update={"workers": workers})


def _known_gpus(gpus: int | str) -> int | str:
    if re.fullmatch(r"\d+|[A-Za-z][\w.-]*:[1-9]\d*", str(gpus)) is None:
        raise ValueError("must be a number, or a type and a number such as a100:2")
    return gpus


def usable_cores(cgroups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """The cores that this process may use: by its affinity, its SLURM job's share, and the quotas of its cgroups."""
    limits = [len(os.sched_getaffinity(0)), *_cpu_quotas(cgroups, own)]
    share = os.environ.get("SLURM_CPUS_PER_TASK", "")
    if share.isdigit() and int(share) > 0:
        limits.append(int(share))
    return max(1, min(limits))


def _cpu_quotas(cgroups: Path, own: Path) -> Iterator[int]:
    """The whole cores that each cgroup (version 2) around this process allows it."""
    with suppress(OSError):
        name = own.read_text(encoding="utf-8").splitlines()[-1].rpartition("::")[2].strip("/")
        folder = cgroups / name
        for path in (folder, *folder.parents[: len(Path(name).parts)]):
            with suppress(OSError, ValueError):  # no such file, or "max": no quota
                quota, period = map(int, (path / "cpu.max").read_text(encoding="ascii").split())
                yield quota // period


class HeadSpec(Frozen):
    """The small SLURM job of the driver and the Ray head (elastic mode).

    Null is what the workers have for `partition`, `qos` and `minutes`, and the site's default for `memory`.
    """

    partition: str | None = None
    qos: str | None = None
    cpus: Count = 2
    memory: str | None = None
    minutes: Count | None = None
    sbatch: dict[str, str | int | bool] = {}
    """Further sbatch options of the head job by their long names, without the dashes."""


class SlurmClusterSpec(WatchedClusterSpec):
    """SLURM jobs, of one node each (`elastic`) or all nodes in one job (`gang`), or the nodes of a job that one has.

    The last is `allocation`: inside `salloc`, nothing is submitted, and the command itself drives the run.

    Null leaves the choice to the site's defaults. A worker is one SLURM job, in gang mode one node; it does `slots`
    jobs of ours at a time, by default `slots_per_gpu` per GPU, or one per core where it has no GPU.
    """

    kind: Literal["slurm"]
    mode: Literal["elastic", "gang", "allocation"] = "elastic"
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    gpus: Annotated[int | str, AfterValidator(_known_gpus)] = 0
    """GPUs of a worker: a number, or with their type, such as `a100:2`."""
    gres: Annotated[str, matching(r"gpu(:[A-Za-z][\w.-]*)?:[1-9]\d*", "write gpu:NUMBER or gpu:TYPE:NUMBER")] | None = (
        None
    )
    """Instead of `gpus`, where the site gives GPUs only as generic resources, such as `gpu:2`."""
    cpus: Count = 1
    memory: str | None = None
    minutes: Count = 240
    max_workers: Count = 4
    min_workers: Index = 0
    """So many workers are kept although they have nothing to do, until the run ends: no queueing between stages."""
    slots: Count | Literal["auto"] = "auto"
    slots_per_gpu: Count = 1
    """With `slots: auto`, the jobs that share a GPU."""
    array_throttle: Count | None = None
    """How many workers of one array SLURM may run at a time; null is all of them."""
    setup: Lines = ()
    """Shell lines before Python starts: modules, conda; one that fails ends the job."""
    python: str | None = None
    """The interpreter on the nodes; null is the one that submits."""
    sbatch: dict[str, str | int | bool] = {}
    """Further sbatch options of the workers, in gang mode of the job, by their long names, without the dashes."""
    head: HeadSpec = HeadSpec()
    shared_folder: str | None = None
    """Visible from all nodes, for the run's token and SLURM's logs; null is the store."""
    temporary_folder: str = "/tmp"
    """On each node; short, because Unix sockets lie in it."""
    interface: str | None = None
    """The network interface through which nodes meet; null is the one of the host's name."""
    idle_seconds: Positive = 30.0
    """After so long without work a worker is given back."""
    lead_seconds: Count = 120
    """So long before its walltime a worker saves its work and is requeued."""

    @model_validator(mode="after")
    def _ask_for_gpus_once(self) -> SlurmClusterSpec:
        if self.gres is not None and self.gpus != 0:
            raise ValueError("gpus and gres both ask for GPUs; leave one of them out")
        return self

    @property
    def gpu_count(self) -> int:
        """GPUs of a worker, of whatever type."""
        return int(str(self.gres or self.gpus).rpartition(":")[2])

    @property
    def slots_per_worker(self) -> int:
        """Jobs that a worker does at a time."""
        return (self.gpu_count * self.slots_per_gpu or self.cpus) if self.slots == "auto" else self.slots

    def count(self) -> int:
        """Jobs that run at a time when all workers are there."""
        return self.max_workers * self.slots_per_worker

    def limited(self, workers: int) -> SlurmClusterSpec:
        """This cluster with another limit of workers."""
        return self.model_copy(update={"max_workers": workers})


class RayClusterSpec(WatchedClusterSpec):
    """A Ray cluster that is running already (KubeRay, a cloud), named by the address of its GCS."""

    kind: Literal["ray"]
    address: Annotated[str, matching(r"[^\s:/]+:\d+", "write HOST:PORT")]
    token_file: str | None = None
    """A file with the cluster's token; null where it asks for none."""
    slots_per_node: Count | Literal["auto"] = "auto"
    """Jobs at a time on each node; `auto` is one per GPU, or one per core where a node has no GPU."""
    expected_slots: Count = 4
    """For forecasts only: how many jobs the cluster is thought to run at a time."""

    def count(self) -> int:
        """Jobs that are thought to run at a time."""
        return self.expected_slots

    def limited(self, workers: int) -> RayClusterSpec:
        """This cluster with another number for forecasts."""
        return self.model_copy(update={"expected_slots": workers})


def has_only_own_cores(cluster: LocalClusterSpec | SlurmClusterSpec | RayClusterSpec) -> bool:
    """Whether jobs run on the cores of this machine, because it has no card."""
    return isinstance(cluster, LocalClusterSpec) and not visible_cards(os.environ)


def card_gigabytes(cluster: LocalClusterSpec | SlurmClusterSpec | RayClusterSpec) -> float | None:
    """What a job may take of a card there, in GB: as the cluster says, else the smallest card that is seen here.

    Slots that share a card share its memory. None where nobody knows.
    """
    cards = visible_cards(os.environ) if isinstance(cluster, LocalClusterSpec) else []
    seen = min((card.memory / 1e9 for card in cards if card.memory), default=None)
    size = cluster.gpu_memory or seen
    if size is None:
        return None
    if isinstance(cluster, SlurmClusterSpec):
        return size / -(-cluster.slots_per_worker // max(1, cluster.gpu_count))
    return size / -(-cluster.count() // len(cards)) if cards else size


KINDS: Mapping[str, type[Frozen]] = {"local": LocalClusterSpec, "slurm": SlurmClusterSpec, "ray": RayClusterSpec}


class StoreSpec(Frozen):
    """The folder of all results, for one user or for the group that the folder belongs to."""

    folder: str = "pdd-store"
    shared: Literal["group"] | None = None


def _folder_alone(store: object) -> object:
    return {"folder": store} if isinstance(store, str) else store


class ClusterFile(Frozen):
    """The whole file; each cluster is read as its kind says."""

    store: Annotated[
        StoreSpec, BeforeValidator(lambda store: {"folder": store} if isinstance(store, str) else store)
    ] = StoreSpec()
    default: str = "local"
    data: dict[str, str | None] = {}
    """Where each dataset lies, by name; null says no more than that it is missing."""
    logger: LoggerName | None = None
    """A library that is told of runs as they go on (`orchestrator.workloads.loggers`)."""
    clusters: Annotated[dict[str, dict[str, Any]], Field(min_length=1)] = {"local": {"kind": "local"}}


@dataclass(frozen=True)
class Target:
    """Where one run happens: the cluster by name, its description, the store, and where datasets lie."""

    name: str
    cluster: LocalClusterSpec | SlurmClusterSpec | RayClusterSpec
    store: str
    data: Mapping[str, str] = field(default_factory=dict)
    shared: bool = False
    """Whether a store that is made now is for its group."""
    logger: LoggerName | None = None
    """A library that is told of runs as they go on."""


def choose_target(file: Path | None, name: str | None, store: str | None, workers: int | None) -> Target:
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
    clusters = {key: described_cluster(document, str(path), key) for key, document in known.clusters.items()}
    chosen = name if name is not None else known.default
    if chosen not in clusters:
        place, field = ("command line", "--cluster") if name is not None else (str(path), "default")
        fix = f"must be one of {', '.join(sorted(clusters))} (see {path})"
        if not path.is_file():
            fix = f"only local is known without a {FILE} in this folder; `pdd init` writes one"
        raise BadInput(place, field, chosen, fix)
    cluster = clusters[chosen]
    if workers is not None:
        local = isinstance(cluster, LocalClusterSpec)
        if workers < (0 if local else 1):
            fix = "must be at least 1" + (", or 0 to run the jobs in this process" if local else "")
            raise BadInput("command line", "--workers", workers, fix)
        cluster = cluster.limited(workers)
    data = {dataset: str(Path(path).expanduser().resolve()) for dataset, path in known.data.items() if path is not None}
    if store is not None:
        return Target(chosen, cluster, store, data, logger=known.logger)
    shared = known.store.shared is not None
    return Target(chosen, cluster, known.store.folder, data, shared=shared, logger=known.logger)


def described_cluster(
    document: Mapping[str, Any], place: str, name: str
) -> LocalClusterSpec | SlurmClusterSpec | RayClusterSpec:
    """One entry of `clusters`, read as its `kind` says.

    Args:
        document: the fields of the entry.
        place: the file, for messages.
        name: of the entry.

    Raises:
        BadInput: an unknown kind, or a field that its kind does not have.
    """
    kind = document.get("kind", "local")
    if not isinstance(kind, str) or kind not in KINDS:
        raise BadInput(place, f"clusters.{name}.kind", kind, f"must be one of {', '.join(KINDS)}")
    cluster = validate(KINDS[kind], document, place, f"clusters.{name}")
    assert isinstance(cluster, LocalClusterSpec | SlurmClusterSpec | RayClusterSpec)
    return cluster
