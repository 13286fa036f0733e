"""Every "facts N.N" that a recipe, a docstring or a page cites has its paragraph in docs/facts.md."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.test_house import FILES, text_of

PAGE = Path("docs/facts.md")
NUMBER = r"\d+(?:\.\d+)?"
CITATION = re.compile(rf"\bfacts\s+({NUMBER}(?:(?:,\s+|\s+and\s+|,\s+and\s+){NUMBER})*)")


def cited(text: str) -> set[str]:
    """The numbers of all paragraphs that a text cites; a line's break and a comment's sign may stand in between."""
    words = re.sub(r"\s*\n\s*(?:#|\*|>)?\s*", " ", text)
    return {number for numbers in CITATION.findall(words) for number in re.findall(NUMBER, numbers)}


def paragraphs(page: str) -> list[str]:
    """The numbers of a page's headings, in its order."""
    return re.findall(rf"^#+ ({NUMBER}) \S", page, flags=re.MULTILINE)


def without_paragraph(texts: dict[Path, str], page: str) -> dict[str, set[str]]:
    """The citations, by file, that lead nowhere."""
    there = set(paragraphs(page))
    return {str(file): missing for file, text in texts.items() if (missing := cited(text) - there)}


SOURCES = {file: text_of(file) for file in FILES if file.suffix in {".py", ".yaml", ".md"}}


def test_every_citation_has_its_paragraph() -> None:
    assert without_paragraph(SOURCES, text_of(PAGE)) == {}
    assert sum(bool(cited(text)) for text in SOURCES.values()) > 20, "the search finds what it is for"


def test_paragraphs_have_a_number_once_and_in_order() -> None:
    numbers = [tuple(map(int, number.split("."))) for number in paragraphs(text_of(PAGE))]
    assert numbers == sorted(set(numbers))


def test_recipes_and_the_page_on_methods_say_where_the_facts_are() -> None:
    assert "(facts.md)" in text_of(Path("docs/methods.md"))
    assert "docs/facts.md" in text_of(Path("jobs/recipe.py"))


def test_a_citation_without_a_paragraph_is_found() -> None:
    text = "as published (facts" + " 4 and 9.7)"
    assert without_paragraph({Path("a.py"): text}, "## 4 MTT\n\n### 4.1 Experts\n") == {"a.py": {"9.7"}}


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("(DC; {} 7.1).", {"7.1"}),
        ("{} 5.5 and 9", {"5.5", "9"}),
        ("section 4.1, {} 5.2, 6.2).", {"5.2", "6.2"}),
        ("# as said in {}\n# 8; then", {"8"}),
        ("the {} of 4 data sets, artifacts 3", set()),
    ],
)
def test_citations_are_read_in_all_the_ways_they_are_written(text: str, numbers: set[str]) -> None:
    assert cited(text.format("facts")) == numbers
