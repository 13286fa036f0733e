"""The store: finished artifacts by key, whole or not at all.

    objects/<kind>/<key>/    one artifact: data files and manifest.json
    quarantine/              damaged artifacts, each with a why.txt
    tmp/                     what is being written, named after the process that writes it
    claims/  checkpoints/    see `workers.store.claims` and `workers.store.checkpoints`
    runs/<run>/              journals and logs of a run

TRUTH: an artifact is what its manifest says it is. It is written in a temporary folder and fsynced, the
manifest last, and moved into place by one rename, so a reader sees nothing or the whole. The first writer
wins; a later one's copy is dropped. Every look at an artifact checks the sizes of its files, `verify` their
digests. What does not match is moved to the quarantine and is absent from then on. An error of the file
system is raised, not taken for damage. Files are 0600, folders 0700, and nothing is pickled.

Left out: what the data files contain, when to compute, and stores that are not local folders. That this one
is local is known to `workers.store.files`, to the last section and to the renames in `Store.quarantine` and
`Store._publish`; there a store on pyarrow.fs would differ.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import platform
import re
import resource
import shutil
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote, urlsplit
from uuid import uuid4

from jobs.errors import BadInput, Damaged
from jobs.keys import kind_of
from workers.store.claims import Process
from workers.store.files import (
    full_disk_explained,
    make_folder,
    names_in,
    sha256_of,
    sync_folder,
    temporary_path,
    write_file,
)
from workers.store.versions import installed_versions

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"

_FOLDERS = ("objects", "quarantine", "tmp", "claims", "checkpoints", "runs")
_DISTRIBUTIONS = ("numpy", "pyarrow", "torch", "pdd-orchestrator")


@dataclass(frozen=True)
class FileRecord:
    """Size in bytes and sha256 (hex) of one data file."""

    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What an artifact is and how it came about; equal digests mean the same result."""

    key: str
    kind: str
    spec: dict[str, Any]
    parents: dict[str, list[str]]  # keys by role
    files: dict[str, FileRecord]  # the data files by name
    digest: str  # `digest_of(files)`
    versions: dict[str, str]  # of Python, the libraries and this project
    host: str
    device: str
    seconds: float  # what the job took
    peak_memory_mib: float  # largest resident size of the process that wrote it, earlier jobs included
    written: str  # ISO 8601, UTC
    extra: dict[str, Any]  # small numbers of its kind, such as an accuracy

    def to_json(self) -> bytes:
        """The text of manifest.json; ValueError or TypeError for what JSON has no word for, such as NaN."""
        return json.dumps(asdict(self), indent=2, sort_keys=True, allow_nan=False).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        """The manifest in this text; fields of later versions are passed over.

        Raises:
            ValueError, TypeError, KeyError, AttributeError: if the text is not a manifest.
        """
        document = json.loads(text)
        files = {name: FileRecord(**record) for name, record in document["files"].items()}
        return cls(**{f.name: document[f.name] for f in fields(cls)} | {"files": files})


class Store:
    """Artifacts in one local folder. The constructor touches nothing; `open` makes and checks the folders.

    Args:
        root: a folder, or its `file://` URI.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = _local_folder(root)
        self._opened = False

    @classmethod
    def open(cls, root: str | Path) -> Self:
        """The store in a folder that exists or is made now, and to which we really can write.

        A folder in which every user may write is refused, sticky or not: anyone could plant artifacts there.
        One in which the group may write is accepted: that is the usual umask where each user has a group.

        Raises:
            BadInput: if the folder is not local, not private enough or not writable.
        """
        store = cls(root)
        try:
            store.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            if store.root.stat().st_mode & stat.S_IWOTH:
                raise BadInput("--store", "store", str(store.root), "others may write there: chmod o-w it")
            for name in _FOLDERS:
                make_folder(store.root / name)
            probe = temporary_path(store.root)
            write_file(probe, b"can this store be written to?")
            probe.unlink()
        except OSError as error:
            fix = f"give a folder that you can write to ({error.strerror})"
            raise BadInput("--store", "store", str(store.root), fix) from error
        store._opened = True
        return store

    def run_folder(self, run: str) -> Path:
        """The folder of a run's journal and logs; not made here."""
        return self.root / "runs" / _plain(run)

    def has(self, key: str) -> bool:
        """Whether the artifact is there, all its files in full size; a damaged one is quarantined."""
        try:
            return self._look(key) is not None
        except Damaged:
            return False

    def manifest(self, key: str) -> Manifest:
        """The manifest of an artifact whose files are all there in their full size.

        Raises:
            Damaged: if they are not (the artifact is then quarantined), or if there is no such artifact.
        """
        found = self._look(key)
        if found is None:
            raise Damaged(f"{self._object(key)}: artifact is absent, perhaps quarantined: run its job again")
        return found

    def path(self, key: str, name: str) -> Path:
        """One data file of an artifact, its size checked.

        Raises:
            Damaged: as `manifest` does.
            KeyError: if the artifact is sound and has no such file.
        """
        files = self.manifest(key).files
        if name not in files:
            raise KeyError(f"{key} has no file {name!r}, only {sorted(files)}")
        return self._object(key) / name

    @contextmanager
    def put(
        self,
        key: str,
        kind: str,
        spec: Mapping[str, Any],
        parents: Mapping[str, Sequence[str]],
        *,
        device: str,
        seconds: float | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> Iterator[Path]:
        """A new folder to write the data files into; it becomes the artifact when the block ends well.

        `seconds` of None are those the block takes; `extra` is read at its end, so the block may fill it.
        If the key has a whole artifact by then, ours is dropped and theirs stands. If the block raises,
        nothing is kept. The store must have been opened, and the data files lie side by side.

        Raises:
            OSError: from the file system, with a note of what to do when it is full.
            ValueError, TypeError: as `Manifest.to_json` does.
        """
        assert kind == kind_of(key), f"{key} is not a key of kind {kind}"
        began = time.monotonic()
        temporary = temporary_path(self.root)
        with full_disk_explained(self.root):
            try:
                temporary.mkdir(mode=0o700)
                yield temporary
                files = {name: _seal(temporary / name) for name in names_in(temporary)}
                assert files, f"{key}: an artifact without a data file"
                manifest = Manifest(
                    key=key,
                    kind=kind,
                    spec=dict(spec),
                    parents={role: list(keys) for role, keys in parents.items()},
                    files=files,
                    digest=digest_of(files),
                    versions=installed_versions(_DISTRIBUTIONS),
                    host=Process.current().host,
                    device=device,
                    seconds=time.monotonic() - began if seconds is None else seconds,
                    peak_memory_mib=_peak_memory_mib(),
                    written=datetime.now(UTC).isoformat(timespec="seconds"),
                    extra=dict(extra or {}),
                )
                write_file(temporary / MANIFEST, manifest.to_json())
                sync_folder(temporary)
                self._publish(temporary, manifest)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)

    def verify(self, key: str) -> list[str]:
        """Complaints about an artifact after reading all its bytes; an empty list means it is sound."""
        folder = self._object(key)
        try:
            manifest = _inspect(folder, key)
        except (FileNotFoundError, Damaged) as error:
            return [str(error)]
        complaints = []
        for name, record in sorted(manifest.files.items()):
            if (found := sha256_of(folder / name)) != record.sha256:
                complaints.append(f"{folder / name}: sha256 is {found}, must be {record.sha256}")
        if manifest.digest != digest_of(manifest.files):
            complaints.append(f"{folder / MANIFEST}: digest is not that of its files")
        return complaints

    def quarantine(self, key: str, why: str) -> Path:
        """Move an artifact out of the way, whatever its state; it is absent from then on.

        Raises:
            FileNotFoundError: if it is absent already.
        """
        make_folder(self.root / "quarantine")
        kept = self.root / "quarantine" / f"{key}-{uuid4().hex[:8]}"
        os.rename(self._object(key), kept)
        with suppress(OSError):  # a full disk must not stop the repair
            write_file(kept / "why.txt", f"{why}\n".encode())
        return kept

    def remove(self, key: str) -> None:
        """Remove an artifact for good; whoever looks meanwhile sees the whole or nothing.

        Raises:
            FileNotFoundError: if it is absent already.
        """
        gone = temporary_path(self.root)
        os.rename(self._object(key), gone)
        shutil.rmtree(gone)

    def keys(self, kind: str | None = None) -> Iterator[str]:
        """The keys of the artifacts, of one kind or of all, in order; `has` says which of them are whole."""
        objects = self.root / "objects"
        for each in [kind] if kind is not None else names_in(objects):
            yield from (key for key in names_in(objects / each) if kind_of(key) == each)

    def sweep(self) -> list[Path]:
        """Remove what dead writers left in `tmp`: this host's once they are gone, others' after 24 hours."""
        folder = self.root / "tmp"
        left = [folder / name for name in names_in(folder) if _writer_is_dead(folder / name)]
        for path in left:
            with suppress(FileNotFoundError):  # another sweep was faster
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        return left

    def _object(self, key: str) -> Path:
        return self.root / "objects" / kind_of(key) / _plain(key)

    def _look(self, key: str) -> Manifest | None:
        """The manifest of a whole artifact, None if it is absent; damage is quarantined and raised."""
        try:
            return _inspect(self._object(key), key)
        except FileNotFoundError:
            if self._opened and not (self.root / "objects").is_dir():  # a vanished store is not an empty one
                raise FileNotFoundError(errno.ENOENT, "the store is gone", str(self.root)) from None
            return None
        except Damaged as damage:
            self._quarantine_if_still_damaged(key, str(damage))
            raise Damaged(f"{damage}: quarantined, run its job again") from damage

    def _quarantine_if_still_damaged(self, key: str, why: str) -> None:
        """Quarantine, unless another process has put a whole artifact there since we looked."""
        try:
            kept = self.quarantine(key, why)
        except FileNotFoundError:
            return
        try:
            _inspect(kept, key)
        except Damaged:
            log.warning("%s is damaged, now in %s: %s", key, kept, why)
        else:
            with suppress(OSError):
                (kept / "why.txt").unlink()
                os.rename(kept, self._object(key))

    def _publish(self, temporary: Path, manifest: Manifest) -> None:
        """Move a finished folder into place; the rename fails where a folder with files stands."""
        final = self._object(manifest.key)
        make_folder(final.parent)
        while True:
            try:
                os.rename(temporary, final)
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                    raise
                if self.has(manifest.key):
                    log.info("%s: another writer was first; dropped our digest %s", final, manifest.digest)
                    return
            else:
                sync_folder(final.parent)
                return


def digest_of(files: Mapping[str, FileRecord]) -> str:
    """The digest of an artifact: sha256 over one line `<name> <sha256>` a data file, sorted by name."""
    lines = "".join(f"{name} {files[name].sha256}\n" for name in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest()


def _plain(name: str) -> str:
    """A key or run name that is safe as the name of a folder."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.=+@-]{0,199}", name, re.ASCII):
        raise BadInput("the store", "name", name, "give a key or a run as `status` prints it")
    return name


def _inspect(folder: Path, key: str) -> Manifest:
    """The manifest in an artifact's folder, after a look at its files' sizes.

    Raises:
        Damaged: if the manifest or a file is missing or not as it must be.
        FileNotFoundError: if there is no folder.
    """
    folder.lstat()
    try:
        manifest = Manifest.from_json((folder / MANIFEST).read_bytes())
        sizes = {name: (folder / name).lstat().st_size for name in sorted(manifest.files)}
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Damaged(f"{error.filename}: missing") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise Damaged(f"{folder / MANIFEST}: not a manifest ({error!r})") from error
    if manifest.key != key:
        raise Damaged(f"{folder / MANIFEST}: key is {manifest.key!r}, must be {key!r}")
    for name, size in sizes.items():
        if size != manifest.files[name].size:
            raise Damaged(f"{folder / name}: {size} bytes, must be {manifest.files[name].size}")
    return manifest


def _peak_memory_mib() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1024**2 if platform.system() == "Darwin" else 1024), 1)  # bytes there, KiB on Linux


# The file system: what stands below knows that a store is a local folder.


def _local_folder(root: str | Path) -> Path:
    """The absolute path of a folder given as a path or as a `file:` URI."""
    text = str(root)
    if not re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text):
        return Path(text).expanduser().absolute()
    uri = urlsplit(text)
    if uri.scheme != "file" or uri.netloc not in ("", "localhost"):
        raise BadInput("--store", "store", text, "give a local folder; only local folders are supported now")
    return Path(unquote(uri.path))


def _seal(path: Path) -> FileRecord:
    """Make one data file private and durable."""
    assert path.name != MANIFEST and stat.S_ISREG(path.lstat().st_mode), f"{path}: not a data file"
    with path.open("rb") as file:
        os.fchmod(file.fileno(), 0o600)
        os.fsync(file.fileno())
        return FileRecord(os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest())


def _writer_is_dead(path: Path) -> bool:
    writer = Process.from_temporary_name(path.name)
    running = writer.running() if writer else None
    if running is not None:
        return not running
    try:
        age = time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return False
    return age > 24 * 3600
