"""Claims: who is computing a key right now, and how far it has come.

One small JSON file a key, `claims/<key>.json`, is at once the claim ("I am computing this"), the heartbeat
and the live progress that `status` shows.

ADVISORY: if a claim is lost, the worst outcome is work done twice, never a wrong result, because the store
keeps the first whole artifact of a key, whoever made it. So nothing here is fsynced, and an unreadable claim
counts as dead.

A claim is dead when its process is gone (same host), or when it has not changed for a lease (another host, where
nobody can look). Whoever judges it watches it for as long, by its own clock: what times the claim says are another
host's, and may lie an hour or ten years ahead.

A dead claim is never removed before its successor stands. Among several takers the heir is the one that
creates the claim's heir file, by the same exclusive link that creates a claim; it then looks again at the
dead claim and replaces it in one step. The key never looks free meanwhile, so no third taker slips in; and
an heir that dies half-way leaves a dead heir file, which is inherited by the same rule.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from workers.store.files import NotAPlainFile, is_plain, make_folder, open_private, read_plain
from workers.store.processes import Process

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_BEATS = 1.0
_BEATS_PER_LEASE = 6
_ATTEMPTS = 3

_watched: dict[tuple[Path, str], tuple[float, float]] = {}
"""By file and owner, the beat of a claim of another host, and when this process first saw it, by its own clock."""


@dataclass(frozen=True)
class Claim:
    """What one claim file says.

    Attributes:
        key: the job's key.
        run: the run that computes it.
        owner: unique to one taking of one claim.
        host: where it is computed.
        pid: by which process.
        process_start: `Process.start` of that process.
        claimed_at: when it was taken, unix seconds of that host.
        beat_at: when it was last known alive, unix seconds of that host.
        done: the share of the work that is done, 0 to 1.
        note: what it is doing, for people.
        pid_space: `Process.space` of that process.
    """

    key: str
    run: str
    owner: str
    host: str
    pid: int
    process_start: str
    claimed_at: float
    beat_at: float
    done: float = 0.0
    note: str = ""
    pid_space: str = ""

    @property
    def process(self) -> Process:
        """The process that computes the key."""
        return Process(self.host, self.pid, self.process_start, self.pid_space)


class Claims:
    """The claims of one store.

    Args:
        store_root: the store's folder; `claims/` and `tmp/` are made in it when first needed.
        lease_seconds: how long a claim of another host is believed that does not change.
        clock: unix seconds, for people.
        steady: seconds by which claims are watched.
    """

    def __init__(
        self,
        store_root: Path,
        lease_seconds: float = 30.0,
        clock: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = Path(store_root) / "claims"
        self._temporary = Path(store_root) / "tmp"
        self.lease_seconds = lease_seconds
        self.clock, self._steady = clock, steady

    def take(self, key: str, run: str) -> Held | None:
        """Claim a key; None if somebody alive holds it.

        The claim is beaten in the background until the returned `Held` is released.

        Raises:
            OSError: if the store's file system refuses; hard links are needed.
        """
        for _ in range(_ATTEMPTS):
            claim = self._new_claim(key, run)
            if self._acquire(self._path(key), claim):
                return Held(self, claim)
            holder = self.read(key)
            if holder is not None and self.alive(holder):
                return None
        return None

    def read(self, key: str) -> Claim | None:
        """The claim on a key, dead or alive; None if there is none that can be read."""
        content = _content(self._path(key))
        return None if content is None else _parsed(content)

    def all(self) -> list[Claim]:
        """Every readable claim in order of keys, dead ones among them (see `alive`)."""
        paths = sorted(self._folder.glob("*.json"))
        return [claim for path in paths if (claim := _parsed(_content(path) or b"")) is not None]

    def sweep(self, run: str) -> None:
        """Remove the claims of the dead; each is taken first, as by anyone who wants its key, so no living one goes."""
        for path in sorted(self._folder.glob("*.json")):
            claim = _parsed(_content(path) or b"")
            if (claim is None or not self.alive(claim)) and (held := self.take(path.stem, run)) is not None:
                held.release()

    def alive(self, claim: Claim) -> bool:
        """Whether its process still runs or, where that cannot be seen, it changed within a lease of looking at it."""
        running, now = claim.process.running(), self._steady()
        if running is not None:
            return running
        place = (self._path(claim.key), claim.owner)
        beat, since = _watched.get(place, (None, now))
        if beat != claim.beat_at:
            since = now
            _watched[place] = claim.beat_at, since
        return now - since <= self.lease_seconds

    def put(self, claim: Claim) -> None:
        """Write a claim over the one that stands, in one step; for its holder."""
        with self._written(claim) as written:
            os.replace(written, self._path(claim.key))

    def remove(self, claim: Claim) -> None:
        """Remove a claim if it still stands; for its holder."""
        standing = self.read(claim.key)
        if standing is not None and standing.owner == claim.owner:
            self._path(claim.key).unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        assert key and "/" not in key and not key.startswith("."), f"not a key: {key!r}"
        return self._folder / f"{key}.json"

    def _new_claim(self, key: str, run: str) -> Claim:
        us, now = Process.current(), self.clock()
        return Claim(
            key=key,
            run=run,
            owner=uuid.uuid4().hex,
            host=us.host,
            pid=us.pid,
            process_start=us.start,
            claimed_at=now,
            beat_at=now,
            pid_space=us.space,
        )

    def _acquire(self, path: Path, claim: Claim) -> bool:
        """Create a claim file, or inherit it from a dead claim."""
        if self._create(path, claim):
            return True
        found = _content(path)
        if found is None:
            return False
        holder = _parsed(found)
        if holder is not None and self.alive(holder):
            return False
        return self._inherit(path, found, claim)

    def _inherit(self, path: Path, dead: bytes, claim: Claim) -> bool:
        """Replace a dead claim by ours, unless another taker is its heir or it is no longer the same."""
        heir = self._folder / f".heir-{hashlib.sha256(dead).hexdigest()[:32]}"
        if not self._acquire(heir, claim):
            return False
        try:
            if _content(path) != dead:
                return False
            with self._written(claim) as written:
                os.replace(written, path)
            log.info("%s: took over a dead claim", claim.key)
            return True
        finally:
            heir.unlink(missing_ok=True)

    def _create(self, path: Path, claim: Claim) -> bool:
        """Make the file with its whole content at once; False if it exists."""
        with self._written(claim) as written:
            try:
                os.link(written, path)
            except FileExistsError:
                return False
        return True

    @contextmanager
    def _written(self, claim: Claim) -> Iterator[Path]:
        """A temporary file of the store that holds the claim; removed unless it was moved."""
        for folder in (self._folder, self._temporary):
            make_folder(folder)
        path = self._temporary / Process.current().temporary_name()
        try:
            with open_private(path) as file:
                file.write(json.dumps(asdict(claim), sort_keys=True).encode())
            yield path
        finally:
            path.unlink(missing_ok=True)


class Held:
    """A claim we hold, made by `Claims.take`: beats by itself, is released at the end of its `with` block.

    A daemon thread beats six times a lease, so that one long call does not lose the claim. If another host
    judged us dead all the same (we were suspended, or the file system was away), the claim is theirs: `lost`
    says so and we stop writing. Going on is allowed; it only means that the work is done twice.

    Args:
        claims: where the claim stands.
        claim: the claim as it was written.
    """

    def __init__(self, claims: Claims, claim: Claim) -> None:
        self.claims = claims
        self.claim = claim
        self._lost = False
        self._written_at = float("-inf")
        self._lock = threading.Lock()
        self._released = threading.Event()
        threading.Thread(target=self._keep_beating, name=f"claim {claim.key}", daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def beat(self, done: float, note: str = "", *, force: bool = False) -> None:
        """Report progress; written at most once a second unless forced, at the latest by the next heartbeat.

        Args:
            done: the share of the work that is done; brought into 0 to 1.
            note: what is being done, for people.
            force: write it now.
        """
        with self._lock:
            self.claim = replace(self.claim, done=min(max(done, 0.0), 1.0), note=note)
            if force or self.claims.clock() - self._written_at >= _SECONDS_BETWEEN_BEATS:
                self._write()

    def lost(self) -> bool:
        """Whether somebody else holds the claim by now."""
        with self._lock:
            return self._taken_from_us()

    def release(self) -> None:
        """Stop beating and remove the claim if it is still ours; a second call does nothing."""
        with self._lock:
            if self._released.is_set():
                return
            self._released.set()
            try:
                self.claims.remove(self.claim)
            except OSError as error:
                log.warning("%s: its claim stays behind and will count as dead: %s", self.claim.key, error)

    def _keep_beating(self) -> None:
        while not self._released.wait(self.claims.lease_seconds / _BEATS_PER_LEASE):
            with self._lock:
                self._write()

    def _write(self) -> None:
        """Write the claim with a new beat if it is still ours. A file system in trouble is only logged."""
        if self._released.is_set():
            return
        try:
            if self._taken_from_us():
                return
            self._written_at = self.claims.clock()
            self.claim = replace(self.claim, beat_at=self._written_at)
            self.claims.put(self.claim)
        except OSError as error:
            log.warning("%s: could not beat: %s", self.claim.key, error)

    def _taken_from_us(self) -> bool:
        if not self._lost:
            standing = self.claims.read(self.claim.key)
            self._lost = standing is not None and standing.owner != self.claim.owner
        return self._lost


def _content(path: Path) -> bytes | None:
    """What the file says: nothing if it is something else than a file, which is no claim; None if it is absent."""
    try:
        return read_plain(path)
    except NotAPlainFile:
        return b""
    except FileNotFoundError:
        return None


def _parsed(content: bytes) -> Claim | None:
    """The claim in these bytes; None if they are not one. Fields of later versions are passed over."""
    try:
        document = json.loads(content)
        claim = Claim(**{f.name: document[f.name] for f in fields(Claim) if f.name in document})
    except (ValueError, TypeError, RecursionError):
        return None
    texts = (claim.key, claim.run, claim.owner, claim.host, claim.process_start, claim.note, claim.pid_space)
    numbers = (claim.pid, claim.claimed_at, claim.beat_at, claim.done)
    sound = all(isinstance(text, str) for text in texts) and all(map(_is_number, numbers)) and is_plain(claim.key)
    return claim if sound and isinstance(claim.pid, int) else None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and abs(value) < 2**63
