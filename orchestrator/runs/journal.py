"""The journal: what happened in a run, one JSON object a line, in the order in which it happened.

`runs/<run>/journal.jsonl` in the store is what `status`, the progress screen and the report read; nobody
asks Ray. It tells a story and holds no truth: what is done is what lies in the store, and a new driver
begins from there.

Every line has `event`, `t` (UTC, ISO 8601 with milliseconds), `seconds` since its driver began and `seq`, which goes
up by one. A run that is taken up again goes on in the same file, so there may be several `run_began`. The fields of
each event are an interface (`orchestrator.runs.records`); more may come, these stay.

A line that is not as it was written, because a bit flipped or somebody edited the file, is left out by readers;
`unreadable` says so to those who must not miss a record.

One driver writes. What happened is in the file before the driver acts on it, so no end of its process loses it; it is
on the disk within `SYNC_WITHIN` seconds (with `--workers 0`, where the driver itself computes, when the running job
ends at the latest), so a host that loses its power forgets no more than that, of which only artifacts live on. The disk
is waited for while the workers work, once for all that was written since. A driver that cannot write its journal
stops, because a run that nobody can follow is worse than one that ended. A line that a crash cut short is left out by
readers and removed by the next writer.
"""

from __future__ import annotations

import fcntl
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from jobs.errors import PddError
from orchestrator.runs.records import RECORDS, Record, is_covered, line_of, record_of
from workers.store.files import open_plain, read_plain, share

NAME = "journal.jsonl"
SYNC_WITHIN = 0.05
"""Seconds from an appended record to the wait for the disk, which takes a few milliseconds, whatever it brings."""

log = logging.getLogger(__name__)


class JournalLost(PddError):
    """The journal cannot be written; the run must not go on."""


class Journal:
    """The one writer of a run's journal; a context manager that closes it."""

    def __init__(self, path: Path, descriptor: int, seq: int, clock: Callable[[], float]) -> None:
        self.path, self._descriptor, self._seq, self._clock = path, descriptor, seq, clock
        self._began = clock()
        self._behind_since: float | None = None
        """Since when something is in the file that may not be on the disk."""

    @classmethod
    def open(cls, folder: Path, clock: Callable[[], float] = time.monotonic) -> Self:
        """Open `folder`'s journal for appending, and make both if they are not there.

        Raises:
            JournalLost: another driver is writing this run's journal, or the file cannot be opened.
        """
        path = folder / NAME
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
            share(folder)
            share(path)
            _lock(descriptor, path)
            os.ftruncate(descriptor, _whole_length(path))
        except OSError as error:
            raise JournalLost(f"{path}: cannot be opened: {error}") from error
        return cls(path, descriptor, _whole_lines(path, 0).count(b"\n"), clock)

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.path.parent

    def elapsed(self) -> float:
        """Seconds since the journal was opened: the run's clock."""
        return self._clock() - self._began

    def write(self, event: str, **fields: Any) -> None:
        """Append one record; it is on the disk when this returns.

        Raises:
            JournalLost: it could not be written.
        """
        self.append([(event, fields)])
        self.sync()

    def append(self, records: list[tuple[str, Mapping[str, Any]]]) -> None:
        """Append several records in one go: all that one look at the pool brought.

        Raises:
            JournalLost: they could not be written.
        """
        if not records:
            return
        text = "".join(self._line(event, fields) for event, fields in records)
        if self._behind_since is None:
            self._behind_since = self._clock()
        with self._must_succeed():
            _write_fully(self._descriptor, text.encode())

    def sync(self) -> None:
        """Wait until all records are on the disk.

        Raises:
            JournalLost: the disk does not take them.
        """
        if self._behind_since is not None:
            with self._must_succeed():
                os.fsync(self._descriptor)
            self._behind_since = None

    def sync_if_due(self) -> float:
        """Wait for the disk if a record is due there.

        Returns:
            Seconds until a record will be due; infinite if all are on the disk.

        Raises:
            JournalLost: the disk does not take them.
        """
        if self._behind_since is None:
            return math.inf
        left = self._behind_since + SYNC_WITHIN - self._clock()
        if left > 0:
            return left
        self.sync()
        return math.inf

    @contextmanager
    def _must_succeed(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise JournalLost(f"{self.path}: cannot be written: {error}") from error

    def _line(self, event: str, fields: Mapping[str, Any]) -> str:
        missing = set(RECORDS[event]) - fields.keys()
        assert not missing, f"{event} without {sorted(missing)}"
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        record = {
            "seq": self._seq,
            "t": now,
            "seconds": round(self.elapsed(), 3),
            "event": event,
            **fields,
        }
        self._seq += 1
        log.debug("%s %s", event, fields)
        return line_of(record)

    def close(self) -> None:
        """Let go of the file; a second time does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read(path: Path) -> list[Record]:
    """All whole records of a journal that can be read; none if there is no such file."""
    return [record for line in _whole_lines(path, 0).split(b"\n") if (record := record_of(line)) is not None]


def unreadable(path: Path) -> str:
    """Why a journal may not tell all that it was told; empty if it does, unless it was cut between two lines."""
    try:
        *lines, rest = read_plain(path).split(b"\n")
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    covered = False
    for number, line in enumerate(lines):
        record = record_of(line)
        if record is None:
            return f"line {number + 1} is no record"
        if record["seq"] != number:
            return f"line {number + 1} is record {record['seq']}, so that some are missing"
        if covered and not is_covered(line):
            return f"line {number + 1} has no checksum"
        covered = covered or is_covered(line)
    return "ends within a line" if rest else "" if lines else "is empty"


def follow(path: Path, wait: Callable[[], object] = lambda: time.sleep(0.2)) -> Iterator[Record]:
    """The records as they come, from the first one on; ends after the last one when that is `run_ended`.

    `wait` is called whenever there is nothing new; raise there to give up.
    """
    position, ended = 0, False
    while True:
        fresh = _whole_lines(path, position)
        position += len(fresh)
        for line in fresh.split(b"\n"):
            record = record_of(line)
            if record is not None:
                ended = record["event"] == "run_ended"
                yield record
        if ended and not fresh:
            return
        if not fresh:
            wait()


def wait_until_free(folder: Path, seconds: float) -> bool:
    """Wait for another writer of a run's journal to let it go, as the lock of a host that lost its power does.

    Args:
        folder: of the run.
        seconds: how long to wait.

    Returns:
        Whether nobody writes it now.
    """
    deadline = time.monotonic() + seconds
    while True:
        with suppress(JournalLost), Journal.open(folder):
            return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(min(2.0, max(0.05, seconds / 20)))


def _whole_lines(path: Path, position: int) -> bytes:
    with suppress(FileNotFoundError), open_plain(path) as file:
        file.seek(position)
        fresh = file.read()
        return fresh[: fresh.rfind(b"\n") + 1]
    return b""


def _whole_length(path: Path) -> int:
    return len(_whole_lines(path, 0))


def _lock(descriptor: int, path: Path) -> None:
    """Refuse a second writer; a file system without locks is taken at its word."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise JournalLost(f"{path}: another driver is writing it: this run is already going on") from error
    except OSError:
        pass


def _write_fully(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
