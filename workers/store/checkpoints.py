"""Checkpoints: the exact state from which a running job resumes.

    checkpoints/<key>/<number>-<sha256>.npz    the last two of a job; the higher number is the later one

One file holds a job's arrays and, as JSON text in one more array, its counters and notes. Arrays come back
bit for bit. A file is written in `tmp`, fsynced and moved into place; its name holds the digest of its bytes,
so a torn or damaged one is known before anything in it is believed, and the one before it is used.

ADVISORY: if a checkpoint is lost, the job starts from an earlier one or from its beginning, and ends with the
same result. What belongs in a checkpoint and how often to save one the job decides. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from workers.store.files import (
    NotAPlainFile,
    full_disk_explained,
    is_plain,
    make_folder,
    names_in,
    open_plain,
    open_private,
    sha256_of,
    sync_folder,
    temporary_path,
)

log = logging.getLogger(__name__)

Arrays = dict[str, NDArray[Any]]

PART = ".expert"
"""Between the key of a job of several experts and the number of one, which has checkpoints of its own."""
_KEPT = 2
_STATE = "state.json"  # the archive's own member; no array may have this name


class _Saved(NamedTuple):
    """One checkpoint file; sorts by number."""

    number: int
    sha256: str
    path: Path


class Checkpoints:
    """The checkpoints of one store.

    Args:
        store_root: the folder of an opened store.
    """

    def __init__(self, store_root: Path) -> None:
        self._root = Path(store_root)

    def save(self, key: str, arrays: Mapping[str, NDArray[Any]], state: Mapping[str, Any]) -> None:
        """Write a job's newest checkpoint and forget all but the last two.

        Args:
            key: the job's key.
            arrays: any shapes and dtypes but objects. `state.json` is not a name for one.
            state: JSON values; floats come back exactly, tuples as lists.

        Raises:
            ValueError: if an array holds Python objects.
            TypeError: if the state holds something that JSON has no word for.
            OSError: from the file system, with a note of what to do when it is full; older checkpoints stand.
        """
        temporary = temporary_path(self._root)
        with full_disk_explained(self._root):
            try:
                _write(temporary, arrays, state)
                self._add(key, temporary)
            finally:
                temporary.unlink(missing_ok=True)
        for old in self._saved(key)[:-_KEPT]:
            old.path.unlink(missing_ok=True)

    def load(self, key: str) -> tuple[Arrays, dict[str, Any]] | None:
        """The arrays and the state of the newest sound checkpoint; None if there is none.

        A torn or damaged file is removed with a warning, so that it does not count as one of the two kept.

        Raises:
            OSError: from the file system; that a file cannot be read now does not make it damaged.
        """
        for saved in reversed(self._saved(key)):
            found = _read(saved)
            if found is not None:
                return found
            log.warning("%s is torn or damaged: removed, going back to the one before it", saved.path)
            saved.path.unlink(missing_ok=True)
        return None

    def drop(self, key: str) -> None:
        """Remove a job's checkpoints; it is no error if there are none."""
        try:
            shutil.rmtree(self._folder(key))
        except FileNotFoundError:
            pass

    def sweep(self, done: Callable[[str], bool]) -> None:
        """Remove what a job left that was cut off between its artifact and the removal of its checkpoints.

        Args:
            done: whether the artifact of a key is in the store.
        """
        for name in names_in(self._root / "checkpoints"):
            if is_plain(name) and done(name.partition(PART)[0]):
                self.drop(name)

    def _folder(self, key: str) -> Path:
        assert key and "/" not in key and not key.startswith("."), f"not a key: {key!r}"
        return self._root / "checkpoints" / key

    def _saved(self, key: str) -> list[_Saved]:
        """The checkpoint files of a job, oldest first."""
        folder = self._folder(key)
        matches = [re.fullmatch(r"(\d+)-([0-9a-f]{64})\.npz", path.name) for path in folder.glob("*.npz")]
        return sorted(_Saved(int(m[1]), m[2], folder / m[0]) for m in matches if m)

    def _add(self, key: str, temporary: Path) -> None:
        """Move a written file into place as the newest of its job."""
        for folder in (self._root / "checkpoints", self._folder(key)):
            make_folder(folder)
        number = max((saved.number for saved in self._saved(key)), default=0) + 1
        os.replace(temporary, self._folder(key) / f"{number:08d}-{sha256_of(temporary)}.npz")
        sync_folder(self._folder(key))


def _write(path: Path, arrays: Mapping[str, NDArray[Any]], state: Mapping[str, Any]) -> None:
    """Write and fsync one archive.

    `np.savez` would do, but for a timestamp (the same state would have another digest each time) and its own
    parameters (an array could not be called `file`).
    """
    assert _STATE not in arrays, f"{_STATE!r} is the name of the state itself"
    text = np.frombuffer(json.dumps(dict(state)).encode(), dtype=np.uint8)
    with open_private(path) as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for name, array in (*arrays.items(), (_STATE, text)):
                with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())


def _read(saved: _Saved) -> tuple[Arrays, dict[str, Any]] | None:
    """Arrays and state of one file; None if its bytes are not those once written, or if it has just gone."""
    try:
        file = open_plain(saved.path)
    except (FileNotFoundError, NotAPlainFile):
        return None
    with file:
        if hashlib.file_digest(file, "sha256").hexdigest() != saved.sha256:
            return None
        file.seek(0)
        with np.load(file, allow_pickle=False) as archive:
            arrays: Arrays = {name: archive[name] for name in archive.files}
    return arrays, json.loads(arrays.pop(_STATE).tobytes())
