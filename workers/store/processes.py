"""Processes: who wrote a file, and whether that process still runs, as far as this host can know."""

from __future__ import annotations

import os
import platform
import resource
import socket
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_LARGEST_PID = 2**31 - 1
_OLD = 24 * 3600.0


@dataclass(frozen=True)
class Process:
    """A process, named so that a later one with the same number is not mistaken for it.

    Attributes:
        host: the host's name.
        pid: the process number there.
        start: when it started, in clock ticks since boot (field 22 of `/proc/<pid>/stat`); "" without /proc.
        space: the name of the PID namespace the number belongs to, since containers may share a host's name;
            "" where unknown, which is read as "the same as ours".
    """

    host: str
    pid: int
    start: str = ""
    space: str = ""

    @classmethod
    def current(cls) -> Self:
        """The calling process."""
        pid = os.getpid()
        return cls(socket.gethostname(), pid, _state_and_start(pid)[1], _pid_space())

    def running(self) -> bool | None:
        """Whether it is alive; None if it cannot be seen from here (another host or PID namespace)."""
        if self.host != socket.gethostname() or (self.space and self.space != _pid_space()):
            return None
        if not 0 < self.pid <= _LARGEST_PID or not _exists(self.pid):
            return False
        state, start = _state_and_start(self.pid)
        return state not in ("Z", "X") and (not self.start or not start or self.start == start)

    def temporary_name(self) -> str:
        """A file name used by nobody else, from which `from_temporary_name` reads the process back."""
        return "~".join([self.host, str(self.pid), self.start, self.space, uuid.uuid4().hex])

    @classmethod
    def from_temporary_name(cls, name: str) -> Self | None:
        """The process that made this temporary name; None if it is not one of ours."""
        parts = name.split("~")
        if len(parts) != 5 or not parts[1].isdecimal():
            return None
        return cls(parts[0], int(parts[1]), parts[2], parts[3])


def peak_memory_mib() -> float:
    """The largest resident size of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1024**2 if platform.system() == "Darwin" else 1024), 1)  # bytes there, KiB on Linux


def writer_is_dead(path: Path) -> bool:
    """Whether nobody goes on writing a temporary file: its process is gone or, where that cannot be seen, it is old."""
    writer = Process.from_temporary_name(path.name)
    running = writer.running() if writer else None
    if running is not None:
        return not running
    try:
        age = time.time() - path.lstat().st_mtime
    except FileNotFoundError:
        return False
    return age > _OLD


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _state_and_start(pid: int) -> tuple[str, str]:
    """Fields 3 and 22 of `/proc/<pid>/stat`; two empty strings where it cannot be read."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return "", ""
    after_name = text.rpartition(")")[2].split()  # the name, field 2, may itself hold blanks and parentheses
    return after_name[0], after_name[19]


def _pid_space() -> str:
    try:
        return os.readlink("/proc/self/ns/pid").strip("pid:[]")
    except OSError:
        return ""
