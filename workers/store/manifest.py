"""The manifest of an artifact: what the artifact is, how it came about, and whether its folder still says so.

`manifest.json` lies beside the data files. It has the size and sha256 of each of them, the digests of the parents
they were made from, and under `manifest_sha256` a digest of all the rest of itself, so that no number in it can
change unnoticed. Manifests from before that digest are read as they were; `verify` says that they are not covered.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from jobs import outcomes
from jobs.errors import Damaged
from jobs.keys import kind_of
from workers.store.files import NotAPlainFile, is_shared, read_plain, sha256_of, sha256_once
from workers.store.quarantine import misplaced

MANIFEST = "manifest.json"

_OWN_DIGEST = "manifest_sha256"
_LATER = ("parent_digests",)
"""Fields that came with the manifest's own digest: a manifest that has one of them without it is damaged."""
_NOT_TROUBLE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)
"""Errors that tell of the artifact's own shape; any other is the file system's and damages nothing."""

Size = Annotated[int, Field(strict=True, ge=0)]
Amount = Annotated[float, Field(strict=True, allow_inf_nan=False)]


@dataclass(frozen=True)
class FileRecord:
    """Size in bytes and sha256 (hex) of one data file."""

    size: Size
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
    arithmetic: str = "float32"  # or bfloat16 in training, and in which products TF32
    seconds: Amount  # what the job took
    peak_memory_mib: Amount  # largest resident size of the process that wrote it, earlier jobs included
    written: str  # ISO 8601, UTC
    extra: dict[str, Any]  # small numbers of its kind, such as an accuracy

    def to_json(self) -> bytes:
        """The text of manifest.json; ValueError or TypeError for what JSON has no word for, such as NaN."""
        document = json.loads(json.dumps(asdict(self), allow_nan=False))
        document[_OWN_DIGEST] = _digest_of_document(document)
        return json.dumps(document, indent=2, sort_keys=True).encode()

    @staticmethod
    def from_json(text: bytes) -> Manifest:
        """The manifest in this text; fields of later versions are covered by its digest and passed over.

        Raises:
            ValueError, RecursionError: if the text is not a manifest, or not as it was written.
            Damaged: if no digest covers its numbers, and they are not those of its kind.
        """
        document = json.loads(text)
        if not isinstance(document, dict):
            raise ValueError("it is no JSON object")
        if _OWN_DIGEST in document or any(name in document for name in _LATER):
            if document.get(_OWN_DIGEST) != _digest_of_document(document):
                raise ValueError(f"its {_OWN_DIGEST} is not that of its content")
        names = [field.name for field in fields(Manifest) if field.name in document]
        try:
            manifest = _reader().validate_python({name: document[name] for name in names})
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
        if complaint := manifest.contradiction():
            raise ValueError(complaint)
        if _OWN_DIGEST not in document and manifest.kind in outcomes.OUTCOMES:
            outcomes.of(manifest.kind, manifest.extra)
        return manifest

    def contradiction(self) -> str:
        """What in it cannot be true whatever was computed; empty if nothing is."""
        if self.kind != kind_of(self.key):
            return f"kind is {self.kind!r}, not that of its key {self.key!r}"
        if self.key in {key for keys in self.parents.values() for key in keys}:
            return "it is its own parent"
        if not self.files:
            return "it has no data file"
        if odd := [name for name in self.files if Path(name).name != name or name == MANIFEST or "\0" in name]:
            return f"{odd[0]!r} is not the name of a data file"
        if self.digest != digest_of(self.files):
            return "digest is not that of its files"
        return ""


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
    except OSError as error:
        complaint = misplaced(folder.parent) or misplaced(folder.parent.parent)
        if not complaint or error.errno not in _NOT_TROUBLE:
            raise
        raise Damaged(complaint) from error
    manifest = _parsed(folder / MANIFEST)
    if manifest.key != key:
        raise Damaged(f"{folder / MANIFEST}: key is {manifest.key!r}, must be {key!r}")
    for name, record in sorted(manifest.files.items()):
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
    return _OWN_DIGEST in json.loads(read_plain(folder / MANIFEST))


def seal(path: Path) -> FileRecord:
    """Make one data file private and durable."""
    assert path.name != MANIFEST and stat.S_ISREG(path.lstat().st_mode), f"{path}: not a data file"
    with path.open("rb") as file:
        os.fchmod(file.fileno(), 0o640 if is_shared(path.parent) else 0o600)
        os.fsync(file.fileno())
        return FileRecord(os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest())


def complaint_of_bytes(path: Path, must_be: str) -> str:
    """What is wrong with the bytes of a data file, unless they were found right before; empty if nothing is."""
    try:
        digest = sha256_once(path)
    except FileNotFoundError:
        return f"{path}: missing"
    return "" if digest == must_be else wrong_bytes(path, digest, must_be)


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
    why = {key: "it is its own ancestor, as nothing can be" for key in _on_circles(parents)}
    for key in TopologicalSorter(parents).static_order():
        for parent in parents.get(key, ()) if key in manifests else ():
            if parent in why:
                why[key] = f"made from {parent}, which itself was made from other bytes than its parent has now"
            elif parent in manifests and _other_bytes(manifests[key], manifests[parent]):
                why[key] = f"made from other bytes than its parent {parent} has now"
    return dict(reversed(why.items()))


def _on_circles(parents: dict[str, list[str]]) -> Iterator[str]:
    """The artifacts whose ancestry comes back to them; each loses its parents in the argument."""
    while True:
        try:
            TopologicalSorter(parents).prepare()
        except CycleError as error:
            for key in error.args[1]:
                parents[key] = []
            yield from set(error.args[1])
        else:
            return


def _other_bytes(child: Manifest, parent: Manifest) -> bool:
    return child.parent_digests.get(parent.key, parent.digest) != parent.digest


@cache
def _reader() -> TypeAdapter[Manifest]:
    return TypeAdapter(Manifest)


def _digest_of_document(document: Mapping[str, Any]) -> str:
    """The sha256 of everything in a manifest but this digest, whatever the order and the white space."""
    covered = {name: value for name, value in document.items() if name != _OWN_DIGEST}
    return hashlib.sha256(json.dumps(covered, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _parsed(path: Path) -> Manifest:
    try:
        return Manifest.from_json(read_plain(path))
    except OSError as error:
        raise _damage(path, error) from error
    except (ValueError, RecursionError, Damaged) as error:
        raise Damaged(f"{path}: not a manifest ({error})") from error


def _damage(path: Path, error: OSError) -> Damaged | OSError:
    """The damage that an error of the file system tells of, else the error."""
    if error.errno not in _NOT_TROUBLE and not isinstance(error, NotAPlainFile):
        return error
    return Damaged(f"{path}: {'missing' if isinstance(error, FileNotFoundError) else error.strerror}")


def _check_size(path: Path, record: FileRecord) -> None:
    """Raise Damaged unless a plain file of this size lies there."""
    try:
        seen = path.lstat()
    except ValueError as error:  # a name that no file can have
        raise Damaged(f"{str(path)!r}: {error}") from error
    except OSError as error:
        raise _damage(path, error) from error
    if not stat.S_ISREG(seen.st_mode):
        raise Damaged(f"{path}: not a plain file")
    if seen.st_size != record.size:
        raise Damaged(f"{path}: {seen.st_size} bytes, must be {record.size}")
