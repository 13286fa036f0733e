"""The quarantine: what was found damaged, kept for a person to look at, each with a why.txt.

    quarantine/<key>-<hex>/     an artifact; where no folder lay in its place, a folder that holds what did
    quarantine/<kind>-<hex>/    what lay in the place of the folder of a kind, and with `objects` for `<kind>` of all

What lies here and was not made again is lost: the next run that has it in its graph makes it, also where nothing
else needs it. Whoever does not want that removes it from here.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from jobs.keys import kind_of
from workers.store.files import make_folder, names_in, read_plain, write_file

WHY = "why.txt"
_KEPT = re.compile(r"(.+)-[0-9a-f]{8}", re.DOTALL)
_LONGEST_REASON = 2000


def set_aside(root: Path, path: Path, name: str, why: str) -> Path:
    """Move something damaged out of a store, whatever it is.

    Args:
        root: the folder of the store.
        path: what is moved.
        name: what it is kept as, apart from a random ending.
        why: what is wrong with it.

    Returns:
        The folder in the quarantine that it is, or lies in, from now on.

    Raises:
        FileNotFoundError: if it is not there any more.
    """
    mode = path.lstat().st_mode
    make_folder(root / "quarantine")
    kept = root / "quarantine" / f"{name}-{uuid4().hex[:8]}"
    if stat.S_ISDIR(mode):
        os.rename(path, kept)
    else:
        make_folder(kept)
        os.rename(path, kept / "found")
    with suppress(OSError):  # a full disk must not stop the repair
        write_file(kept / WHY, f"{why}\n".encode())
    return kept


def losses(root: Path, keys: Collection[str]) -> dict[str, str]:
    """Why the artifacts of some of these keys are in the quarantine, by key."""
    folder = root / "quarantine"
    kept = {match[1]: folder / match[0] for name in names_in(folder) if (match := _KEPT.fullmatch(name))}
    names = {key: next((name for name in (key, kind_of(key), "objects") if name in kept), None) for key in keys}
    return {key: _reason(kept[name]) for key, name in names.items() if name is not None}


def misplaced(folder: Path) -> str:
    """Why no artifact can lie in a folder of the store; empty if one can, or if nothing is there yet."""
    try:
        mode = folder.lstat().st_mode  # asked once: another process may make the folder between two questions
        if stat.S_ISLNK(mode):
            return "" if folder.is_dir() else f"{folder}: a link to no folder"
    except (FileNotFoundError, NotADirectoryError):  # nothing is there, or its own parent is the odd one
        return ""
    return "" if stat.S_ISDIR(mode) else f"{folder}: not a folder"


def _reason(kept: Path) -> str:
    try:
        text = read_plain(kept / WHY).decode(errors="replace")[:_LONGEST_REASON]
    except OSError:
        text = ""
    return " ".join(text.split()) or f"was damaged, see {kept}"
