from __future__ import annotations

import io

import pytest
from rich.console import Console

from orchestrator.planning import reading as module
from orchestrator.planning.reading import reading


def said(terminal: bool, seconds: float, monkeypatch: pytest.MonkeyPatch) -> str:
    """What is printed when a data set of 100 images takes so long to read."""
    clock = iter([0.0, *[seconds] * 100])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    console = Console(file=io.StringIO(), force_terminal=terminal, width=80, _environ={"TERM": "xterm"})
    with reading("/data/my [images]", console) as report:
        for done in (1, 50, 100):
            report(done, 100)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return str(text)


@pytest.mark.parametrize("terminal", [True, False])
def test_nothing_is_said_within_a_second(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    assert said(terminal, 0.9, monkeypatch) == ""


def test_off_a_terminal_one_line_says_what_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    assert said(False, 1.1, monkeypatch) == "reading /data/my [images]\n"


def test_a_terminal_shows_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    text = said(True, 1.1, monkeypatch)
    assert "reading /data/my [images]" in text and "100/100" in text
