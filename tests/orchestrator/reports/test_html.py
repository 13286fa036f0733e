from __future__ import annotations

import base64
import hashlib
import io
import re

import pytest
from PIL import Image

from orchestrator.reports.html import html
from orchestrator.reports.markdown import markdown
from orchestrator.reports.page import (
    Beside,
    Block,
    Command,
    Coverage,
    Details,
    Entry,
    Gallery,
    Line,
    Note,
    Notes,
    Page,
    Paragraph,
    Picture,
    Section,
    Table,
    slug,
)
from tests.orchestrator.hypertext_reader import Reader

EVIL = "</style><script>alert(1)</script>"


def png(width: int = 4, height: int = 3) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(buffer, format="png")
    return buffer.getvalue()


def page(*blocks: Block, title: str = "A report") -> Page:
    section = Section("first", "First", blocks, "Results")
    return Page(title, "What it is.", (("Scale", "tiny"),), (section,))


def every_block() -> Page:
    picture = Picture("a-plot.png", png(), "a red picture", "Its caption.")
    entry = Entry((Line("61.2", "measured"), Line("note 1", "state", "note-1")), anchor="a-cell")
    grid = Table("a-table", ("Row", "Number"), (("one", entry), ("two", "3")), "The caption.", title="A table")
    bar = Table("bars", ("Row", "CellStatus"), (("one", Coverage((("measured", 3), ("failed", 1)))),), words=2)
    return page(
        Paragraph("Read this.", notice=True),
        grid,
        bar,
        Notes((Note("why", "note-1"),)),
        picture,
        Gallery((Picture("another.png", png(), "another"),), "Side by side."),
        Details("More", (Command("pdd run x"),)),
        Beside(("cells.csv",), "all cells"),
    )


def test_the_policy_lets_the_page_show_its_own_style_and_pictures_and_nothing_else() -> None:
    read = Reader(html(every_block()))
    (policy,) = [one for one in read.all("meta") if one.attributes.get("http-equiv") == "Content-Security-Policy"]
    (style,) = read.all("style")
    digest = base64.b64encode(hashlib.sha256("".join(style.texts).encode()).digest()).decode()
    assert policy.attributes["content"] == (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    )
    assert not any("style" in one.attributes or one.tag == "script" for one in read.elements)


@pytest.mark.parametrize("place", ["title", "paragraph", "entry", "picture", "details", "command"])
def test_a_hostile_text_stays_text_wherever_it_stands(place: str) -> None:
    blocks: dict[str, Block] = {
        "paragraph": Paragraph(EVIL),
        "entry": Table("t", (EVIL,), ((EVIL,),), EVIL, title=EVIL),
        "picture": Picture("a.png", png(), EVIL + '"', EVIL),
        "details": Details(EVIL, ()),
        "command": Command(EVIL),
    }
    shown = page(*([blocks[place]] if place in blocks else []), title=EVIL if place == "title" else "A report")
    read = Reader(html(shown))
    assert not read.all("script") and len(read.all("style")) == 1
    assert EVIL in read.all("html")[0].text or place == "picture"


def test_there_is_a_skip_link_and_the_landmarks_that_readers_jump_between() -> None:
    read = Reader(html(every_block()))
    first = read.all("a")[0]
    assert (first.attributes["class"], first.attributes["href"]) == ("skip", "#content")
    assert read.by_id("content").tag == "main"
    assert {"header", "nav", "main", "footer", "h1"} <= {one.tag for one in read.elements}
    assert read.all("html")[0].attributes["lang"] == "en"
    for section in read.all("section"):
        assert read.by_id(section.attributes["aria-labelledby"]).tag == "h2"


def test_every_heading_of_a_table_says_what_it_heads_and_boxes_that_scroll_take_the_focus() -> None:
    read = Reader(html(every_block()))
    heads = read.all("th")
    assert {one.attributes["scope"] for one in heads if "thead" in one.around} == {"col"}
    assert {one.attributes["scope"] for one in heads if "tbody" in one.around} == {"row"}
    assert read.by_id("a-table").attributes["aria-describedby"] == "a-table-caption"
    boxes = [one for one in read.elements if one.attributes.get("class") == "scroller"]
    assert len(boxes) == 3
    assert all(one.attributes["tabindex"] == "0" and one.attributes["aria-label"] for one in boxes)


def test_a_heading_without_words_is_no_heading() -> None:
    read = Reader(html(page(Table("t", ("", "b"), (("1", "2"),)))))
    assert [one.text for one in read.all("th")] == ["b", "1"]


def test_pictures_are_part_of_the_file_and_keep_their_place_while_it_loads() -> None:
    read = Reader(html(every_block()))
    assert [picture.size for picture in read.pictures()] == [(4, 3), (4, 3)]
    image = read.all("img")[0].attributes
    assert (image["alt"], image["width"], image["height"]) == ("a red picture", "4", "3")
    assert not re.search(r"https?://|//[a-z]", html(every_block()))


def test_a_bar_says_in_words_what_it_draws() -> None:
    read = Reader(html(every_block()))
    (bar,) = read.all("svg")
    assert bar.attributes["aria-label"] == "3 measured, 1 failed"
    drawn = [(one.attributes["class"], one.attributes["x"], one.attributes["width"]) for one in read.all("rect")]
    assert drawn == [("measured", "0.0", "75.0"), ("failed", "75.0", "25.0")]


def test_a_bar_of_no_cells_is_empty() -> None:
    nothing = Coverage((("measured", 0),))
    assert (list(nothing.bars()), nothing.text) == ([], "no cells")


def test_links_lead_to_anchors_of_the_page() -> None:
    read = Reader(html(every_block()))
    targets = [one.attributes["href"] for one in read.all("a")]
    assert all(target.removeprefix("#") in read.ids() for target in targets)
    assert len(set(read.ids())) == len(read.ids())


def test_markdown_says_the_same() -> None:
    assert markdown(every_block()) == (
        "# A report\n\nWhat it is.\n\n* Scale: tiny\n\n## First\n\n> Read this.\n\n"
        "| Row | Number |\n| --- | ---: |\n| one | 61.2; note 1 |\n| two | 3 |\n\nThe caption.\n\n"
        "| Row | CellStatus |\n| --- | --- |\n| one | 3 measured, 1 failed |\n\n"
        "* why\n\n![a red picture](a-plot.png)\n\nIts caption.\n\n![another](another.png)\n\nSide by side.\n\n"
        "<details><summary>More</summary>\n\n```\npdd run x\n```\n\n</details>\n\n[cells.csv](cells.csv): all cells\n"
    )


def test_markdown_shows_marks_as_they_are() -> None:
    said = markdown(page(Paragraph("a|b *c* [d] <e> `f` g_h\nnext")))
    assert "a\\|b \\*c\\* \\[d\\] \\<e> \\`f\\` g\\_h next\n" in said


def test_the_pictures_of_a_page_are_found_wherever_they_stand() -> None:
    picture = Picture("x.png", png(), "x")
    folded = page(Details("more", (Gallery((picture,)), picture)))
    assert [one.name for one in folded.pictures()] == ["x.png", "x.png"]


def test_a_slug_has_letters_digits_and_dashes_only() -> None:
    assert slug("PDD+MTT, 2 stages!") == "pdd-mtt-2-stages"
