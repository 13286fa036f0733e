"""Faults at numbered writes: what a disk or a kill does to a process at its n-th change of a folder.

The C file beside this one is put before the C library of a process, so that every write is met, also those of pyarrow
and of Ray's workers. What is to happen stands in a file that both sides map.
"""

from __future__ import annotations

import mmap
import shutil
import struct
import subprocess
import sys
from enum import IntEnum
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".c")
_NUMBERS = struct.Struct("=6q")
_WHERE, _ROOT = slice(48, 48 + 512), slice(560, 560 + 1024)


class Action(IntEnum):
    """What happens at a write point; the names of the C file."""

    NOTHING, ERROR_ONCE, ERROR_ON, KILL, KILL_HALF_WAY, RAISE = range(6)


def library(folder: Path) -> Path | None:
    """The compiled C file in this folder; None where there is no compiler, or no Linux."""
    path, compiler = folder / "write_faults.so", shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        return None
    if not path.exists():
        words = [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", str(path), str(SOURCE), "-ldl"]
        subprocess.run(words, check=True)
    return path


class WriteFaults:
    """What happens at which write below a folder, for all processes with the environment of `environment`."""

    def __init__(self, folder: Path, root: Path, library: Path) -> None:
        self.path, self.library = folder / "write_faults", library
        content = bytearray(_ROOT.stop)
        content[_ROOT.start : _ROOT.start + len(bytes(root))] = bytes(root)
        self.path.write_bytes(content)
        with self.path.open("r+b") as file:
            self._mapped = mmap.mmap(file.fileno(), 0)

    def environment(self) -> dict[str, str]:
        return {"LD_PRELOAD": str(self.library), "WRITE_FAULTS": str(self.path)}

    def plan(self, action: Action = Action.NOTHING, at: int = 0, number: int = 0, slow_fsync: float = 0.0) -> None:
        """Count from 0 again, and act at point `at`.

        Args:
            action: what happens there.
            at: the number of the point, from 1; an action that does not fit its call waits for the next that does.
            number: the errno, or the signal of `RAISE`.
            slow_fsync: seconds that every fsync takes longer.
        """
        self._mapped[_WHERE] = bytes(512)
        self._mapped[: _NUMBERS.size] = _NUMBERS.pack(0, at, action, number, int(slow_fsync * 1e6), 0)

    @property
    def points(self) -> int:
        """How many writes there were since the last plan."""
        return int(_NUMBERS.unpack(self._mapped[: _NUMBERS.size])[0])

    @property
    def struck(self) -> int:
        """How often it acted."""
        return int(_NUMBERS.unpack(self._mapped[: _NUMBERS.size])[5])

    @property
    def where(self) -> str:
        """The call and the path of the first time."""
        return self._mapped[_WHERE].rstrip(b"\0").decode()
