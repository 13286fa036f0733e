"""The command line as a person uses it: in processes of its own, with a store and a folder for temporary files.

Nothing is imported from what is under test but the readers of its files, so that a test sees what a user sees.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.runs import journal
from orchestrator.runs.records import Record
from workers.store.store import Manifest, Store

REPOSITORY = Path(__file__).resolve().parents[2]
PATIENCE = 800.0
"""Seconds for anything at all to happen: the machine may be busy with other things."""


@dataclass(frozen=True)
class Ended:
    """What a command left: exit code, both outputs, seconds."""

    exit: int
    out: str
    err: str
    seconds: float

    @property
    def document(self) -> dict[str, Any]:
        """The one JSON document on standard output."""
        found: dict[str, Any] = json.loads(self.out)
        return found


class Shell:
    """A terminal with one store; `close` asserts nothing, it only cleans up."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.store = folder, folder / "store"
        self.temporary = Path(tempfile.mkdtemp(prefix="t-", dir="/tmp"))
        self.path = [REPOSITORY]
        """Folders whose modules a command can import."""
        self._started: list[subprocess.Popen[str]] = []

    def run(self, *words: str, store: bool = True) -> Ended:
        """A command to its end."""
        began = time.monotonic()
        command = self.start(*words, store=store)
        out, err = command.communicate(timeout=PATIENCE)
        return Ended(command.returncode, out, err, time.monotonic() - began)

    def start(self, *words: str, store: bool = True) -> subprocess.Popen[str]:
        """A command in a process group of its own, as a shell with job control starts it."""
        place = ("--store", str(self.store)) if store else ()
        command = subprocess.Popen(
            [sys.executable, "-m", "orchestrator.launch", *words, *place],
            cwd=self.folder,
            env=os.environ | {"TMPDIR": str(self.temporary), "PYTHONPATH": os.pathsep.join(map(str, self.path))},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
        )
        self._started.append(command)
        return command

    def runs(self) -> list[list[Record]]:
        """The journal of every run, in order of their beginnings."""
        folders = (self.store / "runs").glob("*")
        found = [records for folder in folders if (records := journal.read(folder / journal.NAME))]
        return sorted(found, key=lambda records: records[0]["t"])

    def records(self) -> int:
        """How many records all journals hold."""
        return sum(map(len, self.runs()))

    def manifests(self) -> dict[str, Manifest]:
        """The whole artifacts by key."""
        store = Store(self.store)
        return {key: store.manifest(key) for key in store.keys() if store.has(key)}

    def digests(self) -> dict[str, str]:
        """The digest of each whole artifact."""
        return {key: manifest.digest for key, manifest in self.manifests().items()}

    def left(self) -> list[str]:
        """Living processes that any command started, and what lies in the folder for temporary files.

        Torch keeps its compiler's cache there, for ever and for all its users; that is not ours.
        """
        mark = f"TMPDIR={self.temporary}\0".encode()
        processes = []
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # gone meanwhile, or somebody else's
                environment = (entry / "environ").read_bytes()
                if mark in environment:
                    token = [line for line in environment.split(b"\0") if line.startswith(b"RAY_AUTH_TOKEN_PATH=")]
                    parent = (entry / "stat").read_text().rsplit(")", 1)[1].split()[1]
                    name = (entry / "cmdline").read_bytes().replace(b"\0", b" ").strip()[:60]
                    processes.append(f"{entry.name} of {parent}: {name!r} {token}")
        paths = [path for path in self.temporary.iterdir() if not path.name.startswith("torchinductor_")]
        return processes + [str(path) for path in paths]

    def close(self) -> None:
        """End what is still going on and remove the folder for temporary files."""
        for command in self._started:
            with suppress(ProcessLookupError):
                os.killpg(command.pid, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):
                command.communicate(timeout=5)
        with suppress(AssertionError):
            wait_for(lambda: not self.left(), 10)
        shutil.rmtree(self.temporary, ignore_errors=True)


@contextmanager
def shell_in(folder: Path) -> Iterator[Shell]:
    """A shell whose commands are ended at the end of the block."""
    shell = Shell(folder)
    try:
        yield shell
    finally:
        shell.close()


def wait_for(condition: Callable[[], object], seconds: float | None = None) -> None:
    """Look twenty times a second until the condition holds."""
    seconds = PATIENCE if seconds is None else seconds
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"did not happen within {seconds} s"
        time.sleep(0.05)
