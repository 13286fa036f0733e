"""What was found out about a data set, remembered for as long as none of its files changes.

A data set is looked at by every plan, report and resume; to read all its files each time would take longer than all
else that these do. The facts are kept in a small file of the store, beside the state of the tree that they were read
from: name, size, times and inode of every file. The file is never needed: where it is absent, damaged or cannot be
written, the data set is read. Where there is no store yet, since a plan makes none, the user's cache folder takes its
place.

What changes how a data set is read, which is the code of this package and the libraries that it reads with, is part of
what the facts are remembered by. A tree that was written to within the last seconds is not remembered: one more change
in the same instant could not be told from the last.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self

import numpy as np
import PIL
import pyarrow as pa

from workers.store.files import local_folder, replace_file

FOLDER = "facts"
SETTLED_SECONDS = 2.0
"""Age of a tree's last change from which on its state is trusted; the clocks of file systems tick at most so slowly."""


@dataclass(frozen=True)
class Memory:
    """Facts of data sets in the first of these folders that has them, or can take them."""

    folders: tuple[Path, ...]

    @classmethod
    def beside(cls, store: str | Path | None) -> Self:
        """The memory of a store, and that of the user for when there is none."""
        own = Path(os.environ.get("PDD_CACHE") or _cache_folder() / "pdd") / FOLDER
        root = local_folder(store) if store is not None else None
        return cls((root / FOLDER, own) if root is not None and root.is_dir() else (own,))

    def recall(self, name: str, state: str) -> dict[str, Any] | None:
        """What is remembered under a name of a tree in this state; None if nothing is, or it is damaged."""
        for folder in self.folders:
            with suppress(OSError, ValueError, KeyError, TypeError):
                document = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
                content = document["content"]
                if document["digest"] == _digest(content) and content["state"] == state:
                    facts: dict[str, Any] = content["facts"]
                    return facts
        return None

    def remember(self, name: str, state: str, facts: Mapping[str, Any]) -> None:
        """Keep the facts of a tree; where they cannot be written, nothing is said.

        Args:
            name: what is looked up again, see `name_of`.
            state: that of the tree, see `tree_state`.
            facts: what JSON can hold.
        """
        content = {"state": state, "facts": facts}
        document = json.dumps({"digest": _digest(content), "content": content})
        for folder in self.folders:
            with suppress(OSError):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                replace_file(folder / f"{name}.json", document)
                return


def _cache_folder() -> Path:
    """The user's folder for what can be made anew."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())


def name_of(*parts: object) -> str:
    """The name under which facts are remembered that depend on these parts, and on how data sets are read."""
    return _digest([*map(str, parts), _code(), np.__version__, PIL.__version__, pa.__version__])[:32]


def tree_state(path: Path) -> str | None:
    """The state of a file or of all files below a folder; None if it cannot be told or changed only just now.

    It is a digest of each file's name, size, times and inode. Links are followed, but never in a circle.
    """
    state, newest = hashlib.sha256(), 0
    try:
        for name, seen in _files(path):
            newest = max(newest, seen.st_mtime_ns, seen.st_ctime_ns)
            line = f"{name}\0{seen.st_size} {seen.st_mtime_ns} {seen.st_ctime_ns} {seen.st_dev} {seen.st_ino}\n"
            state.update(os.fsencode(line))
    except OSError:
        return None
    return state.hexdigest() if time.time() - newest / 1e9 >= SETTLED_SECONDS else None


def _files(path: Path) -> Iterator[tuple[str, os.stat_result]]:
    if not path.is_dir():
        yield path.name, path.stat()
        return
    yield from _files_below(str(path), "", set())


def _files_below(folder: str, name: str, visited: set[tuple[int, int]]) -> Iterator[tuple[str, os.stat_result]]:
    """The files of a folder; one that several links lead to is named again, and its files are not."""
    own = os.stat(folder)
    identity = (own.st_dev, own.st_ino)
    if identity in visited:
        yield name, own
        return
    visited.add(identity)
    with os.scandir(folder) as entries:
        children = sorted(entries, key=lambda entry: entry.name)
    for child in children:
        if child.is_dir():
            yield from _files_below(child.path, f"{name}{child.name}/", visited)
        else:
            yield name + child.name, _stat(child)


def _stat(entry: os.DirEntry[str]) -> os.stat_result:
    """The file's, or that of a link which leads nowhere."""
    try:
        return entry.stat()
    except FileNotFoundError:
        return entry.stat(follow_symlinks=False)


@cache
def _code() -> str:
    """A digest of the modules that read data sets."""
    modules = sorted(Path(__file__).parent.rglob("*.py"))
    return _digest([hashlib.sha256(module.read_bytes()).hexdigest() for module in modules])


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
