"""README and the pages of docs/ name commands and options that there are, and every command stands in README."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer

from orchestrator.cli.app import EXAMPLES, app

ROOT = Path(__file__).resolve().parents[3]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = {name.strip("_") for name in (command.__name__ for command in EXAMPLES)}
TYPED = re.compile(r"(?:\.venv/bin/|[`$] ?|^ {4})pdd ([a-z]+)\b([^`|#\n]*)", re.MULTILINE)
"""A command as it stands in a sentence, in a table or in a block."""


def options_of(command: str) -> set[str]:
    group = typer.main.get_command(app)
    parameters = [*group.params, *group.commands[command].params]  # type: ignore[attr-defined]
    return {word for each in parameters for word in (*each.opts, *each.secondary_opts)} | {"--help"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_names_commands_and_options_that_there_are(page: Path) -> None:
    typed = TYPED.findall(page.read_text(encoding="utf-8"))
    assert [command for command, _ in typed if command not in COMMANDS] == []
    for command, words in typed:
        assert set(re.findall(r"(?<!\S)--?[a-z][a-z-]*", words)) <= options_of(command), (command, words)


def test_every_command_stands_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text[text.index("## Commands") : text.index("## What holds")]
    assert [command for command in sorted(COMMANDS) if not re.search(rf"`(pdd )?{command}\b", table)] == []


def test_a_command_or_an_option_that_is_not_there_would_be_found() -> None:
    text = "`pdd runn`, `.venv/bin/pdd run --wrkers 2`\n    pdd plan --all   # says what it takes\n"
    assert [command for command, _ in TYPED.findall(text)] == ["runn", "run", "plan"]
    assert "--wrkers" not in options_of("run") and "--workers" in options_of("run")
