"""A job's key: readable words and a digest of all that can change its result.

    distil-mtt-stage2-ipc2-seed0-1f6c2a90b7d4e853

The digest covers the kind, the kind's algorithm version, the spec without its placement fields, and the keys
of the parents by role and in order. It covers nothing about where or when the job runs. Every random number a
job draws comes from a seed derived here from the key, so a result does not depend on the cluster's shape or
the order of work.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from pydantic_core import to_jsonable_python

from jobs.fields import Frozen
from jobs.specs import Spec

Parents = Mapping[str, Sequence[str]]

_DIGEST_LENGTH = 16
_WORDS_LENGTH = 120
"""Keys are names of files and folders, most of which may have 255 bytes with their endings."""
_ABSENT = object()
_text = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode
_TEXTS: dict[int, tuple[Frozen, str]] = {}
"""The texts of parts that many specs share, such as a network, by the identity of the part, which is kept alive."""
_MOST_TEXTS = 4096


def canonical(spec: Spec, parents: Parents) -> dict[str, Any]:
    """The JSON value whose digest is the key."""
    return {
        "kind": spec.kind,
        "version": spec.version,
        "spec": spec.identity(),
        "parents": {role: list(keys) for role, keys in sorted(parents.items()) if keys},
    }


def key_of(spec: Spec, parents: Parents) -> str:
    """The key of the job with this spec and these parents; starts with `<kind>-`."""
    digest = hashlib.sha256(canonical_text(spec, parents).encode()).hexdigest()[:_DIGEST_LENGTH]
    words = re.sub(r"[^a-z0-9]+", "-", f"{spec.kind}-{spec.title()}".lower())[:_WORDS_LENGTH].strip("-")
    return f"{words}-{digest}"


def canonical_text(spec: Spec, parents: Parents) -> str:
    """The JSON text of `canonical`, names in order and without spaces; what specs share is written once."""
    fields = (
        f'"{stored}":{_value_text(value)}'
        for name, stored, silent in _fields(type(spec))
        if (value := getattr(spec, name)) != silent
    )
    by_role = _text({role: list(keys) for role, keys in parents.items() if keys})
    return f'{{"kind":"{spec.kind}","parents":{by_role},"spec":{{{",".join(fields)}}},"version":{spec.version}}}'


@cache
def _fields(spec: type[Spec]) -> list[tuple[str, str, object]]:
    """The fields that enter a key: the name, the stored name, and the value at which it stays out."""
    fields = {name: field for name, field in spec.model_fields.items() if name not in spec.placement}
    rows = [
        (name, field.serialization_alias or name, field.default if name in spec.later else _ABSENT)
        for name, field in fields.items()
    ]
    return sorted(rows, key=lambda row: row[1])


def _value_text(value: object) -> str:
    if type(value) is int:
        return str(value)
    if not isinstance(value, Frozen):
        return _text(value if value is None or isinstance(value, str | int | float) else to_jsonable_python(value))
    if id(value) not in _TEXTS:
        if len(_TEXTS) >= _MOST_TEXTS:
            _TEXTS.clear()
        _TEXTS[id(value)] = value, _text(value.model_dump(mode="json", by_alias=True))
    return _TEXTS[id(value)][1]


def kind_of(key: str) -> str:
    """The kind a key names."""
    return key.split("-", 1)[0]


def seed_from(key: str, *purpose: str | int) -> int:
    """A 63-bit seed for one purpose of one job, e.g. `seed_from(key, "expert", 3)`."""
    name = "/".join([key, *map(str, purpose)])
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1


def differences(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> list[str]:
    """The fields in which two canonical values differ, as `path: old -> new`, in order of the path.

    A field that one of them lacks counts as different, even from null: it changes the key too.
    """
    lines: list[str] = []
    for name in sorted(set(old) | set(new)):
        here = f"{path}.{name}" if path else name
        before, after = old.get(name, _ABSENT), new.get(name, _ABSENT)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += differences(before, after, here)
        elif before != after:
            lines.append(f"{here}: {_shown(before)} -> {_shown(after)}")
    return lines


def _shown(value: object) -> str:
    return "absent" if value is _ABSENT else json.dumps(value)
