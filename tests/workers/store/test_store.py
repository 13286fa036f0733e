"""`workers.store.store`: whole or absent, whatever is killed; damage found; the first writer wins."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import random
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import BadInput, Damaged
from workers.store.processes import Process
from workers.store.store import FileRecord, Store, digest_of

KEY = "distil-demo-0123456789abcdef"
ROOT = Path(__file__).resolve().parents[3]

ENDLESS_WRITER = """
import itertools, sys
from workers.store.store import Store
store = Store.open(sys.argv[1])
print("ready", flush=True)
for number in itertools.count(int(sys.argv[2])):
    with store.put(f"distil-n{number}", "distil", {}, {}, seconds=0, device="cpu") as folder:
        for name in "abc":
            (folder / name).write_bytes(name.encode() * 300_000)
"""

ONE_WRITER = """
import sys
from workers.store.store import Store
store = Store.open(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for number in range(20):
    with store.put(f"distil-n{number}", "distil", {}, {}, seconds=0, device="cpu") as folder:
        (folder / "a").write_text(sys.argv[2])
        (folder / "b").write_text(sys.argv[2])
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


def put(store: Store, key: str = KEY, *, extra: dict[str, Any] | None = None, **contents: bytes) -> None:
    with store.put(
        key, key.split("-")[0], {"n": 1}, {"experts": ["e-1"]}, seconds=2.5, device="cpu", extra=extra
    ) as folder:
        for name, content in (contents or {"images": b"pixels", "labels": b"0123"}).items():
            (folder / name).write_bytes(content)


def start(program: str, *arguments: object) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def rewrite_manifest(store: Store, key: str = KEY, **changes: Any) -> None:
    """Put a manifest in the place of another, with a digest of its own that fits."""
    path = store.root / "objects" / key.split("-")[0] / key / "manifest.json"
    document = {name: value for name, value in json.loads(path.read_bytes()).items() if name != "manifest_sha256"}
    document |= changes
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    path.write_text(json.dumps(document | {"manifest_sha256": hashlib.sha256(text.encode()).hexdigest()}))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_what_is_put_is_read_back_with_its_manifest(store: Store) -> None:
    put(store, extra={"accuracy": 61.5})
    manifest = store.manifest(KEY)
    assert store.has(KEY) and store.verify(KEY) == []
    assert store.path(KEY, "images").read_bytes() == b"pixels"
    assert manifest.files["labels"] == FileRecord(4, hashlib.sha256(b"0123").hexdigest())
    assert (manifest.key, manifest.kind, manifest.spec) == (KEY, "distil", {"n": 1})
    assert (manifest.parents, manifest.seconds, manifest.device) == ({"experts": ["e-1"]}, 2.5, "cpu")
    assert manifest.extra == {"accuracy": 61.5} and manifest.host == socket.gethostname()
    assert {"python", "numpy", "pyarrow", "torch"} <= set(manifest.versions)
    assert 1 < manifest.peak_memory_mib < 1e6
    assert manifest.written.endswith("+00:00")


def test_the_digest_is_that_of_the_sorted_names_and_digests() -> None:
    files = {"b": FileRecord(1, "22"), "a": FileRecord(9, "11")}
    assert digest_of(files) == hashlib.sha256(b"a 11\nb 22\n").hexdigest()


def test_the_digest_depends_on_the_data_alone(tmp_path: Path) -> None:
    one, other = Store.open(tmp_path / "one"), Store.open(tmp_path / "other")
    put(one, a=b"1", b=b"2")
    with other.put(KEY, "distil", {"n": 2}, {}, seconds=99, device="cuda", extra={"x": 1}) as folder:
        (folder / "b").write_bytes(b"2")
        (folder / "a").write_bytes(b"1")
    put(other, "distil-swapped", a=b"2", b=b"1")
    assert one.manifest(KEY).digest == other.manifest(KEY).digest
    assert one.manifest(KEY).digest != other.manifest("distil-swapped").digest


def test_manifests_of_later_versions_can_be_read(store: Store) -> None:
    put(store)
    rewrite_manifest(store, colour="blue")
    assert store.verify(KEY) == [] and store.manifest(KEY).spec == {"n": 1}


def test_the_constructor_creates_nothing_and_finds_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "nowhere")
    assert not store.has(KEY) and list(store.keys()) == [] and store.sweep() == []
    assert store.verify(KEY) != []
    assert store.run_folder("r1") == tmp_path / "nowhere" / "runs" / "r1"
    assert list(tmp_path.iterdir()) == []


def test_everything_in_the_store_is_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        store = Store.open(tmp_path / "deep" / "store")
        put(store)
    finally:
        os.umask(before)
    found = list(store.root.rglob("*"))
    assert len(found) > 8
    assert {mode(path) for path in found if path.is_dir()} == {0o700}
    assert {mode(path) for path in found if path.is_file()} == {0o600}


def test_a_file_uri_names_a_local_folder(tmp_path: Path) -> None:
    store = Store.open(f"file://{tmp_path}/a%20store")
    assert store.root == tmp_path / "a store" and store.root.is_dir()


@pytest.mark.parametrize("root", ["s3://bucket/pdd", "file://elsewhere/pdd", Path("gs://bucket")])
def test_stores_that_are_not_local_folders_are_refused(root: str | Path) -> None:
    with pytest.raises(BadInput, match="only local folders are supported now"):
        Store.open(root)


def test_a_store_whose_name_no_folder_can_have_is_refused() -> None:
    with pytest.raises(BadInput, match="NUL"):
        Store.for_reading("a\0b")


def test_a_folder_everybody_may_write_to_is_refused_even_if_sticky(tmp_path: Path) -> None:
    for permissions in (0o777, 0o1777):
        tmp_path.chmod(permissions)
        with pytest.raises(BadInput, match="chmod o-w"):
            Store.open(tmp_path)
    assert list(tmp_path.iterdir()) == []
    tmp_path.chmod(0o775)
    Store.open(tmp_path)


def test_a_file_in_the_place_of_the_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("not a folder")
    with pytest.raises(BadInput, match="--store: store is .*a folder that you can write to"):
        Store.open(tmp_path / "store")


def test_opening_finds_out_that_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(path: Path, content: bytes) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr("workers.store.store.write_file", read_only)
    with pytest.raises(BadInput, match="Read-only file system"):
        Store.open(tmp_path / "store")


@pytest.mark.parametrize("key", ["distil-../../etc", "../x", "distil-a/b", "", "distil-" + "x" * 200])
def test_a_key_cannot_lead_out_of_the_store(store: Store, key: str) -> None:
    with pytest.raises(BadInput):
        store.has(key)


def test_keys_are_listed_by_kind_and_in_order(store: Store) -> None:
    for key in ("full-b", "full-a", "evaluate-z"):
        put(store, key)
    assert list(store.keys()) == ["evaluate-z", "full-a", "full-b"]
    assert list(store.keys("full")) == ["full-a", "full-b"]
    assert list(store.keys("select")) == []


def test_an_exception_in_the_block_leaves_nothing(store: Store) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        store.put(KEY, "distil", {}, {}, seconds=0, device="cpu") as folder,
    ):
        (folder / "images").write_bytes(b"half")
        raise KeyboardInterrupt
    assert not store.has(KEY) and list((store.root / "tmp").iterdir()) == []


def test_a_nan_is_not_stored(store: Store) -> None:
    with pytest.raises(ValueError, match="JSON"):
        put(store, extra={"accuracy": float("nan")})
    assert not store.has(KEY) and list((store.root / "tmp").iterdir()) == []


@pytest.mark.parametrize("contents", [{}, {"manifest.json": b"{}"}])
def test_an_artifact_needs_data_files_that_are_not_the_manifest(store: Store, contents: dict[str, bytes]) -> None:
    with pytest.raises(AssertionError), store.put(KEY, "distil", {}, {}, seconds=0, device="cpu") as folder:
        for name, content in contents.items():
            (folder / name).write_bytes(content)
    assert not store.has(KEY)


def test_a_full_disk_while_the_data_is_written_is_explained(store: Store) -> None:
    with (
        pytest.raises(OSError, match="No space") as caught,
        store.put(KEY, "distil", {}, {}, seconds=0, device="cpu") as folder,
    ):
        (folder / "images").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert str(store.root) in caught.value.__notes__[0] and "free space" in caught.value.__notes__[0]
    assert not store.has(KEY) and list((store.root / "tmp").iterdir()) == []


def test_a_full_disk_while_the_artifact_is_sealed_is_explained(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="quota") as caught:
        patch.setattr(os, "fsync", full)
        with store.put(KEY, "distil", {}, {}, seconds=0, device="cpu") as folder:
            (folder / "images").write_bytes(b"x")
    assert str(store.root) in "".join(caught.value.__notes__)
    assert not store.has(KEY)
    assert list((store.root / "tmp").iterdir()) == []


def test_files_are_durable_before_the_manifest_and_the_manifest_before_the_rename(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    (store.root / "objects" / "distil").mkdir()
    done: list[str] = []
    fsync, rename = os.fsync, os.rename

    def noted_fsync(descriptor: int) -> None:
        fsync(descriptor)
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        done.append("temporary folder" if path.parent.name == "tmp" else path.name)

    def noted_rename(source: Path, target: Path) -> None:
        rename(source, target)
        done.append("moved")

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "rename", noted_rename)
    put(store, a=b"1", b=b"2")
    assert done == ["a", "b", "manifest.json", "temporary folder", "moved", "distil"]


def test_the_first_writer_wins(store: Store) -> None:
    with store.put(KEY, "distil", {}, {}, seconds=0, device="cpu") as folder:
        (folder / "images").write_bytes(b"second")
        put(store, images=b"first")
    assert store.path(KEY, "images").read_bytes() == b"first"
    assert store.verify(KEY) == [] and list((store.root / "tmp").iterdir()) == []
    assert list((store.root / "quarantine").iterdir()) == []


def test_a_damaged_artifact_makes_way_for_a_new_one(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    put(store, images=b"first")
    os.truncate(store.path(KEY, "images"), 2)
    with caplog.at_level(logging.WARNING):
        put(store, images=b"again")
    assert store.path(KEY, "images").read_bytes() == b"again" and store.verify(KEY) == []
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    (kept,) = (store.root / "quarantine").iterdir()
    assert (kept / "images").read_bytes() == b"fi"


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a truncated file": lambda folder: os.truncate(folder / "images", 3),
    "a longer file": lambda folder: (folder / "images").write_bytes(b"pixels and more"),
    "a missing file": lambda folder: (folder / "labels").unlink(),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "a torn manifest": lambda folder: os.truncate(folder / "manifest.json", 60),
    "an empty manifest": lambda folder: os.truncate(folder / "manifest.json", 0),
    "a manifest of something else": lambda folder: (folder / "manifest.json").write_text("[1, 2]"),
    "bytes for a manifest": lambda folder: (folder / "manifest.json").write_bytes(b"\xff\xfe\x00"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_artifact_is_quarantined_and_said_so(
    store: Store, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    put(store)
    DAMAGE[damage](store.root / "objects" / "distil" / KEY)
    assert store.verify(KEY) != []
    with caplog.at_level(logging.WARNING):
        assert not store.has(KEY)
    assert KEY in caplog.text and list(store.keys()) == []
    (kept,) = (store.root / "quarantine").iterdir()
    assert kept.name.startswith(KEY) and (kept / "why.txt").read_text().strip()
    put(store)
    assert store.has(KEY)


def test_reading_a_damaged_artifact_raises_once_it_is_quarantined(store: Store) -> None:
    put(store)
    os.truncate(store.path(KEY, "images"), 1)
    with pytest.raises(Damaged, match=r"images: 1 bytes, must be 6: quarantined"):
        store.path(KEY, "labels")
    with pytest.raises(Damaged, match="absent"):
        store.manifest(KEY)


def test_a_manifest_under_the_wrong_key_is_damage(store: Store) -> None:
    put(store)
    os.rename(store.root / "objects" / "distil" / KEY, store.root / "objects" / "distil" / "distil-other")
    assert not store.has("distil-other")


def test_asking_for_a_file_that_was_never_there_is_not_damage(store: Store) -> None:
    put(store)
    with pytest.raises(KeyError, match="images"):
        store.path(KEY, "curves")
    assert store.has(KEY)


def test_a_flipped_byte_is_found_by_verify_only(store: Store) -> None:
    put(store, images=b"pixels")
    (store.root / "objects" / "distil" / KEY / "images").write_bytes(b"pixelz")
    assert store.has(KEY)
    (complaint,) = store.verify(KEY)
    assert "images: sha256 is" in complaint
    kept = store.quarantine(KEY, complaint)
    assert not store.has(KEY) and (kept / "why.txt").read_text() == complaint + "\n"
    with pytest.raises(FileNotFoundError):
        store.quarantine(KEY, "again")


def test_a_manifest_that_contradicts_itself_is_found_by_verify(store: Store) -> None:
    put(store)
    rewrite_manifest(store, digest="0" * 64)
    assert "digest is not that of its files" in store.verify(KEY)[0]


def test_a_whole_artifact_that_took_the_place_of_a_damaged_one_is_put_back(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store, images=b"first")
    os.truncate(store.path(KEY, "images"), 2)
    quarantine = Store.quarantine

    def slow(self: Store, key: str, why: str) -> Path:
        monkeypatch.undo()
        assert not self.has(key)  # another process is faster: it quarantines,
        put(self, images=b"again")  # and makes the artifact again
        return quarantine(self, key, why)

    monkeypatch.setattr(Store, "quarantine", slow)
    assert not store.has(KEY)
    assert store.path(KEY, "images").read_bytes() == b"again" and store.verify(KEY) == []
    assert not (store.root / "objects" / "distil" / KEY / "why.txt").exists()


def test_trouble_of_the_file_system_is_not_damage(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    put(store)

    def broken(path: Path) -> bytes:
        raise OSError(errno.EIO, "Input/output error", str(path))

    with monkeypatch.context() as patch, pytest.raises(OSError, match="Input/output"):
        patch.setattr("workers.store.manifest.read_plain", broken)
        store.has(KEY)
    assert store.has(KEY) and list((store.root / "quarantine").iterdir()) == []


def test_a_store_that_vanished_is_not_an_empty_one(store: Store) -> None:
    put(store)
    away = store.root.with_name("unmounted")
    store.root.rename(away)
    with pytest.raises(FileNotFoundError, match="the store is gone"):
        store.has(KEY)
    away.rename(store.root)
    assert store.has(KEY)


def test_sweep_removes_what_dead_writers_left_and_nothing_else(store: Store) -> None:
    us = Process.current()
    ended = subprocess.Popen(["true"])
    ended.wait()
    names = {
        "ours": us.temporary_name(),
        "dead": Process(us.host, ended.pid).temporary_name(),
        "pid used again": Process(us.host, us.pid, "1").temporary_name(),
        "elsewhere": Process("elsewhere", 7, "1").temporary_name(),
        "elsewhere, old": Process("elsewhere", 7, "1").temporary_name(),
        "unknown": "stray",
        "unknown, old": "stray-old",
    }
    for number, name in enumerate(names.values()):
        path = store.root / "tmp" / name
        if number % 2:
            path.mkdir()
            (path / "images").write_bytes(b"half")
        else:
            path.write_bytes(b"half")
    yesterday = time.time() - 25 * 3600
    for which in ("elsewhere, old", "unknown, old"):
        os.utime(store.root / "tmp" / names[which], (yesterday, yesterday))
    swept = {path.name for path in store.sweep()}
    assert swept == {names[w] for w in ("dead", "pid used again", "elsewhere, old", "unknown, old")}
    assert set(os.listdir(store.root / "tmp")) == {names[w] for w in ("ours", "elsewhere", "unknown")}


def test_a_writer_killed_at_any_moment_leaves_no_visible_half_artifact(store: Store) -> None:
    rng = random.Random(0)
    for trial in range(6):
        process = start(ENDLESS_WRITER, store.root, trial * 10_000)
        time.sleep(rng.uniform(0.01, 0.25))
        end(process)
        complaints = [complaint for key in store.keys() for complaint in store.verify(key)]
        assert complaints == []
    assert list(store.keys()) != [] and list((store.root / "tmp").iterdir()) != []
    store.sweep()
    assert list((store.root / "tmp").iterdir()) == [] and list((store.root / "quarantine").iterdir()) == []


def test_a_reader_sees_nothing_or_the_whole_while_a_writer_is_at_work(store: Store) -> None:
    process = start(ENDLESS_WRITER, store.root, 0)
    try:
        seen, until = 0, time.monotonic() + 1.5
        while time.monotonic() < until:
            key = f"distil-n{seen}"
            if (store.root / "objects" / "distil" / key).exists():
                assert store.verify(key) == [] and store.has(key)
                seen += 1
            assert all(store.has(each) for each in list(store.keys())[-3:])
    finally:
        end(process)
    assert seen > 0 and list((store.root / "quarantine").iterdir()) == []


def test_two_processes_that_put_the_same_keys_agree_on_one_artifact_each(store: Store) -> None:
    writers = [start(ONE_WRITER, store.root, text) for text in ("left", "right")]
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate()
        assert writer.returncode == 0
    assert len(list(store.keys())) == 20
    for key in store.keys():
        assert store.verify(key) == []
        assert store.path(key, "a").read_text() == store.path(key, "b").read_text()
    assert list((store.root / "tmp").iterdir()) == [] and list((store.root / "quarantine").iterdir()) == []


def test_many_threads_that_find_the_same_damage_end_with_one_whole_artifact(store: Store) -> None:
    put(store, images=b"pixels")
    os.truncate(store.path(KEY, "images"), 1)
    barrier = threading.Barrier(8)
    failed: list[BaseException] = []

    def repair() -> None:
        try:
            barrier.wait()
            if not store.has(KEY):
                put(store, images=b"pixels")
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=repair) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == [] and store.verify(KEY) == []


def test_looking_in_the_store_imports_neither_torch_nor_pyarrow() -> None:
    program = (
        "import sys, workers.store.store, workers.store.claims, workers.store.checkpoints\n"
        "print({'torch', 'pyarrow', 'ray'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert found.stdout == "set()\n"
