"""A real SLURM on one Debian machine, for the tests of `--cluster slurm`: munged, accounting, a controller, nodes.

Each node is a set of Linux namespaces with its own address, host name, processes and /dev/shm, joined by a bridge; so
it can be cut off like a machine. CPUs, memory and GPUs are claims that nobody enforces. Everything lives in one
folder and dies with the process that started it; nothing in /etc is read or written.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

PROGRAMS = ("slurmctld", "slurmd", "slurmdbd", "sbatch", "munged", "mariadbd", "mariadb-install-db", "ip", "unshare")
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
BRIDGE = "pddtest0"
SUBNET = "10.229.57"


def why_not() -> str:
    """Why no SLURM can be started here; empty if one can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "a SLURM of our own needs root on Linux"
    path = os.environ.get("PATH", "") + ":" + PATH
    missing = [program for program in PROGRAMS if shutil.which(program, path=path) is None]
    if missing:
        return f"not installed: {', '.join(missing)} (apt-get install slurm-wlm slurmdbd munge mariadb-server iproute2)"
    trial = "ip link add trial type bridge && ip link add one type veth peer name other"
    spaces = ("--net", "--uts", "--mount", "--pid", "--fork", "--mount-proc")
    tried = subprocess.run(["unshare", *spaces, "sh", "-c", trial], capture_output=True, env={"PATH": path})
    if tried.returncode != 0:
        return f"namespaces or virtual networks are not allowed here: {tried.stderr.decode().strip()}"
    return ""


class MiniSlurm:
    """The cluster, from `start` to `stop`; a context manager.

    Partitions: `main` can be preempted by `high`, and so can `cheap`, whose jobs are cancelled then; `short` ends jobs
    after a minute. QOS: `few` takes two jobs of a user, `alone` lets one of them run. An array may have three elements.
    """

    def __init__(self, nodes: int = 4, cpus: int = 4, memory_mb: int = 8000, gpus: int = 2) -> None:
        self.nodes, self.cpus, self.memory_mb, self.gpus = nodes, cpus, memory_mb, gpus
        self.folder = Path(tempfile.mkdtemp(prefix="minislurm-", dir="/run"))
        self.conf = self.folder / "slurm.conf"
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._controller_port, self._accounting_port = _free_port(), _free_port()

    @property
    def environment(self) -> dict[str, str]:
        """What SLURM's programs need to find this cluster."""
        path = os.environ.get("PATH", "") + ":" + PATH
        return {**os.environ, "SLURM_CONF": str(self.conf), "PATH": path}

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start everything, and wait for idle nodes."""
        self._write_configuration()
        _run("ip", "link", "del", BRIDGE, check=False)  # of a process that was killed
        _run("ip", "link", "add", BRIDGE, "type", "bridge")
        _run("ip", "addr", "add", f"{SUBNET}.1/24", "dev", BRIDGE)
        _run("ip", "link", "set", BRIDGE, "up")
        self._start_munge()
        self._start_accounting()
        self._daemon("slurmctld", "slurmctld", "-D", "-c")
        wait_until(lambda: _listens(f"{SUBNET}.1", self._controller_port), 120)
        for number in range(1, self.nodes + 1):
            self.start_node(number)
        wait_until(lambda: self.states() == ["idle"] * self.nodes, 120)

    def stop(self) -> None:
        """End all of it and remove the folder."""
        self._ask("scancel", "--full", "--user", "root")
        wait_until(lambda: not self._ask("squeue", "--noheader"), 20, must=False)
        for name in reversed(list(self._daemons)):
            self._end(name)
        _run("ip", "link", "del", BRIDGE, check=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    def start_node(self, number: int) -> None:
        """Boot a node; its init is a shell, and when that ends the kernel ends the whole node."""
        name = f"node{number}"
        script = f"""
            until ip link show eth0 >/dev/null 2>&1; do sleep 0.02; done
            hostname {name}
            ip link set lo up; ip addr add {SUBNET}.{10 + number}/24 dev eth0; ip link set eth0 up
            ip route add default via {SUBNET}.1
            mount --bind {self.folder}/hosts /etc/hosts
            mount -t tmpfs -o size=50% tmpfs /dev/shm
            slurmd -D -N {name} & daemon=$!
            while kill -0 $daemon 2>/dev/null; do wait $daemon; done"""
        spaces = ("--net", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
        daemon = self._daemon(name, "unshare", *spaces, "sh", "-c", script)
        here = os.readlink("/proc/self/ns/net")
        wait_until(lambda: os.readlink(f"/proc/{daemon.pid}/ns/net") != here, 20)
        link = f"{BRIDGE}n{number}"
        _run("ip", "link", "del", link, check=False)  # of the node as it was before it was cut off
        _run("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", str(daemon.pid))
        _run("ip", "link", "set", link, "master", BRIDGE)
        _run("ip", "link", "set", link, "up")

    def cut_node(self, number: int) -> None:
        """Take a node's power away: all its processes end at once, and nobody is told."""
        self._daemons[f"node{number}"].kill()  # --kill-child ends the node's init with it
        self._daemons[f"node{number}"].wait()

    def fix(self) -> None:
        """Bring every node back, whatever was done to it, and wait until all are idle."""
        for number, state in enumerate(self.states(), start=1):
            if self._daemons[f"node{number}"].poll() is not None:
                self.start_node(number)
            elif "drain" in state or "down" in state:
                self._ask("scontrol", "update", f"nodename=node{number}", "state=resume")
        wait_until(lambda: self.states() == ["idle"] * self.nodes, 120)

    @contextmanager
    def without_user_signal(self) -> Iterator[None]:
        """Let preemption send SIGTERM only, as SLURM does by default."""
        before = self.conf.read_text()
        self.conf.write_text(before.replace("SlurmctldParameters=preempt_send_user_signal\n", ""))
        self.run("scontrol", "reconfigure")
        try:
            yield
        finally:
            self.conf.write_text(before)
            self.run("scontrol", "reconfigure")

    @contextmanager
    def hidden(self, number: int, folder: Path) -> Iterator[None]:
        """Let a node see an empty folder in the place of this one."""
        spaces = f"/proc/{self._daemons[f'node{number}'].pid}/ns"
        inside = ("nsenter", f"--mount={spaces}/mnt", f"--pid={spaces}/pid_for_children")
        _run(*inside, "mount", "-t", "tmpfs", "tmpfs", str(folder))
        try:
            yield
        finally:
            _run(*inside, "umount", "--lazy", str(folder))

    @contextmanager
    def limited(self, minutes: int) -> Iterator[None]:
        """Let the default partition end jobs after so many minutes."""
        self.run("scontrol", "update", "partition=main", f"maxtime={minutes}")
        try:
            yield
        finally:
            self.run("scontrol", "update", "partition=main", "maxtime=infinite")

    @contextmanager
    def silent_controller(self) -> Iterator[None]:
        """Let the controller answer nobody for a while."""
        controller = self._daemons["slurmctld"]
        controller.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            controller.send_signal(signal.SIGCONT)

    def states(self) -> list[str]:
        """Of the nodes, in order."""
        return self._ask("sinfo", "--noheader", "--Node", "--partition", "main", "--format", "%T").split()

    def run(self, *command: str) -> str:
        """What one of SLURM's programs prints; an error if it fails."""
        done = subprocess.run(command, capture_output=True, text=True, env=self.environment, timeout=120)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def _ask(self, *command: str) -> str:
        with suppress(OSError, subprocess.TimeoutExpired):
            return subprocess.run(command, capture_output=True, text=True, env=self.environment, timeout=60).stdout
        return ""

    def _daemon(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        with open(self.folder / "log" / f"{name}.out", "ab") as log:
            self._daemons[name] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment | {"MYSQL_UNIX_PORT": str(self.folder / "mysql.sock")},
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        return self._daemons[name]

    def _end(self, name: str) -> None:
        daemon = self._daemons.pop(name)
        if name.startswith("node"):
            daemon.kill()
        else:
            daemon.terminate()
        try:
            daemon.wait(20)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()

    def _start_munge(self) -> None:
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        places = {"socket": "munge.sock", "key-file": "munge.key", "pid-file": "munge.pid", "seed-file": "munge.seed"}
        options = [f"--{option}={self.folder / file}" for option, file in places.items()]
        log = f"--log-file={self.folder}/log/munged.log"
        self._daemon("munged", "munged", "--foreground", "--force", log, *options)
        wait_until(lambda: (self.folder / "munge.sock").exists(), 30)

    def _start_accounting(self) -> None:
        data, sock = self.folder / "db", self.folder / "mysql.sock"
        common = ("--no-defaults", "--user=root", f"--datadir={data}")
        _run("mariadb-install-db", *common, "--auth-root-authentication-method=socket", "--skip-test-db")
        small = ("--innodb-buffer-pool-size=32M", "--innodb-flush-log-at-trx-commit=0", "--performance-schema=OFF")
        where = ("--skip-networking", f"--socket={sock}", f"--pid-file={self.folder}/mysql.pid")
        self._daemon("mariadbd", "mariadbd", *common, *where, *small)
        wait_until(sock.exists, 60)
        self._daemon("slurmdbd", "slurmdbd", "-D")
        wait_until(lambda: _listens(f"{SUBNET}.1", self._accounting_port), 120)
        self.run("sacctmgr", "-i", "add", "cluster", "minislurm")
        self.run("sacctmgr", "-i", "add", "qos", "few", "set", "MaxSubmitJobsPerUser=2")
        self.run("sacctmgr", "-i", "add", "qos", "alone", "set", "MaxJobsPerUser=1")
        self.run("sacctmgr", "-i", "modify", "user", "root", "set", "qos+=few,alone")

    def _write_configuration(self) -> None:
        host = socket.gethostname().split(".")[0]
        for name in ("state", "log", "dev", *(f"spool/node{number}" for number in range(1, self.nodes + 1))):
            (self.folder / name).mkdir(parents=True)
        for number in range(self.gpus):  # SLURM wants a character device; a link to one will do
            (self.folder / "dev" / f"nvidia{number}").symlink_to("/dev/null")
        names = {number: f"{SUBNET}.{10 + number} node{number}" for number in range(1, self.nodes + 1)}
        hosts = ["127.0.0.1 localhost", f"{SUBNET}.1 {host}", *names.values()]
        self._write("hosts", hosts)
        self._write("plugstack.conf", [])
        self._write("cgroup.conf", ["CgroupPlugin=cgroup/v1"])  # nothing uses it, but slurmd loads one
        gpus = f"NodeName=node[1-{self.nodes}] Name=gpu File={self.folder}/dev/nvidia[0-{self.gpus - 1}]"
        self._write("gres.conf", [gpus] if self.gpus else [])
        gres = f" Gres=gpu:{self.gpus}" if self.gpus else ""
        size = f"CPUs={self.cpus} RealMemory={self.memory_mb}{gres} State=UNKNOWN"
        nodes = [f"NodeName=node{n} NodeAddr={SUBNET}.{10 + n} NodeHostname=node{n} {size}" for n in names]
        values = SETTINGS.format(
            folder=self.folder,
            host=host,
            address=f"{SUBNET}.1",
            port=self._controller_port,
            accounting=self._accounting_port,
            memory=self.memory_mb // self.cpus,
        )
        self._write("slurm.conf", [values, *nodes, PARTITIONS])
        self._write(
            "slurmdbd.conf",
            [DATABASE.format(folder=self.folder, host=host, address=f"{SUBNET}.1", port=self._accounting_port)],
        )
        (self.folder / "slurmdbd.conf").chmod(0o600)

    def _write(self, name: str, lines: Sequence[str]) -> None:
        (self.folder / name).write_text("".join(f"{line}\n" for line in lines))


SETTINGS = """\
ClusterName=minislurm
SlurmctldHost={host}({address})
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU={memory}
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0,preempt_youngest_first
KillWait=5
SlurmdTimeout=20
MessageTimeout=30
ReturnToService=2
JobRequeue=1
MaxArraySize=3
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageEnforce=limits
AccountingStorageHost={address}
AccountingStoragePort={accounting}
AccountingStoragePass={folder}/munge.sock
GresTypes=gpu"""

PARTITIONS = """\
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE GraceTime=10 State=UP
PartitionName=cheap Nodes=ALL MaxTime=INFINITE PriorityTier=1 PreemptMode=CANCEL GraceTime=10 State=UP
PartitionName=short Nodes=ALL MaxTime=1 PriorityTier=1 PreemptMode=OFF State=UP
PartitionName=high Nodes=ALL MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF State=UP"""

DATABASE = """\
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
DbdHost={host}
DbdAddr={address}
DbdPort={port}
SlurmUser=root
LogFile={folder}/log/slurmdbd.log
PidFile={folder}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm_acct_db"""


def wait_until(condition: Callable[[], Any], seconds: float, *, must: bool = True) -> None:
    """Wait for a condition; an error if it does not come true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= deadline:
            assert not must, f"not true after {seconds:.0f} s"
            return
        time.sleep(0.1)


def _run(*command: str, check: bool = True) -> None:
    environment = {**os.environ, "PATH": os.environ.get("PATH", "") + ":" + PATH}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0 or not check, f"{command}: {done.stdout}{done.stderr}"


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _listens(address: str, port: int) -> bool:
    with suppress(OSError):
        socket.create_connection((address, port), 0.5).close()
        return True
    return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
