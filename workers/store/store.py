"""The store: finished artifacts by key, whole or not at all.

    objects/<kind>/<key>/    one artifact: data files and manifest.json
    quarantine/              damaged artifacts, see `workers.store.quarantine`
    tmp/                     what is being written, named after the process that writes it
    claims/  checkpoints/    see `workers.store.claims` and `workers.store.checkpoints`
    runs/<run>/              journals and logs of a run

TRUTH: an artifact is what its manifest says it is. It is written in a temporary folder and fsynced, the
manifest last, and moved into place by one rename, so a reader sees nothing or the whole. The first writer
wins; a later one's copy is dropped. Every look at an artifact checks its manifest, which is covered by a digest
of its own, and the sizes of its files. Whoever reads a data file asks `path` for it, which compares its bytes with
their digest when this process first reads them; `verify` compares them always. What does not match is moved to
the quarantine and is absent from then on. An error of the file system is raised, not taken for damage. Files are
0600, folders 0700, and nothing is pickled. A store that is shared with a group has files of 0640 (0660 where
several write) and folders of 2770; what is made in a folder of it is shared as the folder is. Its members trust
each other.

Left out: what the data files contain, when to compute, and stores that are not local folders. That this one
is local is known to `workers.store.files`, `workers.store.quarantine` and `workers.store.manifest`, and to the
rename in `Store._publish`; there a store on pyarrow.fs would differ.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import stat
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from jobs.errors import BadInput, Damaged
from jobs.keys import kind_of
from jobs.outcomes import OUTCOMES
from workers.store.files import (
    FULL,
    full_disk_explained,
    is_plain,
    is_shared,
    local_folder,
    make_folder,
    names_in,
    share,
    sync_folder,
    temporary_path,
    write_file,
)
from workers.store.manifest import (
    MANIFEST,
    FileRecord,
    Manifest,
    complaint_of_bytes,
    complaints_of,
    digest_of,
    is_covered,
    outdated,
    read_manifest,
    seal,
)
from workers.store.processes import Process, peak_memory_mib, writer_is_dead
from workers.store.quarantine import WHY, losses, misplaced, set_aside
from workers.store.versions import installed_versions

__all__ = ["MANIFEST", "Audit", "FileRecord", "Manifest", "Store", "digest_of"]

log = logging.getLogger(__name__)

CHECKED_AT_START = 2**28
"""Bytes of a file above which `Store.audit` leaves the check of its content to whoever reads it."""

_FOLDERS = ("objects", "quarantine", "tmp", "claims", "checkpoints", "runs")
_DISTRIBUTIONS = ("numpy", "pyarrow", "torch", "pdd-orchestrator")


@dataclass(frozen=True)
class Audit:
    """What a look at many artifacts found.

    Attributes:
        sound: the keys of those that can be used.
        lost: why others that were there cannot, by key; they were quarantined where that was possible.
    """

    sound: frozenset[str]
    lost: dict[str, str]


class Store:
    """Artifacts in one local folder. The constructor touches nothing; `open` makes and checks the folders.

    Args:
        root: a folder, or its `file://` URI.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = local_folder(root)
        self._opened = False

    @classmethod
    def open(cls, root: str | Path, *, shared: bool = False) -> Self:
        """The store in a folder that exists or is made now, and to which we really can write.

        A folder in which every user may write is refused, sticky or not: anyone could plant artifacts there.
        One in which the group may write is accepted: that is the usual umask where each user has a group.

        Args:
            root: the folder, or its `file://` URI.
            shared: make a new store for the group of its folder; one that is there stays as it was made.

        Raises:
            BadInput: if the folder is not local, not private enough or not writable.
            OSError: if the disk is full, with a note of what to do.
        """
        store = cls(root)
        try:
            with full_disk_explained(store.root):
                store._prepare(shared)
        except OSError as error:
            if error.errno in FULL:
                raise
            fix = f"give a folder that you can write to ({error.filename}: {error.strerror})"
            raise BadInput("--store", "store", str(store.root), fix) from error
        store._opened = True
        return store

    @classmethod
    def for_reading(cls, root: str | Path) -> Self:
        """The store in a folder, for commands that make nothing: it may be read-only, full, or not there yet.

        Raises:
            BadInput: if the folder is not local, not private enough or cannot be looked at.
        """
        store = cls(root)
        try:
            store._refuse_if_unusable()
            store._opened = (store.root / "objects").is_dir()
        except FileNotFoundError:
            pass
        except OSError as error:
            fix = f"give a folder that you can read ({error.strerror})"
            raise BadInput("--store", "store", str(store.root), fix) from error
        return store

    def run_folder(self, run: str) -> Path:
        """The folder of a run's journal and logs; not made here."""
        return self.root / "runs" / _plain(run)

    def has(self, key: str) -> bool:
        """Whether the artifact is there, as its manifest says but for the bytes; a damaged one is quarantined."""
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

    def peek(self, key: str) -> Manifest | None:
        """The manifest of an artifact as `manifest` reads it, None if it is absent; nothing is moved.

        Raises:
            Damaged: if it is not as it must be.
            OSError: if it cannot be read.
        """
        try:
            return read_manifest(self._object(key), key)
        except FileNotFoundError:
            return None

    def path(self, key: str, name: str) -> Path:
        """One data file of an artifact, its bytes checked when this process first asks for it or it was written to.

        Raises:
            Damaged: as `manifest` does, and if the bytes are not those that were written.
            KeyError: if the artifact is sound and has no such file.
        """
        files = self.manifest(key).files
        if name not in files:
            raise KeyError(f"{key} has no file {name!r}, only {sorted(files)}")
        return self._checked(key, name, files[name])

    def check(self, key: str) -> None:
        """Check all bytes of an artifact as `path` does, for whoever goes on with what was read before.

        Raises:
            Damaged: as `path` does.
        """
        for name, record in sorted(self.manifest(key).files.items()):
            self._checked(key, name, record)

    def audit(self, keys: Collection[str], largest: int = CHECKED_AT_START) -> Audit:
        """Which of these artifacts can be used as they are, their bytes checked; the others are quarantined.

        Those can not that are damaged or were made from other bytes than their parents have now, nor what was made
        from them in turn. One that cannot be read stays where it is: its job will say why. What is absent because it
        lies in the quarantine counts as lost, too.

        Args:
            keys: of any artifacts, there or not.
            largest: bytes of a file above which its content is not read now.
        """
        manifests: dict[str, Manifest] = {}
        lost: dict[str, str] = {}
        for key in keys:
            try:
                manifest = self._look(key)
                if manifest is None:
                    continue
                for name, record in manifest.files.items():
                    if record.size <= largest:
                        self._checked(key, name, record)
                manifests[key] = manifest
            except Damaged as damage:
                lost[key] = str(damage)
            except OSError as error:
                if not (self.root / "objects").is_dir():
                    raise
                lost[key] = f"cannot be read: {error}"
        earlier = losses(self.root, keys - manifests.keys())
        late = outdated(manifests)
        for key, why in late.items():
            with suppress(OSError):
                self.quarantine(key, why)
        return Audit(frozenset(manifests.keys() - late.keys()), earlier | lost | late)

    @contextmanager
    def put(
        self,
        key: str,
        kind: str,
        spec: Mapping[str, Any],
        parents: Mapping[str, Sequence[str]],
        *,
        device: str,
        arithmetic: str = "float32",
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
            Damaged: if a parent has other bytes at the end of the block than at its beginning.
        """
        assert kind == kind_of(key), f"{key} is not a key of kind {kind}"
        began, digests = time.monotonic(), self._digests(parents)
        temporary = temporary_path(self.root)
        with full_disk_explained(self.root):
            try:
                temporary.mkdir(mode=0o700)
                share(temporary)
                yield temporary
                files = {name: seal(temporary / name) for name in names_in(temporary)}
                assert files, f"{key}: an artifact without a data file"
                if any(digests.get(parent, digest) != digest for parent, digest in self._digests(parents).items()):
                    raise Damaged(f"{key}: a parent was made anew meanwhile, with other bytes: run the job again")
                manifest = Manifest(
                    key=key,
                    kind=kind,
                    spec=dict(spec),
                    parents={role: list(keys) for role, keys in parents.items()},
                    parent_digests=digests,
                    files=files,
                    digest=digest_of(files),
                    versions=installed_versions(_DISTRIBUTIONS),
                    host=Process.current().host,
                    device=device,
                    arithmetic=arithmetic,
                    seconds=time.monotonic() - began if seconds is None else seconds,
                    peak_memory_mib=peak_memory_mib(),
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
        return complaints_of(self._object(key), key)

    def is_covered(self, key: str) -> bool:
        """Whether a sound artifact's manifest has a digest of itself; those of earlier versions have none."""
        return is_covered(self._object(key))

    def quarantine(self, name: str, why: str) -> Path:
        """Move an artifact, or one of the `odd_places`, out of the way, whatever it is; it is absent from then on.

        What lies in the place of the folder that the artifact must be in is moved instead of it.

        Raises:
            FileNotFoundError: if it is absent already.
        """
        odd = self.odd_places()
        place = next((place for place in (name, "objects", f"objects/{kind_of(name)}") if place in odd), None)
        if place is None:
            return set_aside(self.root, self._object(name), name, why)
        return set_aside(self.root, self.root / place, Path(place).name, why)

    def odd_places(self) -> dict[str, str]:
        """What lies where folders of artifacts must be, and is none: `objects` or `objects/<kind>`, and why not."""
        places = ("objects", *(f"objects/{kind}" for kind in OUTCOMES))
        return {place: why for place in places if (why := misplaced(self.root / place))}

    def remove(self, key: str) -> None:
        """Remove an artifact for good; whoever looks meanwhile sees the whole or nothing.

        Raises:
            FileNotFoundError: if it is absent already.
        """
        make_folder(self.root / "tmp")
        gone = temporary_path(self.root)
        os.rename(self._object(key), gone)
        shutil.rmtree(gone)

    def keys(self, kind: str | None = None) -> Iterator[str]:
        """The keys of the artifacts, of one kind or of all, in order; `has` says which of them are whole."""
        objects = self.root / "objects"
        for each in [kind] if kind is not None else names_in(objects):
            yield from (key for key in names_in(objects / each) if kind_of(key) == each and is_plain(key))

    def sweep(self) -> list[Path]:
        """Remove what dead writers left in `tmp`: this host's once they are gone, others' after 24 hours."""
        folder = self.root / "tmp"
        left = [folder / name for name in names_in(folder) if writer_is_dead(folder / name)]
        for path in left:
            with suppress(FileNotFoundError):  # another sweep was faster
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        return left

    def _object(self, key: str) -> Path:
        return self.root / "objects" / kind_of(key) / _plain(key)

    def _checked(self, key: str, name: str, record: FileRecord) -> Path:
        """A data file whose bytes are as its manifest says; damage is quarantined and raised."""
        path = self._object(key) / name
        if complaint := complaint_of_bytes(path, record.sha256):
            raise self._set_aside(key, complaint)
        return path

    def _look(self, key: str) -> Manifest | None:
        """The manifest of a whole artifact, None if it is absent; damage is quarantined and raised."""
        try:
            return read_manifest(self._object(key), key)
        except FileNotFoundError:
            if self._opened and not (self.root / "objects").is_dir():  # a vanished store is not an empty one
                raise FileNotFoundError(errno.ENOENT, "the store is gone", str(self.root)) from None
            return None
        except Damaged as damage:
            raise self._set_aside(key, str(damage)) from damage

    def _digests(self, parents: Mapping[str, Sequence[str]]) -> dict[str, str]:
        """The digests of the parents that are there, by key."""
        keys = [key for several in parents.values() for key in several]
        return {key: manifest.digest for key in keys if (manifest := self._look(key)) is not None}

    def _prepare(self, shared: bool) -> None:
        """Make the folders that are not there, and try to write."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._refuse_if_unusable()
        if shared and not is_shared(self.root):
            if names_in(self.root):
                fix = "it was made for one user, so it cannot be shared: name a new folder for the group"
                raise BadInput("cluster.yaml", "store.shared", "group", f"{self.root}: {fix}")
            self.root.chmod(0o2770)
        if complaint := misplaced(self.root / "objects"):
            with suppress(FileNotFoundError):  # another process moved it first
                self.quarantine("objects", complaint)
        for name in _FOLDERS:
            make_folder(self.root / name)
        probe = temporary_path(self.root)
        write_file(probe, b"can this store be written to?")
        probe.unlink()

    def _refuse_if_unusable(self) -> None:
        objects = self.root / "objects"
        for folder in (self.root, *([objects] if objects.exists() else [])):
            if folder.stat().st_mode & stat.S_IWOTH:
                raise BadInput("--store", "store", str(folder), "others may write there: chmod o-w it")
        if objects.is_symlink() and not objects.exists():
            raise BadInput("--store", "store", str(objects), "is a link to what is not there: mount it or remove it")

    def _set_aside(self, key: str, why: str) -> Damaged:
        """Quarantine, unless another process has put a sound artifact there since we looked; the error to raise.

        Where nothing can be moved, as on a read-only file system, the damaged one stays and is refused each time.
        """
        try:
            kept = self.quarantine(key, why)
        except OSError as error:
            if not isinstance(error, FileNotFoundError):
                log.warning("%s is damaged and could not be quarantined (%s): %s", key, error, why)
            return Damaged(f"{why}: run its job again")
        if complaints_of(kept, key):
            log.warning("%s is damaged, now in %s: %s", key, kept, why)
        else:
            with suppress(OSError):
                (kept / WHY).unlink()
                os.rename(kept, self._object(key))
        return Damaged(f"{why}: quarantined, run its job again")

    def _publish(self, temporary: Path, manifest: Manifest) -> None:
        """Move a finished folder into place; the rename fails where a folder with files stands."""
        final = self._object(manifest.key)
        if complaint := misplaced(final.parent):
            with suppress(FileNotFoundError):  # another process moved it first
                self.quarantine(manifest.key, complaint)
        for folder in (final.parent.parent, final.parent):
            make_folder(folder)
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


def _plain(name: str) -> str:
    """A key or run name that is safe as the name of a folder."""
    if not is_plain(name):
        raise BadInput("the store", "name", name, "give a key or a run as `status` prints it")
    return name
