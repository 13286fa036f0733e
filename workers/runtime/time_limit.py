"""The time limit of a worker: until when its process may work on this machine, and how it is asked to stop earlier.

On a cluster a machine is there for a limited time. Whoever starts worker processes there says in their environment when
the time is over, and names a folder of the node through which the two talk: a file `stop` in it asks all of them to
save and go, and a file `busy-<pid>` says that a process is in the middle of a job. Without these variables, as on a
laptop, a time limit never ends.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from pathlib import Path

BEGAN, ENDS, FOLDER = "PDD_TIME_LIMIT_BEGAN", "PDD_TIME_LIMIT_ENDS", "PDD_TIME_LIMIT_FOLDER"
STOP = "stop"

_FRESH = 0.9
"""A time limit with this share of its time left is as good as any later one."""


@dataclass(frozen=True)
class TimeLimit:
    """The time from `began` to `ends`, in unix seconds of this machine, and the folder of the node."""

    began: float = -inf
    ends: float = inf
    folder: Path | None = None

    @classmethod
    def current(cls, environment: Mapping[str, str] = os.environ) -> TimeLimit:
        """The time limit that this process was started into."""
        folder = environment.get(FOLDER)
        return cls(
            float(environment.get(BEGAN, -inf)),
            float(environment.get(ENDS, inf)),
            Path(folder) if folder else None,
        )

    def environment(self) -> dict[str, str]:
        """The variables from which `current` reads it back."""
        assert self.folder is not None
        return {BEGAN: repr(self.began), ENDS: repr(self.ends), FOLDER: str(self.folder)}

    def over(self) -> bool:
        """Whether the time is up, or somebody asked to stop."""
        return time.time() >= self.ends or (self.folder is not None and (self.folder / STOP).exists())

    def has_room_for(self, seconds: float) -> bool:
        """Whether work that long should begin now.

        What does not fit into a fresh time limit fits into none; it begins all the same, since the length of a job is
        only an estimate.
        """
        left = self.ends - time.time()
        return left == inf or left >= seconds or left >= _FRESH * (self.ends - self.began)

    def stop(self) -> None:
        """Ask all processes of this time limit to save and go."""
        assert self.folder is not None
        (self.folder / STOP).touch(0o600)

    def busy(self) -> list[str]:
        """The processes in the middle of a job, as `busy-<pid>`."""
        assert self.folder is not None
        return [path.name for path in self.folder.glob("busy-*") if _exists(path.name.partition("-")[2])]

    @contextmanager
    def working(self) -> Iterator[None]:
        """Says for the time of the block that this process is in the middle of a job."""
        if self.folder is None:
            yield
            return
        mark = self.folder / f"busy-{os.getpid()}"
        mark.touch(0o600)
        try:
            yield
        finally:
            mark.unlink(missing_ok=True)


def _exists(pid: str) -> bool:
    """Whether the process is there; one killed in the middle of a job leaves its mark behind."""
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        pass
    return True
