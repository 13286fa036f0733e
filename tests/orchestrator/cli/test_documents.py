"""The JSON documents of all commands, as they are printed, against their schema; those of queues are in tests/slurm."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonschema import Draft202012Validator

from orchestrator import launch
from orchestrator.cli.app import EXAMPLES
from tests.documents import DEFINITIONS, DOCUMENTS, PAGE, SCHEMA, check, page
from workers.store.store import Store

Document = dict[str, Any]
Say = Callable[..., Document]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose store has one run of the tiny experiment."""
    return tmp_path_factory.mktemp("documents")


@pytest.fixture
def say(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Say:
    """Types a command in that folder and reads the document."""

    def say(*words: str) -> Document:
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", ["pdd", *words, "--json"])
        with pytest.raises(SystemExit):
            launch.main()
        document: Document = json.loads(capsys.readouterr().out)
        return document

    return say


@pytest.fixture
def ran(folder: Path, say: Say) -> Document:
    """The document of the run, which later tests find done."""
    file = folder / "run.json"
    if not file.exists():
        file.write_text(json.dumps(say("run", "tiny", "--workers", "0")))
    document: Document = json.loads(file.read_text())
    return document


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    assert {each["$ref"].rpartition("/")[2] for each in SCHEMA["anyOf"]} == set(DOCUMENTS)


def test_every_command_has_a_document() -> None:
    assert {command.__name__.strip("_") for command in EXAMPLES} <= set(DOCUMENTS)


@pytest.mark.slow
def test_a_field_that_is_not_in_the_schema_is_noticed(ran: Document) -> None:
    check("run", ran)
    for wrong in (ran | {"new": 1}, ran | {"exit": "0"}, {name: ran[name] for name in ran if name != "why"}):
        with pytest.raises(AssertionError):
            check("run", wrong)


def test_the_page_is_made_from_the_schema() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "python -m tests.documents"


def test_every_field_is_described() -> None:
    def bare(name: str, field: Document) -> list[str]:
        inner = {f"{name}.{key}": value for key, value in field.get("properties", {}).items()}
        missing = [] if field.get("description") or "$ref" in field else [name]
        return missing + [path for key, value in inner.items() for path in bare(key, value)]

    assert [path for name in DEFINITIONS for path in bare(name, DEFINITIONS[name])] == []


@pytest.mark.slow
@pytest.mark.usefixtures("ran")
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("plan", ("plan", "tiny")),
        ("plan", ("plan", "table1", "--scale", "tiny", "--dataset", "digits", "--budget", "0.01h")),
        ("explain", ("explain", "tiny")),
        ("explain", ("explain", "tiny", "--recipe", "--key", "distil")),
        ("status", ("status",)),
        ("logs", ("logs", "distil")),
        ("cancel", ("cancel",)),
        ("report", ("report", "tiny")),
        ("export", ("export", "tiny", "--arm", "PDD+MTT")),
        ("verify", ("verify",)),
        ("gc", ("gc",)),
        ("doctor", ("doctor",)),
        ("init", ("init",)),
        ("show", ("show",)),
        ("show_name", ("show", "tiny")),
        ("error", ("run", "nosuch")),
        ("error", ("run", "tiny", "--nonsense")),
        ("run", ("run", "tiny", "--workers", "0")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else value,
)
def test_a_command_prints_its_document(say: Say, name: str, words: tuple[str, ...]) -> None:
    check(name, say(*words))


def test_what_a_queue_gets_has_its_documents(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.workloads.launcher.launch", lambda *_: "tiny-20260101-000000-abcd")
    check("submitted", say("run", "tiny", "--detach"))
    monkeypatch.setattr("orchestrator.clusters.slurm.submit.scripts", lambda *_: {"head": "#!/bin/sh"})
    Path("slurm.yaml").write_text("clusters: {there: {kind: slurm}}\n")
    check("dry_run", say("run", "tiny", "--dry-run", "--cluster-file", "slurm.yaml", "--cluster", "there"))


@pytest.mark.slow
def test_one_job_is_shown_and_done_here(say: Say, folder: Path, ran: Document) -> None:
    key = next(each["key"] for each in ran["artifacts"] if each["kind"] == "full")
    check("job", say("job", key, "tiny"))
    check("job_here", say("job", key, "tiny", "--here"))
    Store(folder / "pdd-store").quarantine(key, "for this test")
    check("job_here", say("job", key, "tiny", "--here"))


def test_an_import_has_its_document(say: Say, folder: Path) -> None:
    images, labels = folder / "images_best.pt", folder / "labels_best.pt"
    torch.save(torch.zeros(2, 1, 8, 8), images)
    torch.save(torch.arange(2), labels)
    for found in (False, True):
        document = say("import", str(images), str(labels), "--store", "imports")
        check("import", document)
        assert document["found"] is found


@pytest.mark.slow
def test_damage_and_what_nobody_needs_have_their_documents(say: Say, folder: Path, ran: Document) -> None:
    key = next(each["key"] for each in ran["artifacts"] if each["kind"] == "full")
    store = Store(folder / "pdd-store")
    store.path(key, next(iter(store.manifest(key).files))).write_bytes(b"damaged")
    document = say("verify")
    check("verify", document)
    assert document["damaged"]
    check("run", say("run", "tiny", "--workers", "0", "--set", "networks=1"))


@pytest.mark.slow
@pytest.mark.usefixtures("ran")
def test_a_run_whose_jobs_fail_has_its_document(say: Say) -> None:
    document = say("run", "tiny", "--workers", "0", "--seed", "3", "--set", "distil.image.lr=1.0e+30")
    check("run", document)
    assert document["failures"]
    check("status", say("status"))
