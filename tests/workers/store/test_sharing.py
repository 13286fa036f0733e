"""A store that a group uses: who may do what, tried by processes of two users where the tests run as root."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jobs.errors import BadInput
from orchestrator.runs.journal import Journal, read
from workers.store.checkpoints import Checkpoints
from workers.store.claims import Claims
from workers.store.store import Store

KEY, GROUP, ANNA, BERT, STRANGER = "select-a", 61001, 61002, 61003, 61004


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every user may enter, whose group is that of the two."""
    path = Path(tempfile.mkdtemp(prefix="t-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def put(store: Store, key: str = KEY) -> None:
    with store.put(key, key.split("-")[0], {}, {}, device="cpu") as folder:
        (folder / "data").write_bytes(b"x")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_all_of_a_shared_store_is_for_its_group_whatever_the_umask(folder: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        store = Store.open(folder / "store", shared=True)
        put(store)
        Checkpoints(store.root).save(KEY, {}, {})
        with Journal.open(store.run_folder("r")) as book, Claims(store.root).take(KEY, "r"):  # type: ignore[union-attr]
            book.write("note", text="")
            paths = [store.root, *store.root.rglob("*")]
            assert {mode(path) for path in paths if path.is_dir()} == {0o2770}
            files = {path.name: mode(path) for path in paths if path.is_file()}
        assert files.pop("journal.jsonl") == 0o660 and set(files.values()) == {0o640} and "data" in files
    finally:
        os.umask(before)


def test_a_store_of_one_user_stays_so(tmp_path: Path) -> None:
    put(Store.open(tmp_path / "store"))
    with pytest.raises(BadInput, match="made for one user"):
        Store.open(tmp_path / "store", shared=True)
    assert all(mode(path) & 0o077 == 0 for path in [tmp_path / "store", *(tmp_path / "store").rglob("*")])


@pytest.mark.parametrize("place", ["", "objects"])
def test_where_strangers_may_write_nothing_is_believed(folder: Path, place: str) -> None:
    store = Store.open(folder / "store", shared=True)
    (store.root / place).chmod(0o2777)
    for way in (Store.open, Store.for_reading):
        with pytest.raises(BadInput, match="chmod o-w"):
            way(store.root)


def as_user(user: int, group: int, work: Callable[[], object]) -> bool:
    """Whether a process of this user did the work; False if it was not allowed to."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setgroups([])
            os.setgid(group)
            os.setuid(user)
            work()
            code = 0
        except (PermissionError, BadInput):
            code = 2
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 2)
    return code == 0


def gone_on_with(root: Path) -> None:
    """What a second member does: read, repair, go on with the run, add, and remove."""
    store = Store.open(root)
    assert store.path(KEY, "data").read_bytes() == b"x"
    with Journal.open(store.run_folder("r")) as book:
        book.write("note", text="second")
    store.quarantine(KEY, "for the test")
    put(store)
    put(store, "select-b")


def test_members_go_on_with_each_others_work_and_strangers_see_nothing(folder: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("other users need root")
    os.chown(folder, ANNA, GROUP)
    root = folder / "store"

    def begin() -> None:
        store = Store.open(root, shared=True)
        put(store)
        with Journal.open(store.run_folder("r")) as book:
            book.write("note", text="first")

    assert as_user(ANNA, GROUP, begin)
    assert not as_user(STRANGER, STRANGER, lambda: os.listdir(root))
    assert not as_user(BERT, GROUP, lambda: (root / "objects" / "select" / KEY / "data").write_bytes(b"y"))
    assert as_user(BERT, GROUP, lambda: gone_on_with(root))
    assert as_user(ANNA, GROUP, lambda: Store.open(root).remove("select-b"))
    assert [record["text"] for record in read(root / "runs" / "r" / "journal.jsonl")] == ["first", "second"]
