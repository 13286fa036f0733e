"""Ends what a Ray cluster of ours left behind, whatever happened to the driver.

The pool starts this file as a process of its own and holds the other end of its standard input. When the
pool closes, or the driver dies in any way, the input ends; then the cluster's processes get a moment to
go by themselves, the rest is killed, and the cluster's folder with the token is removed. Ray alone is not
enough: after `kill -9` of the driver two agents of its raylet stay for a minute (measured with 2.60), and
the folder stays for ever.

A process belongs to the cluster if its environment names the cluster's token; nothing is ever found by
its name. Only Linux has the /proc this needs; elsewhere just the folder is removed. Standard library
only, run by path.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

TOKEN_VARIABLE = "RAY_AUTH_TOKEN_PATH"
PATIENCE = 2.0
"""Seconds for processes to go by themselves; Ray's workers notice the end of their raylet in about that."""


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
    """The living processes whose environment names a token in this folder."""
    mark = f"{TOKEN_VARIABLE}={folder}/".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # gone meanwhile, or somebody else's
            if mark in (entry / "environ").read_bytes():
                found.append(int(entry.name))
    return found


def clear(folder: Path, patience: float = PATIENCE) -> None:
    """Wait for the cluster's processes to go, kill those that stay, and remove the folder."""
    _wait_for_end(folder, patience)
    for pid in processes_of(folder):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    _wait_for_end(folder, PATIENCE)
    shutil.rmtree(folder, ignore_errors=True)


def _wait_for_end(folder: Path, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while processes_of(folder) and time.monotonic() < deadline:
        time.sleep(0.05)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    clear(Path(sys.argv[1]))
