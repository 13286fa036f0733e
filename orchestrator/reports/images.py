"""The images of a report: synthetic sets by stage, and who worked when. Accuracies are in `orchestrator.reports.plots`.

Image grids are drawn pixel by pixel with Pillow, enlarged by whole factors, because a blurred 8x8 image
hides what was learned. Plots are matplotlib `Figure` objects with a canvas of their own: there is no
global state, so drawing in one thread cannot disturb a notebook in another. Colours are Okabe and Ito's,
which colour-blind readers can tell apart.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image, ImageDraw, ImageFont

from orchestrator.runs.timeline import Span

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
KIND_COLOURS = {
    "dataset": "#7F7F7F",
    "imported": "#56B4E9",
    "forgetting": "#CC79A7",
    "select": "#B8B8B8",
    "experts": "#0072B2",
    "distil": "#D55E00",
    "evaluate": "#009E73",
    "full": "#E69F00",
}
DOTS_PER_INCH = 150
FIGURE_COLOURS = 128
MOST_CLASSES = 10
MOST_COLUMNS = 20
"""Of all stages together: wider grids do not fit a page."""

_GAP, _STAGE_GAP, _MARGIN, _LETTERS = 3, 22, 12, 15
"""Pixels: between images, between stages, around the picture, and the height of its letters."""


class PictureSet(NamedTuple):
    """A synthetic set as pictures: [n] Pillow images, their labels, and the names of the classes."""

    images: list[Image.Image]
    labels: list[int]
    class_names: tuple[str, ...]

    def only(self, names: Collection[str]) -> PictureSet:
        """The classes with these names; where another dataset has no such classes, as many from its second on."""
        kept = [number for number, name in enumerate(self.class_names) if name in names]
        if len(kept) < len(names):
            kept = list(range(1, 1 + len(names)))[: len(self.class_names) - 1]
        chosen = [
            (image, kept.index(number))
            for image, number in zip(self.images, self.labels, strict=True)
            if number in kept
        ]
        images, labels = [image for image, _ in chosen], [number for _, number in chosen]
        return PictureSet(images, labels, tuple(self.class_names[number] for number in kept))


@dataclass(frozen=True)
class StageBlock:
    """The images of one stage, by class: what stands under one heading of a grid."""

    heading: str
    rows: tuple[tuple[Image.Image, ...], ...]

    @property
    def columns(self) -> int:
        """Images in the longest row."""
        return max((len(row) for row in self.rows), default=0)


def read_pictures(path: Path) -> PictureSet:
    """The pictures of a `set.parquet` (Hugging Face image layout; pixels already transformed back)."""
    table = pq.read_table(path)
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    encoded = [row["bytes"] for row in table.column("image").to_pylist()]
    images = [Image.open(io.BytesIO(content)).copy() for content in encoded]
    return PictureSet(images, table.column("label").to_pylist(), tuple(features["label"]["names"]))


def grid_by_stage(stages: Sequence[PictureSet], title: str, headings: Sequence[str] | None = None) -> Image.Image:
    """One row per class, one group of columns per stage.

    Args:
        stages: S_1..S_P, each with its new images only, all of one dataset.
        title: one line above the grid.
        headings: one per stage; `stage 1`, `stage 2`, ... by default.
    """
    headings = headings or [f"stage {number}" for number in range(1, len(stages) + 1)]
    most = max(1, MOST_COLUMNS // len(stages))
    blocks = [_block(pictures, heading, most) for pictures, heading in zip(stages, headings, strict=True)]
    names = stages[0].class_names[:MOST_CLASSES]
    size = _enlarged_size(stages[0].images[0])
    font, bold = _font(_LETTERS - 2), _font(_LETTERS)
    left = _MARGIN + max(math.ceil(font.getlength(_short(name))) for name in names) + 10
    widths = [
        max(block.columns * (size[0] + _GAP) - _GAP, math.ceil(font.getlength(block.heading))) for block in blocks
    ]
    top = _MARGIN + 2 * (_LETTERS + 9)
    right = left + sum(widths) + _STAGE_GAP * (len(blocks) - 1)
    width = max(right, _MARGIN + math.ceil(bold.getlength(title))) + _MARGIN
    height = top + len(names) * (size[1] + _GAP) - _GAP + _MARGIN
    page = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(page)
    draw.text((_MARGIN, _MARGIN), title, "black", font=bold)
    for row, name in enumerate(names):
        middle = top + row * (size[1] + _GAP) + size[1] // 2
        draw.text((left - 10, middle), _short(name), "#333333", font=font, anchor="rm")
    x = left
    for block, block_width in zip(blocks, widths, strict=True):
        _draw_block(page, draw, block, x, block_width, top, size, font)
        x += block_width + _STAGE_GAP
    return page


def grid_of_classes(pictures: PictureSet, most: int = MOST_COLUMNS) -> tuple[Image.Image, StageBlock]:
    """One row per class and nothing else, on no ground: what it shows is said beside it.

    Args:
        pictures: the set.
        most: images of a class; the block's heading says so if there are more.
    """
    block = _block(pictures, "", most)
    width, height = _enlarged_size(pictures.images[0])
    page = Image.new("RGBA", (block.columns * (width + _GAP), len(block.rows) * (height + _GAP)))
    _paste(page, block, (0, _GAP // 2), (width, height))
    return page, block


def gantt(spans: Sequence[Span], critical: Collection[str] = ()) -> Figure:
    """Jobs as bars, one row per worker slot, seconds since the first start; the critical path is outlined."""
    slots = list(dict.fromkeys(span.slot for span in sorted(spans, key=lambda span: _natural(span.slot))))
    origin = min(span.start for span in spans)
    figure = empty_figure(9.0, 1.35 + min(0.42 * len(slots), 10.0))
    axes = figure.subplots()
    whole = max(span.end for span in spans) - origin
    for span in spans:
        _draw_span(axes, span, origin, whole, slots.index(span.slot), span.key in critical)
    axes.set_yticks(range(len(slots)), slots)
    axes.set_ylim(len(slots) - 0.45, -0.55)
    axes.set_xlim(0, whole * 1.005 or 1)
    axes.set_xlabel("seconds since the first job started")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    kinds = [kind for kind in KIND_COLOURS if any(span.kind == kind for span in spans)]
    patches = [Patch(facecolor=KIND_COLOURS[kind], label=kind) for kind in kinds]
    if critical:
        patches.append(Patch(facecolor="white", edgecolor="black", linewidth=1.2, label="critical path"))
    look: dict[str, Any] = {"frameon": False, "columnspacing": 1.2, "handlelength": 1.4}  # eight of them fit the width
    figure.legend(handles=patches, loc="outside upper center", ncols=len(patches), **look)
    return figure


def png(picture: Image.Image | Figure) -> bytes:
    """The picture as a PNG file; a figure has few colours and keeps `FIGURE_COLOURS` of them, a third of the bytes."""
    if isinstance(picture, Figure):
        drawn = io.BytesIO()
        picture.savefig(drawn, format="png")
        picture = Image.open(drawn).convert("RGB").quantize(FIGURE_COLOURS, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    picture.save(buffer, format="png", optimize=True)
    return buffer.getvalue()


def empty_figure(width: float, height: float) -> Figure:
    """An empty figure of this size in inches, with its own canvas."""
    figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _block(pictures: PictureSet, heading: str, most: int) -> StageBlock:
    """The first `most` images of each class; the heading says so if there are more."""
    by_class: list[list[Image.Image]] = [[] for _ in pictures.class_names[:MOST_CLASSES]]
    for image, number in zip(pictures.images, pictures.labels, strict=True):
        if number < len(by_class):
            by_class[number].append(image)
    longest = max(map(len, by_class), default=0)
    if longest > most:
        heading = f"{heading} ({most} of {longest} a class)".lstrip()
    return StageBlock(heading, tuple(tuple(row[:most]) for row in by_class))


def _draw_block(
    page: Image.Image,
    draw: ImageDraw.ImageDraw,
    block: StageBlock,
    left: int,
    width: int,
    top: int,
    size: tuple[int, int],
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    line = top - 7
    draw.text((left, line - 4), block.heading, "#333333", font=font, anchor="ls")
    draw.line([(left, line), (left + width - 1, line)], fill="#999999")
    _paste(page, block, (left, top), size)


def _paste(page: Image.Image, block: StageBlock, corner: tuple[int, int], size: tuple[int, int]) -> None:
    """The images of a block, each enlarged to `size`, from a corner on."""
    for row, images in enumerate(block.rows):
        for column, image in enumerate(images):
            at = (corner[0] + column * (size[0] + _GAP), corner[1] + row * (size[1] + _GAP))
            page.paste(image.convert("RGB").resize(size, Image.Resampling.NEAREST), at)


def _enlarged_size(image: Image.Image) -> tuple[int, int]:
    """Width and height after the smallest whole factor that gives 40 pixels or more."""
    factor = math.ceil(40 / max(image.size))
    return image.width * factor, image.height * factor


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _short(name: str) -> str:
    return name if len(name) <= 16 else name[:15] + "…"


def _draw_span(axes: Axes, span: Span, origin: float, whole: float, row: int, critical: bool) -> None:
    start, length = span.start - origin, span.end - span.start
    complete = span.ended in ("done", "found")
    axes.barh(
        row,
        length,
        left=start,
        height=0.74,
        color=KIND_COLOURS.get(span.kind, "#7F7F7F"),
        alpha=1.0 if complete else 0.45,
        hatch=None if complete else "////",
        edgecolor="black" if critical else "white",
        linewidth=1.2 if critical else 0.5,
        zorder=3 if critical else 2,
    )
    if span.label and length > 0.012 * len(span.label) * whole:
        look: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 8, "zorder": 4}
        axes.text(start + length / 2, row, span.label, color="white" if complete else "black", **look)


def _natural(text: str) -> tuple[tuple[int, str], ...]:
    """Sorts `worker 10` after `worker 9`."""
    digits = "".join(letter if letter.isdigit() else " " for letter in text).split()
    return (*((int(number), "") for number in digits), (0, text))
