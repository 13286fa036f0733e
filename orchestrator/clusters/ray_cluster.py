"""Ray clusters that a run may use, and the one place that imports Ray into this process.

`LocalCluster` starts a cluster on this machine, `AttachedCluster` joins one by its address. A cluster whose nodes come
and go (`orchestrator.clusters.slurm.autoscaler`) manages them itself: it gets each node's usage and names the nodes to
release.

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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

from jobs.errors import BadInput, PddError
from orchestrator.clusters import reaper
from orchestrator.clusters.versions import difference
from orchestrator.clusters.versions import versions as our_versions
from orchestrator.runs.pool import PoolBroken
from orchestrator.runs.stop_file import handlers_kept, signals_held
from workers.runtime.compiler import SCRATCH
from workers.store.files import write_file

SLOT = "pdd_slot"
"""The resource a node offers once for each job it may run at a time."""
CPU_SLOT = "pdd_cpu_slot"
"""The resource a node with cards offers for each job beside them that needs none."""
LONGEST_FOLDER = 40
"""Ray adds up to 64 characters to its folder, and the path of a Unix socket may have 107 bytes."""
START_ATTEMPTS = 2
OBJECT_STORE_BYTES = 200_000_000
"""Enough by far: only specs and answers pass through it."""

_token: str | None = None
"""This process's token: Ray keeps the first it reads, so all clusters of one process share it."""


@dataclass(frozen=True)
class NodeUsage:
    """A living node: its resources, and how many of its slots have a job."""

    id: str
    host: str
    resources: Mapping[str, float]
    busy: int


@dataclass(frozen=True)
class NodeActions:
    """What a cluster wants done after a look at its nodes: messages for people, and ids of nodes to release."""

    say: tuple[str, ...] = ()
    release: tuple[str, ...] = ()


class Cluster(Protocol):
    """A source of nodes for the Ray pool."""

    def open(self) -> Any:
        """Connect this process to the cluster and return the module `ray`."""

    def reconcile(self, nodes: Sequence[NodeUsage]) -> NodeActions:
        """Let the nodes follow the work; called about once a second.

        Raises:
            PoolBroken: no node will come.
        """

    def released(self, nodes: Sequence[NodeUsage]) -> None:
        """Take back nodes that `reconcile` named: nothing runs on them and nothing more will."""

    def offers(self, resources: Mapping[str, float]) -> int:
        """The number of slots of a node with these resources."""

    def version_mismatch(self, versions: Mapping[str, str]) -> str:
        """Why a worker that has these versions must not work; empty if it may."""

    def close(self) -> None:
        """Disconnect, and end what `open` started."""


class PlainNodes:
    """The defaults of a cluster whose nodes offer slots by themselves and are never released."""

    def reconcile(self, nodes: Sequence[NodeUsage]) -> NodeActions:
        """Leave the nodes as they are."""
        return NodeActions()

    def released(self, nodes: Sequence[NodeUsage]) -> None:
        """Do nothing: no node is ever released."""

    def offers(self, resources: Mapping[str, float]) -> int:
        """The slots that the node itself declares as a resource."""
        return int(resources.get(SLOT, 0))

    def version_mismatch(self, versions: Mapping[str, str]) -> str:
        """No mismatch: the node runs this very code."""
        return ""


class LocalCluster(PlainNodes):
    """A Ray cluster on this machine that offers `workers` slots on its `cards` and leaves nothing behind.

    Beside cards it has one more slot, for the jobs that need none.
    """

    def __init__(self, workers: int, cards: int = 0) -> None:
        self.workers, self.cards = workers, cards
        self.folder: Path | None = None
        self._reaper: subprocess.Popen[bytes] | None = None
        self._ray: Any = None
        self._started = False

    def open(self) -> Any:
        """Start the cluster and connect this process to it.

        A busy machine may need longer than the 30 s that Ray gives its processes to start; then all of it is tried
        again.

        Raises:
            BadInput: the folder for temporary files has too long a name.
            PoolBroken: Ray was imported before, without our settings, or does not start.
        """
        for _ in range(START_ATTEMPTS):
            try:
                return self._start()
            except (PddError, OSError):
                raise
            except Exception as error:  # Ray has no type for it
                self.close()
                why = brief(error)
        raise PoolBroken(f"Ray did not start in {START_ATTEMPTS} attempts; is the machine overloaded? {why}")

    def _start(self) -> Any:
        self.folder = private_folder(tempfile.gettempdir(), "pdd-", ("environment", "TMPDIR"))
        self._reaper = reaper.watch(self.folder)
        with _environment(_settings(self.folder / "token")):
            self._ray = import_ray()
            write_file(self.folder / "token", (_token or "").encode())
            beside = 1 if self.cards else 0
            with signals_held():  # an exception inside can leave Ray's library waiting for itself for ever
                self._ray.init(
                    address="local",
                    job_config=_with_our_imports(self._ray.job_config.JobConfig()),
                    num_cpus=self.workers + beside,
                    num_gpus=self.cards,
                    resources={SLOT: self.workers, CPU_SLOT: beside} if beside else {SLOT: self.workers},
                    object_store_memory=OBJECT_STORE_BYTES,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    _node_ip_address="127.0.0.1",
                    _temp_dir=str(self.folder / "ray"),  # Ray opens it to everybody; the folder above stays ours
                )
            self._started = True
        return self._ray

    def close(self) -> None:
        """End the cluster's processes and remove its folder."""
        if self._ray is not None:
            with handlers_kept():
                self._ray.shutdown()
        if self._reaper is not None:
            reaper.end(self._reaper, orderly=self._started)
            self._reaper = None


class AttachedCluster(PlainNodes):
    """A Ray cluster that runs already, joined by its address and with its token."""

    def __init__(self, address: str, token_file: Path | None, node_address: str | None = None) -> None:
        self.address, self.token_file, self.node_address = address, token_file, node_address
        self._ray: Any = None

    def open(self) -> Any:
        """Connect this process to the cluster.

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
        """Disconnect this process; the cluster goes on."""
        if self._ray is not None:
            with handlers_kept():
                self._ray.shutdown()


class ExternalCluster(AttachedCluster):
    """A Ray cluster that somebody else keeps running: its nodes do not offer slots by themselves.

    Every worker says which Python, Ray and code of ours it has, and one that differs gets no job.
    """

    def __init__(self, address: str, token_file: Path | None, slots: int | Literal["auto"] = "auto") -> None:
        super().__init__(address, token_file)
        self.slots = slots

    def offers(self, resources: Mapping[str, float]) -> int:
        """One slot per GPU, or per core where there is no GPU; a cluster's head often has neither."""
        if self.slots != "auto":
            return self.slots if resources.get("CPU", 0) else 0
        return int(resources.get("GPU", 0) or resources.get("CPU", 0))

    def version_mismatch(self, versions: Mapping[str, str]) -> str:
        """What of Python, Ray and our code differs between the worker and this process."""
        return difference(versions, our_versions())


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
    import ray.job_config
    import ray.util.scheduling_strategies

    # Ray prints what befell its workers on standard output, where --json has its one document; the pool
    # says it as `WorkerLeft`. And `ray.init` would take SIGTERM for itself.
    ray._private.worker.print_to_stdstream = lambda *_, **__: None
    ray._private.utils.set_sigterm_handler = lambda _: None
    # A signal to the group of the command, as `timeout` sends it, must not end the workers before they have saved.
    services: Any = ray._private.services
    services.ConsolePopen = partial(subprocess.Popen, process_group=0)
    # Two processes start with a cluster that nothing here asks: they would take cores from the first workers.
    parameter: Any = ray._private.parameter
    parameter.RayParams = partial(parameter.RayParams, no_monitor=True, include_log_monitor=False)
    return ray


def _with_our_imports(job_config: Any) -> Any:
    """Let workers on this machine import from where this process does, in the same order.

    Ray would put the current folder before all others, where a `jobs.py` of the user's stands for a package of ours.
    """
    job_config._py_driver_sys_path = [os.path.abspath(path) for path in reversed(sys.path)]  # each goes before the last
    job_config._runtime_env_has_working_dir = lambda: True  # what keeps Ray from adding folders
    return job_config


def _settings(token: Path) -> dict[str, str | None]:
    """The `settings` of a cluster that keeps to the loopback address, which Ray does on Linux only when told."""
    return settings(token) | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", SCRATCH: str(token.parent)}


def settings(token: Path | None) -> dict[str, str | None]:
    """The variables under which Ray's processes start, with this file as their token; None unsets one."""
    return {
        "RAY_AUTH_MODE": "disabled" if token is None else "token",
        reaper.TOKEN_VARIABLE: None if token is None else str(token),
        "RAY_AUTH_TOKEN": None,  # would go before the file
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_task_events_report_interval_ms": "0",  # nobody looks at them, and a dead GCS would be waited for 5 s
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


def private_folder(parent: str, prefix: str, named_by: tuple[str, str]) -> Path:
    """A new folder of ours, 0700 and short enough for Ray.

    Args:
        parent: the folder around it.
        prefix: how its name begins.
        named_by: where the parent is named, and the field.

    Raises:
        BadInput: its path would be too long.
    """
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    if (excess := len(str(folder / "ray")) - LONGEST_FOLDER) > 0:
        folder.rmdir()
        fix = f"name a folder of at most {len(parent) - excess} characters, such as /tmp"
        raise BadInput(*named_by, parent, fix)
    return folder


def brief(error: BaseException) -> str:
    """Ray's message without the advice at its end, on one line."""
    text = re.sub(r"\s+", " ", str(error)).split(" Some common causes")[0]
    return text if len(text) <= 500 else text[:500] + " …"
