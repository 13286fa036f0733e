"""Code that an input names is told of, and asked about at a terminal, before it is imported."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from jobs.errors import BadInput
from orchestrator.cli import trust
from workers.runtime import plugins


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The import path of something in a package that lies about; its module leaves a mark when it is imported."""
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "__init__.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w').close()\n")
    (tmp_path / "foreign" / "nets.py").write_text("Net = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(plugins, "before_import", trust.confirm)
    monkeypatch.delenv(trust.TRUSTED, raising=False)
    for name in ("foreign", "foreign.nets"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    trust._confirm_package.cache_clear()
    return "foreign.nets:Net"


def at_a_terminal(monkeypatch: pytest.MonkeyPatch, answer: bool) -> list[str]:
    """Let both ends be a terminal; returns the questions that were asked."""
    asked: list[str] = []

    def confirm(question: str, **_: Any) -> bool:
        asked.append(question)
        return answer

    for stream in (sys.stdin, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(typer, "confirm", confirm)
    return asked


def test_no_means_that_nothing_is_imported(foreign: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = at_a_terminal(monkeypatch, False)
    with pytest.raises(BadInput, match="read .*foreign first") as refusal:
        plugins.object_named(foreign)
    assert len(asked) == 1 and refusal.value.value == foreign and not (tmp_path / "mark").exists()


def test_yes_is_asked_once(foreign: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = at_a_terminal(monkeypatch, True)
    assert plugins.object_named(foreign) == plugins.object_named(foreign) == 1
    assert len(asked) == 1 and (tmp_path / "mark").exists()


def test_a_script_is_told_and_goes_on(foreign: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plugins.object_named(foreign) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert f"{foreign} is imported from" in said and "runs with your rights" in said


@pytest.mark.parametrize("path", ["foreign.nets:Net", "json:dumps", "workers.training.networks:ConvNet", "yaml:dump"])
def test_what_is_ours_installed_or_trusted_is_imported_without_a_word(
    foreign: str, path: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = at_a_terminal(monkeypatch, False)
    monkeypatch.setenv(trust.TRUSTED, "other,foreign")
    trust.confirm(path)
    assert not asked and capsys.readouterr().err == ""


def test_a_module_that_is_not_there_is_left_to_the_import(foreign: str) -> None:
    with pytest.raises(ImportError):
        plugins.object_named("no_such_package.nets:Net")
