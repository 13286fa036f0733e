"""What can be read is readable: every reading command on a read-only store and on a full disk, as root only."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator import launch
from orchestrator.planning.requests import Request, resolve
from orchestrator.runs.journal import Journal
from tests.workers.workshop import Workshop
from workers.store.store import Store

READING = (
    ["status", "some"],
    ["logs", "--run", "some"],
    ["report", "tiny", "--out", "report"],
    ["verify"],
    ["export", "tiny", "--arm", "pdd+mtt", "--out", "exported"],
    ["plan", "tiny"],
    ["explain", "tiny"],
    ["gc"],
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with most of the experiment `tiny` and a run that ended."""
    store = Store.open(tmp_path_factory.mktemp("unwritable") / "store")
    workshop = Workshop(store, resolve(Request(experiments=("tiny",))).plan)
    for job in workshop.plan.graph:
        if job.kind != "full":
            workshop.make(job)
    with Journal.open(store.run_folder("some")) as book:
        about = {"run": "some", "command": "", "experiments": ["tiny"], "store": "", "jobs": {}, "workers": 1}
        book.write("run_began", **about, versions={}, pid=1, host="elsewhere")
        for key in store.keys():
            book.write("job_cached", key=key)
        book.write("run_ended", exit=0, why="done", counts={})
    (store.run_folder("some") / "logs").mkdir()
    (store.run_folder("some") / "logs" / "distil-x.log").write_text("a line\n")
    return store.root


def mounted(*words: str) -> bool:
    return subprocess.run(["mount", *words], capture_output=True).returncode == 0


@pytest.fixture(params=["a read-only mount", "a full disk"])
def store(request: pytest.FixtureRequest, made: Path, tmp_path: Path) -> Iterator[Path]:
    """The same store where nothing can be written."""
    place = tmp_path / "store"
    place.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    if request.param == "a read-only mount":
        if not mounted("--bind", str(made), str(place)):
            pytest.skip("nothing can be mounted here")
        assert mounted("-o", "remount,ro,bind", str(place))
    else:
        if not mounted("-t", "tmpfs", "-o", "size=16m,mode=700", "none", str(place)):
            pytest.skip("nothing can be mounted here")
        shutil.copytree(made, place, dirs_exist_ok=True)
        with pytest.raises(OSError, match="No space"), (place / "filler").open("wb", buffering=0) as filler:
            while True:
                filler.write(bytes(4096))
    try:
        with pytest.raises(OSError, match="space|Read-only"):
            (place / "probe").write_bytes(bytes(8192))
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


Type = Callable[..., tuple[int, str, str]]


@pytest.fixture
def type_in(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Type:
    def type_in(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["pdd", *words, "--store", str(store), "--json"])
        with pytest.raises(SystemExit) as ended:
            launch.main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    monkeypatch.chdir(tmp_path)
    return type_in


@pytest.mark.slow
def test_every_reading_command_reads(type_in: Type) -> None:
    for words in READING:
        code, out, err = type_in(*words)
        assert code == 0 and json.loads(out), (words, err)
        assert "Traceback" not in err


@pytest.mark.slow
def test_a_damaged_artifact_that_cannot_be_moved_stops_no_reader(type_in: Type, made: Path, store: Path) -> None:
    stays = not (store / "filler").exists()  # a full disk lets it be moved, and the first reader does
    key = next(Store.for_reading(store).keys("distil"))
    path = made / "objects" / "distil" / key / "manifest.json"
    whole = path.read_bytes()
    if stays:
        path.write_bytes(whole.replace(b"{", b"[", 1))
    else:
        with (store / "objects" / "distil" / key / "manifest.json").open("r+b") as file:
            file.write(b"[")
    try:
        for words in READING:
            if words[0] != "export":
                code, out, err = type_in(*words)
                assert code == (3 if words[0] == "verify" and stays else 0) and json.loads(out), (words, err)
                assert "Traceback" not in err
    finally:
        path.write_bytes(whole)


@pytest.mark.slow
def test_collecting_works_on_a_full_disk_and_is_refused_in_a_sentence_elsewhere(type_in: Type, store: Path) -> None:
    shutil.rmtree(store / "runs" / "some") if (store / "filler").exists() else None
    code, out, err = type_in("gc", "--delete")
    if (store / "filler").exists():
        assert code == 0 and list(Store.for_reading(store).keys()) == []
    else:
        assert code == 0 and json.loads(out)["unused"] == [], "all of it is in use"
    assert "Traceback" not in err


@pytest.mark.slow
def test_a_run_says_that_the_store_cannot_be_written(type_in: Type, store: Path) -> None:
    code, out, err = type_in("run", "tiny")
    full = (store / "filler").exists()
    assert code == (3 if full else 2) and json.loads(out)["exit"] == code and "Traceback" not in err
    assert ("free space" if full else "give a folder that you can write to") in err
