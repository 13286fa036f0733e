"""Folders that a process holds are left alone as long as it lives."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from workers.store.held_folder import OWNER_FILE, hold, sweep

HOLDER = """
import sys, time
from pathlib import Path
from workers.store.held_folder import hold
hold(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def folder_of(parent: Path, name: str) -> Path:
    folder = parent / name
    folder.mkdir()
    (folder / OWNER_FILE).touch()
    return folder


def test_a_folder_is_swept_once_its_process_is_killed_and_not_before(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "own-1")
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        sweep(tmp_path, "own-")
        assert folder.is_dir()
        with pytest.raises(BlockingIOError):
            hold(folder)
        holder.kill()
    sweep(tmp_path, "own-")
    assert not folder.exists()


def test_what_nobody_has_held_and_what_has_another_name_stays(tmp_path: Path) -> None:
    (tmp_path / "own-2").mkdir()
    other = folder_of(tmp_path, "other-1")
    elsewhere = folder_of(tmp_path, "elsewhere")
    (tmp_path / "own-3").symlink_to(elsewhere)
    sweep(tmp_path, "own-")
    assert (tmp_path / "own-2").is_dir() and other.is_dir() and elsewhere.is_dir()


def test_folders_of_others_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(tmp_path, "own-4")
    monkeypatch.setattr(os, "getuid", lambda: -1)
    sweep(tmp_path, "own-")
    assert folder.is_dir()
