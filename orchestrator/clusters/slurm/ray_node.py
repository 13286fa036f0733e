"""One node's part of a Ray cluster on SLURM: its folder, its ports, its processes, their end.

A shared node has other users and other Rays on it. So every port is probed here and now, outside the ranges from
which Ray's workers and the kernel draw theirs; every address is explicit; the folder is short, private and our own;
and what ends Ray is the process id that we started, never a name. The processes of this module die with their
parent, and a reaper clears up after a death that nobody could announce.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.errors import BadInput
from orchestrator.clusters import reaper
from orchestrator.clusters.ray_cluster import OBJECT_STORE_BYTES, SLOT, private_folder, settings
from workers.runtime.compiler import SCRATCH
from workers.runtime.time_limit import TimeLimit
from workers.store.files import write_file
from workers.store.held_folder import hold, sweep

PREFIX = "pdd-node-"
PORTS = range(20_000, 32_000)
"""Above Ray's own range for workers, below the one from which the kernel gives ports (32768 by default)."""
JOB_RESOURCE = "pdd_job_"
"""With a SLURM job's id behind it: the resource by which the head tells the nodes apart."""
HEALTH_CHECKS = {
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "4",
}
"""A silent node counts as dead after 4 to 12 seconds; Ray's own numbers take half a minute."""

STARTUP_TIMEOUTS = {
    "RAY_agent_register_timeout_ms": "300000",
    "RAY_worker_register_timeout_seconds": "300",
}
"""Python from a network file system on a busy node may take minutes to start."""

_PR_SET_PDEATHSIG = 1  # from linux/prctl.h
_SIOCGIFADDR = 0x8915  # from linux/sockios.h
_STOP_SECONDS = 5.0


@dataclass(frozen=True)
class Offer:
    """What a node brings into the cluster; the head of elastic mode brings nothing."""

    slots: int = 0
    gpus: int = 0
    job: str = ""

    def resources(self) -> dict[str, int]:
        """Ray's custom resources."""
        slots = {SLOT: self.slots} if self.slots else {}
        return {**slots, f"{JOB_RESOURCE}{self.job}": 1} if self.job else slots


def ray_command(address: str, folder: Path, ports: Sequence[int], offer: Offer, head: str | None) -> tuple[str, ...]:
    """How a node's Ray is started, with the seven ports of `ports` (the last is the GCS's, on the head).

    `head` is the address of the GCS; None makes this node the head.
    """
    manager, objects, agent_listen, agent_grpc, runtime_env, metrics, gcs = ports
    role = ("--head", f"--port={gcs}") if head is None else (f"--address={head}",)
    return (
        *(sys.executable, "-m", "ray.scripts.scripts", "start", *role, "--block"),
        f"--node-ip-address={address}",
        f"--node-manager-port={manager}",
        f"--object-manager-port={objects}",
        f"--dashboard-agent-listen-port={agent_listen}",
        f"--dashboard-agent-grpc-port={agent_grpc}",
        f"--runtime-env-agent-port={runtime_env}",
        f"--metrics-export-port={metrics}",
        *("--min-worker-port=0", "--max-worker-port=0"),  # the kernel's choice
        f"--num-cpus={offer.slots}",
        f"--num-gpus={offer.gpus}",
        f"--resources={json.dumps(offer.resources())}",
        f"--object-store-memory={OBJECT_STORE_BYTES}",
        f"--temp-dir={folder / 'ray'}",
        *(("--include-dashboard=false",) if head is None else ()),
        *("--include-log-monitor=false", "--disable-usage-stats", "--log-style=record", "--log-color=false"),
    )


class Node:
    """Ray on this node, in a private folder, from `start` to `stop`."""

    def __init__(self, temporary_folder: str, token: Path, interface: str | None = None) -> None:
        sweep(Path(temporary_folder), PREFIX)
        self.folder = node_folder(temporary_folder)
        self.address = address_of(interface)
        self._held = hold(self.folder)
        write_file(self.folder / "token", token.read_bytes())
        self.reaper = reaper.watch(self.folder)
        self.ray: subprocess.Popen[bytes] | None = None

    def start(self, offer: Offer, head: str | None, time_limit: TimeLimit | None = None) -> str:
        """Start Ray and return the address of the cluster's GCS; it may take seconds until it answers."""
        ports = free_ports(self.address, 7)
        command = ray_command(self.address, self.folder, ports, offer, head)
        variables = {
            **settings(self.folder / "token"),
            SCRATCH: str(self.folder),
            **HEALTH_CHECKS,
            **STARTUP_TIMEOUTS,
            **(time_limit.environment() if time_limit else {}),
        }
        self.ray = start_child(command, variables, self.folder / "ray.log")
        return head or f"{self.address}:{ports[-1]}"

    def stop(self) -> None:
        """End Ray: it is asked, then its processes are killed by the ids we know."""
        if self.ray is not None and self.ray.poll() is None:
            self.ray.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.ray.wait(_STOP_SECONDS)
        if self.ray is not None and self.ray.poll() is None:
            self.ray.kill()
            self.ray.wait()
        for pid in reaper.processes_of(self.folder):
            if pid not in (os.getpid(), self.reaper.pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.ray = None

    def close(self) -> None:
        """End Ray and leave nothing behind; a second time does nothing."""
        if self._held < 0:
            return
        self.stop()
        reaper.end(self.reaper)
        os.close(self._held)
        self._held = -1

    def listens(self, address: str) -> bool:
        """Whether somebody answers at `host:port`."""
        host, _, port = address.rpartition(":")
        with suppress(OSError):
            socket.create_connection((host, int(port)), 1.0).close()
            return True
        return False

    def fell(self) -> bool:
        """Whether `ray start`, which should stay, has ended."""
        return self.ray is None or self.ray.poll() is not None

    def settled(self, address: str) -> bool:
        """Whether it is clear by now that Ray answers, or that it will not."""
        return self.listens(address) or self.fell()

    def last_words(self) -> str:
        """The last lines that `ray start` printed."""
        with suppress(OSError):
            return (self.folder / "ray.log").read_text(errors="replace")[-2000:]
        return ""


def start_child(
    command: Sequence[str],
    variables: Mapping[str, str | None],
    output: Path | None,
    environment: Mapping[str, str] = os.environ,
) -> subprocess.Popen[bytes]:
    """Start a process that gets SIGTERM when the calling thread ends, and its children, deaf to SIGUSR2 and Ctrl-C.

    Args:
        command: the program and its arguments.
        variables: what is set beside the environment; None unsets a variable.
        output: where it prints to; None is where we do.
        environment: of the process; by default ours.
    """
    environment = {name: value for name, value in environment.items() if name not in variables}
    environment |= {name: value for name, value in variables.items() if value is not None}
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None
    parent = os.getpid()

    def die_with_parent() -> None:
        os.setpgid(0, 0)  # away from what a terminal sends
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # SLURM sends its warning to all of a job, not only to us
        if prctl is not None:
            prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)

    stream: Any = None if output is None else open(output, "ab")
    try:
        return subprocess.Popen(
            list(command),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT if stream else None,
            preexec_fn=die_with_parent,
        )
    finally:
        if stream is not None:
            stream.close()


def free_ports(
    address: str, count: int, ports: Sequence[int] = PORTS, chance: random.Random | None = None
) -> list[int]:
    """Ports on which nobody listens at this moment, in no order that another Ray's choice would follow.

    Raises:
        OSError: there are not so many.
    """
    candidates = list(ports)
    (chance or random.SystemRandom()).shuffle(candidates)
    free: list[int] = []
    for port in candidates:
        if len(free) == count:
            return free
        with socket.socket() as probe, suppress(OSError):
            probe.bind((address, port))
            free.append(port)
    if len(free) < count:
        raise OSError(f"only {len(free)} of {count} ports from {ports[0]} to {ports[-1]} are free on {address}")
    return free


def address_of(interface: str | None) -> str:
    """The IPv4 address of an interface, by default the one of this host's name.

    Raises:
        BadInput: there is no such interface, or it has no address.
    """
    if interface is not None:
        return _address_of_interface(interface)
    with suppress(OSError):
        address = socket.gethostbyname(socket.gethostname())
        if not address.startswith("127."):
            return address
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, suppress(OSError):
        probe.connect(("192.0.2.1", 9))  # sends nothing; the kernel only chooses the way out
        return str(probe.getsockname()[0])
    return "127.0.0.1"


def _address_of_interface(interface: str) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", interface[:15].encode()))
        except OSError as error:
            known = ", ".join(name for _, name in socket.if_nameindex())
            raise BadInput(
                "cluster.yaml", "interface", interface, f"{error.strerror}; {socket.gethostname()} has {known}"
            ) from None
    return socket.inet_ntoa(answer[20:24])


def node_folder(parent: str) -> Path:
    """A new folder for this node's part of Ray.

    Raises:
        BadInput: its path would be too long.
    """
    return private_folder(parent, PREFIX, ("cluster.yaml", "temporary_folder"))


def wait_for(condition: Callable[[], bool], seconds: float, every: float = 0.1) -> bool:
    """Whether the condition came true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(every)
    return True
