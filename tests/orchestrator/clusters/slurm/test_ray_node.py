"""One node's part of the cluster: commands as values, ports, folders, and processes that die with their parent."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs.errors import BadInput
from orchestrator.clusters.slurm import ray_node
from orchestrator.clusters.slurm.ray_node import Offer, free_ports, ray_command

PORTS = (1, 2, 3, 4, 5, 6, 7)


def test_the_head_offers_nothing_and_names_all_its_ports() -> None:
    command = ray_command("10.0.0.1", Path("/tmp/n"), PORTS, Offer(), None)
    assert {"--head", "--port=7", "--block", "--num-cpus=0", "--num-gpus=0", "--resources={}"} <= set(command)
    assert {"--node-ip-address=10.0.0.1", "--temp-dir=/tmp/n/ray", "--include-dashboard=false"} <= set(command)
    assert not any("token" in word.lower() for word in command)


def test_a_worker_names_its_head_and_the_job_that_lends_it() -> None:
    command = ray_command("10.0.0.2", Path("/tmp/n"), PORTS, Offer(2, 1, "12_3"), "10.0.0.1:7")
    assert {"--address=10.0.0.1:7", "--num-cpus=2", "--num-gpus=1"} <= set(command)
    assert '--resources={"pdd_slot": 2, "pdd_job_12_3": 1}' in command
    assert "--head" not in command and "--port=7" not in command


def test_ports_are_free_distinct_and_outside_the_ranges_of_ray_and_the_kernel() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        taken = other.getsockname()[1]
        assert taken not in free_ports("127.0.0.1", 3, [taken, *range(21_000, 21_100)], random.Random(0))
    found = free_ports("127.0.0.1", 7)
    assert len(set(found)) == 7
    assert all(19_999 < port < 32_000 for port in found)


def test_too_few_free_ports_are_an_error_with_the_range() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        taken = other.getsockname()[1]
        with pytest.raises(OSError, match=f"only 0 of 1 ports from {taken} to {taken} are free on 127.0.0.1"):
            free_ports("127.0.0.1", 1, [taken])


def test_an_interface_is_asked_for_its_address_and_an_unknown_one_refused() -> None:
    assert ray_node.address_of("lo") == "127.0.0.1"
    with pytest.raises(BadInput, match="interface is 'ib9'.* has .*lo"):
        ray_node.address_of("ib9")


def test_a_private_folder_is_private_and_a_long_one_refused(tmp_path: Path) -> None:
    made = ray_node.node_folder("/tmp")
    assert made.stat().st_mode & 0o777 == 0o700
    made.rmdir()
    deep = tmp_path / ("x" * 60)
    deep.mkdir()
    with pytest.raises(BadInput, match="at most 18 characters"):
        ray_node.node_folder(str(deep))
    assert list(deep.iterdir()) == []


def test_a_folder_is_swept_when_nobody_holds_it_and_only_then(tmp_path: Path) -> None:
    held, left, new = (tmp_path / f"{ray_node.PREFIX}{name}" for name in ("held", "left", "new"))
    for folder in (held, left, new):
        folder.mkdir()
    descriptor = ray_node.hold(held)
    os.close(ray_node.hold(left))
    ray_node.sweep(tmp_path, ray_node.PREFIX)
    assert held.exists() and new.exists() and not left.exists()
    os.close(descriptor)


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel of Linux")
def test_a_child_dies_with_the_parent_that_started_it(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from orchestrator.clusters.slurm.ray_node import start_child\n"
        f"child = start_child(['sleep', '600'], {{'A': 'b', 'HOME': None}}, None)\n"
        f"Path({str(tmp_path / 'pid')!r}).write_text(str(child.pid)); time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], cwd=Path(ray_node.__file__).parents[3])
    try:
        assert ray_node.wait_for((tmp_path / "pid").exists, 120)
        time.sleep(0.1)
        child = int((tmp_path / "pid").read_text())
        environment = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        assert b"A=b" in environment and not any(line.startswith(b"HOME=") for line in environment)
        ignored = int(_line(child, "SigIgn").split()[1], 16)
        assert ignored & (1 << (signal.SIGUSR2 - 1))  # SLURM's warning would end it
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        gone = ray_node.wait_for(lambda: not Path(f"/proc/{child}").exists() or b") Z " in _stat(child), 20)
        assert gone
    finally:
        parent.kill()


def _stat(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return b") Z "


def _line(pid: int, name: str) -> str:
    return next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(name))
