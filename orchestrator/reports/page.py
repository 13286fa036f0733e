"""A report as a value: its sections and what stands in them, before anybody decides how it is set.

A `Page` knows tables, pictures, notes and commands, and nothing of Markdown or HTML, so the two forms of a report
(`orchestrator.reports.markdown`, `orchestrator.reports.html`) cannot say different things. Texts are plain text:
whoever sets them escapes them. Anchors are unique in a page, and a link is the anchor it leads to.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from orchestrator.results.tables import CellStatus

Role = Literal["value", "measured", "best", "published", "higher", "lower", "level", "state", "minor", "code", "link"]
"""What a line of a table's entry is: `best` is the best of its column, a `state` stands where a value is missing,
`higher` and `lower` are differences that are significant, `level` those that are not."""


@dataclass(frozen=True)
class Line:
    """One line of an entry; with a `target` it leads to that anchor."""

    text: str
    role: Role = "value"
    target: str = ""


@dataclass(frozen=True)
class Entry:
    """One entry of a table, of several lines; `anchor` is what others lead to."""

    lines: tuple[Line, ...]
    anchor: str = ""

    @classmethod
    def of(cls, entry: str | Entry) -> Entry:
        """Plain text as an entry of one line."""
        return entry if isinstance(entry, Entry) else cls((Line(entry),))


@dataclass(frozen=True)
class Coverage:
    """An entry that is drawn as a bar: how many cells there are of each status."""

    counts: tuple[tuple[CellStatus, int], ...]

    @property
    def total(self) -> int:
        """All of them."""
        return sum(count for _, count in self.counts)

    @property
    def text(self) -> str:
        """In words: `12 measured, 3 not run`."""
        return ", ".join(f"{count} {status}" for status, count in self.counts if count) or "no cells"

    def bars(self) -> Iterator[tuple[CellStatus, float, float]]:
        """CellStatus, left edge and width of every bar, in percent of the whole."""
        left = 0.0
        for status, count in self.counts:
            width = 100 * count / self.total if self.total else 0.0
            if count:
                yield status, round(left, 3), round(width, 3)
            left += width


@dataclass(frozen=True)
class Paragraph:
    """A paragraph; a `notice` is one that must not be overlooked."""

    block: ClassVar[str] = "paragraph"
    text: str
    notice: bool = False


@dataclass(frozen=True)
class Note:
    """One remark of several; cells that it explains lead to its anchor."""

    text: str
    anchor: str = ""


@dataclass(frozen=True)
class Notes:
    """Remarks, as a list."""

    block: ClassVar[str] = "notes"
    items: tuple[Note, ...]


@dataclass(frozen=True)
class Command:
    """What can be typed, as it is typed."""

    block: ClassVar[str] = "command"
    text: str


@dataclass(frozen=True)
class Table:
    """A table: the first `words` columns hold words, the first of all names the row, the others hold numbers."""

    block: ClassVar[str] = "table"
    anchor: str
    header: tuple[str | Entry, ...]
    rows: tuple[tuple[str | Entry | Coverage, ...], ...]
    caption: str = ""
    words: int = 1
    title: str = ""
    """What it is called by those who cannot see where it stands."""


@dataclass(frozen=True)
class Picture:
    """A picture, as a file `name`; `text` says what is to be seen for those who cannot see it."""

    block: ClassVar[str] = "picture"
    name: str
    png: bytes = field(repr=False)
    text: str
    caption: str = ""
    drawn: bool = True
    """Lines on white, which may be inverted on a dark screen; photographs and synthetic images may not."""
    rows: tuple[str, ...] = ()
    """What its rows of equal height are called: text beside it, not pixels."""

    @property
    def anchor(self) -> str:
        """Its file's name without the ending."""
        return slug(self.name.removesuffix(".png"))


@dataclass(frozen=True)
class Gallery:
    """Pictures that belong side by side where there is room."""

    block: ClassVar[str] = "gallery"
    pictures: tuple[Picture, ...]
    caption: str = ""

    @property
    def grids(self) -> bool:
        """Whether these are image grids, which are as wide as their images."""
        return any(picture.rows for picture in self.pictures)


@dataclass(frozen=True)
class Details:
    """What most readers skip, folded away under its summary."""

    block: ClassVar[str] = "details"
    summary: str
    blocks: tuple[Block, ...]
    anchor: str = ""


@dataclass(frozen=True)
class Beside:
    """Files in the report's folder, and what they hold: links in Markdown, only names in a file that stands alone."""

    block: ClassVar[str] = "beside"
    names: tuple[str, ...]
    text: str


Block = Paragraph | Notes | Command | Table | Picture | Gallery | Details | Beside


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it; sections of one `group` stand together in the contents."""

    anchor: str
    heading: str
    blocks: tuple[Block, ...]
    group: str = ""
    short: str = ""
    """The heading as the contents have it, where it is too long for them."""


@dataclass(frozen=True)
class Page:
    """A whole report.

    Attributes:
        title: its name.
        lead: what it is, in a sentence or two.
        facts: what one wants to know first, by name.
        sections: in order.
        verdict: what the report finds, in a few sentences that stand above all else.
    """

    title: str
    lead: str
    facts: tuple[tuple[str, str], ...]
    sections: tuple[Section, ...]
    verdict: tuple[str, ...] = ()

    def pictures(self) -> list[Picture]:
        """Every picture, in order; each is a file beside the Markdown form."""
        return [picture for section in self.sections for picture in _pictures(section.blocks)]

    def groups(self) -> dict[str, list[Section]]:
        """The sections by group, for the contents."""
        by_group: dict[str, list[Section]] = {}
        for section in self.sections:
            by_group.setdefault(section.group, []).append(section)
        return by_group


def entry_of(*lines: Line | None, anchor: str = "") -> Entry:
    """An entry of these lines; None for one that is not there."""
    return Entry(tuple(line for line in lines if line is not None), anchor)


def notes(texts: Iterable[str]) -> tuple[Notes, ...]:
    """The remarks as a block, if there are any."""
    items = tuple(map(Note, texts))
    return (Notes(items),) if items else ()


def slug(text: str) -> str:
    """Text as part of an anchor or of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _pictures(blocks: Sequence[Block]) -> Iterator[Picture]:
    for block in blocks:
        match block:
            case Picture():
                yield block
            case Gallery(pictures=several):
                yield from several
            case Details(blocks=inner):
                yield from _pictures(inner)
