"""Errors that are not ours become one sentence with the right exit code, and with `--json` one document."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import typer

from jobs.errors import BadInput, Damaged
from orchestrator import launch
from orchestrator.cli.errors import ending_of, show_any_letter, writing_to
from orchestrator.runs.journal import JournalLost
from tests.orchestrator.shell import shell_in, wait_for
from workers.store.store import Store


class RayTaskError(Exception):
    """As Ray raises it."""


RayTaskError.__module__ = "ray.exceptions"


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (BadInput("here", "field", 1, "write 2"), 2, "here: field is 1: write 2"),
        (Damaged("it is damaged"), 3, "it is damaged"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (typer.Abort(), 130, "interrupted"),
        (OSError(errno.EIO, "Input/output error", "/a/file"), 3, "/a/file: Input/output error"),
        (OSError(errno.ENOSPC, "No space left on device", "/a"), 3, "free space there"),
        (OSError("no number"), 3, "no number"),
        (MemoryError(), 3, "memory"),
        (RecursionError(), 2, "nested too deeply"),
        (UnicodeEncodeError("ascii", "x\u00b1", 1, 2, "ordinal not in range"), 2, "UTF-8"),
        (RuntimeError("Could not determine home directory."), 2, "write the path out"),
        (BrokenProcessPool("terminated abruptly"), 3, "perhaps for lack of memory"),
        (RayTaskError("the head is gone"), 3, "Ray: RayTaskError: the head is gone"),
        (ZeroDivisionError("division by zero"), 1, "a bug: ZeroDivisionError"),
    ],
)
def test_every_error_has_its_exit_code_and_sentence(error: BaseException, code: int, told: str) -> None:
    ending = ending_of(error)
    assert ending.code == code and told in ending.message


def test_a_journal_lost_to_a_full_disk_is_no_bug_of_ours() -> None:
    error = JournalLost("journal: cannot be written")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert ending_of(error).code == 3


@pytest.mark.parametrize("words", [[], ["--json"]])
def test_an_error_ends_in_one_line_and_with_json_in_one_document(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(**_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/a/file")

    monkeypatch.setattr("orchestrator.cli.app.app", full)
    monkeypatch.setattr(sys, "argv", ["pdd", "status", *words])
    with pytest.raises(SystemExit) as ended:
        launch.main()
    said = capsys.readouterr()
    assert ended.value.code == 3 and said.err.count("\n") == 1 and "Traceback" not in said.err
    assert said.out == "" if not words else json.loads(said.out)["exit"] == 3


def test_a_bug_of_ours_shows_its_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def wrong(**_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("orchestrator.cli.app.app", wrong)
    monkeypatch.setattr(sys, "argv", ["pdd", "--json"])
    with pytest.raises(SystemExit) as ended:
        launch.main()
    said = capsys.readouterr()
    assert ended.value.code == 1 and "Traceback" in said.err and json.loads(said.out)["exit"] == 1


def test_an_output_of_few_letters_shows_something_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    show_any_letter()
    print("61.5 \u00b1 0.3 \u2192 \u4e2d", flush=True)
    assert raw.getvalue() == b"61.5 +/- 0.3 -> ?\n"


# A folder that the user named.


def test_a_folder_that_cannot_be_made_is_the_users_to_change(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "report"
    with pytest.raises(BadInput, match="--out is .*name a folder that you can write to"), writing_to(out):
        out.mkdir()


def test_a_full_disk_or_another_folder_is_not_the_users_to_change(tmp_path: Path) -> None:
    for error in (
        OSError(errno.ENOSPC, "No space", str(tmp_path / "report.md")),
        OSError(errno.EIO, "Input/output error", "/elsewhere"),
        OSError("nameless"),
    ):
        with pytest.raises(OSError) as caught, writing_to(tmp_path):
            raise error
        assert caught.value is error


# In a process of its own.


def test_an_ascii_locale_gets_its_table(tmp_path: Path) -> None:
    program = (
        "from orchestrator.cli.errors import show_any_letter\n"
        "from rich.console import Console\n"
        "show_any_letter()\n"
        "Console().print('61.5 \\u00b1 0.3')\n"
    )
    environment = os.environ | {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    ended = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=True)
    assert ended.stdout == b"61.5 +/- 0.3\n"


def test_slurm_that_is_not_there_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cluster.yaml").write_text("clusters:\n  slurm:\n    kind: slurm\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    with shell_in(tmp_path) as shell:
        ended = shell.run("run", "tiny", "--cluster", "slurm", "--json")
    assert ended.exit in (2, 3) and ended.document["exit"] == ended.exit, ended.err
    assert "Traceback" not in ended.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_a_dataclass_is_made_ends_with_the_exit_code_too(tmp_path: Path, number: int) -> None:
    program = (
        "import os, sys, time\n"
        "from orchestrator import launch\n"
        "from orchestrator.cli import app\n"
        f"app.app = lambda **_: exec('os.kill(os.getpid(), {number:d}); time.sleep(5)')\n"
        "sys.argv = ['pdd', '--json']\n"
        "launch.main()\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 130 and json.loads(ended.stdout)["exit"] == 130, ended.stderr


def begun(folder: Path, waits: Callable[[], bool], seconds: float = 120) -> None:
    """Wait for something."""
    until = time.monotonic() + seconds
    while not waits() and time.monotonic() < until:
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.0, 1.0, 3.0])
def test_an_interrupt_while_ray_starts_ends_soon_and_with_a_document(tmp_path: Path, delay: float) -> None:
    with shell_in(tmp_path) as shell:
        command = shell.start("run", "tiny", "--json")
        begun(tmp_path, lambda: any(shell.store.glob("runs/*/journal.jsonl")))
        time.sleep(delay)
        began = time.monotonic()
        command.send_signal(signal.SIGINT)
        out, err = command.communicate(timeout=120)
        seconds = time.monotonic() - began
    assert command.returncode in (0, 130) and json.loads(out)["exit"] == command.returncode, err
    assert "Traceback" not in err and seconds < 30


def open_files(pid: int) -> list[Path]:
    """The files that a process has open now."""
    paths = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            paths.append(link.readlink())
    return paths


@pytest.mark.slow
@pytest.mark.long
def test_an_interrupt_while_the_store_is_verified_ends_with_a_document(tmp_path: Path) -> None:
    with shell_in(tmp_path) as shell:
        with (
            Store.open(shell.store).put("distil-x", "distil", {}, {}, device="cpu") as folder,
            open(folder / "data", "wb") as file,
        ):
            file.truncate(6 * 2**30)  # sparse; seconds of reading on the fastest machine
        command = shell.start("verify", "--json")
        wait_for(lambda: any(opened.name == "data" for opened in open_files(command.pid)))
        command.send_signal(signal.SIGINT)
        out, err = command.communicate(timeout=60)
    assert command.returncode == 130 and json.loads(out)["exit"] == 130, err
    assert "Traceback" not in err
