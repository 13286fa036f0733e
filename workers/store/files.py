"""Writing in a local folder so that nothing is lost or half there: fsynced, under names of our own.

What is new is private, or for the group where the folder it lies in is.

What the store and the checkpoints share. A store on another file system would differ here.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader, BufferedWriter
from pathlib import Path
from urllib.parse import unquote, urlsplit

from jobs.errors import BadInput
from workers.store.processes import Process

FULL = (errno.ENOSPC, errno.EDQUOT)
"""The errors of a disk or a quota that is used up."""

_NAME = re.compile(r"[A-Za-z0-9][\w.=+@-]{0,199}", re.ASCII)

_digests: dict[tuple[int, ...], str] = {}
"""What `sha256_once` has read in this process."""


class NotAPlainFile(OSError):
    """A folder, a link, a pipe or a device lies where a file must be."""


def local_folder(root: str | Path) -> Path:
    """The absolute path of a folder given as a path or as a `file:` URI."""
    text = str(root)
    if "\0" in text:
        raise BadInput("--store", "store", text, "write it without the character NUL")
    if not re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text):
        return Path(text).expanduser().absolute()
    uri = urlsplit(text)
    if uri.scheme != "file" or uri.netloc not in ("", "localhost"):
        raise BadInput("--store", "store", text, "give a local folder; only local folders are supported now")
    return Path(unquote(uri.path))


def is_plain(name: str) -> bool:
    """Whether a key or a run may be the name of a folder in the store."""
    return _NAME.fullmatch(name) is not None


def make_folder(path: Path) -> None:
    """Make one folder of the store, if it is not there: 0700, or for the group where the store is shared."""
    if not path.is_dir():
        path.mkdir(mode=0o700, exist_ok=True)
        share(path)
        sync_folder(path.parent)


def is_shared(folder: Path) -> bool:
    """Whether what is made in a folder is for its group: group members may write there, and new names get its group."""
    wanted = stat.S_ISGID | stat.S_IWGRP
    return folder.stat().st_mode & wanted == wanted


def share(path: Path, mode: int = 0o660) -> None:
    """Give the group a new folder, or a file with this mode, if the folder it lies in is shared, whatever the umask."""
    if is_shared(path.parent):
        with suppress(PermissionError):  # another member was faster to make it, and shared it
            path.chmod(0o2770 if path.is_dir() else mode)


def temporary_path(root: Path) -> Path:
    """A path in the store's `tmp` that nobody else uses and that `Store.sweep` can trace to this process."""
    return root / "tmp" / Process.current().temporary_name()


def is_plain_file(path: Path) -> bool:
    """Whether a file lies there: no folder, link, pipe or device."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def open_plain(path: Path) -> BufferedReader:
    """Open a file for reading; what is no file is not even opened, since that may wait for ever or do something.

    Raises:
        NotAPlainFile: if something else lies there.
        OSError: as `open` does.
    """
    if not stat.S_ISREG(path.lstat().st_mode):
        raise NotAPlainFile(errno.EINVAL, "not a plain file", str(path))
    return open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK))


def read_plain(path: Path) -> bytes:
    """The content of a file, opened as `open_plain` does."""
    with open_plain(path) as file:
        return file.read()


def open_private(path: Path) -> BufferedWriter:
    """Open a new file for writing, 0600; where its folder is shared the group may read it."""
    file = open(path, "xb", opener=lambda name, flags: os.open(name, flags, 0o600))
    share(path, 0o640)
    return file


def write_file(path: Path, content: bytes) -> None:
    """Write a new file, 0600, and fsync it."""
    with open_private(path) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, text: str) -> None:
    """Write a text file, 0600, in one step: who reads sees all of the old one or all of the new one."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        write_file(temporary, text.encode())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable, where the file system can."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """The hex sha256 of a file's content."""
    with open_plain(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_once(path: Path) -> str:
    """The hex sha256 of a file's content, read once in a process for as long as the file is not written to.

    A file counts as the same while its inode, its size and its times do.
    """
    with open_plain(path) as file:
        seen = os.fstat(file.fileno())
        identity = (seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns)
        if identity not in _digests:
            _digests[identity] = hashlib.file_digest(file, "sha256").hexdigest()
        return _digests[identity]


@contextmanager
def full_disk_explained(root: Path) -> Iterator[None]:
    """Add the store and the fix to an OSError that says the disk or the quota is used up."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            error.add_note(f"store {root} is full: free space there (see `gc`) or give another --store")
        raise


def names_in(folder: Path) -> list[str]:
    """The names in a folder, sorted; none if there is no such folder."""
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise
        return []
