"""Facts of a data set are remembered for as long as nothing of it changes, and never needed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from jobs.errors import BadInput
from tests.workers.data.test_sources import WRITERS, save, shade, source, write_folders
from workers.data import remembered, sources
from workers.data.remembered import Memory, name_of, tree_state
from workers.data.sources import inspect


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Memory:
    """The memory of a store, for trees that were written only just now."""
    monkeypatch.setattr(remembered, "SETTLED_SECONDS", -60.0)
    (tmp_path / "store").mkdir()
    return Memory.beside(tmp_path / "store")


def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by the layout whenever a data set is read."""
    seen: list[str] = []
    real = sources._inspect
    monkeypatch.setattr(sources, "_inspect", lambda source: (seen.append(source.layout), real(source))[1])
    return seen


@pytest.mark.parametrize("layout", WRITERS)
def test_an_unchanged_data_set_is_read_once(
    tmp_path: Path, memory: Memory, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    WRITERS[layout](tmp_path / "data")
    seen = reads(monkeypatch)
    first, second = (inspect(source(layout, tmp_path / "data"), memory) for _ in range(2))
    assert first == second == inspect(source(layout, tmp_path / "data"))
    assert seen == [layout, layout]  # the last call has no memory


@pytest.mark.parametrize(
    ("layout", "asked"),
    [("folder", "auto"), ("parquet", "auto"), ("cifar10", "auto"), ("folder", "cifar10"), ("tiny-imagenet", "auto")],
)
def test_the_job_finds_what_the_plan_has_remembered(
    tmp_path: Path, memory: Memory, monkeypatch: pytest.MonkeyPatch, layout: str, asked: str
) -> None:
    WRITERS[layout](tmp_path / "data")
    seen = reads(monkeypatch)
    planned = inspect(source(asked, tmp_path / "data"), memory)
    found = inspect(source(planned.layout, tmp_path / "data"), memory)
    assert len(seen) == 1 and found == inspect(source(planned.layout, tmp_path / "data"))


def test_any_change_of_the_tree_makes_it_read_anew(
    tmp_path: Path, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folders(tmp_path / "data")
    train = tmp_path / "data" / "train"
    seen, file, new = reads(monkeypatch), train / "ant" / "a.png", train / "bee" / "new.png"
    times, content = (file.stat().st_atime_ns, file.stat().st_mtime_ns), file.read_bytes()
    inspect(source("folder", tmp_path / "data"), memory)
    changes: list[Callable[[], object]] = [
        lambda: save(file, shade(99)),
        lambda: (file.write_bytes(content), os.utime(file, ns=times)),  # the size and the time that it had at first
        lambda: save(new, shade(5)),
        lambda: new.unlink(),
        lambda: (train / "bee").rename(train / "wasp"),
    ]
    for change in changes:
        count = len(seen)
        change()
        with suppress(BadInput):  # test has no wasp
            inspect(source("folder", tmp_path / "data"), memory)
        assert len(seen) == count + 1


def test_other_words_are_another_question(tmp_path: Path, memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folders(tmp_path)
    seen = reads(monkeypatch)
    inspect(source("folder", tmp_path), memory)
    inspect(source("auto", tmp_path), memory)
    inspect(source("folder", tmp_path, test="0.5"), memory)
    assert len(seen) == 3


@pytest.mark.parametrize("spoil", ["cut", "flipped", "empty", "list"])
def test_a_damaged_memory_is_no_memory(
    tmp_path: Path, memory: Memory, monkeypatch: pytest.MonkeyPatch, spoil: str
) -> None:
    write_folders(tmp_path / "data")
    before = inspect(source("folder", tmp_path / "data"), memory)
    (file,) = (tmp_path / "store" / "facts").iterdir()
    text = file.read_text()
    assert text.count("[2, 2]") == 1
    spoilt = {"cut": text[:-9], "flipped": text.replace("[2, 2]", "[3, 2]"), "empty": "", "list": "[]"}
    file.write_text(spoilt[spoil])
    seen = reads(monkeypatch)
    assert inspect(source("folder", tmp_path / "data"), memory) == before and len(seen) == 1
    assert json.loads(file.read_text())["content"]["facts"]["train_per_class"] == [2, 2]  # mended


def test_a_store_that_cannot_be_written_to_is_no_obstacle(
    tmp_path: Path, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folders(tmp_path / "data")
    (tmp_path / "store" / "facts").write_text("in the way")
    (tmp_path / "cache").write_text("in the way")
    monkeypatch.setenv("PDD_CACHE", str(tmp_path / "cache"))
    seen = reads(monkeypatch)
    for _ in range(2):
        inspect(source("folder", tmp_path / "data"), Memory.beside(tmp_path / "store"))
    assert len(seen) == 2


def test_without_a_store_the_users_cache_remembers_and_no_store_is_made(
    tmp_path: Path, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folders(tmp_path / "data")
    monkeypatch.setenv("PDD_CACHE", str(tmp_path / "cache"))
    seen = reads(monkeypatch)
    inspect(source("folder", tmp_path / "data"), Memory.beside(tmp_path / "none"))
    assert not (tmp_path / "none").exists()
    inspect(source("folder", tmp_path / "data"), Memory.beside(tmp_path / "store"))  # one that was made since
    assert len(seen) == 1


def test_memory_is_the_owners_alone(tmp_path: Path, memory: Memory) -> None:
    write_folders(tmp_path / "data")
    inspect(source("folder", tmp_path / "data"), memory)
    folder = tmp_path / "store" / "facts"
    assert [path.stat().st_mode & 0o777 for path in (folder, *folder.iterdir())] == [0o700, 0o600]


def test_a_tree_that_changes_right_now_is_not_remembered(tmp_path: Path) -> None:
    write_folders(tmp_path)
    assert tree_state(tmp_path) is None
    for path in [*tmp_path.rglob("*")]:
        os.utime(path, (1, 1))
    assert tree_state(tmp_path) is None  # the inodes still know when


def test_links_are_followed_but_not_in_a_circle(tmp_path: Path, memory: Memory) -> None:
    write_folders(tmp_path / "data")
    (tmp_path / "data" / "back").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "nowhere").symlink_to(tmp_path / "absent")
    (tmp_path / "data" / "train" / "ant" / "more").symlink_to(tmp_path / "more")
    (tmp_path / "more").mkdir()
    before = tree_state(tmp_path / "data")
    save(tmp_path / "more" / "a.png", shade(1))
    assert before is not None and tree_state(tmp_path / "data") not in (None, before)


def test_other_code_asks_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = name_of("auto", tmp_path)
    assert before == name_of("auto", tmp_path)
    monkeypatch.setattr(remembered, "_code", lambda: "another")
    assert name_of("auto", tmp_path) != before


def test_what_was_moved_is_read_again(tmp_path: Path, memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folders(tmp_path / "first")
    seen = reads(monkeypatch)
    before = inspect(source("folder", tmp_path / "first"), memory)
    shutil.move(tmp_path / "first", tmp_path / "second")
    assert inspect(source("folder", tmp_path / "second"), memory) == before and len(seen) == 2
