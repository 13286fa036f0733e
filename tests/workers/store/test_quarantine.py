"""What is moved out of a store, and what is known to be lost afterwards."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.errors import BadInput
from workers.store.quarantine import losses, misplaced, set_aside
from workers.store.store import Store


def put(store: Store, key: str) -> Path:
    with store.put(key, key.split("-")[0], {}, {}, device="cpu") as folder:
        (folder / "data").write_bytes(b"x")
    return store.root / "objects" / key.split("-")[0] / key


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


def test_what_is_set_aside_is_lost_until_it_is_made_again(store: Store) -> None:
    put(store, "select-a")
    put(store, "select-b")
    store.quarantine("select-a", "two\nlines")
    assert losses(store.root, ["select-a", "select-b", "full-c"]) == {"select-a": "two lines"}
    assert store.audit(["select-a", "select-b"]).lost == {"select-a": "two lines"}
    put(store, "select-a")
    assert Store.open(store.root).audit(["select-a", "select-b"]).lost == {}


def test_a_reason_that_is_gone_or_is_no_file_is_replaced_by_where_to_look(store: Store) -> None:
    put(store, "select-a")
    kept = store.quarantine("select-a", "why")
    (kept / "why.txt").unlink()
    os.mkfifo(kept / "why.txt")
    assert losses(store.root, ["select-a"]) == {"select-a": f"was damaged, see {kept}"}


def test_a_link_is_moved_and_nothing_is_written_where_it_leads(store: Store, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (store.root / "objects" / "select").mkdir()
    (store.root / "objects" / "select" / "select-a").symlink_to(elsewhere)
    kept = store.quarantine("select-a", "a link")
    assert (kept / "found").is_symlink() and (kept / "why.txt").read_text() == "a link\n"
    assert list(elsewhere.iterdir()) == []


def test_what_is_absent_cannot_be_set_aside_and_leaves_nothing(store: Store) -> None:
    with pytest.raises(FileNotFoundError):
        set_aside(store.root, store.root / "objects" / "none", "select-a", "why")
    assert list((store.root / "quarantine").iterdir()) == []


def instead_a_file(path: Path) -> None:
    path.write_text("no folder")


def instead_a_loop(path: Path) -> None:
    path.symlink_to(path.name)


@pytest.mark.parametrize("make", [instead_a_file, os.mkfifo])
def test_something_in_the_place_of_all_objects_is_moved_and_all_is_lost(
    store: Store, make: Callable[[Path], None]
) -> None:
    objects = store.root / "objects"
    shutil.rmtree(objects)
    make(objects)
    reader = Store.for_reading(store.root)
    assert list(reader.keys()) == [] and set(reader.odd_places()) == {"objects"}
    again = Store.open(store.root)
    assert again.odd_places() == {} and set(again.audit(["select-a", "full-b"]).lost) == {"select-a", "full-b"}
    put(again, "select-a")
    assert again.has("select-a")


@pytest.mark.parametrize("make", [instead_a_file, instead_a_loop, os.mkfifo])
def test_all_of_a_kind_are_lost_with_its_folder_and_no_others(store: Store, make: Callable[[Path], None]) -> None:
    for key in ("select-a", "select-b", "full-c"):
        put(store, key)
    shutil.rmtree(store.root / "objects" / "select")
    make(store.root / "objects" / "select")
    reader = Store.for_reading(store.root)
    assert list(reader.keys()) == ["full-c"] and list(reader.odd_places()) == ["objects/select"]
    audit = store.audit(["select-a", "select-b", "full-c"])
    assert audit.sound == {"full-c"} and set(audit.lost) == {"select-a", "select-b"}
    put(store, "select-b")
    assert store.odd_places() == {} and store.verify("select-b") == []


def test_objects_on_a_disk_that_is_not_there_are_not_taken_for_lost(store: Store) -> None:
    objects = store.root / "objects"
    shutil.rmtree(objects)
    objects.symlink_to("unmounted")
    for way in (Store.open, Store.for_reading):
        with pytest.raises(BadInput, match="mount it or remove it"):
            way(store.root)
    assert objects.is_symlink()


def test_a_folder_that_is_not_made_yet_is_not_misplaced(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert misplaced(tmp_path) == misplaced(tmp_path / "none") == misplaced(tmp_path / "file" / "x") == ""
    assert misplaced(tmp_path / "file").endswith("file: not a folder")


@pytest.mark.parametrize("question", ["is_dir", "lstat"])
def test_a_folder_that_another_process_makes_between_two_questions_is_not_misplaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, question: str
) -> None:
    folder, ask = tmp_path / "distil", getattr(Path, question)

    def then_make_it(path: Path) -> object:
        try:
            return ask(path)
        finally:
            os.makedirs(folder, exist_ok=True)

    monkeypatch.setattr(Path, question, then_make_it)
    assert misplaced(folder) == ""
