"""Each process has its own folder of compiled code, which goes with it."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.errors import BadInput
from workers.runtime.compiler import PREFIX, SCRATCH, VARIABLE, require_cxx

SHOWS = """
import os, signal, sys
from workers.runtime.compiler import VARIABLE, use_code_folder
use_code_folder()
print(os.environ[VARIABLE], oct(os.stat(os.environ[VARIABLE]).st_mode & 0o777))
sys.stdout.flush()
if sys.argv[1] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[1] == "parent":
    import subprocess
    subprocess.run([sys.executable, "-c", sys.argv[2], "ends"], check=True)
"""


def shown(parent: Path, *words: str, script: str = SHOWS, **variables: str) -> list[list[str]]:
    """What processes print that take a folder in this one: its path and its mode."""
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    command = [sys.executable, "-c", script, *words]
    environment |= {SCRATCH: str(parent)} | variables
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check="killed" not in words)
    return [line.split() for line in ran.stdout.splitlines()]


def test_a_folder_is_private_and_goes_with_its_process(tmp_path: Path) -> None:
    ((path, mode),) = shown(tmp_path, "ends")
    assert Path(path).parent == tmp_path and mode == "0o700"
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_leaves_goes_when_the_next_one_compiles(tmp_path: Path) -> None:
    ((path, _),) = shown(tmp_path, "killed")
    assert Path(path).is_dir()
    shown(tmp_path, "ends")
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_another_one_starts_has_a_folder_of_its_own(tmp_path: Path) -> None:
    (own, _), (other, _) = shown(tmp_path, "parent", SHOWS)
    assert own != other and {Path(own).parent, Path(other).parent} == {tmp_path}
    assert list(tmp_path.iterdir()) == []


def test_the_folder_that_pytorch_names_when_it_is_imported_is_not_taken(tmp_path: Path) -> None:
    script = "import torch._dynamo\n" + SHOWS
    ((path, _),) = shown(tmp_path, "ends", script=script)
    assert Path(path).parent == tmp_path


def test_a_folder_that_the_user_names_is_kept(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir(mode=0o750)
    ((path, _),) = shown(tmp_path, "ends", **{VARIABLE: str(mine)})
    assert Path(path) == mine and stat.S_IMODE(mine.stat().st_mode) == 0o750
    assert not list(tmp_path.glob(f"*{PREFIX}*"))


def test_a_compiler_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(BadInput, match="a-job.*install no-such-compiler"):
        require_cxx("a-job")
