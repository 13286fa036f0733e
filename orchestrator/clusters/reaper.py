"""Ends what a Ray cluster of ours left behind, whatever happened to the driver.

The pool starts this file as a process of its own and holds the other end of its standard input. When the
pool closes, or the driver dies in any way, the input ends; then the cluster's processes get a moment to
go by themselves, the rest is killed, and the cluster's folder with the token is removed. Ray alone is not
enough: after `kill -9` of the driver two agents of its raylet stay for a minute (measured with 2.60), and
the folder stays for ever.

A process belongs to the cluster if its environment names the cluster's token, or if it writes to an output (`.out`,
`.err`) in the cluster's folder: a process that changes its title, as Ray's agents do, may overwrite its environment,
and when their raylet is gone all that is left of it is its output, which they inherited. The driver has only logs
there. Nothing is ever found by its name. Only Linux has the /proc this needs; elsewhere just the folder is removed.
Standard library only, run by path.
"""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

TOKEN_VARIABLE = "RAY_AUTH_TOKEN_PATH"
ORDERLY = b"ended"
"""What stands at the end of the input when the cluster was shut down and not cut off."""
QUIET_SECONDS = 3.0
"""Seconds without any process before the folder goes: a driver that is killed while it starts Ray may leave a process
that has not yet become Ray, and a raylet that is killed may just have started its agents."""
LONGEST_SECONDS = 60.0
"""Seconds after which even a cluster that keeps starting processes is left alone."""
GRACE_SECONDS = 1.0
"""Seconds for processes to go by themselves; nothing that they do after the end of their raylet is of use."""


def watch(folder: Path) -> subprocess.Popen[bytes]:
    """Start a reaper for the cluster in `folder`; close its `stdin` to let it work, then wait for it."""
    return subprocess.Popen(
        [sys.executable, "-I", __file__, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # a Ctrl-C in the terminal is not meant for it
    )


def processes_of(folder: Path) -> list[int]:
    """The living processes whose environment names a token in this folder, or that write to an output in it."""
    mark = f"{TOKEN_VARIABLE}={folder}/".encode()
    pids = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # gone meanwhile, or somebody else's
            if mark in (entry / "environ").read_bytes() or _writes_into(folder, entry):
                pids.append(int(entry.name))
    return pids


def _writes_into(folder: Path, process: Path) -> bool:
    """Whether a process has an output in the folder open for writing; somebody may just be reading it."""
    for descriptor in (process / "fd").iterdir():
        with suppress(OSError):  # closed meanwhile
            target = os.readlink(descriptor).removesuffix(" (deleted)")
            ours = target.startswith(f"{folder}/") and target.endswith((".out", ".err"))
            if ours and descriptor.lstat().st_mode & stat.S_IWUSR:
                return True
    return False


def end(watcher: subprocess.Popen[bytes], orderly: bool = True) -> None:
    """Tell a reaper that its cluster was ended, and wait until it has looked after the rest.

    Args:
        watcher: the reaper.
        orderly: whether the cluster was up; one that was broken off while it started may still start processes.
    """
    if watcher.stdin is not None:
        with suppress(BrokenPipeError):
            watcher.stdin.write(ORDERLY if orderly else b"")
            watcher.stdin.close()
    watcher.wait()


def clear(folder: Path, grace: float = GRACE_SECONDS, quiet: float = QUIET_SECONDS) -> None:
    """Wait for the cluster's processes to go, kill those that stay, and remove the folder.

    Args:
        folder: of the cluster.
        grace: seconds for the processes to go by themselves.
        quiet: seconds without any process after which there will be none.
    """
    _wait_for_end(folder, grace)
    last, deadline = time.monotonic(), time.monotonic() + LONGEST_SECONDS
    while time.monotonic() < min(last + quiet, deadline):
        for pid in processes_of(folder):
            last = time.monotonic()
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)
    _wait_for_end(folder, 1.0)
    shutil.rmtree(folder, ignore_errors=True)


def _wait_for_end(folder: Path, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while processes_of(folder) and time.monotonic() < deadline:
        time.sleep(0.05)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2):  # the last is SLURM's warning
        signal.signal(number, signal.SIG_IGN)
    orderly = sys.stdin.buffer.read() == ORDERLY
    clear(Path(sys.argv[1]), quiet=0.2 if orderly else QUIET_SECONDS)
