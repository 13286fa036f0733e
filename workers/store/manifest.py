"""The manifest of an artifact: what the artifact is, how it came about, and whether its folder still says so.

`manifest.json` lies beside the data files. It has the size and sha256 of each of them, the digests of the parents
they were made from, and under `manifest_sha256` a digest of all the rest of itself, so that no number in it can
change unnoticed. Manifests from before that digest are read as they were; `verify` says that they are not covered.
"""

from __future__ import annotations

import errno
import hashlib
import json
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any, Self

from jobs.errors import Damaged
from workers.store.files import sha256_of

MANIFEST = "manifest.json"

_OWN_DIGEST = "manifest_sha256"
_LATER = ("parent_digests",)
"""Fields that came with the manifest's own digest: a manifest that has one of them without it is damaged."""
_NOT_TROUBLE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)
"""Errors that tell of the artifact's own shape; any other is the file system's and damages nothing."""


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
    parent_digests: dict[str, str] = field(default_factory=dict)  # `digest` of each parent when it was read, by key
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
        document = json.loads(json.dumps(asdict(self), allow_nan=False))
        document[_OWN_DIGEST] = _digest_of_document(document)
        return json.dumps(document, indent=2, sort_keys=True).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        """The manifest in this text; fields of later versions are covered by its digest and passed over.

        Raises:
            ValueError, TypeError, KeyError, AttributeError, RecursionError: if the text is not a manifest, or
                not as it was written.
        """
        document = json.loads(text)
        if _OWN_DIGEST in document or any(name in document for name in _LATER):
            if document.get(_OWN_DIGEST) != _digest_of_document(document):
                raise ValueError(f"its {_OWN_DIGEST} is not that of its content")
        files = {name: FileRecord(**record) for name, record in document["files"].items()}
        present = {f.name: document[f.name] for f in fields(cls) if f.name in document or f.name not in _LATER}
        return cls(**present | {"files": files})


def digest_of(files: Mapping[str, FileRecord]) -> str:
    """The digest of an artifact: sha256 over one line `<name> <sha256>` a data file, sorted by name."""
    lines = "".join(f"{name} {files[name].sha256}\n" for name in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest()


def read_manifest(folder: Path, key: str) -> Manifest:
    """The manifest in an artifact's folder, after a look at the sizes of its files.

    Args:
        folder: where the artifact lies.
        key: what the manifest must be of.

    Raises:
        Damaged: if the manifest or a file is missing or not as it must be.
        FileNotFoundError: if there is no folder.
        OSError: from a file system in trouble.
    """
    try:
        folder.lstat()
    except NotADirectoryError as error:
        raise Damaged(f"{folder.parent}: not a folder") from error
    manifest = _parsed(folder / MANIFEST)
    if manifest.key != key:
        raise Damaged(f"{folder / MANIFEST}: key is {manifest.key!r}, must be {key!r}")
    if manifest.digest != digest_of(manifest.files):
        raise Damaged(f"{folder / MANIFEST}: digest is not that of its files")
    for name, record in sorted(manifest.files.items()):
        if Path(name).name != name:
            raise Damaged(f"{folder / MANIFEST}: {name!r} is not the name of a file")
        _check_size(folder / name, record)
    return manifest


def complaints_of(folder: Path, key: str) -> list[str]:
    """What is wrong with an artifact after reading all its bytes; an empty list means it is sound.

    Raises:
        OSError: from a file system in trouble.
    """
    try:
        manifest = read_manifest(folder, key)
        digests = {name: sha256_of(folder / name) for name in sorted(manifest.files)}
    except (FileNotFoundError, Damaged) as error:
        return [str(error)]
    return [
        wrong_bytes(folder / name, digest, manifest.files[name].sha256)
        for name, digest in digests.items()
        if digest != manifest.files[name].sha256
    ]


def is_covered(folder: Path) -> bool:
    """Whether the manifest in this folder has a digest of itself; those of earlier versions have none."""
    return _OWN_DIGEST in json.loads((folder / MANIFEST).read_bytes())


def wrong_bytes(path: Path, digest: str, must_be: str) -> str:
    """The complaint about a file whose bytes are not those that were written."""
    return f"{path}: sha256 is {digest}, must be {must_be}"


def outdated(manifests: Mapping[str, Manifest]) -> dict[str, str]:
    """The artifacts that were made from other bytes than their parents have now, and all that came from those.

    Args:
        manifests: of the artifacts that are there, by key; a parent that is not among them is not compared.

    Returns:
        Why, by key; children before their parents, so that whoever moves them away in this order and is
        interrupted leaves none that looks right.
    """
    parents = {key: [parent for keys in manifests[key].parents.values() for parent in keys] for key in manifests}
    why: dict[str, str] = {}
    for key in TopologicalSorter(parents).static_order():
        for parent in parents.get(key, ()) if key in manifests else ():
            if parent in why:
                why[key] = f"made from {parent}, which itself was made from other bytes than its parent has now"
            elif parent in manifests and _other_bytes(manifests[key], manifests[parent]):
                why[key] = f"made from other bytes than its parent {parent} has now"
    return dict(reversed(why.items()))


def _other_bytes(child: Manifest, parent: Manifest) -> bool:
    return child.parent_digests.get(parent.key, parent.digest) != parent.digest


def _digest_of_document(document: Mapping[str, Any]) -> str:
    """The sha256 of everything in a manifest but this digest, whatever the order and the white space."""
    covered = {name: value for name, value in document.items() if name != _OWN_DIGEST}
    return hashlib.sha256(json.dumps(covered, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _parsed(path: Path) -> Manifest:
    try:
        return Manifest.from_json(path.read_bytes())
    except OSError as error:
        if error.errno not in _NOT_TROUBLE:
            raise
        raise Damaged(f"{path}: {'missing' if isinstance(error, FileNotFoundError) else error.strerror}") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise Damaged(f"{path}: not a manifest ({error!r})") from error


def _check_size(path: Path, record: FileRecord) -> None:
    """Raise Damaged unless a plain file of this size lies there."""
    try:
        seen = path.lstat()
    except ValueError as error:  # a name that no file can have
        raise Damaged(f"{str(path)!r}: {error}") from error
    except OSError as error:
        if error.errno not in _NOT_TROUBLE:
            raise
        raise Damaged(f"{path}: {'missing' if isinstance(error, FileNotFoundError) else error.strerror}") from error
    if not stat.S_ISREG(seen.st_mode):
        raise Damaged(f"{path}: not a plain file")
    if seen.st_size != record.size:
        raise Damaged(f"{path}: {seen.st_size} bytes, must be {record.size}")
