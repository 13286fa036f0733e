"""What the commands print with `--json`, against docs/documents.schema.json; and docs/json.md, which is made from it.

`python -m tests.documents` writes the page anew.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from jsonschema import Draft202012Validator

from tests.test_house import ROOT

SCHEMA_FILE = ROOT / "docs" / "documents.schema.json"
PAGE = ROOT / "docs" / "json.md"
SCHEMA: dict[str, Any] = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
DEFINITIONS: dict[str, Any] = SCHEMA["$defs"]
DOCUMENTS = tuple(name for name, each in DEFINITIONS.items() if "schema" in each.get("properties", {}))
"""The definitions that are whole documents; the others are parts of them."""
INTRODUCTION = """\
# What `--json` prints

One document on standard output and nothing else; words for people go to standard error. It is an interface: within a
version (`schema`, now 1) a field may be added, none is renamed or removed. The same as a JSON Schema, to validate with:
[documents.schema.json](documents.schema.json); tests hold every command to it. This page is made from it by
`python -m tests.documents`.

Every document has `schema`. Fields in *italics* may be absent.
"""


def check(name: str, document: Mapping[str, Any]) -> None:
    """Fail unless a document is as its definition says."""
    validator = Draft202012Validator({"$ref": f"#/$defs/{name}", "$defs": DEFINITIONS})
    complaints = [
        f"{'.'.join(map(str, error.path)) or name}: {error.message}" for error in validator.iter_errors(document)
    ]
    assert not complaints, "; ".join(complaints)


def page() -> str:
    """The page of all documents and their parts."""
    lines = [INTRODUCTION]
    for title, names in (("Documents", DOCUMENTS), ("Parts", [name for name in DEFINITIONS if name not in DOCUMENTS])):
        lines.append(f"## {title}\n")
        for name in names:
            lines += [f"### {name}\n", DEFINITIONS[name]["description"], ""]
            rows = list(_rows(_own(name)))
            lines += ["| field | type | what it is |", "| --- | --- | --- |", *rows, ""] if rows else []
    return "\n".join(lines).rstrip() + "\n"


def _own(name: str) -> Mapping[str, Any]:
    """A definition without the fields of `run`, where it has all of them."""
    definition, run = DEFINITIONS[name], DEFINITIONS["run"]["properties"]
    if name == "run" or not run.keys() <= definition.get("properties", {}).keys():
        return dict(definition)
    fields = {field: about for field, about in definition["properties"].items() if field not in run}
    return {**definition, "properties": fields}


def _rows(definition: Mapping[str, Any], before: str = "") -> Iterator[str]:
    """A row for each field; those of an object within follow it."""
    for name, field in definition.get("properties", {}).items():
        if name == "schema" and not before:
            continue
        path = f"{before}{name}"
        shown = f"`{path}`" if name in definition["required"] else f"*`{path}`*"
        about = field.get("description") or DEFINITIONS[field["$ref"].rpartition("/")[2]]["description"]
        yield f"| {shown} | {_type(field)} | {about} |"
        yield from _rows(field, f"{path}.")
        yield from _rows(field.get("items", {}), f"{path}[].")


def _type(field: Mapping[str, Any]) -> str:
    """The type of a field in words, with a link where it is a part with a section of its own."""
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        return f"[{name}](#{name})"
    if "enum" in field:
        return ", ".join(map(str, field["enum"]))
    types = field.get("type", "any")
    words = " or ".join(types) if isinstance(types, list) else types
    if words.startswith("array") and "items" in field:
        return f"{words} of {_type(field['items'])}"
    values = field.get("additionalProperties")
    return f"{words} of {_type(values)} by name" if isinstance(values, dict) else words


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
