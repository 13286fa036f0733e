"""Where the SLURM jobs of one run meet: a private folder that all nodes see.

The head says in `head.json` where it listens and in which versions it speaks, and touches the file while it lives;
workers read it, and leave when it stays untouched. That is a signal and not a clock: nobody compares times of two
machines, a worker only looks whether the file changed since it looked last. The token lies beside it, 0600 in a
folder that is 0700; only its path ever travels. And so does a copy of the code, because jobs wait in a queue and come
back from it: they run what was submitted, whatever has been edited since.

This class is the one that knows what the files are called.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jobs.errors import BadInput
from orchestrator.clusters.versions import CODE, SOURCES
from workers.store.files import replace_file, write_file

ALL_WORKERS = "all"
"""What `dismiss` takes for the id of every worker."""


@dataclass(frozen=True)
class Head:
    """What the head says of itself."""

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
        """Where the head says where it is."""
        return self.folder / "head.json"

    @property
    def order_file(self) -> Path:
        """What the head is to do."""
        return self.folder / "order.json"

    @classmethod
    def make(cls, folder: Path, order: Mapping[str, Any]) -> RunFolder:
        """A new folder with a fresh token, a copy of the code, and the order of the run.

        Raises:
            BadInput: others may look into the folder.
        """
        made = cls(folder)
        for path in (folder, made.jobs, made.refusals, made.dismissals):
            path.mkdir(mode=0o700, parents=True, exist_ok=path == folder)
        mode = stat.S_IMODE(folder.stat().st_mode)
        if mode & 0o077:
            raise BadInput("shared folder", "mode", f"{mode:o}", f"make {folder} private: chmod 700")
        write_file(made.token, secrets.token_hex(32).encode())
        for package in SOURCES:
            shutil.copytree(CODE / package, made.code / package, ignore=shutil.ignore_patterns("__pycache__"))
        replace_file(made.order_file, json.dumps(order, indent=2))
        return made

    def order(self) -> dict[str, Any]:
        """What the head is to do."""
        document: dict[str, Any] = json.loads(self.order_file.read_text(encoding="utf-8"))
        return document

    def announce(self, head: Head) -> None:
        """Say where the head is."""
        replace_file(self.head_file, json.dumps(asdict(head)))

    def heartbeat(self) -> None:
        """Show that the head lives."""
        os.utime(self.head_file)

    def withdraw(self) -> None:
        """Say that there is no head any more."""
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
        """Tell a worker that it is not needed; for the job `ALL_WORKERS`, tell all of them."""
        (self.dismissals / job).touch(0o600)

    def reopen(self) -> None:
        """A new head needs workers again, though an earlier one sent all home."""
        (self.dismissals / ALL_WORKERS).unlink(missing_ok=True)

    def dismissed(self, job: str) -> bool:
        """Whether a worker is not needed any more."""
        return (self.dismissals / job).exists() or (self.dismissals / ALL_WORKERS).exists()

    @property
    def refusals(self) -> Path:
        """A file for each worker that refused to start."""
        return self.folder / "refused"

    def refuse(self, job: str, why: str) -> None:
        """Say why a worker does not start."""
        replace_file(self.refusals / f"{job}.txt", why)

    def refused(self) -> dict[str, str]:
        """By SLURM job: why workers did not start."""
        return {path.stem: path.read_text(encoding="utf-8") for path in sorted(self.refusals.glob("*.txt"))}
