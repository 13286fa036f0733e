"""The table of systems in docs/methods.md: a standing of yes names recipes that there are."""

from __future__ import annotations

import re

from jobs.recipe import methods
from tests.test_house import ROOT

PAGE = ROOT / "docs" / "methods.md"


def standings() -> dict[str, str]:
    """The second column of the table by its first."""
    text = PAGE.read_text(encoding="utf-8").partition("## Every system")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:4]] for line in text.splitlines() if line.startswith("| ")]
    return {system: standing for system, standing, _ in rows[2:]}


def test_a_system_that_is_here_has_its_recipe() -> None:
    here = {name for words in standings().values() if words.startswith("yes") for name in re.findall(r"`(\w+)`", words)}
    assert len(here) > 12
    assert here <= set(methods()), "a row says yes, but there is no such recipe"


def test_every_other_system_has_a_reason() -> None:
    assert {words.partition(":")[0] for words in standings().values()} <= {"yes", "no", "by import", "out of reach"}
