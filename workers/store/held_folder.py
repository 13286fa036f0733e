"""Temporary folders that somebody holds: as long as a process lives, and no longer, a file in its folder is locked."""

from __future__ import annotations

import fcntl
import os
import shutil
from contextlib import suppress
from pathlib import Path

OWNER_FILE = "owner"


def hold(folder: Path) -> int:
    """Mark a folder as in use for as long as the returned descriptor is open, which is as long as we live.

    Raises:
        BlockingIOError: another process holds it.
    """
    descriptor = os.open(folder / OWNER_FILE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def sweep(parent: Path, prefix: str) -> None:
    """Remove this user's folders of that prefix which nobody holds any more, as after a kill or a power cut."""
    for folder in parent.glob(f"{prefix}*"):
        with suppress(OSError):  # held, or gone meanwhile
            if folder.lstat().st_uid != os.getuid() or not (folder / OWNER_FILE).exists():
                continue
            os.close(hold(folder))
            shutil.rmtree(folder, ignore_errors=True)
