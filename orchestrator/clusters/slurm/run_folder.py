"""The folder in which the SLURM jobs of one run meet: private, and visible from all nodes.

The head says in `head.json` where it listens and in which versions it speaks, and touches the file while it lives;
workers read it, and leave when it stays untouched. That is a signal and not a clock: nobody compares times of two
machines, a worker only looks whether the file changed since it looked last. A file system that is away for a moment
ends nobody: what cannot be read or written then is so at the next look. The token lies beside it, 0600 in a
folder that is 0700; only its path ever travels. And so does a copy of the code, because jobs wait in a queue and come
back from it: they run what was submitted, whatever has been edited since.

`RunFolder` alone knows what the files are called.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jobs.errors import BadInput
from orchestrator.clusters.slurm import parsers
from orchestrator.clusters.versions import CODE, SOURCES
from workers.store.files import replace_file, write_file

ALL_WORKERS = "all"
"""What `dismiss` takes for the id of every worker."""
SILENCE_SECONDS = 45.0
"""Seconds without a sign of life of the head after which a worker gives its node back."""


@dataclass(frozen=True)
class Head:
    """The head's address and versions, as it announces them."""

    address: str
    """Of Ray's GCS, as `host:port`."""
    start: str
    """Differs at each start of the head."""
    versions: Mapping[str, str]


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run's SLURM jobs."""

    folder: Path

    @property
    def jobs(self) -> Path:
        """Submitit's folder: scripts, calls and logs."""
        return self.folder / "jobs"

    @property
    def token(self) -> Path:
        """The file with the run's token."""
        return self.folder / "token"

    @property
    def code(self) -> Path:
        """The copy of this project's packages that the run's jobs import."""
        return self.folder / "code"

    @property
    def head_file(self) -> Path:
        """The file in which the head announces itself."""
        return self.folder / "head.json"

    @property
    def order_file(self) -> Path:
        """The file with the order of the run."""
        return self.folder / "order.json"

    @classmethod
    def make(cls, folder: Path, order: Mapping[str, Any]) -> RunFolder:
        """Make a folder with a fresh token, a copy of the code, and the order of the run.

        Raises:
            BadInput: others may look into the folder.
        """
        run_folder = cls(folder)
        for path in (folder, run_folder.jobs, run_folder.refusals, run_folder.dismissals):
            path.mkdir(mode=0o700, parents=True, exist_ok=path == folder)
        mode = stat.S_IMODE(folder.stat().st_mode)
        if mode & 0o077:
            raise BadInput("shared folder", "mode", f"{mode:o}", f"make {folder} private: chmod 700")
        write_file(run_folder.token, secrets.token_hex(32).encode())
        for package in SOURCES:
            shutil.copytree(CODE / package, run_folder.code / package, ignore=shutil.ignore_patterns("__pycache__"))
        replace_file(run_folder.order_file, json.dumps(order, indent=2))
        return run_folder

    def order(self) -> dict[str, Any]:
        """Read the order: what the run is to do, on which cluster, in which store."""
        document: dict[str, Any] = json.loads(self.order_file.read_text(encoding="utf-8"))
        return document

    def announce(self, head: Head) -> None:
        """Let the workers know where the head is."""
        replace_file(self.head_file, json.dumps(asdict(head)))

    def heartbeat(self) -> None:
        """Touch the head's file: a sign of life for the workers."""
        with suppress(OSError):
            os.utime(self.head_file)

    def withdraw(self) -> None:
        """Remove the announcement: there is no head any more. One that stays is silent from now on."""
        with suppress(OSError):
            self.head_file.unlink(missing_ok=True)

    def head(self) -> tuple[Head, int] | None:
        """The head, and a number that changes while it lives; None if none is announced."""
        try:
            changed = self.head_file.stat().st_mtime_ns
            return Head(**json.loads(self.head_file.read_text(encoding="utf-8"))), changed
        except (OSError, ValueError, TypeError):
            return None

    # Workers leave when they are told to; those that cannot work say why.

    @property
    def dismissals(self) -> Path:
        """A file for each worker that is not needed any more."""
        return self.folder / "dismissed"

    def dismiss(self, job: str) -> None:
        """Tell a worker that it is not needed; for the job `ALL_WORKERS`, tell all of them.

        Who is not told is cancelled later, as one that does not listen.
        """
        with suppress(OSError):
            (self.dismissals / job).touch(0o600)

    def reopen(self) -> None:
        """Take the dismissal of all workers back, and an earlier head's last word: a new head goes on."""
        (self.dismissals / ALL_WORKERS).unlink(missing_ok=True)
        self.last_word_file.unlink(missing_ok=True)

    def dismissed(self, job: str) -> bool:
        """Whether a worker is not needed any more."""
        return any(os.path.exists(self.dismissals / name) for name in (job, ALL_WORKERS))

    @property
    def refusals(self) -> Path:
        """A file for each worker that refused to start."""
        return self.folder / "refused"

    def refuse(self, job: str, why: str) -> None:
        """Leave the reason why a worker does not start."""
        replace_file(self.refusals / f"{job}.txt", why)

    def log(self, job: str) -> Path:
        """The log of a job, as Submitit names it."""
        return self.jobs / f"{job}_0_log.out"

    def last_lines(self, job: str, count: int = 1) -> str:
        """The last lines of a job's log that say something, on one line."""
        try:
            return parsers.last_lines(self.log(job).read_text(errors="replace")[-10_000:], count)
        except OSError:
            return ""

    def refused(self) -> dict[str, str]:
        """The reasons of the workers that did not start, by SLURM job, as far as they can be read."""
        reasons: dict[str, str] = {}
        with suppress(OSError):
            for path in sorted(self.refusals.glob("*.txt")):
                reasons[path.stem] = path.read_text(encoding="utf-8")
        return reasons

    @property
    def last_word_file(self) -> Path:
        """Where a head says why it ended when the journal does not."""
        return self.folder / "last-word.txt"

    def fail(self, why: str) -> None:
        """Leave the reason why the head ended."""
        replace_file(self.last_word_file, why)

    def last_word(self) -> str:
        """Why the head ended: by its own word, else by the last lines of its log; empty if there is neither."""
        with suppress(OSError):
            return self.last_word_file.read_text(encoding="utf-8")
        logs = [path for path in self.jobs.glob("*_0_log.out") if re.fullmatch(r"\d+_0_log", path.stem)]
        latest = max(logs, key=lambda path: path.stat().st_mtime_ns, default=None)
        return "" if latest is None else self.last_lines(latest.stem.removesuffix("_0_log"), 2)


class HeadMonitor:
    """Listens for the head: hears its signs of life, and how long there was none."""

    def __init__(self, run_folder: RunFolder, silence_seconds: float = SILENCE_SECONDS) -> None:
        self.run_folder, self.silence_seconds = run_folder, silence_seconds
        self._last = -1
        self._heard = time.monotonic()

    def listen(self) -> Head | None:
        """The head, if one is announced."""
        announced = self.run_folder.head()
        if announced is None:
            return None
        head, changed = announced
        if changed != self._last:
            self._last, self._heard = changed, time.monotonic()
        return head

    def silent(self) -> bool:
        """Whether nothing was heard for long."""
        return time.monotonic() - self._heard > self.silence_seconds
