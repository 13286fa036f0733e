"""The records of a journal: which fields each event has, what they must be, and the line that holds one.

A record is a JSON object in one line. Its last field, `crc`, is the CRC-32 of all before it, so that a flipped bit is
noticed; journals of earlier versions lack it, and are read by the types of their fields alone.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Callable, Mapping
from typing import Any

from workers.store.files import is_plain

RECORDS: Mapping[str, tuple[str, ...]] = {
    "submitted": ("run", "command", "experiments", "jobs", "cluster"),
    "run_began": ("run", "command", "experiments", "store", "jobs", "workers", "versions", "pid", "host"),
    "job_cached": ("key",),
    "job_unneeded": ("key",),
    "job_ready": ("key", "remaining_path"),
    "job_started": ("key", "kind", "slot", "host", "attempt", "remaining_path"),
    "job_done": ("key", "kind", "slot", "job_seconds"),
    "job_found": ("key", "kind", "slot"),
    "job_busy": ("key", "slot", "retry_after"),
    "job_yielded": ("key", "slot"),
    "job_failed": ("key", "reason", "message", "log"),
    "job_skipped": ("key", "because"),
    "work_left": ("by_kind",),
    "slot_joined": ("slot", "host"),
    "slot_left": ("slot", "reason", "message"),
    "trial_reported": ("trial", "stage", "stages", "values", "metrics"),
    "note": ("text",),
    "run_ended": ("exit", "why", "counts"),
}
"""The fields of each event. `remaining_path` and `job_seconds` are in seconds, `by_kind` has the seconds that are
expected of all open jobs, `because` is the key that failed, `jobs` counts the jobs by kind, `counts` by status, `exit`
is the exit code."""
LATER = frozenset({"key", "expected_seconds"})
"""Fields that a record may have beside those of its event, and that must then be what they ought to be."""

Record = dict[str, Any]


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_whole(value: object) -> bool:
    return type(value) is int and abs(value) < 2**63


def _is_number(value: object) -> bool:
    return _is_whole(value) or (isinstance(value, float) and math.isfinite(value))


def _is_process(value: object) -> bool:
    return isinstance(value, int) and _is_whole(value) and 0 < value < 2**31


def _is_key(value: object) -> bool:
    return isinstance(value, str) and is_plain(value)


def _is_list(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_object(value: object) -> bool:
    return isinstance(value, dict)


def _is_texts(value: object) -> bool:
    return isinstance(value, dict) and all(map(_is_text, value.values()))


def _is_count(value: object) -> bool:
    return isinstance(value, dict) and all(map(_is_whole, value.values()))


def _is_amounts(value: object) -> bool:
    return isinstance(value, dict) and all(_is_number(amount) and amount >= 0 for amount in value.values())


_CHECKS: Mapping[str, Callable[[object], bool]] = {
    **dict.fromkeys(("seq", "workers", "attempt", "trial", "stage", "stages", "exit"), _is_whole),
    **dict.fromkeys(("seconds", "remaining_path", "expected_seconds", "job_seconds", "retry_after"), _is_number),
    **dict.fromkeys(("values", "metrics"), _is_object),
    "versions": _is_texts,
    **dict.fromkeys(("jobs", "counts"), _is_count),
    **{"pid": _is_process, "key": _is_key, "experiments": _is_list, "by_kind": _is_amounts},
}
"""What a field must be, by its name; all others are text."""
_ALWAYS = ("seq", "t", "seconds")
_COVERED = re.compile(rb'(.*), "crc": "([0-9a-f]{8})"\}')


def line_of(record: Record) -> str:
    """The line that holds a record, with its checksum."""
    text = json.dumps(record, allow_nan=False)
    return f'{text[:-1]}, "crc": "{zlib.crc32(text.encode()):08x}"}}\n'


def is_covered(line: bytes) -> bool:
    """Whether a line has a checksum."""
    return _COVERED.fullmatch(line) is not None


def record_of(line: bytes) -> Record | None:
    """The record of a line as it was written, with all fields that its event must have; None if it is no such thing."""
    covered = _COVERED.fullmatch(line)
    if b"\r" in line or covered and zlib.crc32(covered[1] + b"}") != int(covered[2], 16):
        return None
    try:
        record = json.loads(covered[1] + b"}" if covered else line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not isinstance(record.get("event"), str):
        return None
    fields = {*_ALWAYS, *RECORDS.get(record["event"], ()), *(LATER & record.keys())}
    fits = record.keys() >= fields and all(_CHECKS.get(name, _is_text)(record[name]) for name in fields)
    return record if fits else None
