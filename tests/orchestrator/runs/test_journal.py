from __future__ import annotations

import errno
import math
import os
import re
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.runs import journal
from orchestrator.runs.journal import NAME, Journal, JournalLost, follow, read, unreadable


def test_a_record_has_its_number_time_and_fields(tmp_path: Path) -> None:
    times = iter([100.0, 100.0, 100.0, 101.2346, 101.2346])
    with Journal.open(tmp_path / "run", clock=lambda: next(times)) as written:
        written.write("note", text="one")
        written.write("slot_joined", slot="w", host="h", more=1)
    first, second = read(tmp_path / "run" / "journal.jsonl")
    assert (first["seq"], first["seconds"], first["event"], first["text"]) == (0, 0.0, "note", "one")
    assert (second["seq"], second["seconds"], second["more"]) == (1, 1.235, 1)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first["t"])


def test_only_the_owner_may_read_it(tmp_path: Path) -> None:
    with Journal.open(tmp_path / "run") as written:
        assert stat.S_IMODE(written.path.stat().st_mode) == 0o600
        assert stat.S_IMODE(written.folder.stat().st_mode) == 0o700


def test_a_record_is_on_the_disk_when_write_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(len(read(tmp_path / journal.NAME))))
    with Journal.open(tmp_path) as written:
        written.write("note", text="one")
        written.append([("note", {"text": "two"}), ("note", {"text": "three"})])
        assert synced == [1] and len(read(written.path)) == 3
        written.sync()
        written.append([])
        written.sync()
    assert synced == [1, 3]


def test_a_record_is_due_on_the_disk_a_twentieth_of_a_second_after_it_was_appended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, synced = [0.0], []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(now[0]))
    with Journal.open(tmp_path, clock=lambda: now[0]) as written:
        assert written.sync_if_due() == math.inf
        written.append([("note", {"text": "one"})])
        now[0] = 0.04
        written.append([("note", {"text": "two"})])
        assert written.sync_if_due() == pytest.approx(0.01) and not synced
        now[0] = 0.051
        assert written.sync_if_due() == math.inf and synced == [0.051]
        assert written.sync_if_due() == math.inf and synced == [0.051]


def test_a_torn_last_line_is_ignored_by_readers_and_removed_by_the_next_writer(tmp_path: Path) -> None:
    with Journal.open(tmp_path) as written:
        written.write("note", text="whole")
    with written.path.open("ab") as file:
        file.write(b'{"seq": 1, "event": "no')
    assert [record["text"] for record in read(written.path)] == ["whole"]
    with Journal.open(tmp_path) as written:
        written.write("note", text="next")
    assert [(record["seq"], record["text"]) for record in read(written.path)] == [(0, "whole"), (1, "next")]


def test_there_is_one_writer_at_a_time(tmp_path: Path) -> None:
    with Journal.open(tmp_path), pytest.raises(JournalLost, match="another driver"):
        Journal.open(tmp_path)
    Journal.open(tmp_path).close()


def test_a_write_that_fails_is_never_silent(tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full here")
    descriptor = os.open(full, os.O_WRONLY)
    with Journal(full, descriptor, 0, lambda: 0.0) as written, pytest.raises(JournalLost, match="No space"):
        written.write("note", text="lost")


def test_a_disk_that_does_not_take_what_was_written_is_never_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(descriptor: int) -> None:
        raise OSError(errno.EDQUOT, "Quota exceeded")

    monkeypatch.setattr(os, "fsync", fails)
    with Journal.open(tmp_path) as written:
        written.append([("note", {"text": "one"})])
        for _ in range(2):
            with pytest.raises(JournalLost, match="Quota exceeded"):
                written.sync()


def test_a_journal_that_cannot_be_opened_says_so(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file where the folder should be")
    with pytest.raises(JournalLost, match="cannot be opened"):
        Journal.open(tmp_path / "run")


@pytest.mark.parametrize(("event", "fields"), [("note", {}), ("slot_joined", {"slot": "w"})])
def test_a_record_without_a_promised_field_is_a_bug_of_ours(tmp_path: Path, event: str, fields: dict[str, str]) -> None:
    with Journal.open(tmp_path) as written, pytest.raises(AssertionError, match="without"):
        written.write(event, **fields)


def test_a_journal_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert read(tmp_path / "none.jsonl") == []


def test_following_sees_whole_records_as_they_come_and_ends_with_the_run(tmp_path: Path) -> None:
    with Journal.open(tmp_path) as written:

        def half(text: str) -> None:
            with written.path.open("ab") as file:
                file.write(text.encode())

        steps: Iterator[Callable[[], None]] = iter(
            [
                lambda: written.write("note", text="first"),
                lambda: half('{"seq": 1, "t": "", "seconds": 0, "event": "note", "te'),
                lambda: half('xt": "second"}\n'),
                lambda: written.write("run_ended", exit=0, why="done", counts={}),
            ]
        )

        def take_step() -> None:
            next(steps)()

        seen = [record.get("text", record["event"]) for record in follow(written.path, take_step)]
    assert seen == ["first", "second", "run_ended"]
    assert list(steps) == []


def test_following_a_run_that_was_taken_up_again_goes_past_its_first_end(tmp_path: Path) -> None:
    with Journal.open(tmp_path) as written:
        written.write("run_ended", exit=130, why="stopped", counts={})
        written.write("note", text="again")
        written.write("run_ended", exit=0, why="done", counts={})
    assert [record["event"] for record in follow(written.path)] == ["run_ended", "note", "run_ended"]


@pytest.mark.parametrize(
    "line", [b"[1]", b"{", b"\xff\xfe", b'{"event": 3}', b'{"event": "job_done"}', b"[" * 100_000, b"9" * 5000]
)
def test_a_line_that_is_no_record_is_left_out_and_can_be_known(tmp_path: Path, line: bytes) -> None:
    with Journal.open(tmp_path) as book:
        book.write("note", text="before")
    path = tmp_path / NAME
    assert unreadable(path) == ""
    path.write_bytes(path.read_bytes() + line + b"\n")
    with Journal.open(tmp_path) as book:
        book.write("note", text="after")
    assert [(record["text"], record["seq"]) for record in read(path)] == [("before", 0), ("after", 2)]
    assert unreadable(path) == "line 2 is no record"


def test_a_journal_that_is_gone_or_cut_short_is_told_from_one_that_is_whole(tmp_path: Path) -> None:
    path = tmp_path / NAME
    assert "No such file" in unreadable(path)
    path.touch()
    assert unreadable(path) == "is empty"
    path.write_bytes(b'{"event": "no')
    assert unreadable(path) == "ends within a line"
    os.unlink(path)
    os.mkfifo(path)
    assert "not a plain file" in unreadable(path)


def three(folder: Path) -> Path:
    """A journal of three records."""
    with Journal.open(folder) as book:
        for text in ("one", "two", "three"):
            book.write("note", text=text)
    return folder / NAME


def without_a_line(text: bytes) -> bytes:
    first, _, *rest = text.splitlines(keepends=True)
    return first + b"".join(rest)


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (without_a_line, "line 2 is record 2, so that some are missing"),
        (lambda text: text.replace(b"two", b"owt"), "line 2 is no record"),
        (lambda text: text[:-5], "ends within a line"),
        (lambda text: text.replace(b"\n", b"\r"), "ends within a line"),
        (lambda text: text.replace(b"\n", b"\r\n"), "line 1 is no record"),
        (lambda text: text.replace(b"crc", b"crb").replace(b"crb", b"crc", 2), "line 3 has no checksum"),
        (lambda text: text + text.splitlines(keepends=True)[0], "line 4 is record 0, so that some are missing"),
    ],
)
def test_a_journal_that_lacks_something_or_was_changed_is_known(
    tmp_path: Path, harm: Callable[[bytes], bytes], why: str
) -> None:
    path = three(tmp_path)
    assert unreadable(path) == ""
    path.write_bytes(harm(path.read_bytes()))
    assert unreadable(path) == why


def test_a_journal_of_an_earlier_version_is_read_and_gone_on_with(tmp_path: Path) -> None:
    path = three(tmp_path)
    path.write_bytes(re.sub(rb', "crc": "[0-9a-f]{8}"', b"", path.read_bytes()))
    assert unreadable(path) == ""
    with Journal.open(tmp_path) as book:
        book.write("note", text="four")
    assert [record["text"] for record in read(path)] == ["one", "two", "three", "four"]
    assert unreadable(path) == ""


def test_no_flipped_bit_of_a_journal_passes(tmp_path: Path) -> None:
    path = three(tmp_path)
    text, whole = path.read_bytes(), read(path)
    for position in range(8 * len(text)):
        flipped = bytearray(text)
        flipped[position // 8] ^= 1 << position % 8
        path.write_bytes(flipped)
        told = [{name: value for name, value in record.items() if name in whole[0]} for record in read(path)]
        assert all(record in whole for record in told), "what is read is as it was written"
        assert unreadable(path) != "" or told == whole, "only a checksum is no longer one"


def test_whoever_waits_for_a_journal_gets_it_when_its_writer_is_gone(tmp_path: Path) -> None:
    assert journal.wait_until_free(tmp_path, 0.0)
    with Journal.open(tmp_path):
        assert not journal.wait_until_free(tmp_path, 0.2)
    writer = Journal.open(tmp_path)
    threading.Timer(0.3, writer.close).start()
    assert journal.wait_until_free(tmp_path, 20.0)
