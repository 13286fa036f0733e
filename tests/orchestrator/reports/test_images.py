from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from orchestrator.reports import images as pictures
from orchestrator.reports.images import MOST_COLUMNS, PictureSet, Span
from workers.data import synthetic_set
from workers.data.preprocess import Affine
from workers.data.synthetic_set import SyntheticSet

RED, BLUE = (255, 0, 0), (0, 0, 255)


def flat(colour: tuple[int, int, int], size: int = 8) -> Image.Image:
    return Image.new("RGB", (size, size), colour)


def picture_set(per_class: int, classes: int = 2, colour: tuple[int, int, int] = RED) -> PictureSet:
    labels = [number for number in range(classes) for _ in range(per_class)]
    return PictureSet([flat(colour) for _ in labels], labels, tuple(f"class {n}" for n in range(classes)))


def patches(page: Image.Image, colour: tuple[int, int, int]) -> np.ndarray:
    """Where the page has exactly this colour, bool [height, width]."""
    found: np.ndarray = (np.asarray(page) == colour).all(axis=2)
    return found


def test_the_grid_reads_what_the_workers_write(tmp_path: Path) -> None:
    images = torch.zeros(3, 1, 8, 8)
    images[2] = 1.0
    transform = Affine(torch.zeros(1), torch.ones(1))
    synthetic_set.write(tmp_path, SyntheticSet(images, torch.tensor([0, 0, 1]), 0.02), transform, ["zero", "one"])
    read = pictures.read_pictures(tmp_path / synthetic_set.PICTURES)
    assert (read.labels, read.class_names) == ([0, 0, 1], ("zero", "one"))
    assert [image.getextrema() for image in read.images] == [(0, 0), (0, 0), (255, 255)]


def test_small_images_are_enlarged_by_a_whole_factor_to_forty_pixels() -> None:
    page = pictures.grid_by_stage([picture_set(1)], "one stage")
    red = patches(page, RED)
    assert red.sum() == 2 * 40 * 40
    assert red.any(axis=0).sum() == 40


def test_every_image_keeps_its_pixels_when_enlarged() -> None:
    board = np.indices((8, 8)).sum(axis=0) % 2 * 255
    image = Image.fromarray(board.astype(np.uint8))
    page = pictures.grid_by_stage([PictureSet([image], [0], ("a",))], "checkers")
    squares = np.kron(board, np.ones((5, 5)))
    grey = np.asarray(page.convert("L"))
    places = np.lib.stride_tricks.sliding_window_view(grey, squares.shape)
    assert (places == squares).all(axis=(2, 3)).any()


def test_rows_are_classes_and_stages_stand_apart() -> None:
    page = pictures.grid_by_stage([picture_set(2, colour=RED), picture_set(2, colour=BLUE)], "two stages")
    red, blue = patches(page, RED), patches(page, BLUE)
    assert red.sum() == blue.sum() == 2 * 2 * 40 * 40
    assert (red.any(axis=1) == blue.any(axis=1)).all()
    first, second = np.flatnonzero(red.any(axis=0)), np.flatnonzero(blue.any(axis=0))
    between_images = 40 + pictures._GAP
    assert first[40] - first[0] == between_images
    assert second[0] - first[-1] > pictures._GAP + 10


def test_a_grid_shows_ten_classes_and_as_many_images_as_fit_a_page() -> None:
    page = pictures.grid_by_stage([picture_set(12, classes=11), picture_set(12, classes=11)], "wide")
    assert patches(page, RED).sum() == 10 * MOST_COLUMNS * 40 * 40


def test_only_some_classes_are_kept_with_their_names() -> None:
    chosen = picture_set(2, classes=4).only(["class 3", "class 1"])
    assert (chosen.labels, chosen.class_names) == ([0, 0, 1, 1], ("class 1", "class 3"))


def test_where_the_classes_are_others_the_second_and_third_stand_in() -> None:
    assert picture_set(1, classes=4).only(["automobile", "bird"]).class_names == ("class 1", "class 2")


def test_a_class_without_images_in_one_stage_leaves_its_row_empty() -> None:
    lonely = PictureSet([flat(RED)], [1], ("zero", "one"))
    assert patches(pictures.grid_by_stage([lonely], "one image"), RED).sum() == 40 * 40


def test_a_grid_for_a_page_has_images_and_no_ground_in_rows_of_equal_height() -> None:
    page, block = pictures.grid_of_classes(picture_set(3, classes=2), most=2)
    assert block.heading == "(2 of 3 a class)"
    assert page.mode == "RGBA" and page.height % 2 == 0
    for half in (page.crop((0, 0, page.width, page.height // 2)), page.crop((0, page.height // 2, *page.size))):
        colours = dict((colour, count) for count, colour in half.getcolors() or [])
        assert colours[(*RED, 255)] == 2 * 40 * 40
        assert {colour[3] for colour in colours if isinstance(colour, tuple)} == {0, 255}


def test_a_png_opens_with_the_size_of_the_picture() -> None:
    page = pictures.grid_by_stage([picture_set(1)], "title")
    opened = Image.open(io.BytesIO(pictures.png(page)))
    assert (opened.format, opened.size) == ("PNG", page.size)


def test_the_gantt_has_a_row_a_slot_in_their_natural_order() -> None:
    spans = [
        Span("evaluate-b", "evaluate", "worker 10", 5.0, 7.0),
        Span("distil-a", "distil", "worker 9", 2.0, 10.0, "lost", "2"),
    ]
    figure = pictures.gantt(spans, {"distil-a"})
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["worker 9", "worker 10"]
    bars = {(bar.get_x(), bar.get_width(), round(bar.get_y() + bar.get_height() / 2)) for bar in axes.patches}
    assert bars == {(3.0, 2.0, 1), (0.0, 8.0, 0)}
    assert Image.open(io.BytesIO(pictures.png(figure))).width == 9 * 150


def test_the_legend_of_the_gantt_is_whole_with_every_kind_of_job() -> None:
    spans = [Span(f"{kind}-a", kind, "w", n, n + 1.0) for n, kind in enumerate(pictures.KIND_COLOURS)]
    figure = pictures.gantt(spans, {"distil-a"})
    figure.canvas.draw()
    legend = figure.legends[0].get_window_extent()
    assert 0 <= legend.x0 < legend.x1 <= figure.bbox.width


@pytest.mark.parametrize("ended", ["done", "lost"])
def test_only_bars_without_an_artifact_are_hatched(ended: str) -> None:
    figure = pictures.gantt([Span("full-a", "full", "w", 0.0, 1.0, ended)])
    assert bool(figure.axes[0].patches[0].get_hatch()) == (ended == "lost")
