"""A page as Markdown, which every forge, editor and terminal shows; pictures are files beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from orchestrator.reports.page import (
    Beside,
    Block,
    Command,
    Coverage,
    Details,
    Entry,
    Gallery,
    Line,
    Notes,
    Page,
    Paragraph,
    Picture,
    Table,
)


def markdown(page: Page) -> str:
    """The page's text, one empty line at most between its parts."""
    lines = [f"# {escaped(page.title)}", ""]
    lines += [line for sentence in page.verdict for line in (escaped(sentence), "")]
    lines += [escaped(page.lead), ""] if page.lead else []
    lines += [f"* {escaped(name)}: {escaped(value)}" for name, value in page.facts]
    lines += [""] if page.facts else []
    for section in page.sections:
        lines += [f"## {escaped(section.heading)}", "", *_lines(section.blocks)]
    return "\n".join(lines).rstrip() + "\n"


def escaped(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    plain = " ".join(text.split())
    return "".join(f"\\{letter}" if letter in "|\\`*_[]<" else letter for letter in plain)


def _lines(blocks: Sequence[Block]) -> Iterator[str]:
    for block in blocks:
        match block:
            case Paragraph(text=text, notice=notice):
                yield from (f"> {escaped(text)}" if notice else escaped(text), "")
            case Notes(items=items):
                yield from (*(f"* {escaped(note.text)}" for note in items), "")
            case Command(text=text):
                yield from ("```", text, "```", "")
            case Table():
                yield from _table(block)
            case Picture():
                yield from _picture(block)
            case Gallery(pictures=pictures, caption=caption):
                yield from (*_lines(pictures), *([escaped(caption), ""] if caption else []))
            case Beside(names=names, text=text):
                yield from (f"{', '.join(f'[{name}]({name})' for name in names)}: {escaped(text)}", "")
            case Details(summary=summary, blocks=inner):
                yield from (f"<details><summary>{escaped(summary)}</summary>", "", *_lines(inner), "</details>", "")


def _table(table: Table) -> Iterator[str]:
    rule = ["---" if number < table.words else "---:" for number in range(len(table.header))]
    yield _row([_text(entry) for entry in table.header])
    yield _row(rule)
    yield from (_row([_text(entry) for entry in row]) for row in table.rows)
    yield ""
    if table.caption:
        yield from (escaped(table.caption), "")


def _row(texts: Sequence[str]) -> str:
    return f"| {' | '.join(texts)} |"


def _text(entry: str | Entry | Coverage) -> str:
    if isinstance(entry, Coverage):
        return entry.text
    return "; ".join(_line(line) for line in Entry.of(entry).lines if line.text)


def _line(line: Line) -> str:
    return f"**{escaped(line.text)}**" if line.role == "best" else escaped(line.text)


def _picture(picture: Picture) -> Iterator[str]:
    yield from (f"![{escaped(picture.text)}]({picture.name})", "")
    if picture.caption:
        yield from (escaped(picture.caption), "")
