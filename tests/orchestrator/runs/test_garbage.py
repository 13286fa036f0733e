"""Checking and clearing a store, and the commands `export`, `verify` and `gc` as they are typed."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import BadInput
from orchestrator import launch
from orchestrator.planning.requests import Request, resolve
from orchestrator.runs import garbage
from orchestrator.runs.journal import Journal
from orchestrator.runs.status import RunStatus, status
from tests.workers.workshop import Workshop
from workers.store.claims import Claims
from workers.store.store import Store


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """All that the first two arms of the experiment `tiny` need, made without a run."""
    folder = tmp_path_factory.mktemp("upkeep")
    workshop = Workshop(Store.open(folder / "store"), resolve(Request(experiments=("tiny",))).plan)
    for job in workshop.plan.graph:
        if job.kind != "full":
            workshop.make(job)
    return workshop


@pytest.fixture
def workshop(made: Workshop, tmp_path: Path) -> Workshop:
    """A copy to spoil."""
    return made.copy(tmp_path)


def journal(
    workshop: Workshop, run: str, keys: list[str], *, ended: bool = True, host: str = "elsewhere", pid: int = 1
) -> None:
    """A run that found these keys."""
    with Journal.open(workshop.store.run_folder(run)) as book:
        about = {"run": run, "command": "", "experiments": ["tiny"], "store": "", "jobs": {}, "workers": 1}
        book.write("run_began", **about, versions={}, pid=pid, host=host)
        for key in keys:
            book.write("job_cached", key=key)
        if ended:
            book.write("run_ended", exit=0, why="done", seconds=1.0, counts={})


def spoil(workshop: Workshop) -> str:
    """Flip one bit of the first set; its key."""
    key = workshop.job("distil").key
    path = workshop.store.path(key, "set.arrow")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    return key


# Without the command line.


def here(store: Store, run: str) -> RunStatus:
    """The status of a run that is in no queue."""
    return status(store, run, None)


def test_a_flipped_bit_is_complained_about_and_nothing_else(workshop: Workshop) -> None:
    key = spoil(workshop)
    found = garbage.verify(workshop.store).damaged
    assert set(found) == set(workshop.store.keys())
    assert [name for name, complaints in found.items() if complaints] == [key]
    assert list(garbage.verify(workshop.store, "dataset-").damaged) == [workshop.job("dataset").key]
    with pytest.raises(BadInput, match="no artifact's key"):
        garbage.verify(workshop.store, "nothing-like-it")


def test_what_no_run_names_is_unused_with_its_size(workshop: Workshop) -> None:
    found = garbage.unused(workshop.store)
    assert {one.key for one in found} == set(workshop.store.keys())
    sizes = {one.key: one.size for one in found}
    files = workshop.store.path(workshop.job("distil").key, "set.arrow").parent.iterdir()
    assert sizes[workshop.job("distil").key] == sum(f.stat().st_size for f in files if f.name != "manifest.json")


def test_what_a_run_names_is_in_use_with_all_its_ancestors(workshop: Workshop) -> None:
    set_two = workshop.job("distil", stage=2)
    journal(workshop, "some", [set_two.key])
    unused = {one.key for one in garbage.unused(workshop.store)}
    assert unused == set(workshop.store.keys()) - workshop.plan.graph.ancestors([set_two.key])
    assert unused


def test_what_is_being_computed_or_wanted_is_in_use(workshop: Workshop) -> None:
    set_one, select = workshop.job("distil"), workshop.job("select")
    with Claims(workshop.store.root).take(set_one.key, "some") as held:  # type: ignore[union-attr]
        assert held is not None
        unused = {one.key for one in garbage.unused(workshop.store, [select.key])}
    assert unused == set(workshop.store.keys()) - workshop.plan.graph.ancestors([set_one.key, select.key])


def test_only_the_unused_are_removed(workshop: Workshop) -> None:
    set_two = workshop.job("distil", stage=2)
    journal(workshop, "some", [set_two.key])
    garbage.remove(workshop.store, garbage.unused(workshop.store), here)
    assert set(workshop.store.keys()) == workshop.plan.graph.ancestors([set_two.key])
    assert all(workshop.store.has(key) for key in workshop.store.keys())
    assert list((workshop.store.root / "tmp").iterdir()) == []


def test_nothing_is_removed_while_a_run_goes_on(workshop: Workshop) -> None:
    journal(workshop, "some", [], ended=False)
    before = set(workshop.store.keys())
    with pytest.raises(BadInput, match="run is 'some': is running"):
        garbage.remove(workshop.store, garbage.unused(workshop.store), here)
    assert set(workshop.store.keys()) == before


def remake(workshop: Workshop, key: str) -> None:
    """Put an artifact in the place of another, with one byte more in a file: as a job that does not repeat exactly."""
    manifest, folder = workshop.store.manifest(key), workshop.store.root / "objects" / key.split("-")[0] / key
    files = {name: (folder / name).read_bytes() for name in manifest.files}
    workshop.store.remove(key)
    with workshop.store.put(key, manifest.kind, manifest.spec, manifest.parents, device="cpu") as made:
        for name, content in files.items():
            (made / name).write_bytes(content + b"x")


def test_what_was_made_from_other_bytes_is_named_with_all_that_came_from_it(workshop: Workshop) -> None:
    set_one = workshop.job("distil", stage=1, method="mtt").key
    remake(workshop, set_one)
    damaged = {key for key, found in garbage.verify(workshop.store).damaged.items() if found}
    descendants = {job.key for job in workshop.plan.graph if set_one in workshop.plan.graph.ancestors([job.key])}
    assert damaged == (descendants & set(workshop.store.keys())) - {set_one}
    assert damaged


def test_what_has_no_digest_of_itself_is_named_without_being_damaged(workshop: Workshop) -> None:
    key = workshop.job("distil").key
    path = workshop.store.root / "objects" / "distil" / key / "manifest.json"
    document = json.loads(path.read_bytes())
    del document["manifest_sha256"], document["parent_digests"]
    path.write_text(json.dumps(document))
    found = garbage.verify(workshop.store)
    assert found.uncovered == [key] and not any(found.damaged.values())


def lose(folder: Path) -> None:
    (folder / "journal.jsonl").unlink()


def flip_a_brace(folder: Path) -> None:
    path = folder / "journal.jsonl"
    path.write_bytes(path.read_bytes().replace(b"{", b"[", 1))


def instead_a_folder(folder: Path) -> None:
    lose(folder)
    (folder / "journal.jsonl").mkdir()


def empty(folder: Path) -> None:
    (folder / "journal.jsonl").write_bytes(b"")


def instead_a_pipe(folder: Path) -> None:
    lose(folder)
    os.mkfifo(folder / "journal.jsonl")


def change_a_key(folder: Path) -> None:
    path = folder / "journal.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"key": "distil-', b'"key": "distim-'))


def drop_a_line(folder: Path) -> None:
    path = folder / "journal.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:1], *lines[2:]]))


def cut(folder: Path) -> None:
    path = folder / "journal.jsonl"
    path.write_bytes(path.read_bytes()[:-40])


def old_line_ends(folder: Path) -> None:
    path = folder / "journal.jsonl"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r"))


HARMS = [
    lose, flip_a_brace, instead_a_folder, empty, instead_a_pipe, change_a_key, drop_a_line, cut, old_line_ends,
]  # fmt: skip


@pytest.mark.parametrize("harm", HARMS)
def test_nothing_is_removed_while_a_journal_cannot_be_read(workshop: Workshop, harm: Callable[[Path], None]) -> None:
    set_two = workshop.job("distil", stage=2)
    journal(workshop, "some", [set_two.key])
    journal(workshop, "other", [])
    assert garbage.obstacles(workshop.store, here) == {}
    harm(workshop.store.run_folder("some"))
    before = set(workshop.store.keys())
    unused = garbage.unused(workshop.store)
    with pytest.raises(BadInput, match=r"run is 'some': its journal.jsonl .*remove .*some"):
        garbage.remove(workshop.store, unused, here)
    assert set(workshop.store.keys()) == before


def test_nothing_is_removed_after_a_driver_that_died_without_a_word(workshop: Workshop) -> None:
    journal(workshop, "some", [workshop.job("distil").key], ended=False, host=socket.gethostname(), pid=2**31 - 1)
    with pytest.raises(BadInput, match="run is 'some': has no end in its journal.jsonl.*run its command again, or"):
        garbage.remove(workshop.store, garbage.unused(workshop.store), here)


def a_file(path: Path) -> None:
    path.write_text("no folder")


def a_link_to_nothing(path: Path) -> None:
    path.symlink_to("unmounted")


@pytest.mark.parametrize("make", [a_file, a_link_to_nothing, os.mkfifo])
@pytest.mark.parametrize("name", ["some", ".hidden", "odd name"])
def test_nothing_is_removed_while_something_odd_lies_where_runs_are(
    workshop: Workshop, make: Callable[[Path], None], name: str
) -> None:
    make(workshop.store.root / "runs" / name)
    with pytest.raises(BadInput, match="is no folder of a run"):
        garbage.remove(workshop.store, [], here)


def test_nothing_is_removed_while_the_folder_of_runs_is_gone(workshop: Workshop) -> None:
    shutil.rmtree(workshop.store.root / "runs")
    with pytest.raises(BadInput, match="nobody knows what runs used"):
        garbage.remove(workshop.store, garbage.unused(workshop.store), here)
    (workshop.store.root / "runs").mkdir()
    assert garbage.obstacles(workshop.store, here) == {}


def test_what_a_run_has_a_log_of_is_in_use(workshop: Workshop) -> None:
    journal(workshop, "some", [])
    key = workshop.job("distil").key
    (workshop.store.run_folder("some") / "logs").mkdir()
    (workshop.store.run_folder("some") / "logs" / f"{key}.log").touch()
    assert key not in {artifact.key for artifact in garbage.unused(workshop.store)}


def test_what_lies_in_the_place_of_a_kind_is_named_and_moved_if_asked(
    workshop: Workshop, type_in: Callable[..., Said]
) -> None:
    shutil.rmtree(workshop.store.root / "objects" / "evaluate")
    (workshop.store.root / "objects" / "evaluate").symlink_to("evaluate")
    assert list(type_in("verify", "--json").document["damaged"]) == ["objects/evaluate"]
    assert "verify --quarantine" in type_in("gc", "--json").document["obstacles"]["objects/evaluate"]
    assert type_in("gc", "--delete").exit == 2
    assert type_in("verify", "--quarantine").exit == 3
    assert type_in("verify").exit == 0 and type_in("gc", "--delete").exit == 0


def test_nothing_is_removed_while_a_manifest_cannot_be_read(workshop: Workshop) -> None:
    key = workshop.job("distil").key
    (workshop.store.root / "objects" / "distil" / key / "manifest.json").write_text("[" * 100_000)
    assert key not in {artifact.key for artifact in garbage.unused(workshop.store)}
    with pytest.raises(BadInput, match="artifact is .*verify --quarantine"):
        garbage.remove(workshop.store, [], here)


# As typed.


@dataclass(frozen=True)
class Said:
    exit: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out)
        return found


@pytest.fixture
def type_in(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Said]:
    """Types a command about the store."""

    def type_in(*words: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["pdd", *words, "--store", str(workshop.store.root)])
        with pytest.raises(SystemExit) as ended:
            launch.main()
        said = capsys.readouterr()
        return Said(int(ended.value.code or 0), said.out, said.err)

    monkeypatch.chdir(tmp_path)
    return type_in


def test_export_writes_the_folder_and_says_it_as_one_document(type_in: Callable[..., Said], tmp_path: Path) -> None:
    said = type_in("export", "tiny", "--arm", "pdd+mtt", "--out", "mine", "--json")
    assert said.exit == 0 and said.out.count("\n") == 1
    document = said.document
    assert (document["schema"], document["exit"], document["scale"]) == (1, 0, "tiny")
    assert document["folder"] == str(tmp_path / "mine") and document["stages"] == 2 and document["images"] == 20
    assert {*document["accuracy"]} == {"stage", "architecture", "mode", "mean", "std", "n"}
    assert all((tmp_path / "mine" / name).is_file() for name in document["files"])
    again = type_in("export", "tiny", "--arm", "pdd+mtt", "--out", "mine")
    assert again.exit == 2 and "--out" in again.err and "is there already" in again.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["export", "tiny"], "--arm is 'not given'"),
        (["export", "tiny", "--arm", "nope"], "PDD+MTT, 2 stages of 1 image per class"),
        (["export", "tiny", "--arm", "pdd+mtt", "--seed", "7"], "not made yet"),
        (["export", "tiny", "--key", "distil"], "or --key, or --run"),
        (["export", "--key", "distil", "--arm", "MTT"], "or --key, or --run"),
        (["export", "--run", "nope"], "run is 'nope'"),
        (["verify", "nothing-like-it"], "no artifact's key"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line_and_nothing_is_written(
    type_in: Callable[..., Said], tmp_path: Path, words: list[str], told: str
) -> None:
    before = sorted(tmp_path.rglob("*"))
    said = type_in(*words)
    assert (said.exit, said.out) == (2, "") and said.err.count("\n") == 1
    assert told in said.err
    assert sorted(tmp_path.rglob("*")) == before


def test_verify_ends_with_3_and_moves_the_damaged_away_if_asked(
    type_in: Callable[..., Said], workshop: Workshop
) -> None:
    assert type_in("verify").exit == 0
    key = spoil(workshop)
    said = type_in("verify", "--json")
    assert said.exit == said.document["exit"] == 3 and list(said.document["damaged"]) == [key]
    assert workshop.store.has(key), "the sizes are right"
    assert type_in("verify", "--quarantine").exit == 3
    assert not workshop.store.has(key) and type_in("verify").exit == 0


def test_gc_only_lists_until_it_is_told_to_delete(type_in: Callable[..., Said], workshop: Workshop) -> None:
    before = set(workshop.store.keys())
    assert type_in("gc", "tiny", "--json").document["unused"] == [], "the experiment wants all of them"
    said = type_in("gc", "--json").document
    assert {one["key"] for one in said["unused"]} == before and not said["deleted"]
    assert set(workshop.store.keys()) == before
    assert type_in("gc", "--delete", "--json").document["deleted"]
    assert list(workshop.store.keys()) == []
