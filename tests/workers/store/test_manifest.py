"""Manifests that are covered by a digest of their own, bytes checked where they are read, and odd things in a store."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import Damaged
from workers.store.manifest import MANIFEST, FileRecord, Manifest, digest_of, outdated
from workers.store.store import Store

CHAIN = ("dataset-a", "experts-b", "distil-c", "evaluate-d")
"""Each made from the one before it."""
EXTRA = {"accuracy": 23.0, "curve": [23.0]}


def put(store: Store, key: str, content: bytes = b"0123456789", parent: str = "", **extra: Any) -> None:
    parents = {"parent": [parent]} if parent else {}
    with store.put(key, key.split("-")[0], {"n": 1}, parents, device="cpu", seconds=1.5, extra=extra) as folder:
        (folder / "data").write_bytes(content)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store.open(tmp_path / "store")
    for key, parent in zip(CHAIN, ("", *CHAIN), strict=False):
        put(store, key, key.encode(), parent, **EXTRA)
    return store


def folder_of(store: Store, key: str) -> Path:
    return store.root / "objects" / key.split("-")[0] / key


def replace(store: Store, key: str, content: bytes) -> None:
    """Make an artifact again, with other bytes, as a job that is not deterministic does."""
    parents = store.manifest(key).parents.get("parent", [""])
    store.remove(key)
    put(store, key, content, parents[0])


def test_no_flipped_bit_of_a_manifest_passes(store: Store) -> None:
    path = folder_of(store, "evaluate-d") / MANIFEST
    text = path.read_bytes()
    whole = json.loads(text)
    changed = 0
    for position in random.Random(0).sample(range(8 * len(text)), 2000):
        flipped = bytearray(text)
        flipped[position // 8] ^= 1 << position % 8
        path.write_bytes(flipped)
        complaints = store.verify("evaluate-d")
        if complaints:
            changed += 1
            with pytest.raises((ValueError, TypeError, KeyError, AttributeError)):
                Manifest.from_json(bytes(flipped))
        else:
            assert json.loads(flipped) == whole, "only white space differs"
    assert changed > 1500


def test_an_accuracy_that_lost_a_bit_is_not_shown(store: Store) -> None:
    path = folder_of(store, "evaluate-d") / MANIFEST
    text = path.read_text()
    assert '"accuracy": 23.0' in text
    path.write_text(text.replace('"accuracy": 23.0', '"accuracy": 63.0'))
    assert "manifest_sha256" in store.verify("evaluate-d")[0]
    with pytest.raises(Damaged, match="quarantined"):
        store.manifest("evaluate-d")
    assert not store.has("evaluate-d")


def test_a_manifest_of_an_earlier_version_is_read_and_said_to_be_uncovered(store: Store) -> None:
    path = folder_of(store, "evaluate-d") / MANIFEST
    document = json.loads(path.read_bytes())
    for name in ("manifest_sha256", "parent_digests"):
        del document[name]
    path.write_text(json.dumps(document))
    assert store.manifest("evaluate-d").extra == EXTRA
    assert store.verify("evaluate-d") == [] and not store.is_covered("evaluate-d")
    assert store.is_covered("distil-c")
    document["parent_digests"] = {}  # as if the name of the digest had lost a bit
    path.write_text(json.dumps(document))
    assert store.verify("evaluate-d") != []


def test_numbers_in_keys_of_a_spec_do_not_disturb_the_digest(store: Store) -> None:
    with store.put("select-x", "select", {"by": {10: 1, 9: 2}}, {}, device="cpu") as folder:
        (folder / "data").write_bytes(b"x")
    assert store.verify("select-x") == []


# Bytes of data files.


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def test_a_damaged_file_of_the_right_size_is_not_handed_out(store: Store) -> None:
    flip(folder_of(store, "distil-c") / "data")
    assert store.has("distil-c"), "a look reads no data"
    with pytest.raises(Damaged, match="sha256 is .* quarantined"):
        store.path("distil-c", "data")
    assert not store.has("distil-c")


def test_a_file_is_read_once_and_again_after_it_was_written_to(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[object] = []
    file_digest = hashlib.file_digest

    def counted(file: Any, name: str) -> Any:
        hashed.append(name)
        return file_digest(file, name)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    for _ in range(3):
        store.path("distil-c", "data")
    assert len(hashed) == 1
    flip(store.path("distil-c", "data"))
    with pytest.raises(Damaged):
        store.check("distil-c")


def test_damage_on_a_read_only_store_is_refused_each_time(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    flip(folder_of(store, "distil-c") / "data")
    (folder_of(store, "experts-b") / MANIFEST).write_text("{}")
    monkeypatch.setattr(os, "rename", read_only)
    for _ in range(2):
        with pytest.raises(Damaged):
            store.path("distil-c", "data")
        assert not store.has("experts-b")


# Children of other bytes.


def test_children_know_the_digests_of_their_parents(store: Store) -> None:
    assert store.manifest("distil-c").parent_digests == {"experts-b": store.manifest("experts-b").digest}
    assert store.manifest("dataset-a").parent_digests == {}


def test_what_was_made_from_other_bytes_is_outdated_with_all_that_came_from_it(store: Store) -> None:
    replace(store, "experts-b", b"others")
    manifests = {key: store.manifest(key) for key in store.keys()}
    late = outdated(manifests)
    assert list(late) == ["evaluate-d", "distil-c"], "children first"
    assert late["distil-c"] == "made from other bytes than its parent experts-b has now"
    assert "distil-c" in late["evaluate-d"]
    del manifests["experts-b"]
    assert outdated(manifests) == {}, "what is gone cannot be compared"


def test_the_same_bytes_made_again_are_no_other_bytes(store: Store) -> None:
    replace(store, "experts-b", b"experts-b")
    assert outdated({key: store.manifest(key) for key in store.keys()}) == {}


def test_a_parent_made_anew_with_other_bytes_while_the_child_is_made_fails_the_child(store: Store) -> None:
    with (
        pytest.raises(Damaged, match="made anew meanwhile"),
        store.put("distil-z", "distil", {}, {"experts": ["experts-b"]}, device="cpu") as folder,
    ):
        (folder / "data").write_bytes(b"x")
        replace(store, "experts-b", b"others")
    assert not store.has("distil-z")


def test_an_audit_quarantines_the_damaged_and_the_outdated_and_says_why(store: Store) -> None:
    put(store, "full-x")
    put(store, "select-y")
    replace(store, "experts-b", b"others")
    flip(folder_of(store, "select-y") / "data")
    audit = store.audit([*CHAIN, "full-x", "select-y", "full-never"])
    assert audit.sound == {"dataset-a", "experts-b", "full-x"}
    assert set(audit.lost) == {"distil-c", "evaluate-d", "select-y"}
    assert "sha256" in audit.lost["select-y"]
    assert set(store.keys()) == audit.sound
    again = store.audit([*CHAIN, "select-y"])
    assert again.sound == {"dataset-a", "experts-b"}
    assert set(again.lost) == set(audit.lost), "they lie in the quarantine until they are made again"
    put(store, "select-y")
    assert set(store.audit([*CHAIN, "select-y"]).lost) == {"distil-c", "evaluate-d"}


def test_an_audit_leaves_large_files_to_their_readers(store: Store) -> None:
    flip(folder_of(store, "distil-c") / "data")
    assert store.audit(CHAIN, largest=3).lost == {}
    with pytest.raises(Damaged):
        store.path("distil-c", "data")


def test_what_cannot_be_read_now_is_left_where_it_is_and_stops_nobody(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bad_sector(path: Path) -> bytes:
        if path.parent.name == "distil-c":
            raise OSError(5, "Input/output error", str(path))
        return path.read_bytes()

    monkeypatch.setattr("workers.store.manifest.read_plain", bad_sector)
    audit = store.audit(CHAIN)
    assert audit.sound == {"dataset-a", "experts-b", "evaluate-d"}
    assert audit.lost["distil-c"].startswith("cannot be read: ")
    assert folder_of(store, "distil-c").is_dir()


# Odd things.


def instead(path: Path, make: Callable[[Path], object]) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    make(path)


def edited(path: Path, files: object) -> None:
    """An earlier manifest, which has no digest of its own, with other files."""
    changes = {"files": files}
    if isinstance(files, dict):
        changes["digest"] = digest_of({name: FileRecord(1, "") for name in files})
    earlier(path.parent, **changes)


def earlier(folder: Path, **changes: object) -> None:
    """Make a manifest one of an earlier version, which has no digest of its own, with other values."""
    document = json.loads((folder / MANIFEST).read_bytes())
    for name in ("manifest_sha256", "parent_digests"):
        del document[name]
    (folder / MANIFEST).write_text(json.dumps(document | changes))


def covered(folder: Path, **changes: object) -> None:
    """Give a manifest other values, and the digest of its own that fits."""
    document = json.loads((folder / MANIFEST).read_bytes()) | changes
    del document["manifest_sha256"]
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    document["manifest_sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(document))


def file_called(name: str) -> dict[str, dict[str, object]]:
    return {name: {"size": 1, "sha256": "a"}}


ODD: dict[str, Callable[[Path], object]] = {
    "a manifest that is a folder": lambda folder: instead(folder / MANIFEST, Path.mkdir),
    "a manifest that links to itself": lambda folder: instead(folder / MANIFEST, lambda p: p.symlink_to(p)),
    "a manifest that links to nothing": lambda folder: instead(folder / MANIFEST, lambda p: p.symlink_to("nothing")),
    "an artifact that links to itself": lambda folder: instead(folder, lambda p: p.symlink_to(p)),
    "an artifact that is a file": lambda folder: instead(folder, Path.touch),
    "a kind that is a file": lambda folder: instead(folder.parent, Path.touch),
    "a data file that is a folder": lambda folder: instead(folder / "data", Path.mkdir),
    "a data file that is a pipe": lambda folder: instead(folder / "data", os.mkfifo),
    "a data file that links to itself": lambda folder: instead(folder / "data", lambda p: p.symlink_to(p)),
    "deep JSON": lambda folder: (folder / MANIFEST).write_text("[" * 100_000),
    "a number of 5,000 digits": lambda folder: (folder / MANIFEST).write_text("9" * 5000),
    "a name of 300 characters": lambda folder: edited(folder / MANIFEST, files={"x" * 300: {"size": 1, "sha256": ""}}),
    "a name with a NUL": lambda folder: edited(folder / MANIFEST, files={"x\0": {"size": 1, "sha256": ""}}),
    "a name in another folder": lambda folder: edited(folder / MANIFEST, files={"../x": {"size": 1, "sha256": ""}}),
    "files that are a number": lambda folder: edited(folder / MANIFEST, files=3),
    "a record that is a list": lambda folder: edited(folder / MANIFEST, files={"data": [1]}),
    "a manifest that is a pipe": lambda folder: instead(folder / MANIFEST, os.mkfifo),
    "a manifest that links to a device": lambda folder: instead(folder / MANIFEST, lambda p: p.symlink_to("/dev/zero")),
    "a manifest that is no object": lambda folder: (folder / MANIFEST).write_text('"manifest_sha256"'),
    "a kind that links to itself": lambda folder: instead(folder.parent, lambda p: p.symlink_to(p)),
    "a kind that links to nothing": lambda folder: instead(folder.parent, lambda p: p.symlink_to("nothing")),
    "a kind that is a pipe": lambda folder: instead(folder.parent, os.mkfifo),
    "parents of null": lambda folder: earlier(folder, parents=None),
    "parents that are a list": lambda folder: earlier(folder, parents=["a"]),
    "parents that are numbers": lambda folder: earlier(folder, parents={"dataset": 5}),
    "seconds that are words": lambda folder: earlier(folder, seconds="abc"),
    "seconds in quotes": lambda folder: earlier(folder, seconds="3.5"),
    "seconds beyond all numbers": lambda folder: earlier(folder, seconds=10**400),
    "a host that is a number": lambda folder: earlier(folder, host=7),
    "a specification of null": lambda folder: earlier(folder, spec=None),
    "numbers of null": lambda folder: earlier(folder, extra=None),
    "no numbers": lambda folder: earlier(folder, extra={}),
    "an accuracy in words": lambda folder: earlier(folder, extra={"accuracy": "high", "curve": []}),
    "another kind": lambda folder: earlier(folder, kind="evaluate"),
    "its own parent": lambda folder: covered(folder, parents={"set": [folder.name]}),
    "a name that no encoding has": lambda folder: covered(folder, files=file_called("\ud800")),
    "a size in quotes": lambda folder: covered(folder, files={"data": {"size": "10", "sha256": "a"}}),
    "no files": lambda folder: covered(folder, files={}, digest=digest_of({})),
    "its manifest as a data file": lambda folder: covered(folder, files=file_called(MANIFEST)),
}


@pytest.mark.parametrize("odd", ODD)
def test_an_odd_object_is_damage_and_is_made_again(store: Store, odd: str, caplog: pytest.LogCaptureFixture) -> None:
    ODD[odd](folder_of(store, "distil-c"))
    reader = Store.for_reading(store.root)
    assert reader.verify("distil-c") != []
    assert set(reader.keys()) >= set(CHAIN) - {"distil-c"}
    with caplog.at_level(logging.WARNING):
        audit = store.audit(CHAIN)
    assert audit.sound == {"dataset-a", "experts-b", "evaluate-d"} and set(audit.lost) == {"distil-c"}
    put(store, "distil-c", b"distil-c", "experts-b")
    assert store.audit(CHAIN).sound == set(CHAIN)


def test_artifacts_that_are_their_own_ancestors_are_outdated_and_no_others(store: Store) -> None:
    covered(folder_of(store, "distil-c"), parents={"set": ["evaluate-d"]}, parent_digests={})
    put(store, "full-x")
    manifests = {key: store.manifest(key) for key in store.keys()}
    late = outdated(manifests)
    assert set(late) == {"distil-c", "evaluate-d"} and "own ancestor" in late["distil-c"]
    assert store.audit([*CHAIN, "full-x"]).sound == {"dataset-a", "experts-b", "full-x"}


def test_a_file_in_the_place_of_a_kind_does_not_stop_a_writer(store: Store) -> None:
    (store.root / "objects" / "select").touch()
    put(store, "select-y")
    assert store.verify("select-y") == []


def test_names_that_are_no_keys_are_passed_over(store: Store) -> None:
    for name in ("distil-" + "x" * 240, "distil- ", "distil-é", ".distil", os.fsdecode(b"distil-\xff")):
        (store.root / "objects" / "distil" / name).mkdir()
    assert list(store.keys()) == sorted(CHAIN)


# A store that is only read.


def test_reading_makes_nothing(tmp_path: Path) -> None:
    store = Store.for_reading(tmp_path / "none")
    assert not store.has("distil-c") and list(store.keys()) == [] and list(tmp_path.iterdir()) == []


def test_reading_refuses_a_folder_that_everybody_may_write_to(store: Store) -> None:
    store.root.chmod(0o777)
    with pytest.raises(Exception, match="chmod o-w"):
        Store.for_reading(store.root)


def test_a_store_that_vanished_while_it_was_read_is_not_an_empty_one(store: Store) -> None:
    reader = Store.for_reading(store.root)
    shutil.rmtree(store.root)
    with pytest.raises(FileNotFoundError, match="the store is gone"):
        reader.has("distil-c")
